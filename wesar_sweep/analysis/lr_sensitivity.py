"""LR sensitivity (Wortsman et al. 2023, arXiv 2309.14322, §2.2), with what it cannot say.

The mean over the log-spaced lr grid of min(ℓ(lr), ℓ₀) − ℓ*: ℓ₀ the loss at initialisation, ℓ* the
least over the grid. Each run is capped before seeds are averaged (`analysis.cells`).

The same at equal effective lr (`analysis.effective_lr`, this project's): the mean over the range of
effective lr that every series of the study covers, in log lr, of the loss interpolated between grid
points, minus its least there. Series that differ in the meaning of lr alone have the same value, up
to what their grids leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from wesar_sweep.analysis.intervals import Matrix, Vector
from wesar_sweep.analysis.lr_curves import SeriesLosses

CAVEATS: tuple[str, ...] = (
    "It does not compare methods that change the meaning of lr, as WeSaR does: an optimum that "
    "moves along the axis reads as a loss or a gain. Basin width does not move with it.",
    "It depends on the range of lr: the paper's is 3e-4 to 3e-1.",
    "It is zero where no lr trains at all.",
)
"""To be printed beside every value."""

UNEVEN = 1.5
"""A grid whose widest step in log lr is more than so many times its narrowest is called uneven."""

SCHEMA = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("sensitivity", pl.Float64()),
        ("sensitivity_low", pl.Float64()),
        ("sensitivity_high", pl.Float64()),
        ("lr_min", pl.Float64()),
        ("lr_max", pl.Float64()),
        ("n_lr", pl.Int64()),
        ("n_seeds", pl.Int64()),
        ("even", pl.Boolean()),
        ("incomplete", pl.Boolean()),
        ("note", pl.String()),
    ]
)
"""``sensitivity`` in nats; ``even``: the grid is evenly spaced in log lr, as it should be;
``incomplete``: a place of the grid has no counted run, so that there is no mean over the grid;
``n_seeds``: the fewest of any lr."""


def lr_sensitivity(series: list[SeriesLosses]) -> pl.DataFrame:
    """The LR sensitivity of every series, least first, with a bootstrap interval over seeds.

    Args:
        series: `series_losses` of a study whose axis is lr.

    Returns:
        One row a series as `SCHEMA` says; null for a series with a single lr, and for one with an
        lr at which no run counts: pruned runs were ended for being bad, and a mean over the other
        lr would flatter the series.
    """
    rows = [_row(one) for one in series]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.sort("sensitivity", "series", nulls_last=True)


def _row(one: SeriesLosses) -> tuple[object, ...]:
    n, places = one.n, len(one.axis_L)
    ends = (float(one.axis_L[0]), float(one.axis_L[-1])) if places else (None, None)
    tail = (*ends, places, n)
    nothing = (one.series, one.method, None, None, None)
    if len(one.lost) or one.to_come:
        causes = [one.lost_words] if one.lost_words else []
        if one.to_come:
            causes.append(f"not run ({one.to_come} cell{'' if one.to_come == 1 else 's'})")
        why = f"incomplete: lr without a counted run, {' and '.join(causes)}"
        return (*nothing, *tail, True, True, why)
    if places < 2:
        return (*nothing, *tail, True, False, "only one lr was tried")
    mean_L = one.mean_L
    value = float(mean_L.mean() - mean_L.min())
    spread = None
    if n >= 2:
        sample_BL = one.resampled()
        spread = one.interval(sample_BL.mean(axis=1) - sample_BL.min(axis=1))
    step_L = np.diff(np.log10(one.axis_L))
    even = bool(step_L.max() <= UNEVEN * step_L.min())
    notes = [] if even else ["the grid is unevenly spaced in log lr"]
    if n < 2:
        notes.append(one.one_seed_words)
    bounds = (spread.low, spread.high) if spread else (None, None)
    return (one.series, one.method, value, *bounds, *tail, even, False, "; ".join(notes))


LEAST_DECADES = 0.5
"""Over less of a common range nothing is said."""

AT_EFFECTIVE_LR = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("sensitivity", pl.Float64()),
        ("sensitivity_low", pl.Float64()),
        ("sensitivity_high", pl.Float64()),
        ("effective_lr_min", pl.Float64()),
        ("effective_lr_max", pl.Float64()),
        ("n_seeds", pl.Int64()),
        ("note", pl.String()),
    ]
)
"""As `SCHEMA`; the range is the one that all series cover, null where there is none."""


def effective_lr_sensitivity(
    series: Sequence[SeriesLosses], *, gates: Mapping[str, float]
) -> pl.DataFrame:
    """The LR sensitivity of every series over one range of effective lr, least first.

    Args:
        series: `series_losses` of a study whose axis is lr.
        gates: Series -> α₀, by which its lr become effective ones.

    Returns:
        One row a series as `AT_EFFECTIVE_LR` says; null where the series share less than
        `LEAST_DECADES`, and for a series with an lr at which no run counts.
    """
    # What an incomplete series covers so far would cut the range of all others.
    known = [one for one in series if len(one.axis_L) > 1 and not len(one.lost) and not one.to_come]
    ends = [np.log10(one.axis_L[[0, -1]] * gates[one.series]) for one in known]
    low = max((end[0] for end in ends), default=0.0)
    high = min((end[1] for end in ends), default=0.0)
    rows: list[tuple[object, ...]] = []
    for one in series:
        spread, value, note = None, None, ""
        if len(one.lost) or one.to_come:
            note = "incomplete: lr without a counted run"
        elif len(one.axis_L) < 2:
            note = "only one lr was tried"
        elif high - low < LEAST_DECADES:
            note = "the series share too little of a range of effective lr"
        else:
            log_L = np.log10(one.axis_L * gates[one.series])
            value = float(_over(log_L, one.mean_L[None], low, high)[0])
            if one.n >= 2:
                spread = one.interval(_over(log_L, one.resampled(), low, high))
            else:
                note = one.one_seed_words
        bounds = (spread.low, spread.high) if spread else (None, None)
        shared = (10**low, 10**high) if high > low else (None, None)
        rows.append((one.series, one.method, value, *bounds, *shared, one.n, note))
    frame = pl.DataFrame(rows, schema=AT_EFFECTIVE_LR, orient="row")
    return frame.sort("sensitivity", "series", nulls_last=True)


def _over(log_L: Vector, loss_BL: Matrix, low: float, high: float) -> Vector:
    """[B] mean minus least of curves that are linear between grid points, from low to high."""
    inside = log_L[(log_L > low) & (log_L < high)]
    at_G = np.unique(np.concatenate([[low], inside, [high]]))
    loss_BG = np.array([np.interp(at_G, log_L, loss_L) for loss_L in loss_BL])
    mean_B = np.trapezoid(loss_BG, at_G, axis=1) / (high - low)
    return np.asarray(mean_B - loss_BG.min(axis=1))
