"""Rule v1 of spikes, on planted curves: an instability is found, a hard batch is told from it."""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest
from scipy import stats

from wesar_sweep.config.study import Spikes
from wesar_sweep.stability.spikes import Spike, find_paired_spikes, find_spikes, paired_excess

RULE = Spikes(window=32, z=6.0, min_jump=0.3)


def noisy(steps: int, *, seed: int, level: float = 2.0, noise: float = 0.02) -> np.ndarray:
    """A loss that falls to `level` with normal noise."""
    rng = np.random.default_rng(seed)
    return level + 3 * np.exp(-np.arange(steps) / 60) + rng.normal(0, noise, steps)


def starts(spikes: list[Spike] | None) -> list[int]:
    assert spikes is not None
    return [spike.start for spike in spikes]


def test_noise_and_descent_are_no_spikes() -> None:
    for seed in range(20):
        assert find_spikes(noisy(600, seed=seed), RULE) == []


def test_one_step_up() -> None:
    loss = np.full(100, 2.0)
    loss[50] = 3.5
    assert find_spikes(loss, RULE) == [Spike(start=50, peak=50, height=1.5, steps_to_recover=1)]


def test_a_ragged_descent_is_one_spike_with_its_peak_and_recovery() -> None:
    loss = np.full(100, 2.0)
    loss[50:57] = [3.0, 4.0, 2.1, 3.2, 2.1, 2.6, 2.05]
    assert find_spikes(loss, RULE) == [Spike(start=50, peak=51, height=2.0, steps_to_recover=7)]


def test_recovery_is_to_the_level_it_left_within_its_noise() -> None:
    loss = noisy(400, seed=0)
    loss[300:310] += np.linspace(2, 0.5, 10)
    (spike,) = find_spikes(loss, RULE)
    assert spike.start == spike.peak == 300
    assert spike.height == pytest.approx(2, abs=0.1)
    assert spike.steps_to_recover is not None and 10 <= spike.steps_to_recover <= 14


def test_a_spike_that_lasts_to_the_end_has_not_recovered() -> None:
    loss = np.concatenate([np.full(60, 2.0), np.full(10, 4.0)])
    assert find_spikes(loss, RULE) == [Spike(start=60, peak=60, height=2.0, steps_to_recover=None)]


def test_a_new_level_can_spike_again() -> None:
    loss = np.concatenate([np.full(60, 2.0), np.full(100, 4.0)])
    loss[130] = 6.0
    assert find_spikes(loss, RULE) == [
        Spike(start=60, peak=60, height=2.0, steps_to_recover=None),
        Spike(start=130, peak=130, height=2.0, steps_to_recover=1),
    ]


def test_min_jump_and_z_both_hold_it_back() -> None:
    loss = np.full(100, 2.0)
    loss[50] = 2.25
    assert find_spikes(loss, RULE) == []
    assert starts(find_spikes(loss, Spikes(window=32, z=6.0, min_jump=0.2))) == [50]
    loss = noisy(300, seed=1, noise=0.2)
    loss[200] = 2.0 + 3 * math.exp(-200 / 60) + 1.0  # five of its standard deviations
    assert find_spikes(loss, Spikes(window=32, z=9.0, min_jump=0.3)) == []
    assert 200 in starts(find_spikes(loss, Spikes(window=32, z=2.5, min_jump=0.3)))


def test_the_height_that_counts_is_scipys_robust_deviation() -> None:
    loss = noisy(300, seed=5, noise=0.2)
    past = loss[168:200]
    scale = stats.median_abs_deviation(past, scale="normal")
    for z, found in ((6.01, True), (5.99, False)):
        loss[200] = np.median(past) + z * scale
        assert (200 in starts(find_spikes(loss, RULE))) == found


def test_one_spike_does_not_hide_the_next() -> None:
    loss = noisy(300, seed=2)
    loss[200:204] = 50.0
    loss[210] += 1.0
    assert starts(find_spikes(loss, RULE)) == [200, 210]
    # The control: with mean and standard deviation the first would have hidden the second.
    window = loss[178:210]
    assert loss[210] < window.mean() + 6 * window.std()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_count_and_do_not_poison_the_window(value: float) -> None:
    loss = noisy(300, seed=3)
    loss[[150, 151]] = value
    loss[160] += 1.0
    first, second = find_spikes(loss, RULE)
    assert (first.start, first.peak, first.height) == (150, 150, math.inf)
    assert second.start == 160 and second.height == pytest.approx(1, abs=0.1)


def test_the_beginning_of_a_curve() -> None:
    loss = np.full(64, 2.0)
    loss[[3, 12]] = 9.0
    assert starts(find_spikes(loss, RULE)) == [12], "8 earlier losses are needed"
    loss[3] = math.nan
    assert find_spikes(loss, RULE)[0] == Spike(3, 3, math.inf, 1)
    assert find_spikes(loss[:0], RULE) == []
    assert find_spikes(np.full(5, math.nan), RULE) == [Spike(0, 0, math.inf, None)]


