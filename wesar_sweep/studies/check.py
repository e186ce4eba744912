"""Can Optuna do what this study asks? Answered before anything is created."""

from __future__ import annotations

from wesar_sweep.config.study import Study
from wesar_sweep.errors import ConfigError
from wesar_sweep.studies.pruners import pruner_problems
from wesar_sweep.studies.samplers import sampler_problems


def check(study: Study) -> None:
    """Refuse a sampler or pruner that is not installed or has wrong options.

    Raises:
        ConfigError: With every problem found, the allowed options and the nearest right spelling.
    """
    problems = [*sampler_problems(study), *pruner_problems(study)]
    if problems:
        raise ConfigError(problems)
