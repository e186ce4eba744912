"""Intervals: Wilson for a rate, Student's t for a mean, the bootstrap for figures made of means.

Every interval is two-sided at the level `CONFIDENCE`. Nothing here knows of studies.

A mean over seeds has Student's interval: with the usual 3 seeds a bootstrap holds the mean of
normal losses in 75 % of cases, Student's in 95 % (measured: ``benchmarks/interval_coverage.py``).

The bootstrap is for what has no such formula, as the width of a basin. There are few seeds, so it
resamples them exactly: all multisets of n seeds with
their multinomial probabilities up to n = `EXACT_SEEDS`, and `DRAWS` draws of a generator seeded
with `GENERATOR_SEED` above that. Its quantiles are those of the *expanded percentile interval*
(Hesterberg, "What teachers should know about the bootstrap", arXiv 1411.5279): at a tail of
Φ(−√(n/(n−1))·t) in place of 2.5 %, because a plain percentile interval is too narrow by the factor
√((n−1)/n) and by the difference of the normal and Student's t. No bootstrap of the mean can leave
the range of its values; so at n seeds it covers a symmetric mean in at most 1 − 2^(1−n) of cases:
`bootstrap_coverage_bound`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from wesar_sweep.config.replicates import wilson_halfwidth

CONFIDENCE = 0.95
EXACT_SEEDS = 8
DRAWS = 9_999
GENERATOR_SEED = 20241

# scipy.special here and elsewhere: scipy.stats takes most of a second to import.
_NORMAL_QUANTILE = float(special.ndtri(0.5 + CONFIDENCE / 2))

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resamples:
    """Every resample of n seeds, or many of them."""

    weights: Matrix
    """[B, n] how often each seed is in a resample; rows sum to n."""
    probability: Vector
    """[B] sums to 1."""


def wilson(k: int, n: int) -> Interval | None:
    """Wilson's interval of a rate of which k of n were seen; None where n is 0.

    Without continuity correction: Wilson, JASA 22 (1927) 209; Brown, Cai and DasGupta, Statistical
    Science 16 (2001), equation 4.
    """
    if n == 0:
        return None
    z2 = _NORMAL_QUANTILE**2
    centre, half = (k + z2 / 2) / (n + z2), wilson_halfwidth(k, n)
    # Exact at the ends, where rounding would leave them by a bit.
    return Interval(0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


@cache
def resamples(n: int) -> Resamples:
    """The bootstrap resamples of n seeds; see the module."""
    assert n >= 1, n
    if n > EXACT_SEEDS:
        draws = np.random.default_rng(GENERATOR_SEED).integers(n, size=(DRAWS, n))
        weights = np.stack([(draws == seed).sum(axis=1) for seed in range(n)], axis=1)
        return Resamples(weights.astype(np.float64), np.full(DRAWS, 1 / DRAWS))
    # Stars and bars: where the bars stand gives every way to write n as n counts.
    places = list(itertools.combinations(range(2 * n - 1), n - 1))
    bars = np.array(places, dtype=np.int64).reshape(len(places), n - 1)
    ends = np.full((len(bars), 1), 2 * n - 1)
    walls = np.concatenate([np.full((len(bars), 1), -1), bars, ends], axis=1)
    counts = np.diff(walls, axis=1) - 1
    factorial = np.array([math.factorial(count) for count in range(n + 1)], dtype=np.float64)
    probability = math.factorial(n) / factorial[counts].prod(axis=1) / n**n
    return Resamples(counts.astype(np.float64), probability)


def tail(n: int) -> float:
    """The share that the expanded percentile interval of n >= 2 seeds leaves out on each side."""
    return float(special.ndtr(-math.sqrt(n / (n - 1)) * float(student_quantile(n - 1))))


def percentile_interval(samples: Vector, *, n: int, least: int | None = None) -> Interval | None:
    """The expanded percentile interval of a figure computed once a resample of `resamples(n)`.

    Args:
        samples: [B] the figure of each resample; NaN where a resample has none.
        n: Number of seeds.
        least: The fewest seeds behind any mean that the figure is made of, where not all have n:
            the tail is theirs, because the figure is no surer than the least sure of its parts.

    Returns:
        None where n or `least` is 1 (one seed has no spread) or the figure is nowhere finite.
    """
    usable = np.isfinite(samples)
    fewest = n if least is None else least
    if fewest < 2 or not usable.any():
        return None
    order = np.argsort(samples[usable], kind="stable")
    values = samples[usable][order]
    share = resamples(n).probability[usable][order]
    share = share / share.sum()
    cut = tail(fewest)
    # Summed from each end, so that the two tails are treated alike to the last bit.
    from_below, from_above = np.cumsum(share), np.cumsum(share[::-1])
    last = len(values) - 1
    low = min(int(np.searchsorted(from_below, cut, side="right")), last)
    high = last - min(int(np.searchsorted(from_above, cut, side="right")), last)
    return Interval(float(values[low]), float(values[high]))


def bootstrap_mean(values: Vector) -> Interval | None:
    """The interval of the mean of one value a seed; None for fewer than 2 values."""
    n = len(values)
    if n < 2:
        return None
    return percentile_interval(resamples(n).weights @ values / n, n=n)


def bootstrap_pooled_median(values: Vector, group: NDArray[np.int64]) -> Interval | None:
    """The interval of the median of values that come in groups, such as the spikes of runs.

    Groups are resampled whole: what one holds is not independent.

    Args:
        values: [S] finite.
        group: [S] the group of each, from 0; none without a value.

    Returns:
        None for fewer than 2 groups.
    """
    n = int(group.max(initial=-1)) + 1
    if n < 2:
        return None
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # [n, S] how many of a group's values are among the lowest; whole numbers, which are exact in 32
    # bits and cost half.
    lowest_NS = np.cumsum(np.arange(n)[:, None] == group[order], axis=1, dtype=np.float32)
    weights_BN = resamples(n).weights.astype(np.float32)
    total_B = weights_BN @ lowest_NS[:, -1]
    ranks_2B = np.stack([(total_B + 1) // 2, total_B // 2 + 1])
    # Medians lie near each other: of thousands of values few need be looked at in every resample.
    ends = np.append(np.arange(0, len(values) - 1, math.isqrt(len(values))), len(values) - 1)
    coarse_BE = weights_BN @ lowest_NS[:, ends]
    below = (coarse_BE < ranks_2B[0][:, None]).all(axis=0).sum()
    above = (coarse_BE >= ranks_2B[1][:, None]).all(axis=0).argmax()
    start = int(ends[below - 1]) + 1 if below else 0
    near_BS = weights_BN @ lowest_NS[:, start : ends[above] + 1]
    middle_2B = [
        ordered[start + (near_BS >= rank_B[:, None]).argmax(axis=1)] for rank_B in ranks_2B
    ]
    medians_B = (middle_2B[0] + middle_2B[1]) / 2
    return percentile_interval(medians_B, n=n)


def bootstrap_coverage_bound(n: int) -> float:
    """The most that a bootstrap interval of a symmetric mean covers with n seeds: 1 − 2^(1−n)."""
    return 1 - 2.0 ** (1 - n)


def student_mean(
    values: Vector, *, least: float = -math.inf, most: float = math.inf
) -> Interval | None:
    """Student's t interval of a mean; None for fewer than 2 values.

    Args:
        values: One a seed.
        least: No value can be lower, so the interval ends there.
        most: No value can be higher.
    """
    n = len(values)
    if n < 2:
        return None
    half = float(student_quantile(n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return Interval(max(mean - half, least), min(mean + half, most))


def student_quantile(freedom: float | NDArray[Any]) -> Vector:
    """How many standard errors Student's interval reaches to each side, of these degrees."""
    return np.asarray(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2), dtype=np.float64)


def sign_test(differences: Vector) -> float:
    """Two-sided p of the exact sign test that the median difference is 0; ties are left out."""
    n, higher = int((differences != 0).sum()), int((differences > 0).sum())
    # Both tails of a fair coin's n throws; in the middle they overlap.
    return min(1.0, 2 * float(special.bdtr(min(higher, n - higher), n, 0.5)))
