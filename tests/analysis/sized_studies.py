"""Studies of several sizes whose losses and fates are given by functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from invented_study import LRS, invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Outcome

WIDTHS = [16, 32, 64]


def sized_study(**changes: Any) -> Study:
    space = {"width": WIDTHS, "depth": [1, 3], "method": ["he", "wesar"], "lr": LRS}
    return lr_study(**{"space": space, "replicates": 3, **changes})


def with_losses(
    study: Study,
    loss_of: Callable[[dict[str, Any], int], float],
    *,
    status: Callable[[dict[str, Any], int], str] | None = None,
) -> Analysis:
    """Every run of the grid, its loss and status by its knobs and seed; a diverged one has none."""
    outcomes, _ = invent(study, with_curves=False)
    rows: list[Outcome] = []
    for row in outcomes:
        knobs = dict(row.hyperparameters)
        fate = status(knobs, row.seed) if status else "completed"
        loss = loss_of(knobs, row.seed) if fate == "completed" else math.nan
        rows.append(replace(row, status=fate, val_loss=loss))  # type: ignore[arg-type]
    return Analysis(study, outcomes_frame(rows))


def best_log_lr(knobs: dict[str, Any]) -> float:
    """He's best lr falls with width; WeSaR's stays."""
    return -2.5 if knobs["method"] == "wesar" else -2.5 - math.log10(knobs["width"] / 16)


def parabola(knobs: dict[str, Any], seed: int) -> float:
    return float(2 + 0.1 * (math.log10(knobs["lr"]) - best_log_lr(knobs)) ** 2 + 0.001 * seed)
