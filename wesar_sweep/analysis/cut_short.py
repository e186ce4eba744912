"""What a pruner left of a search: the cells it ended, where they stood, and the best whole one.

The loss at which a cell was ended is the pruner's own figure as near as the outcomes and curves
tell it: the mean over the cell's runs, at the step where the first of them was ended, of min(loss,
initial loss); a run that had diverged by then counts at its initial loss.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.cells import ranked, with_capped_loss
from wesar_sweep.analysis.results import Analysis
from wesar_sweep.config.listed import cell_of
from wesar_sweep.store.finished_search import CutCell, WholeCell
from wesar_sweep.store.rows import Curve


def cut_cells(search: Analysis) -> list[CutCell]:
    """The settings that the pruner ended and that ran to the end in no other trial, by trial.

    A setting that was asked for again counts once, as it stands furthest: equal settings and seeds
    give equal runs.

    Raises:
        ValueError: An outcome belongs to no cell of the study's space.
    """
    runs = with_capped_loss(search.raw_outcomes, study=search.study).sort("trial", "seed")
    found: dict[str, CutCell] = {}
    whole: set[str] = set()
    for (trial,), part in runs.group_by(["trial"], maintain_order=True):
        key = _key(search, part.row(0, named=True))
        if not (part["status"] == "pruned").any():
            if (part["status"] != "failed").any():
                whole.add(key)
            continue
        step, loss, n = _when_cut(search, part)
        known = found.get(key)
        if known is None or step > known.step:
            params = cell_of(search.study, part.row(0, named=True))
            found[key] = CutCell(trial=int(str(trial)), params=params, step=step, loss=loss, n=n)
    left = [cell for key, cell in found.items() if key not in whole]
    return sorted(left, key=lambda cell: cell.trial)


def best_whole_cells(search: Analysis) -> list[WholeCell]:
    """Of each method the cell with the least mean loss that no pruner cut short, best first."""
    cells = ranked(search.cells.filter((pl.col("pruned") == 0) & (pl.col("n") > 0)))
    return [
        WholeCell(
            trial=row["trial"],
            params=cell_of(search.study, row),
            loss=row["loss"],
            loss_low=row["loss_low"],
            loss_high=row["loss_high"],
            seeds=tuple(row["seeds"]),
            losses=tuple(row["losses"]),
        )
        for row in cells.unique("method", keep="first", maintain_order=True).iter_rows(named=True)
    ]


def _key(search: Analysis, row: dict[str, Any]) -> str:
    """What makes two trials one setting: the searched knobs as the runs have them."""
    return json.dumps([row[knob] for knob in search.study.space])


def _when_cut(search: Analysis, runs: pl.DataFrame) -> tuple[int, float | None, int]:
    """Step, mean loss there, and of how many runs."""
    trained = runs.filter((pl.col("status") != "failed") & (pl.col("steps_trained") > 0))
    ended = trained.filter(pl.col("status") == "pruned")["steps_trained"]
    if ended.is_empty():
        # Its other seeds were never started: it is judged by those that ran to the end.
        ended = trained["steps_trained"]
    step = int(ended.min() or 0)  # type: ignore[arg-type]
    losses = [
        loss
        for row in trained.iter_rows(named=True)
        if (loss := _loss_at(row, search.curves.get((row["trial"], row["seed"])), step)) is not None
    ]
    return step, (float(np.mean(losses)) if losses else None), len(losses)


def _loss_at(row: dict[str, Any], curve: Curve | None, step: int) -> float | None:
    """min(loss, initial loss) of a run after so many steps; None where nothing is known of it."""
    start = float(row["start_loss"])
    if curve is not None and len(places := np.flatnonzero(curve.eval_step == step)):
        loss = float(curve.eval_loss[places[-1]])
    elif row["status"] == "diverged" and row["steps_trained"] <= step:
        return start
    elif row["steps_trained"] == step and row["val_loss"] is not None:
        loss = float(row["val_loss"])
    else:
        return None
    return min(loss, start) if math.isfinite(loss) else start
