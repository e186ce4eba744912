"""Optuna's pruners by their names in a study file."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner

from wesar_sweep.config.study import Study
from wesar_sweep.errors import Problem
from wesar_sweep.studies.options import build, option_problems

PRUNERS: dict[str, type[BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "sha": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}


def judges_replicates(study: Study) -> bool:
    """Whether the pruner compares finished replicates instead of the loss during training."""
    return study.pruner is not None and study.pruner.name == "wilcoxon"


def build_pruner(study: Study) -> BasePruner:
    """The study's pruner; one that never prunes where the study has none."""
    if study.pruner is None:
        return NopPruner()
    options: dict[str, Any] = dict(study.pruner.options)
    if study.pruner.name == "hyperband" and "steps" not in study.space:
        # Otherwise Optuna waits for the first whole run to learn what the study says already.
        options.setdefault("max_resource", study.training.steps)
    return build(PRUNERS[study.pruner.name], options=options)  # type: ignore[no-any-return]


def pruner_problems(study: Study) -> list[Problem]:
    """All that keeps this study's pruner from working; nothing is created."""
    if study.pruner is None:
        return []
    if len(study.objectives) > 1:
        return [
            Problem(
                "Optuna prunes studies of one objective only",
                path="pruner",
                value=repr(study.pruner.name),
                hint="remove the pruner, or all objectives but one",
            )
        ]
    if study.objectives != ("val_loss",):
        return [
            Problem(
                "a pruner judges the validation loss, which is not this study's objective",
                path="pruner",
                value=repr(study.pruner.name),
                hint="remove the pruner, or set objectives: [val_loss]",
            )
        ]
    kind = PRUNERS[study.pruner.name]
    problems = option_problems(kind, options=study.pruner.options, path="pruner.options")
    if not problems:
        try:
            build_pruner(study)
        except (ValueError, TypeError) as error:
            problems = [Problem(str(error), path="pruner.options")]
    return problems
