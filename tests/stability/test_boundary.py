"""The posterior of a boundary against an independent computation, and the search by simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from wesar_sweep.stability.boundary import ODD, Scale, Tried, known, next_place

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import boundary_search as simulated

PLACES = tuple(np.linspace(-4, 0, 17).tolist())
SCALE = Scale(PLACES, resolution=0.25, most=14, seeds=3)
RESULTS = (Tried(-2.0, 3, 0), Tried(-1.0, 3, 3), Tried(-1.5, 3, 1))


def by_monte_carlo(tried: tuple[Tried, ...], scale: Scale) -> list[float]:
    """Quantiles of the boundary by importance sampling from the priors that the module states."""
    rng = np.random.default_rng(1)
    boundary = rng.uniform(-5, 1, 400_000)
    slope = np.exp(rng.uniform(np.log(scale.resolution / 8), np.log(4 / 6), 400_000))
    weight = np.ones_like(boundary)
    for place, n, k in tried:
        rate = ODD + (1 - 2 * ODD) / (1 + np.exp(-np.clip((place - boundary) / slope, -500, 500)))
        weight *= rate**k * (1 - rate) ** (n - k)
    order = np.argsort(boundary)
    share = np.cumsum(weight[order]) / weight.sum()
    return [float(boundary[order][np.searchsorted(share, q)]) for q in (0.025, 0.5, 0.975)]


@pytest.mark.parametrize("tried", [(), RESULTS[:1], RESULTS, (*RESULTS, Tried(-1.5, 2, 0))])
def test_quantiles_are_those_of_monte_carlo(tried: tuple[Tried, ...]) -> None:
    found = known(tried, SCALE)
    # The slopes are nine on a grid here and continuous there.
    expected = pytest.approx(by_monte_carlo(tried, SCALE), abs=0.03)
    assert [found.low, found.median, found.high] == expected


def test_the_first_value_is_the_middle_and_results_move_the_next() -> None:
    assert next_place((), SCALE) == pytest.approx(-2.0)
    up, down = (next_place((Tried(-2.0, 3, k),), SCALE) for k in (0, 3))
    assert up is not None and down is not None and down < -2.0 < up
    assert up + 2 == pytest.approx(-(down + 2), abs=0.26), "as far to either side"


def test_the_order_of_results_does_not_matter() -> None:
    one, other = known(RESULTS, SCALE), known(RESULTS[::-1], SCALE)
    assert one.median == pytest.approx(other.median, abs=1e-9)


def test_a_failed_value_tells_nothing() -> None:
    assert known((*RESULTS, Tried(-3.0, 0, 0)), SCALE) == known(RESULTS, SCALE)


@pytest.mark.parametrize(
    ("k", "place", "ended"),
    [(0, 0.0, "above the largest value"), (3, -4.0, "below the least value")],
)
def test_a_boundary_beyond_an_end_is_said_to_be_there(k: int, place: float, ended: str) -> None:
    tried: tuple[Tried, ...] = ()
    while (following := next_place(tried, SCALE)) is not None:
        tried += (Tried(following, 3, k),)
    found = known(tried, SCALE)
    assert found.ended == ended and len(tried) <= 7
    assert tried[-1].place == place
    assert (found.above if k == 0 else found.below) > 0.975


def test_no_more_values_than_allowed() -> None:
    few = Scale(PLACES, resolution=0.25, most=3, seeds=3)
    assert next_place(RESULTS, few) is None
    assert known(RESULTS, few).ended == "3 cells, the most allowed"
    assert known(RESULTS, SCALE).ended is None


@pytest.mark.parametrize("slope", [0.02, 0.2])
def test_intervals_hold_the_truth_and_runs_are_saved(slope: float) -> None:
    scale = Scale(PLACES, resolution=0.25, most=14, seeds=3)
    found = simulated.searched(slope, studies=80, scale=scale)
    assert found.coverage >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 80)
    grid = 3 * len(PLACES)
    assert found.runs < (0.5 if slope < 0.1 else 0.85) * grid
    if slope < 0.1:
        assert found.width <= 0.25


def test_seeds_that_keep_their_luck_would_break_the_interval() -> None:
    """The control: why each value has seeds of its own."""
    scale = Scale(PLACES, resolution=0.25, most=14, seeds=3)
    own = simulated.searched(0.15, studies=80, scale=scale)
    shared = simulated.searched(0.15, studies=80, shared=True, scale=scale)
    assert shared.coverage < 0.85 < own.coverage
