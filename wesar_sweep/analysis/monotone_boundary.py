"""Where a rate that only rises along an axis passes a value, and an interval that needs no more.

The estimate is that of isotonic regression (Ayer et al. 1955): the rates of highest likelihood
among those that never fall. Between neighbouring places nothing is known of the rate, so it passes
one half somewhere *between* two places, and no point between them is a better guess than another.
With few seeds there is hardly ever anything else to see: none of 3 diverged at one lr, 3 of 3 at
the next. A logistic curve has no slope of highest likelihood there, its point of one half follows
from a slope that the data do not have, and a bootstrap finds the same two places every time.

The interval inverts exact tests. If the rate had passed `rate` at or below a place, every rate from
that place on would be at least that; so few diverged runs there speak against it. Runs are pooled
upwards from the place, one place after the other, until `POOLED_RUNS` are reached; the statistic is
the least binomial tail among these pools, its p-value the exact chance of a tail as small where
every rate equals `rate`, the least favourable case. Places are tested from the lowest upwards, and
the lower end is the last of an unbroken row of rejections at 2.5 %: hypotheses imply one another,
so the first true one is the only one that can be wrongly rejected first. The upper end likewise
from above. So the interval holds the truth in at least 95 % of cases for *every* rate that rises
with the axis and any number of runs, if neither depends on the outcomes. Its ends are places: with
3 runs a place it reaches one place beyond the two that bracket a clean jump, from 6 on it is those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import bdtr, gammaln, xlog1py, xlogy

from wesar_sweep.analysis.intervals import CONFIDENCE, GENERATOR_SEED, Vector

RATE = 0.5
"""The rate that the boundary stands for, unless told otherwise."""

POOLED_RUNS = 12
"""At a clean jump this many give the narrowest intervals; fewer would not bear one stray run."""

RISING_DRAWS = 499

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a rate passes a value; None for an end that no place bounds."""

    below: float | None
    """The highest place whose isotonic rate is still below: the estimate lies above it ..."""
    above: float | None
    """... and below this, the lowest place whose isotonic rate is already above."""
    low: float | None
    high: float | None
    """The 95 % interval; it holds the bracket of the estimate."""


@dataclass(frozen=True, slots=True)
class Fall:
    """Where an observed rate falls although it is supposed to rise."""

    first: int
    later: int
    """Indices of the two places between which it falls most."""
    p: float
    """Of the likelihood-ratio test that the rate rises, against any rates, by a parametric
    bootstrap of the isotonic ones (`RISING_DRAWS`)."""


def monotone_boundary(place_L: Vector, k_L: Counts, n_L: Counts, *, rate: float = RATE) -> Boundary:
    """The boundary of k of n runs at each place; see the module.

    Args:
        place_L: [L] places, ascending and distinct.
        k_L: [L] runs of each that diverged.
        n_L: [L] runs of each, at least 1.
        rate: Between 0 and 1.
    """
    assert len(place_L) == len(k_L) == len(n_L) and (n_L > 0).all(), (place_L, k_L, n_L)
    assert 0 < rate < 1, rate
    if not len(place_L):
        return Boundary(None, None, None, None)
    fitted_L = _isotonic(k_L, n_L)
    # Pools of equal runs differ by rounding.
    is_below, is_above = fitted_L < rate - 1e-9, fitted_L > rate + 1e-9
    lower = _unbroken(k_L, n_L, rate)
    upper = _unbroken((n_L - k_L)[::-1], n_L[::-1], 1 - rate)
    return Boundary(
        below=_at(place_L, np.flatnonzero(is_below)[-1:]),
        above=_at(place_L, np.flatnonzero(is_above)[:1]),
        low=_at(place_L, np.arange(lower)[-1:]),
        high=_at(place_L[::-1], np.arange(upper)[-1:]),
    )


def largest_fall(k_L: Counts, n_L: Counts) -> Fall | None:
    """The largest fall of the rate of k of n runs along L places, and whether chance explains it.

    Returns:
        None where the observed rate never falls.
    """
    rate_L = k_L / n_L
    fall_LL = np.triu(rate_L[:, None] - rate_L)
    if fall_LL.max() <= 0:
        return None
    first, later = np.unravel_index(fall_LL.argmax(), fall_LL.shape)
    fitted_L = _isotonic(k_L, n_L)
    rng = np.random.default_rng(GENERATOR_SEED)
    drawn_BL = rng.binomial(n_L, fitted_L, size=(RISING_DRAWS, len(n_L)))
    drawn = [_misfit(k, n_L, _isotonic(k, n_L)) for k in drawn_BL]
    seen = _misfit(k_L, n_L, fitted_L)
    as_bad = sum(one >= seen - 1e-9 for one in drawn)
    return Fall(int(first), int(later), (1 + as_bad) / (1 + RISING_DRAWS))


def _at(place_L: Vector, index: NDArray[np.int64]) -> float | None:
    return float(place_L[index[0]]) if len(index) else None


def _unbroken(k_L: Counts, n_L: Counts, rate: float) -> int:
    """Of how many places in a row from the first no rate from there on can be as high as `rate`."""
    for place in range(len(n_L)):
        if _p_too_few(k_L[place:], n_L[place:], rate) > (1 - CONFIDENCE) / 2:
            return place
    return len(n_L)


def _p_too_few(k_L: Counts, n_L: Counts, rate: float) -> float:
    """Exact p of so few diverged runs in pools from the first place on, if no rate is below."""
    total_L = np.cumsum(n_L)
    pools = int(np.searchsorted(total_L, POOLED_RUNS)) + 1
    tail_L = np.asarray(bdtr(np.cumsum(k_L)[:pools], total_L[:pools], rate))
    return _chance_of_tail(tuple(n_L[:pools].tolist()), float(tail_L.min()), rate)


@cache
def _chance_of_tail(n_L: Sequence[int], tail: float, rate: float) -> float:
    """Chance that any pool of the first places has a binomial tail as small, every rate `rate`."""
    alive_k, total, chance = np.ones(1), 0, 0.0
    for n in n_L:
        # How many diverged in all, where no pool so far had such a tail.
        alive_k = np.convolve(alive_k, _binomial(n, rate))
        total += n
        # Equal tails differ by rounding.
        small_k = bdtr(np.arange(total + 1), total, rate) <= tail * (1 + 1e-9)
        chance += float(alive_k[small_k].sum())
        alive_k[small_k] = 0
    return chance


def _binomial(n: int, rate: float) -> Vector:
    """[n + 1] chance of each number of diverged runs among n."""
    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    found: Vector = np.exp(ways + xlogy(k, rate) + xlog1py(n - k, -rate))
    return found


def _isotonic(k_L: Counts, n_L: Counts) -> Vector:
    """[L] the rates of highest likelihood among those that never fall."""
    fitted: Vector = isotonic_regression(k_L / n_L, weights=n_L).x
    return np.clip(fitted, 0, 1)


def _misfit(k_L: Counts, n_L: Counts, fitted_L: Vector) -> float:
    """Log likelihood that the isotonic rates lose against the observed ones."""
    rate_L = k_L / n_L
    lost_L = xlogy(k_L, rate_L) - xlogy(k_L, fitted_L)
    lost_L += xlogy(n_L - k_L, 1 - rate_L) - xlogy(n_L - k_L, 1 - fitted_L)
    return float(lost_L.sum())
