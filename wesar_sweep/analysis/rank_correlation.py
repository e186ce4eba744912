"""Kendall's tau-b of pairs of numbers, with a bootstrap interval over the pairs.

M. G. Kendall, Biometrika 33 (1945) 239: the pairs of points that both numbers order alike minus
those that they order unlike, over the geometric mean of the pairs that each orders at all. It is
what `scipy.stats.kendalltau` gives, here of many weighted resamples at once; a resample holds
points twice, which are ties in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wesar_sweep.analysis.intervals import Interval, Matrix, Vector, percentile_interval, resamples

LEAST_POINTS = 6
"""Of fewer points a rank correlation says nothing."""


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Tau and how sure it is."""

    tau: float
    """From −1 to 1."""
    interval: Interval | None
    """The expanded percentile interval over points; None where resamples have no order."""
    n: int
    """Points."""


def rank_correlation(x: Vector, y: Vector) -> RankCorrelation | None:
    """Tau of two numbers of each of n points.

    Args:
        x: [n] the one number, finite.
        y: [n] the other.

    Returns:
        None for fewer than `LEAST_POINTS` points, or where one of the two is everywhere equal.
    """
    n = len(x)
    if n < LEAST_POINTS:
        return None
    tau = float(_tau(x, y, np.ones((1, n)))[0])
    if not np.isfinite(tau):
        return None
    samples = _tau(x, y, resamples(n).weights)
    return RankCorrelation(tau, percentile_interval(samples, n=n), n)


def _tau(x: Vector, y: Vector, weights_BN: Matrix) -> Vector:
    """[B] tau-b of each resample; NaN where it has one value only of either number."""
    order_x, order_y = (np.sign(v[:, None] - v[None, :]) for v in (x, y))

    def pairs(order_NN: Matrix) -> Vector:
        return np.asarray(((weights_BN @ order_NN) * weights_BN).sum(axis=1), dtype=np.float64)

    scale = np.sqrt(pairs(np.abs(order_x)) * pairs(np.abs(order_y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(pairs(order_x * order_y) / scale, dtype=np.float64)
