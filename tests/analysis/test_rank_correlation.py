"""Tau-b against scipy's, its interval, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wesar_sweep.analysis.intervals import resamples
from wesar_sweep.analysis.rank_correlation import LEAST_POINTS, _tau, rank_correlation


@pytest.mark.parametrize("n", [6, 8, 30])
def test_it_is_scipys_with_ties_too(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.integers(0, 5, n).astype(float)
    y = x + rng.integers(0, 4, n)
    found = rank_correlation(x, y)
    assert found is not None
    assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_a_weighted_resample_is_the_resample_written_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(size=7)
    weights = resamples(7).weights[[3, 500, 1000]]
    for weight, tau in zip(weights, _tau(x, y, weights), strict=True):
        drawn = np.repeat(np.arange(7), weight.astype(int))
        assert tau == pytest.approx(stats.kendalltau(x[drawn], y[drawn]).statistic, abs=1e-12)


def test_the_interval_holds_zero_for_noise_and_not_for_order() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    noise, order = rank_correlation(x, rng.normal(size=20)), rank_correlation(x, x**3)
    assert noise is not None and noise.interval is not None
    assert noise.interval.low < 0 < noise.interval.high
    assert order is not None and order.interval is not None
    assert (order.tau, order.interval.low, order.n) == (1.0, 1.0, 20)


def test_few_points_or_equal_ones_have_none() -> None:
    few = np.arange(LEAST_POINTS - 1, dtype=float)
    assert rank_correlation(few, few) is None
    six = np.arange(LEAST_POINTS, dtype=float)
    assert rank_correlation(six, np.ones(LEAST_POINTS)) is None
    assert rank_correlation(six, six) is not None
