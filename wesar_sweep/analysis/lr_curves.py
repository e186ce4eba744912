"""A series along its axis: the loss at each place, and the seeds behind it.

Named for the axis that nearly every study has; where lr is not searched the axis is another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.cells import one_cell_a_place, with_capped_loss
from wesar_sweep.analysis.intervals import Matrix, Vector, resamples
from wesar_sweep.config.study import Study

_COLUMNS = (
    "series",
    "method",
    "trial",
    "n",
    "diverged",
    "rate",
    "rate_low",
    "rate_high",
    "loss",
    "loss_low",
    "loss_high",
    "ppl",
    "bpb",
    "start_loss",
)


@dataclass(frozen=True, slots=True)
class SeriesLosses:
    """One series as arrays. L places along the axis, n seeds."""

    series: str
    method: str
    axis_L: Vector
    """Axis values, ascending."""
    seeds: tuple[int, ...]
    loss_Ln: Matrix
    """Capped losses; NaN where a place lacks the seed."""
    start_loss: float
    """Mean initial loss."""

    @property
    def mean_L(self) -> Vector:
        """The loss of each cell: its mean over seeds."""
        return np.asarray(np.nanmean(self.loss_Ln, axis=1))

    def resampled(self) -> Matrix:
        """[B, L] the means of every resample of the seeds, the same seeds at every place.

        A place none of whose seeds is in a resample keeps its own mean there.
        """
        known = np.isfinite(self.loss_Ln)
        weights = resamples(len(self.seeds)).weights
        total = weights @ np.where(known, self.loss_Ln, 0.0).T
        count = weights @ known.T.astype(np.float64)
        return np.where(count > 0, total / np.maximum(count, 1), self.mean_L)


def lr_curves(cells: pl.DataFrame, *, layout: Axes) -> pl.DataFrame:
    """The cells of a grid as lines: one row a (series, axis value), ascending along the axis.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        layout: `axes(study)`.

    Returns:
        The axis under its YAML name, then series, method, trial, n, diverged, the rate and the loss
        with their intervals, and the mean initial loss. No row where nothing is searched along an
        axis. Cells without a counted run are left out.
    """
    if layout.axis is None:
        return cells.clear().select(*_COLUMNS)
    found = cells.filter(pl.col("n") > 0)
    if layout.gridded:
        found = one_cell_a_place(found, layout=layout)
    return found.select(layout.axis, *_COLUMNS).sort("series", layout.axis)


def seed_points(
    outcomes: pl.DataFrame, cells: pl.DataFrame, *, study: Study, layout: Axes
) -> pl.DataFrame:
    """Every counted run as a point, diverged ones at their capped loss.

    Returns:
        The axis under its YAML name, then trial, seed, capped_loss, val_loss, status, diverged_at,
        reason, series and method.
    """
    runs = with_capped_loss(outcomes, study=study).filter("counted")
    keep = ["trial", "seed", "capped_loss", "val_loss", "status", "diverged_at", "reason"]
    if layout.axis is not None:
        keep.insert(0, layout.axis)
    named = cells.select("trial", "series", "method")
    return runs.select(keep).join(named, on="trial", how="left").sort("series", "trial", "seed")


def series_losses(cells: pl.DataFrame, *, layout: Axes) -> list[SeriesLosses]:
    """Every series of a grid as arrays, in the order of their trials; empty without an axis."""
    if layout.axis is None or not layout.gridded:
        return []
    found = one_cell_a_place(cells.filter(pl.col("n") > 0), layout=layout)
    order = found.group_by("series").agg(pl.col("trial").min()).sort("trial")["series"]
    return [_arrays(found.filter(pl.col("series") == name), layout.axis) for name in order]


def _arrays(part: pl.DataFrame, axis: str) -> SeriesLosses:
    part = part.sort(axis)
    seeds = sorted({seed for found in part["seeds"] for seed in found})
    loss_Ln = np.full((part.height, len(seeds)), np.nan)
    for place, (found, losses) in enumerate(zip(part["seeds"], part["losses"], strict=True)):
        for seed, loss in zip(found, losses, strict=True):
            loss_Ln[place, seeds.index(seed)] = loss
    start = part["start_loss"].mean()
    return SeriesLosses(
        series=str(part["series"][0]),
        method=str(part["method"][0]),
        axis_L=part[axis].cast(pl.Float64).to_numpy(),
        seeds=tuple(seeds),
        loss_Ln=loss_Ln,
        start_loss=float(start) if isinstance(start, float) else float("nan"),
    )
