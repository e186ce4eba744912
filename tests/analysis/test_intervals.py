import itertools
import math

import numpy as np
import pytest
from scipy import stats

from wesar_sweep.analysis.intervals import (
    bootstrap_coverage_bound,
    bootstrap_mean,
    bootstrap_pooled_median,
    percentile_interval,
    resamples,
    sign_test,
    student_mean,
    tail,
    wilson,
)


def test_wilson_against_its_formula() -> None:
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 3), (1, 3), (7, 20), (5, 5)):
        centre = (k + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
        found = wilson(k, n)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(0, 0) is None


@pytest.mark.parametrize(("n", "percent"), [(3, 56), (5, 43), (10, 28)])
def test_none_of_n_still_allows(n: int, percent: int) -> None:
    found = wilson(0, n)
    assert found is not None and round(found.high * 100) == percent


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_resamples_are_all_sequences(n: int) -> None:
    seen: dict[tuple[float, ...], float] = {}
    for draw in itertools.product(range(n), repeat=n):
        counts = tuple(float(draw.count(seed)) for seed in range(n))
        seen[counts] = seen.get(counts, 0) + n**-n
    found = resamples(n)
    mine = dict(zip(map(tuple, found.weights.tolist()), found.probability.tolist(), strict=True))
    assert mine.keys() == seen.keys()
    for counts, share in seen.items():
        assert mine[counts] == pytest.approx(share)


def test_many_seeds_are_drawn_the_same_each_time() -> None:
    first = resamples(12)
    resamples.cache_clear()
    assert (resamples(12).weights == first.weights).all()
    assert (first.weights.sum(axis=1) == 12).all()


def test_tail_is_the_expanded_percentile_of_hesterberg() -> None:
    # Hesterberg (2014), table 5 with alpha/2 = 2.5 %: n = 5 gives 0.0010, n = 20 gives 0.0159.
    assert tail(5) == pytest.approx(0.0010, abs=5e-5)
    assert tail(20) == pytest.approx(0.0159, abs=5e-5)


def test_bootstrap_with_three_seeds_is_their_range() -> None:
    found = bootstrap_mean(np.array([1.0, 4.0, 2.0]))
    assert found is not None and (found.low, found.high) == (1.0, 4.0)


def test_bootstrap_of_one_seed_is_none() -> None:
    assert bootstrap_mean(np.array([1.0])) is None
    assert percentile_interval(np.array([1.0]), n=1) is None


def test_bootstrap_of_many_seeds_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=40)
    found = bootstrap_mean(values)
    level = 1 - 2 * tail(40)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", confidence_level=level, rng=2
    ).confidence_interval
    assert found is not None
    spread = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * spread)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * spread)


def test_coverage_of_the_bootstrap_by_simulation() -> None:
    # 2,000 draws know a coverage of 0.9 to 0.7 points (one standard error).
    rng = np.random.default_rng(0)
    for n, low, high in ((3, 0.72, 0.78), (5, 0.88, 0.95), (10, 0.93, 0.97)):
        draws = rng.standard_normal((2_000, n))
        hit = 0
        for values in draws:
            found = bootstrap_mean(values)
            assert found is not None
            hit += found.low <= 0 <= found.high
        assert low < hit / len(draws) < high, (n, hit / len(draws))
        assert hit / len(draws) < bootstrap_coverage_bound(n) + 0.03


def test_student_and_sign_test_against_scipy() -> None:
    values = np.array([0.3, -0.1, 0.5, 0.2])
    found = student_mean(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert sign_test(values) == pytest.approx(stats.binomtest(3, 4).pvalue)
    # By hand: three of three on one side, 2 · (1/2)^3.
    assert sign_test(np.array([1.0, 2.0, 3.0, 0.0])) == pytest.approx(0.25)
    assert sign_test(np.zeros(3)) == 1.0


@pytest.mark.parametrize(
    "sizes", [(1, 1), (1, 4, 2), (3, 1, 1, 2), (30, 1, 25, 4, 18, 2, 9, 11, 40)]
)
def test_the_pooled_median_resamples_groups_whole(sizes: tuple[int, ...]) -> None:
    n = len(sizes)
    rng = np.random.default_rng(n)
    group = rng.permutation(np.repeat(np.arange(n), sizes))
    # Rounded, so that there are ties.
    values = rng.standard_normal(len(group)).round(1)
    drawn = resamples(n)
    by_hand = np.array(
        [np.median(np.repeat(values, row.astype(int)[group])) for row in drawn.weights]
    )
    assert bootstrap_pooled_median(values, group) == percentile_interval(by_hand, n=n)


def test_groups_that_differ_make_a_pooled_median_unsure_however_many_values_they_hold() -> None:
    level = np.linspace(0, 1, 9)
    few, many = (
        bootstrap_pooled_median(np.repeat(level, each), np.repeat(np.arange(9), each))
        for each in (1, 40)
    )
    assert few == many and few is not None and few.high - few.low > 0.4
    # The control: values taken for independent are surer.
    apart = bootstrap_pooled_median(np.repeat(level, 40), np.arange(360))
    assert apart is not None and apart.high - apart.low < 0.3
    assert bootstrap_pooled_median(np.ones(5), np.zeros(5, dtype=np.int64)) is None
    assert bootstrap_pooled_median(np.empty(0), np.empty(0, dtype=np.int64)) is None
