"""Whether two samples differ: exact and Student's tests, and what many tests at once can claim.

All tests are two-sided. Nothing here knows of studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

from wesar_sweep.analysis.intervals import (
    CONFIDENCE,
    Interval,
    Vector,
    student_mean,
    student_quantile,
)

ALPHA = 1 - CONFIDENCE
"""The share of false alarms that a test, or a family of them by `holm`, is allowed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its 95 % interval and the p of its being 0."""

    mean: float
    interval: Interval
    p: float


def paired_t(differences: Vector) -> Difference | None:
    """Student's paired t-test; None for fewer than 2 pairs.

    Args:
        differences: One a pair.
    """
    interval = student_mean(differences)
    if interval is None:
        return None
    n, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return Difference(mean, interval, _t_p(mean, error, n - 1))


def welch_t(a: Vector, b: Vector) -> Difference | None:
    """Welch's test of mean(b) − mean(a), variances unequal; None for fewer than 2 values a side."""
    if min(len(a), len(b)) < 2:
        return None
    mean = float(np.mean(b) - np.mean(a))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    error = math.sqrt(sum(parts))
    freedom = float(len(a) + len(b) - 2)
    if error > 0:
        # Welch & Satterthwaite.
        shares = [v**2 / (len(side) - 1) for v, side in zip(parts, (a, b), strict=True)]
        freedom = sum(parts) ** 2 / sum(shares)
    half = float(student_quantile(freedom)) * error
    return Difference(mean, Interval(mean - half, mean + half), _t_p(mean, error, freedom))


def _t_p(mean: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(freedom, -abs(mean) / error))


@cache
def fisher(k_a: int, n_a: int, k_b: int, n_b: int) -> float:
    """P of Fisher's exact test that two rates, seen as k of n each, are equal."""
    # Imported late: only a comparison of studies asks, and it takes most of a second.
    from scipy import stats

    return float(stats.fisher_exact(np.array([[k_a, n_a - k_a], [k_b, n_b - k_b]])).pvalue)


@cache
def least_fisher(k: int, n_a: int, n_b: int) -> float:
    """The least p that `fisher` can give where k of all n_a + n_b were seen.

    A test that cannot reach `ALPHA` by itself rejects nothing, so it may be left out of a family
    without raising its false alarms (Tarone 1990): what is left out depends on the margins alone.
    """
    ends = (max(0, k - n_b), min(k, n_a))
    return min(fisher(k_a, n_a, k - k_a, n_b) for k_a in ends)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family of tests, in their order.

    Calling different what is at most `ALPHA` raises a false alarm anywhere in the family in at most
    that share of cases, however the tests depend on each other (Holm 1979).
    """
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted
