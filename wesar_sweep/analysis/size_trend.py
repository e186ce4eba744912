"""How steeply best lr, basin and largest stable lr move with the size of the model.

The slope is that of the least-squares line through the figure, one point a size, against log10 of
the size knob; every figure is in decades of lr, so a slope is in decades a decade. 0 means that the
figure transfers, −1 that it falls as 1/size. The interval is a bootstrap over seeds, which are the
same seeds at every size (runs of one seed share their batches): a resample takes them together at
every lr and size, so that what a seed does alike everywhere is in no slope.

A size at which the grid of lr only bounds the figure is left out: a slope through bounds would be
drawn towards 0, which is what transfer looks like. The best lr is taken between grid points here:
the least of the parabola through the lowest cell mean and its two neighbours, in log lr. The
largest stable lr is no finer than the grid: each may lie anywhere in a gap below the next lr, so
that a slope may be off by up to `resolution`, which is added to its interval at each end. Neither
interval holds how well a straight line, or a parabola, fits: where the loss is steeper on one side,
the best lr between grid points is off by some hundredths of a decade at every size alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.basin import basins
from wesar_sweep.analysis.intervals import (
    Vector,
    percentile_interval,
    resamples,
    tail,
)
from wesar_sweep.analysis.lr_curves import SeriesLosses
from wesar_sweep.analysis.sizes import size_knobs
from wesar_sweep.analysis.stable_lr import last_stable_place

MIN_SIZES = 3
"""Sizes below which there is no slope: two points lie on a line whatever they are."""

TrendFigure = Literal["best_lr", "best_effective_lr", "basin_width", "stable_lr"]

_BOUNDED: Mapping[TrendFigure, tuple[str, ...]] = {
    "best_lr": ("at_low_edge", "at_high_edge"),
    "best_effective_lr": ("at_low_edge", "at_high_edge"),
    "basin_width": ("basin_is_lower_bound",),
    "stable_lr": ("stable_lr_is_lower_bound",),
}
"""Figure -> the columns of `Analysis.sizes` that say that the grid only bounds it."""

_COLUMNS: Mapping[str, type[pl.DataType]] = {
    "figure": pl.String,
    "slope": pl.Float64,
    "slope_low": pl.Float64,
    "slope_high": pl.Float64,
    "n_sizes": pl.Int64,
    "smallest": pl.Int64,
    "largest": pl.Int64,
    "n_bounded": pl.Int64,
    "n_missing": pl.Int64,
    "n_seeds": pl.Int64,
    "resolution": pl.Float64,
    "note": pl.String,
}


# By identity: arrays have no equality that is one bit.
@dataclass(frozen=True, slots=True, eq=False)
class _Size:
    """One size of a line."""

    knob: int
    point: Mapping[str, Any]
    """Its row of `Analysis.sizes`."""
    losses: SeriesLosses
    log_gate: float
    """log10 of the initial gate: from lr to effective lr."""

    def value(self, figure: TrendFigure) -> float | None:
        """The figure in decades; None where this size has none."""
        if figure == "basin_width":
            width: float | None = self.point["basin_width"]
            return width
        lr = self.point["stable_lr" if figure == "stable_lr" else "best_lr"]
        if lr is None or figure == "stable_lr":
            return None if lr is None else float(np.log10(lr))
        shift = self.log_gate if figure == "best_effective_lr" else 0.0
        log_lr_L = np.log10(self.losses.axis_L)
        return float(_least_between(log_lr_L, self.losses.mean_L[None])[0]) + shift

    def bounded(self, figure: TrendFigure) -> bool:
        """Whether the grid of lr only bounds the figure."""
        return any(bool(self.point[flag]) for flag in _BOUNDED[figure])

    @property
    def spacing(self) -> float:
        """The widest gap of the grid in decades; 0 for a single lr."""
        return float(np.diff(np.log10(self.losses.axis_L)).max(initial=0.0))


def size_trend(
    series: Sequence[SeriesLosses],
    sizes: pl.DataFrame,
    *,
    gates: Mapping[str, float],
    layout: Axes,
) -> pl.DataFrame:
    """The slope of every figure of every line against every size knob with `MIN_SIZES` values.

    Args:
        series: `series_losses` of a study whose axis is lr.
        sizes: `wesar_sweep.analysis.sizes.sizes` of the same.
        gates: Series -> α₀ (`wesar_sweep.analysis.effective_lr.gates_of_series`).
        layout: `axes(study)`.

    Returns:
        line, method, ``against`` (the knob), the searched size knobs (null for that one), figure,
        slope in decades a decade with its interval (null with one seed), the sizes it is over and
        their ends, the sizes left out because the grid only bounds the figure there or there is
        none, the fewest seeds of any lr and size, the finest slope that the grid resolves (null for
        figures that lie between grid points), and what else there is to know. ``slope`` is
        null where fewer than `MIN_SIZES` sizes are left.
    """
    knobs = size_knobs(layout)
    schema = pl.Schema(
        {"line": pl.String, "method": pl.String, "against": pl.String}
        | dict.fromkeys(knobs, pl.Int64)
        | dict(_COLUMNS)
    )
    losses = {one.series: one for one in series}
    rows = []
    for against in knobs:
        others = [knob for knob in knobs if knob != against]
        for _, part in sizes.group_by(["line", *others], maintain_order=True):
            if part.height < MIN_SIZES:
                continue
            found = [
                _Size(
                    row[against], row, losses[row["series"]], float(np.log10(gates[row["series"]]))
                )
                for row in part.iter_rows(named=True)
            ]
            first = found[0].point
            key = {"line": first["line"], "method": first["method"], "against": against}
            rest = {knob: None if knob == against else first[knob] for knob in knobs}
            rows += [{**key, **rest, **_trend(found, figure)} for figure in _BOUNDED]
    return pl.DataFrame(rows, schema=schema)


def _trend(sizes: Sequence[_Size], figure: TrendFigure) -> dict[str, Any]:
    missing = [size for size in sizes if size.value(figure) is None]
    bounded = [size for size in sizes if size.value(figure) is not None and size.bounded(figure)]
    used = [size for size in sizes if size not in missing and size not in bounded]
    notes = []
    if bounded:
        notes.append(f"left out, only bounded by the grid: {_listed(bounded)}")
    if missing:
        notes.append(f"left out, without the figure: {_listed(missing)}")
    row: dict[str, Any] = {
        "figure": figure,
        "n_sizes": len(used),
        "smallest": min((size.knob for size in used), default=None),
        "largest": max((size.knob for size in used), default=None),
        "n_bounded": len(bounded),
        "n_missing": len(missing),
        "n_seeds": min(size.losses.n for size in used or sizes),
    }
    if len(used) < MIN_SIZES:
        notes.insert(0, f"fewer than {MIN_SIZES} sizes left")
        return row | {"note": "; ".join(notes)}
    log_size_S = np.log10([size.knob for size in used])
    value_S = np.array([size.value(figure) for size in used], dtype=np.float64)
    share_S = _share_of_slope(log_size_S)
    row["slope"] = float(value_S @ share_S)
    if figure == "stable_lr":
        span = float(log_size_S.max() - log_size_S.min())
        row["resolution"] = max(size.spacing for size in used) / span
    if row["n_seeds"] < 2:
        return row | {"note": "; ".join([*notes, "one seed at some lr and size: no interval"])}
    seeds = tuple(sorted({seed for size in used for seed in size.losses.seeds}))
    columns = [_resampled(size, figure, seeds) for size in used]
    sample_BS = np.stack([values_B for values_B, _ in columns], axis=1)
    spread = percentile_interval(sample_BS @ share_S, n=len(seeds), least=row["n_seeds"])
    if spread:
        blur = row.get("resolution", 0.0)
        row |= {"slope_low": spread.low - blur, "slope_high": spread.high + blur}
    cut_B = np.stack([edge_B for _, edge_B in columns], axis=1).any(axis=1)
    # Of fewer resamples than a tail the interval says nothing anyway.
    if float(resamples(len(seeds)).probability[cut_B].sum()) > tail(row["n_seeds"]):
        notes.append("resamples reach the grid's edge: the interval may be too narrow")
    return row | {"note": "; ".join(notes)}


def _share_of_slope(x_S: Vector) -> Vector:
    """[S] what each point weighs in the slope of the least-squares line."""
    centred_S = x_S - x_S.mean()
    return np.asarray(centred_S / (centred_S @ centred_S))


def _resampled(
    size: _Size, figure: TrendFigure, seeds: tuple[int, ...]
) -> tuple[Vector, NDArray[np.bool_]]:
    """The figure of every resample of these seeds, [B] decades, and whether the grid bounds it."""
    one = size.losses.over(seeds)
    log_lr_L = np.log10(one.axis_L)
    last = len(log_lr_L) - 1
    if figure == "basin_width":
        found = basins(log_lr_L, one.resampled())
        return found.width, found.touches_low | found.touches_high
    if figure == "stable_lr":
        place_B = last_stable_place(one.resampled_rate())
        blind_L = np.array([_blind(one, place) for place in range(last + 1)])
        # None has no place: a resample leaves seeds out, so that its range ends no lower.
        assert (place_B >= 0).all()
        return log_lr_L[place_B], blind_L[place_B]
    loss_BL = one.resampled()
    best_B = loss_BL.argmin(axis=1)
    shift = size.log_gate if figure == "best_effective_lr" else 0.0
    at_edge_B = (best_B == 0) | (best_B == last)
    return _least_between(log_lr_L, loss_BL) + shift, at_edge_B


def _least_between(x_L: Vector, loss_BL: NDArray[np.float64]) -> Vector:
    """[B] where the parabola through the least point of a curve and its neighbours is least.

    At an end of the curve, which has one neighbour, the end itself.
    """
    rows_B = np.arange(len(loss_BL))
    best_B = loss_BL.argmin(axis=1)
    if len(x_L) < 3:
        return np.asarray(x_L[best_B])
    mid_B = best_B.clip(1, len(x_L) - 2)
    left_B, right_B = x_L[mid_B] - x_L[mid_B - 1], x_L[mid_B + 1] - x_L[mid_B]
    fall_B = loss_BL[rows_B, mid_B - 1] - loss_BL[rows_B, mid_B]
    rise_B = loss_BL[rows_B, mid_B + 1] - loss_BL[rows_B, mid_B]
    # Both are at least 0 where the middle is the least; equal losses leave it where it is.
    weight_B = fall_B * right_B + rise_B * left_B
    shift_B = (fall_B * right_B**2 - rise_B * left_B**2) / (2 * np.where(weight_B > 0, weight_B, 1))
    inside_B = (best_B == mid_B) & (weight_B > 0)
    return np.asarray(np.where(inside_B, x_L[mid_B] + shift_B, x_L[best_B]))


def _blind(one: SeriesLosses, place: int) -> bool:
    """Whether nothing is known of the next lr above a place: it was not tried, or is lost."""
    if place == len(one.axis_L) - 1:
        return True
    here, above = one.axis_L[place], one.axis_L[place + 1]
    return bool(((one.lost > here) & (one.lost < above)).any())


def _listed(sizes: Sequence[_Size]) -> str:
    return ", ".join(str(size.knob) for size in sizes)
