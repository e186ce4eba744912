"""A series along its axis: the loss at each place, and the seeds behind it.

Named for the axis that nearly every study has; where lr is not searched the axis is another number.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.cells import one_cell_a_place, with_capped_loss, without_count
from wesar_sweep.analysis.intervals import Interval, Matrix, Vector, percentile_interval, resamples
from wesar_sweep.config.study import Study

_COLUMNS = (
    "series",
    "method",
    "trial",
    "effective_lr",
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
    """One series as arrays. L places along the axis with a counted run (may be 0), n seeds."""

    series: str
    method: str
    axis_L: Vector
    """Axis values, ascending."""
    seeds: tuple[int, ...]
    loss_Ln: Matrix
    """Capped losses; NaN where a place lacks the seed."""
    start_loss: float
    """Mean initial loss."""
    lost: Vector = field(default_factory=lambda: np.zeros(0))
    """Axis values, ascending, that were tried and have no counted run: pruned or failed there."""
    lost_words: str = ""
    """Why, and how many: ``pruned or failed (3 cells)``; empty for none."""
    to_come: int = 0
    """Places of the study's grid at which no run of this series has ended."""
    diverged_Ln: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    """1 where the run diverged, 0 where it completed, NaN where a place lacks the seed."""

    @property
    def n(self) -> int:
        """The fewest seeds of any place: what a figure over all places rests on; 0 without one."""
        return int(np.isfinite(self.loss_Ln).sum(axis=1).min()) if len(self.axis_L) else 0

    @property
    def one_seed_words(self) -> str:
        """Why there is no interval where `n` is 1."""
        return f"{'one seed' if len(self.seeds) < 2 else 'one seed at some lr'}: no interval"

    def interval(self, samples: Vector) -> Interval | None:
        """The interval of a figure of all places, computed once a resample of `resampled`.

        Its tail is that of `n` seeds: adaptive replicates give some places many more than others,
        and the union of them would make the interval too narrow.
        """
        return percentile_interval(samples, n=len(self.seeds), least=self.n)

    @property
    def mean_L(self) -> Vector:
        """The loss of each cell: its mean over seeds."""
        return np.asarray(np.nanmean(self.loss_Ln, axis=1))

    def resampled(self) -> Matrix:
        """[B, L] the means of every resample of the seeds, the same seeds at every place.

        A place none of whose seeds is in a resample keeps its own mean there.
        """
        return _resampled_means(self.loss_Ln)

    def resampled_rate(self) -> Matrix:
        """[B, L] the divergence rates of the same resamples."""
        return _resampled_means(self.diverged_Ln)

    def over(self, seeds: tuple[int, ...]) -> SeriesLosses:
        """The same series among more seeds, of which it lacks some.

        Series over the same seeds are resampled together: resample b of one has the seeds of
        resample b of the other, as a figure made of several series needs them.
        """
        assert set(self.seeds) <= set(seeds), (self.seeds, seeds)
        own = [seeds.index(seed) for seed in self.seeds]
        wide_Ln = []
        for values_Ln in (self.loss_Ln, self.diverged_Ln):
            wide = np.full((len(values_Ln), len(seeds)), np.nan)
            wide[:, own] = values_Ln
            wide_Ln.append(wide)
        return replace(self, seeds=seeds, loss_Ln=wide_Ln[0], diverged_Ln=wide_Ln[1])


def _resampled_means(values_Ln: Matrix) -> Matrix:
    known = np.isfinite(values_Ln)
    weights = resamples(values_Ln.shape[1]).weights
    total = weights @ np.where(known, values_Ln, 0.0).T
    count = weights @ known.T.astype(np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nanmean(values_Ln, axis=1))


def lr_curves(cells: pl.DataFrame, *, layout: Axes) -> pl.DataFrame:
    """The cells of a grid as lines: one row a (series, axis value), ascending along the axis.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        layout: `axes(study)`.

    Returns:
        The axis under its YAML name, then series, method, trial, the effective lr, n, diverged, the
        rate and the loss with their intervals, and the mean initial loss. No row where nothing is
        searched along an axis. Cells without a counted run are left out.
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
        reason, series, method and effective_lr.
    """
    runs = with_capped_loss(outcomes, study=study).filter("counted")
    keep = ["trial", "seed", "capped_loss", "val_loss", "status", "diverged_at", "reason"]
    if layout.axis is not None:
        keep.insert(0, layout.axis)
    named = cells.select("trial", "series", "method", "effective_lr")
    return runs.select(keep).join(named, on="trial", how="left").sort("series", "trial", "seed")


def series_losses(cells: pl.DataFrame, *, layout: Axes) -> list[SeriesLosses]:
    """Every series of a grid as arrays, in the order of their trials; empty without an axis.

    Cells without a counted run have no loss, but are not forgotten: see `SeriesLosses.lost`.
    """
    if layout.axis is None or not layout.gridded:
        return []
    found = one_cell_a_place(cells, layout=layout)
    order = found.group_by("series").agg(pl.col("trial").min()).sort("trial")["series"]
    places = len(layout.axis_values)
    return [_arrays(found.filter(pl.col("series") == s), layout.axis, places) for s in order]


def _arrays(tried: pl.DataFrame, axis: str, places: int) -> SeriesLosses:
    tried = tried.sort(axis)
    part = tried.filter(pl.col("n") > 0)
    seeds = sorted({seed for found in part["seeds"] for seed in found})
    loss_Ln = np.full((part.height, len(seeds)), np.nan)
    diverged_Ln = loss_Ln.copy()
    rows = part.select("seeds", "losses", "diverged_seeds").rows()
    for place, (found, losses, diverged) in enumerate(rows):
        for seed, loss in zip(found, losses, strict=True):
            loss_Ln[place, seeds.index(seed)] = loss
            diverged_Ln[place, seeds.index(seed)] = seed in diverged
    start = part["start_loss"].mean()
    return SeriesLosses(
        series=str(tried["series"][0]),
        method=str(tried["method"][0]),
        axis_L=part[axis].cast(pl.Float64).to_numpy(),
        seeds=tuple(seeds),
        loss_Ln=loss_Ln,
        start_loss=float(start) if isinstance(start, float) else float("nan"),
        lost=tried.filter(pl.col("n") == 0)[axis].cast(pl.Float64).to_numpy(),
        lost_words=without_count(tried),
        to_come=places - tried.height,
        diverged_Ln=diverged_Ln,
    )
