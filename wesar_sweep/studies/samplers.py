"""Optuna's samplers by their names in a study file."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from wesar_sweep.config.study import Study
from wesar_sweep.errors import Problem
from wesar_sweep.studies.options import build, option_problems
from wesar_sweep.studies.space import has_conditions

SAMPLERS: dict[str, type[BaseSampler]] = {
    # The cells of both are enqueued once; nothing is ever drawn (GridSampler repeats points).
    "grid": optuna.samplers.RandomSampler,
    "listed": optuna.samplers.RandomSampler,
    # Likewise its steps, one after another (`studies.searching`).
    "boundary": optuna.samplers.RandomSampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
    "qmc": optuna.samplers.QMCSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
_MODULES = {"cmaes": ("cmaes",), "gp": ("torch", "scipy"), "qmc": ("scipy",)}
"""What a sampler needs beyond Optuna."""

_EXTRAS = {"cmaes": "wesar-sweep[cmaes]"}
"""Module -> what brings it, where it is not the package of that name."""


INDIFFERENT = frozenset({"grid", "listed", "random", "qmc"})
"""Samplers whose draws do not depend on any result."""


def ignores_constraints(name: str) -> bool:
    """Whether the sampler warns about constraints instead of using or passing over them."""
    return name == "cmaes"


def build_sampler(study: Study, *, number: int) -> BaseSampler:
    """The sampler that draws one trial.

    The draw depends on the study's sampler seed, the trial's number and the trials before it, not
    on the worker: workers that shared one seed would draw the same cells, and a resumed study would
    draw its first cells again.

    Args:
        study: The study.
        number: Number of the trial that is drawn.
    """
    name = study.sampler.name
    seed = int(np.random.SeedSequence([study.sampler.seed, number]).generate_state(1)[0])
    options: dict[str, Any] = {"seed": seed, **study.sampler.options}
    independent = optuna.samplers.RandomSampler(seed=seed)
    if name == "qmc":
        # Its points are numbered in the storage; every draw must be of the same sequence.
        options.update(
            seed=study.sampler.seed,
            independent_sampler=independent,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )
    elif name in ("cmaes", "gp"):
        options.update(independent_sampler=independent, warn_independent_sampling=False)
    elif name == "tpe" and has_conditions(study) and len(study.objectives) == 1:
        # Without groups, knobs under a condition would be drawn without regard to the others.
        options.setdefault("group", options.get("multivariate") is not False)
    elif not study.sampler.draws:
        options = {"seed": seed}
    return build(SAMPLERS[name], options=options)  # type: ignore[no-any-return]


def sampler_problems(study: Study) -> list[Problem]:
    """All that keeps this study's sampler from working here; nothing is created."""
    name = study.sampler.name
    if name == "boundary":
        # All that can be wrong with it was looked at when the study was read.
        return []
    if not study.sampler.draws:
        return [
            Problem(
                "the grid has no options"
                if name == "grid"
                else f"the sampler {name} has no options",
                path=f"sampler.options.{option}",
                value=repr(value),
                hint="remove it, or choose another sampler",
            )
            for option, value in study.sampler.options.items()
        ]
    problems = [
        Problem(
            f"the sampler needs the Python package {module}, which is not installed",
            path="sampler.name",
            value=repr(name),
            hint=f"pip install '{_EXTRAS.get(module, module)}'",
        )
        for module in _MODULES.get(name, ())
        if importlib.util.find_spec(module) is None
    ]
    if name == "cmaes" and len(study.objectives) > 1:
        problems.append(
            Problem(
                "CMA-ES knows one objective only",
                path="objectives",
                value=repr(list(study.objectives)),
                hint="use tpe, gp or nsga2",
            )
        )
    wrong = option_problems(SAMPLERS[name], options=study.sampler.options, path="sampler.options")
    if not wrong and not problems:
        try:
            build_sampler(study, number=0)
        except (ValueError, TypeError) as error:
            wrong = [Problem(str(error), path="sampler.options")]
    return problems + wrong
