"""Basin width: how wide a range of learning rates serves a series about as well as its best one.

This project's own figure (SCIENCE, robustness figures). Multiplying every lr by a constant moves
the basin and leaves its width, so a method that only changes the meaning of lr gains nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.intervals import Matrix, Vector
from wesar_sweep.analysis.lr_curves import SeriesLosses

TOLERANCE = 0.05
"""Nats above a series' own best that still count as its basin, unless told otherwise."""

SCHEMA = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("width", pl.Float64()),
        ("width_low", pl.Float64()),
        ("width_high", pl.Float64()),
        ("lr_low", pl.Float64()),
        ("lr_high", pl.Float64()),
        ("touches_low", pl.Boolean()),
        ("touches_high", pl.Boolean()),
        ("lost_low", pl.Int64()),
        ("lost_high", pl.Int64()),
        ("best_lr", pl.Float64()),
        ("best_loss", pl.Float64()),
        ("n_lr", pl.Int64()),
        ("n_seeds", pl.Int64()),
        ("tolerance", pl.Float64()),
        ("lost", pl.String()),
        ("note", pl.String()),
    ]
)
"""``width`` in decades of lr. It is a lower bound where the basin reaches the lowest or highest lr
with a counted run: ``touches_low`` and ``touches_high`` where no lr beyond was tried, ``lost_low``
and ``lost_high`` the number of lr beyond that were tried and have no counted run, being pruned or
failed. ``lost`` says how often and why an lr of the series has none, empty for never. ``note`` says
why a figure is missing or unsure, and is empty where none is. ``n_seeds``: the fewest of any lr."""


@dataclass(frozen=True, slots=True)
class Basins:
    """Basins of B loss curves over one grid of L learning rates."""

    low: Vector
    """[B] log10 of the lower end."""
    high: Vector
    """[B] log10 of the upper end."""
    touches_low: NDArray[np.bool_]
    touches_high: NDArray[np.bool_]

    @property
    def width(self) -> Vector:
        """[B] decades."""
        return self.high - self.low


def basins(log_lr_L: Vector, loss_BL: Matrix, *, tolerance: float = TOLERANCE) -> Basins:
    """The stretch around each curve's least loss that stays within `tolerance` of it.

    Between grid points the loss is taken as linear in the logarithm of lr.

    Args:
        log_lr_L: [L] log10 of the learning rates, ascending.
        loss_BL: [B, L] finite losses in nats.
        tolerance: Nats.
    """
    best_B = loss_BL.argmin(axis=1)
    limit_B = loss_BL.min(axis=1) + tolerance
    high, touches_high = _walk(log_lr_L, loss_BL, best_B, limit_B)
    last = loss_BL.shape[1] - 1
    low, touches_low = _walk(-log_lr_L[::-1], loss_BL[:, ::-1], last - best_B, limit_B)
    return Basins(low=-low, high=high, touches_low=touches_low, touches_high=touches_high)


def _walk(
    x_L: Vector, loss_BL: Matrix, start_B: NDArray[np.int64], limit_B: Vector
) -> tuple[Vector, NDArray[np.bool_]]:
    """Where each curve, followed upwards from its start, first exceeds its limit."""
    rows, places = loss_BL.shape
    end_B = np.full(rows, x_L[-1])
    inside_B = np.ones(rows, dtype=bool)
    for place in range(places - 1):
        here_B, next_B = loss_BL[:, place], loss_BL[:, place + 1]
        leaves_B = inside_B & (start_B <= place) & (next_B > limit_B)
        rise_B = np.where(leaves_B, next_B - here_B, 1.0)
        crossing_B = x_L[place] + (limit_B - here_B) / rise_B * (x_L[place + 1] - x_L[place])
        end_B = np.where(leaves_B, crossing_B, end_B)
        inside_B &= ~leaves_B
    return end_B, inside_B


def basin_width(series: list[SeriesLosses], *, tolerance: float = TOLERANCE) -> pl.DataFrame:
    """The basin of every series, widest first; with a bootstrap interval over seeds.

    The seeds are resampled together at every lr, because they share their batches.

    Args:
        series: `series_losses` of a study whose axis is lr.
        tolerance: Nats above the series' own best cell mean.

    Returns:
        One row a series as `SCHEMA` says. A series that never got `tolerance` below its initial
        loss has no basin: its curve is flat because nothing was learnt.
    """
    rows = [_row(one, tolerance) for one in series]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.sort("width", "series", descending=[True, False], nulls_last=True)


def _row(one: SeriesLosses, tolerance: float) -> tuple[object, ...]:
    nothing = (one.series, one.method, *(None,) * 9)
    if not len(one.axis_L):
        why = f"no lr has a counted run: {one.lost_words}"
        return (*nothing, None, None, 0, 0, tolerance, one.lost_words, why)
    mean_L = one.mean_L
    best = int(mean_L.argmin())
    tail = (
        float(one.axis_L[best]),
        float(mean_L[best]),
        len(one.axis_L),
        one.n,
        tolerance,
        one.lost_words,
    )
    if not mean_L[best] < one.start_loss - tolerance:
        return (*nothing, *tail, "no cell got below its initial loss")
    if len(one.axis_L) < 2:
        only = "only one lr has a counted run" if len(one.lost) else "only one lr was tried"
        return (*nothing, *tail, only)
    log_lr_L = np.log10(one.axis_L)
    found = basins(log_lr_L, mean_L[None], tolerance=tolerance)
    spread = None
    if one.n >= 2:
        samples = basins(log_lr_L, one.resampled(), tolerance=tolerance).width
        spread = one.interval(samples)
    ends_low, ends_high = bool(found.touches_low[0]), bool(found.touches_high[0])
    lost_low = int((one.lost < one.axis_L[0]).sum()) if ends_low else 0
    lost_high = int((one.lost > one.axis_L[-1]).sum()) if ends_high else 0
    notes = [] if spread else [one.one_seed_words]
    if one.lost_words:
        notes.append(f"lr without a counted run: {one.lost_words}")
    return (
        one.series,
        one.method,
        float(found.width[0]),
        spread.low if spread else None,
        spread.high if spread else None,
        float(10 ** found.low[0]),
        float(10 ** found.high[0]),
        ends_low and not lost_low,
        ends_high and not lost_high,
        lost_low,
        lost_high,
        *tail,
        "; ".join(notes),
    )
