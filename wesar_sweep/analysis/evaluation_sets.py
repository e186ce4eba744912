"""The best cell of every line at every size, on every evaluation set: what Tables 5 and 6 hold.

The validation set is there always, other sets where outcomes have a column for them (losses in nats
a token, `wesar_sweep.store.frames.EVALUATION_PREFIX`). A line is a method with its other searched
knobs but for size; its best cell at a size is the best by validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes, searched_knobs
from wesar_sweep.analysis.cells import ranked, with_capped_loss
from wesar_sweep.analysis.intervals import Vector, student_mean
from wesar_sweep.analysis.sizes import SIZE_KNOBS, architecture_of, line_label
from wesar_sweep.config.parameter_count import model_parameters, trained_parameters
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import EVALUATION_PREFIX

VALIDATION = "validation"


def evaluation_sets(outcomes: pl.DataFrame) -> tuple[str, ...]:
    """The names of all evaluation sets, `VALIDATION` first."""
    further = [c for c in outcomes.columns if c.startswith(EVALUATION_PREFIX)]
    return (VALIDATION, *(column.removeprefix(EVALUATION_PREFIX) for column in further))


def searched_sizes(study: Study) -> tuple[str, ...]:
    """The size knobs that the study searches, its axis among them where that is one."""
    return tuple(knob for knob in SIZE_KNOBS if knob in searched_knobs(study))


def best_evaluations(
    outcomes: pl.DataFrame, cells: pl.DataFrame, *, study: Study, layout: Axes
) -> pl.DataFrame:
    """One row a (line, size, evaluation set), lines in the order of their trials.

    Each run is capped at its initial validation loss first, on other sets too, whose loss before
    training is not measured; a loss that is not finite, or missing because the run diverged, counts
    as that.

    Args:
        outcomes: One row a run.
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: The study.
        layout: `axes(study)`.

    Returns:
        line, series, trial, method, the searched size knobs, the axis, parameters of the model and
        those that are trained, n, diverged, evaluation, loss and ppl with their intervals. A loss
        is null where a completed run was not evaluated on the set.
    """
    sizes = searched_sizes(study)
    along = () if layout.axis is None or layout.axis in sizes else (layout.axis,)
    runs = with_capped_loss(outcomes, study=study).filter("counted")
    best: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in ranked(cells).iter_rows(named=True):
        best.setdefault((line_label(row, layout), *(row[knob] for knob in sizes)), row)
    order = [line_label(row, layout) for row in cells.sort("trial").iter_rows(named=True)]
    lines = list(dict.fromkeys(order))
    found: list[dict[str, Any]] = []
    for key in sorted(best, key=lambda key: (lines.index(str(key[0])), *key[1:])):
        row = best[key]
        architecture = architecture_of(row, study)
        common = {
            "line": key[0],
            **{name: row[name] for name in ("series", "trial", "method", *sizes, *along)},
            "parameters": model_parameters(architecture),
            "trained_parameters": trained_parameters(
                architecture, study.method_parts(row["method"])
            ),
            **{name: row[name] for name in ("n", "diverged")},
        }
        own = runs.filter(pl.col("trial") == row["trial"]).sort("seed")
        for name in evaluation_sets(outcomes):
            figures = _figures(_losses(own, name), highest=own["start_loss"].max())  # type: ignore[arg-type]
            found.append(common | {"evaluation": name} | figures)
    return pl.DataFrame(found, infer_schema_length=None)


def _losses(runs: pl.DataFrame, name: str) -> Vector | None:
    """Capped losses of the counted runs on one set; None where one was not measured."""
    if name == VALIDATION:
        return runs["capped_loss"].to_numpy()
    column = runs[EVALUATION_PREFIX + name]
    if runs.filter((pl.col("status") == "completed") & column.is_null()).height:
        return None
    start: Vector = runs["start_loss"].to_numpy()
    loss = column.fill_null(math.inf).to_numpy()
    return np.where(np.isfinite(loss), np.minimum(loss, start), start)


def _figures(losses: Vector | None, *, highest: float) -> dict[str, float | None]:
    names = ("loss", "loss_low", "loss_high")
    values: Sequence[float | None] = (None, None, None)
    if losses is not None and len(losses):
        spread = student_mean(losses, least=0.0, most=highest)
        ends = (spread.low, spread.high) if spread else (None, None)
        values = (float(losses.mean()), *ends)
    figures = dict(zip(names, values, strict=True))
    exp = {
        name.replace("loss", "ppl"): None if value is None else math.exp(min(value, 700.0))
        for name, value in figures.items()
    }
    return figures | exp
