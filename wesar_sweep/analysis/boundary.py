"""The boundaries that a search has found: where runs begin to diverge, and what the search saved.

One boundary a series, as `wesar_sweep.stability.boundary` defines it. `MEASURED` is what searches
on invented truths came to: over 4 decades at the default resolution of 0.2, 3 seeds a value and at
most 12 values. A wide bar that ended at the most values is a shallow boundary, no failed search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from wesar_sweep.analysis.axes import Axes, series_label
from wesar_sweep.config.boundary import BoundarySearch, boundary_search
from wesar_sweep.config.run import make_run
from wesar_sweep.config.study import Study
from wesar_sweep.stability.boundary import Known, Tried, known, scale_of
from wesar_sweep.store.frames import KNOBS
from wesar_sweep.store.searched import SearchedRun, Step, steps_by_series

SCHEMA = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("along", pl.String()),
        ("boundary", pl.Float64()),
        ("low", pl.Float64()),
        ("high", pl.Float64()),
        ("below", pl.Float64()),
        ("above", pl.Float64()),
        ("stable", pl.Float64()),
        ("stable_n", pl.Int64()),
        ("cells", pl.Int64()),
        ("runs", pl.Int64()),
        ("n", pl.Int64()),
        ("diverged", pl.Int64()),
        ("grid_runs", pl.Int64()),
        ("ended", pl.String()),
    ]
)
"""Values are of the knob ``along``: ``boundary`` the posterior median with its 95 % interval
``low`` to ``high``, null before any run has ended. ``below`` and ``above`` say how likely it lies
beyond the least or the largest value that may be tried; an end of the interval beyond these is
taken from what is supposed there, not from runs. ``stable`` is the largest tried value at and below
which no run diverged, ``stable_n`` the counted runs at it. ``runs`` have ended, of which ``n``
count: all but the failed ones. ``grid_runs`` is what a grid of the same resolution would have
trained. ``ended`` says why the search ended; null while it goes on. Then the series' knobs."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a search came to over invented truths of one slope."""

    slope: float
    """Decades; from 1 in 10 to 9 in 10 diverging it takes 4.4 slopes."""
    coverage: float
    """Share of the 95 % intervals that hold the truth."""
    width: float
    """Mean width of the interval, in decades."""
    runs: float
    """Mean runs a boundary."""
    grid_coverage: float
    """Likewise of a grid of the same resolution, by the same rule."""
    grid_width: float
    grid_runs: float


MEASURED: tuple[Measured, ...] = (
    Measured(0.01, 1.000, 0.17, 21.7, 1.000, 0.25, 63),
    Measured(0.05, 0.996, 0.18, 28.3, 0.981, 0.28, 63),
    Measured(0.1, 0.979, 0.26, 33.3, 0.943, 0.34, 63),
    Measured(0.2, 0.945, 0.41, 35.4, 0.932, 0.47, 63),
)
"""By ``benchmarks/boundary_search.py``, 1,000 studies a slope: a share is known to 0.7 points."""


def pending_cells(outcomes: pl.DataFrame, *, study: Study, search: BoundarySearch) -> int:
    """Cells that a search has asked for so far: those with a result, and the steps that are due."""
    found = 0
    for steps in _steps(outcomes, study=study, search=search):
        waits = any(step.ended < study.least_replicates for step in steps)
        goes_on = not waits and _known(steps, study=study, search=search).ended is None
        found += len(steps) + goes_on
    return found


def boundaries(outcomes: pl.DataFrame, *, study: Study, layout: Axes) -> pl.DataFrame:
    """The boundary of every series, highest first.

    Args:
        outcomes: One row a run.
        study: The study; without a boundary search there is no row.
        layout: `axes(study)`.

    Returns:
        Columns as `SCHEMA` says, then those of the knobs that tell the series apart.
    """
    search = boundary_search(study)
    knobs = [] if search is None else [k for k in study.space if k not in (search.along, "method")]
    schema = pl.Schema([*SCHEMA.items(), *((knob, outcomes.schema[knob]) for knob in knobs)])
    rows: list[dict[str, object]] = []
    if search is not None:
        every = _steps(outcomes, study=study, search=search)
        for params, steps in zip(search.series, every, strict=True):
            columns = make_run(
                study, 0, study.first_seed, {**params, search.along: search.values[0]}
            ).columns()
            row = _row(steps, study=study, search=search)
            row |= {"series": series_label(columns, layout.series), "method": columns["method"]}
            rows.append(row | {knob: columns[knob] for knob in knobs})
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.sort("boundary", "series", descending=[True, False], nulls_last=True)


def _row(steps: list[Step], *, study: Study, search: BoundarySearch) -> dict[str, object]:
    found = _known(steps, study=study, search=search)
    counted = any(step.n for step in steps)
    value, stable = search.value, _stable(steps)
    return {
        "along": search.along,
        "boundary": value(found.median) if counted else None,
        "low": value(found.low) if counted else None,
        "high": value(found.high) if counted else None,
        "below": found.below if counted else None,
        "above": found.above if counted else None,
        "stable": stable,
        "stable_n": sum(step.n for step in steps if step.value == stable),
        "cells": len(steps),
        "runs": sum(step.ended for step in steps),
        "n": sum(step.n for step in steps),
        "diverged": sum(step.diverged for step in steps),
        "grid_runs": search.grid_values * study.least_replicates,
        "ended": found.ended,
    }


def _stable(steps: list[Step]) -> float | None:
    lost = min((step.value for step in steps if step.diverged), default=None)
    held = [step.value for step in steps if step.n and (lost is None or step.value < lost)]
    return max(held, default=None)


def _known(steps: list[Step], *, study: Study, search: BoundarySearch) -> Known:
    # A step that still trains tells what it has.
    tried = tuple(Tried(search.place(step.value), step.n, step.diverged) for step in steps)
    return known(tried, scale_of(search, seeds=study.least_replicates))


def _steps(outcomes: pl.DataFrame, *, study: Study, search: BoundarySearch) -> list[list[Step]]:
    final = outcomes.filter((pl.col("status") != "failed") | (pl.col("attempt") > study.retries))
    runs = (
        SearchedRun(row["trial"], row["seed"], row["status"], _knobs(row))
        for row in final.select("trial", "seed", "status", *KNOBS).iter_rows(named=True)
    )
    return steps_by_series(runs, study=study, search=search)


def _knobs(row: Mapping[str, object]) -> dict[str, bool | int | float | str | None]:
    return {knob: row[knob] for knob in KNOBS}  # type: ignore[misc]
