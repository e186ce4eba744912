"""The boundary of a rising rate: worked by hand, by enumeration, and its coverage by simulation."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from wesar_sweep.analysis import monotone_boundary as module
from wesar_sweep.analysis.monotone_boundary import Boundary, largest_fall, monotone_boundary

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import boundary_coverage as simulated


def boundary(*diverged: int, n: int = 3) -> Boundary:
    """At places 0, 1, 2, …"""
    places = np.arange(len(diverged), dtype=np.float64)
    return monotone_boundary(places, np.array(diverged), np.full(len(diverged), n))


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # One place speaks for itself where 2^-n is below 2.5 %, so from 6 on; else its neighbour helps.
    [(1, None, None), (3, 2.0, 5.0), (5, 2.0, 5.0), (6, 3.0, 4.0), (10, 3.0, 4.0)],
)
def test_a_clean_jump_is_bracketed_and_the_interval_widened_for_n(
    n: int, low: float | None, high: float | None
) -> None:
    found = boundary(0, 0, 0, 0, n, n, n, n, n=n)
    assert (found.below, found.above) == (3.0, 4.0)
    assert (found.low, found.high) == (low, high)
    assert largest_fall(np.array([0, 0, n, n]), np.full(4, n)) is None


def test_violators_are_pooled_as_by_hand() -> None:
    # 1/3 and 0/3 pool to 1/6, 2/3 and 1/3 to exactly one half: the rate passes it across both.
    found = boundary(0, 1, 0, 2, 1, 3, 3)
    assert (found.below, found.above) == (2.0, 5.0)
    fall = largest_fall(np.array([0, 1, 0, 2, 1, 3, 3]), np.full(7, 3))
    assert fall is not None and (fall.first, fall.later) == (1, 2) and 0.1 < fall.p <= 1


def test_nothing_is_bounded_that_was_not_tried() -> None:
    calm, wild = boundary(0, 0, 0, 0), boundary(3, 3, 3, 3)
    assert (calm.below, calm.above, calm.low, calm.high) == (3.0, None, 2.0, None)
    assert (wild.below, wild.above, wild.low, wild.high) == (None, 0.0, None, 1.0)
    assert boundary() == Boundary(None, None, None, None)


def test_a_rate_that_falls_is_found_out() -> None:
    found = boundary(3, 3, 3, 0, 0, 0)
    fall = largest_fall(np.array([3, 3, 3, 0, 0, 0]), np.full(6, 3))
    assert fall is not None and (fall.first, fall.later) == (0, 3) and fall.p < 0.01
    assert (found.low, found.high) == (None, None)


def test_a_stray_run_widens_the_interval_and_does_not_open_it() -> None:
    clean, stray = boundary(0, 0, 0, 0, 0, 0, 3, 3, 3), boundary(1, 0, 0, 0, 0, 0, 3, 3, 3)
    assert stray.low is not None and clean.low is not None and stray.low <= clean.low
    late = boundary(0, 0, 0, 0, 0, 1, 3, 3, 3)
    assert late.low == 3.0 < clean.low


def test_another_rate_moves_the_boundary() -> None:
    places, k, n = np.arange(6.0), np.array([0, 1, 2, 5, 9, 10]), np.full(6, 10)
    ends = [monotone_boundary(places, k, n, rate=rate).below for rate in (0.05, 0.15, 0.5, 0.95)]
    assert ends == [0.0, 1.0, 2.0, 4.0]


def test_the_exact_p_is_that_of_every_outcome_counted() -> None:
    """Independent: all (3 + 1)^4 outcomes of four places with their binomial probabilities."""
    n, seen = 3, (0, 1, 1, 2)

    def least_tail(outcome: tuple[int, ...]) -> float:
        sums = itertools.accumulate(outcome)
        return min(float(stats.binom.cdf(k, n * (m + 1), 0.5)) for m, k in enumerate(sums))

    p = sum(
        math.prod(math.comb(n, k) / 2**n for k in outcome)
        for outcome in itertools.product(range(n + 1), repeat=4)
        if least_tail(outcome) <= least_tail(seen) + 1e-12
    )
    # Twelve runs are pooled at most: the fifth place does not matter.
    for fifth in (0, 3):
        k_L, n_L = np.array([*seen, fifth]), np.full(5, n)
        assert module._p_too_few(k_L, n_L, 0.5) == pytest.approx(p, rel=1e-12)


def test_a_rising_rate_is_seldom_said_to_fall() -> None:
    rng = np.random.default_rng(0)
    rate_L = np.array([0.05, 0.1, 0.3, 0.5, 0.7, 0.9])
    falls = [largest_fall(rng.binomial(5, rate_L), np.full(6, 5)) for _ in range(100)]
    assert sum(fall is not None for fall in falls) > 50, "the test is of rates that fall by chance"
    # 5 in 100 expected at most; 12 or more would be one case in 200.
    assert sum(fall is not None and fall.p < 0.05 for fall in falls) < 12


@pytest.mark.parametrize("n", simulated.SEEDS)
@pytest.mark.parametrize("kind", ["steep", "shallow", "plateau"])
def test_the_interval_holds_a_known_boundary(kind: str, n: int) -> None:
    for at_place in (False, True):
        held, wide, _ = simulated.coverage(
            "isotonic, exact", n=n, kind=kind, studies=120, at_place=at_place
        )
        # Exact tests, and two places to a bracket: 95 % at least, and by far.
        assert held >= 0.97
        assert wide <= {3: 4.0, 5: 3.0, 10: 2.5}[n]


def test_intervals_of_a_wrong_shape_miss_what_these_hold() -> None:
    """The control: a logistic curve through a plateau of sporadic divergence is misled."""
    held, _, _ = simulated.coverage("logistic, profile", n=10, kind="plateau", studies=60)
    assert held < 0.8
