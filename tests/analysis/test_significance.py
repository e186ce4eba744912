"""Tests against scipy's own and against cases worked by hand."""

import numpy as np
import pytest
from scipy import stats

from wesar_sweep.analysis.significance import fisher, holm, least_fisher, paired_t, welch_t


def test_paired_t_is_scipys() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    found = paired_t(b - a)
    expected = stats.ttest_rel(b, a)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    assert tuple(expected.confidence_interval()) == pytest.approx(
        (found.interval.low, found.interval.high)
    )


def test_welch_t_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=4), 0.3 + 3 * rng.normal(size=7)
    found = welch_t(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found is not None and found.mean == pytest.approx(b.mean() - a.mean())
    assert found.p == pytest.approx(expected.pvalue)
    assert tuple(expected.confidence_interval()) == pytest.approx(
        (found.interval.low, found.interval.high)
    )


def test_equal_values_do_not_differ_and_a_lone_one_says_nothing() -> None:
    same = paired_t(np.zeros(3))
    assert same is not None and same.p == 1 and (same.interval.low, same.interval.high) == (0, 0)
    assert paired_t(np.ones(1)) is None
    assert welch_t(np.ones(1), np.arange(3.0)) is None


def test_fisher_by_hand() -> None:
    # 0 of 3 against 3 of 3: one of C(6, 3) = 20 tables, and the opposite one.
    assert fisher(0, 3, 3, 3) == pytest.approx(2 / 20)
    assert least_fisher(3, 3, 3) == pytest.approx(2 / 20)
    # 0 of 4 against 4 of 4: 2 of C(8, 4) = 70.
    assert least_fisher(4, 4, 4) == pytest.approx(2 / 70)
    assert least_fisher(1, 4, 4) == 1


def test_holm_by_hand() -> None:
    assert holm([]) == []
    # Sorted 0.01, 0.02, 0.04, times 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
