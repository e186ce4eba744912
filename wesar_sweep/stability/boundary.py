"""Where runs begin to diverge along one axis: what is known of it, and which value to try next.

The *boundary* is the value at which half of the seeds diverge. Along the axis (in decades where it
is logarithmic) the divergence rate is taken to be logistic,

    rate(x) = e + (1 - 2 e) / (1 + exp(-(x - boundary) / slope)),

with a share e of odd results (`ODD`) that no boundary explains. Boundary and slope are unknown: the
first is uniform beforehand over the values and a quarter of their range beyond either end, the
second log-uniform (`Scale`). Runs are taken to be independent given the two, so each value must be
tried with seeds of its own.

The design is sequential: the next value is the one whose result is expected to tell most of the
boundary (mutual information; Lindley 1956). The search ends when the equal-tailed 95 % interval of
the boundary is no wider than the resolution, when the boundary lies beyond an end, or when so many
values were tried as are allowed. A credible interval is not biased by when one stops, given that
the model holds; how often it holds the truth is measured in ``benchmarks/boundary_search.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config.boundary import BoundarySearch

CONFIDENCE = 0.95
ODD = 0.02
"""Share of results that are the other way round, wherever the boundary is."""

NARROW = "narrow enough"
"""How a series ends whose interval reached the resolution."""

BEYOND = ("below the least value", "above the largest value")
"""How a search ends that finds no boundary among its values."""

_BEYOND = 0.25
"""How far beyond the ends the boundary may be, as a share of their distance."""
_SLOPES = 9
_PLACES_A_RESOLUTION = 8
_MOST_PLACES = 1200
_TINY = 1e-300

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that a search may try, and how long it goes on. Places are coordinates."""

    places: tuple[float, ...]
    """Ascending: the logarithms to base 10 of the values on a logarithmic axis."""
    resolution: float
    """Width of the interval at which the search ends."""
    most: int
    """Values that are tried at most, repetitions included."""
    seeds: int
    """Runs a value."""


class Tried(NamedTuple):
    """What came of one value."""

    place: float
    n: int
    """Runs that count."""
    diverged: int


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a boundary. Places are coordinates."""

    median: float
    low: float
    high: float
    """Ends of the equal-tailed 95 % interval; beyond the values' ends where it reaches there."""
    below: float
    above: float
    """How likely it is that the boundary lies below the least, or above the largest value."""
    ended: str | None
    """Why nothing more is tried; None while the search goes on."""


def scale_of(search: BoundarySearch, *, seeds: int) -> Scale:
    """The scale of a study's search with so many seeds a value."""
    places = tuple(search.place(value) for value in search.values)
    return Scale(places, search.resolution, search.most, seeds)


@lru_cache(maxsize=4096)
def known(tried: tuple[Tried, ...], scale: Scale) -> Known:
    """What some results say of the boundary.

    Args:
        tried: In any order; empty for what is supposed beforehand.
        scale: Of the search.
    """
    place_P, _ = _unknowns(scale)
    mass_P = _posterior(tried, scale).sum(axis=1)
    step = place_P[1] - place_P[0]
    # Each place stands for the stretch around it.
    edges = np.concatenate([[place_P[0] - step / 2], place_P + step / 2])
    share = np.concatenate([[0.0], np.cumsum(mass_P)])
    tail = (1 - CONFIDENCE) / 2
    low, median, high = (float(q) for q in np.interp([tail, 0.5, 1 - tail], share, edges))
    below = float(np.interp(scale.places[0], edges, share))
    above = 1 - float(np.interp(scale.places[-1], edges, share))
    ended = None
    if high - low <= scale.resolution:
        ended = NARROW
    elif above > 1 - tail:
        ended = BEYOND[1]
    elif below > 1 - tail:
        ended = BEYOND[0]
    elif len(tried) >= scale.most:
        ended = f"{scale.most} cells, the most allowed"
    return Known(median, low, high, below, above, ended)


@lru_cache(maxsize=4096)
def next_place(tried: tuple[Tried, ...], scale: Scale) -> float | None:
    """The place whose result is expected to tell most of the boundary; None where the search ends.

    Of places that tell equally much the lowest.
    """
    if known(tried, scale).ended is not None:
        return None
    joint_PS = _posterior(tried, scale)
    prior_P = joint_PS.sum(axis=1)
    n, rate_CPS = scale.seeds, _rates(scale)
    odds_CPS = rate_CPS / (1 - rate_CPS)
    joint_CPS = joint_PS * (1 - rate_CPS) ** n
    gain_C = np.zeros(len(scale.places))
    for k in range(n + 1):
        with_k_CP = math.comb(n, k) * joint_CPS.sum(axis=2)
        chance_C1 = with_k_CP.sum(axis=1, keepdims=True)
        # What is all but impossible comes to 0 · log 0, which is 0.
        told_CP = with_k_CP / np.maximum(prior_P * chance_C1, _TINY)
        gain_C += (with_k_CP * np.log(np.maximum(told_CP, _TINY))).sum(axis=1)
        joint_CPS *= odds_CPS
    return scale.places[int(np.argmax(np.round(gain_C, 9)))]


@lru_cache(maxsize=64)
def _unknowns(scale: Scale) -> tuple[Array, Array]:
    """[P] places where the boundary may be, and [S] slopes."""
    low, high = scale.places[0], scale.places[-1]
    around = _BEYOND * (high - low)
    span = high - low + 2 * around
    count = math.ceil(span / scale.resolution * _PLACES_A_RESOLUTION)
    place_P = np.linspace(low - around, high + around, min(max(count, 120), _MOST_PLACES) + 1)
    steepest, shallowest = scale.resolution / 8, max((high - low) / 6, scale.resolution)
    edges = np.geomspace(steepest, shallowest, _SLOPES + 1)
    # The middle of each of as many equal stretches of the logarithm.
    return place_P, np.sqrt(edges[1:] * edges[:-1])


@lru_cache(maxsize=8)
def _rates(scale: Scale) -> Array:
    """[C, P, S] divergence rate at each place to try, by where the boundary is and how steep."""
    return _rate(np.array(scale.places)[:, None, None], scale)


def _rate(place: float | Array, scale: Scale) -> Array:
    """[P, S] the same at a place; [C, P, S] for places [C, 1, 1]."""
    place_P, slope_S = _unknowns(scale)
    score = (place - place_P[:, None]) / slope_S[None, :]
    found: Array = ODD + (1 - 2 * ODD) / (1 + np.exp(-np.clip(score, -500, 500)))
    return found


def _posterior(tried: tuple[Tried, ...], scale: Scale) -> Array:
    """[P, S] how likely each boundary and slope is; sums to 1."""
    place_P, slope_S = _unknowns(scale)
    log_PS = np.zeros((len(place_P), len(slope_S)))
    for one in tried:
        rate_PS = _rate(one.place, scale)
        log_PS += one.diverged * np.log(rate_PS) + (one.n - one.diverged) * np.log1p(-rate_PS)
    mass_PS = np.exp(log_PS - log_PS.max())
    found: Array = mass_PS / mass_PS.sum()
    return found