def test_three_thousand_steps_take_no_time() -> None:
    loss = noisy(3000, seed=4)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        find_spikes(loss, Spikes())
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.03


def planted() -> np.ndarray:
    """Eight runs of one data order: step 150 hard for all, run 5 unstable at step 220."""
    losses = np.stack([noisy(300, seed=seed, level=2 + 0.1 * seed) for seed in range(8)])
    losses[:, 150] += 1.2
    losses[5, 220:225] += [0.8, 1.5, 1.0, 0.6, 0.4]
    return losses


def test_paired_spikes_tell_an_instability_from_a_hard_batch() -> None:
    losses = planted()
    raw = [starts(find_spikes(loss, RULE)) for loss in losses]
    assert raw == [[150]] * 5 + [[150, 220]] + [[150]] * 2, "the control: raw spikes cannot"
    paired = find_paired_spikes(losses, RULE)
    assert [starts(spikes) for spikes in paired] == [[]] * 5 + [[220]] + [[]] * 2
    (spike,) = paired[5] or []
    assert spike.peak == 221 and spike.height == pytest.approx(1.5, abs=0.15)


def test_runs_that_end_leave_the_others_as_they_are() -> None:
    losses = planted()
    losses[0, 100:] = math.nan
    losses[7, :40] = math.nan
    paired = find_paired_spikes(losses, RULE)
    assert [starts(spikes) for spikes in paired] == [[]] * 5 + [[220]] + [[]] * 2
    assert np.isnan(paired_excess(losses)[0, 100:]).all()


def test_under_five_runs_nothing_is_judged() -> None:
    assert find_paired_spikes(planted()[4:], RULE) == [None] * 4
    assert find_paired_spikes(planted()[3:], RULE) != [None] * 5
    losses = planted()
    losses[:4, 200:] = math.nan
    assert starts(find_paired_spikes(losses, RULE)[5]) == [], "only 4 of 8 are live at step 220"


def test_steps_after_a_gap_keep_their_numbers() -> None:
    losses = planted()
    losses[:4, 60:80] = math.nan
    paired = find_paired_spikes(losses, RULE)
    assert starts(paired[5]) == [220]


def test_an_infinite_loss_is_a_paired_spike_of_its_run_alone() -> None:
    losses = planted()
    losses[2, 180] = math.inf
    assert np.isinf(paired_excess(losses)[2, 180])
    assert np.isfinite(np.delete(paired_excess(losses)[:, 180], 2)).all()
    assert starts(find_paired_spikes(losses, RULE)[2]) == [180]


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="one series"):
        find_spikes(planted(), RULE)
    with pytest.raises(ValueError, match=r"\[runs, steps\]"):
        paired_excess(planted()[0])
    assert find_paired_spikes(np.zeros((0, 10)), RULE) == []
    assert find_paired_spikes(np.zeros((6, 0)), RULE) == [None] * 6


def spikes_by_the_words(loss: np.ndarray, rule: Spikes) -> list[Spike]:
    """Rule v1 as its module words it, step by step, by the standard library alone."""
    past: list[float] = []
    high, median, mad = [], [], []
    for value in loss.tolist():
        window = past[-rule.window :]
        middle = statistics.median(window) if len(window) >= 8 else math.nan
        spread = statistics.median([abs(v - middle) for v in window]) if window else math.nan
        limit = max(rule.min_jump, rule.z * 1.4826 * spread)
        high.append(not math.isfinite(value) or value - middle > limit)
        median.append(middle)
        mad.append(spread)
        if math.isfinite(value):
            past.append(value)
    found: list[Spike] = []
    free = 0
    for start in range(len(loss)):
        if not high[start] or (start and high[start - 1]) or start < free:
            continue
        level = median[start] + 1.4826 * mad[start]
        after = range(start + 1, len(loss))
        back = [
            s for s in after if loss[s] <= level or (math.isnan(level) and np.isfinite(loss[s]))
        ]
        free = min([*back[:1], start + rule.window, len(loss)])
        shown = [v if math.isfinite(v) else math.inf for v in loss[start:free].tolist()]
        peak = start + shown.index(max(shown))
        height = loss[peak] - median[start] if math.isfinite(loss[peak]) else math.inf
        found.append(Spike(start, peak, height, back[0] - start if back else None))
    return found


@pytest.mark.parametrize("window", [8, 31, 64])
@pytest.mark.parametrize("seed", range(4))
def test_spikes_are_those_of_the_rules_words(window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rule = Spikes(window=window, z=3.0, min_jump=0.05)
    # Heavy tails and a level that moves: many steps near the limit, on both sides of it.
    loss = 3 + 0.05 * rng.standard_t(2, 700) + 0.3 * np.cumsum(rng.normal(0, 0.03, 700))
    loss[rng.integers(0, 700, 6)] = math.nan
    loss[3], loss[500:503] = math.inf, math.inf
    wanted = spikes_by_the_words(loss, rule)
    assert len(wanted) > 5
    assert find_spikes(loss, rule) == wanted
