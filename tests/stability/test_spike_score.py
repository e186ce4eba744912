"""The spike scores of others, against a direct reading of their definitions."""

from __future__ import annotations

import math
import statistics
from collections import deque

import numpy as np
import pytest

from wesar_sweep.stability.spike_score import olmo_2_spike_score, olmo_core_spike_score


def series(steps: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2, 0.1, steps)


def test_olmo_2_counts_seven_deviations_either_way() -> None:
    values = series(1500)
    assert olmo_2_spike_score(values) == 0.0
    values[1200], values[1300] = 9.0, -5.0
    assert olmo_2_spike_score(values) == pytest.approx(100 * 2 / 500)
    values[1400] = values[400:1400].mean() + 6.5 * values[400:1400].std(ddof=1)
    assert olmo_2_spike_score(values) == pytest.approx(100 * 2 / 500), "six and a half are too few"


def olmo_2_score(values: np.ndarray, window: int) -> float:
    """The paper's sentence, value by value, with the standard library alone."""
    past: deque[float] = deque(maxlen=window)
    judged = spikes = 0
    for value in values.tolist():
        if math.isfinite(value) and len(past) == window:
            away = abs(value - statistics.fmean(past))
            spikes += away >= 7 * statistics.stdev(past) and away > 0
            judged += 1
        elif not math.isfinite(value):
            spikes, judged = spikes + 1, judged + 1
        if math.isfinite(value):
            past.append(value)
    return 100 * spikes / judged


@pytest.mark.parametrize("kind", ["noise", "huge", "plateau", "drift"])
@pytest.mark.parametrize("window", [20, 101])
def test_olmo_2_is_the_papers_sentence(kind: str, window: int) -> None:
    rng = np.random.default_rng(window)
    values = series(900, seed=window)
    values[rng.integers(0, 900, 12)] += rng.normal(0, 1.5, 12)
    values[[300, 640]] = math.nan, math.inf
    if kind == "huge":
        # What a sum over the whole series, taken off again, would not survive.
        values[[150, 400]] = 1e30, 1e12
    elif kind == "plateau":
        # A constant that is not the series' median, whose deviation is 0 and not about 0.
        values[500:800] = np.float32(3.1)
        values[700] += 1e-9
    elif kind == "drift":
        values = 10 * np.exp(-np.arange(900) / 50) + 0.001 * values
    wanted = olmo_2_score(values, window)
    assert 0 < wanted < 100
    assert olmo_2_spike_score(values, window=window) == pytest.approx(wanted)


def test_olmo_2_says_nothing_of_a_short_series() -> None:
    assert olmo_2_spike_score(series(1000)) is None
    assert olmo_2_spike_score(series(1001)) == 0.0
    assert olmo_2_spike_score(series(300), window=100) == 0.0


def olmo_core_skips(values: np.ndarray, window: int = 128) -> tuple[int, int]:
    """The optimizer's own procedure, value by value: how many were judged, how many skipped."""
    kept: deque[float] = deque(maxlen=window + 1)
    judged = skipped = 0
    for value in values:
        kept.append(value)
        if len(kept) < max(20, window // 2):
            continue
        past = np.array(kept)[:-1]
        judged += 1
        skipped += not (value - past.mean()) <= 6 * past.std(ddof=1)
    return judged, skipped


@pytest.mark.parametrize("seed", range(5))
def test_olmo_core_is_the_optimizers_procedure(seed: int) -> None:
    values = series(700, seed=seed)
    values[np.random.default_rng(seed).integers(0, 700, 12)] += 1.5
    values[300] = -9.0
    judged, skipped = olmo_core_skips(values)
    assert skipped > 0
    assert olmo_core_spike_score(values) == pytest.approx(100 * skipped / judged)


@pytest.mark.parametrize(
    ("score", "sigma", "window"),
    [
        (olmo_2_spike_score, 7, 1000),
        (olmo_core_spike_score, 6, 128),
        (olmo_core_spike_score, 6, 90),
    ],
)
def test_the_deviation_is_the_samples(score: object, sigma: float, window: int) -> None:
    assert callable(score)
    values = series(window + 1)
    past = values[:-1]
    # Below the line by less than what the divisor n in place of n - 1 would lower it by.
    edge = sigma * past.std(ddof=1)
    values[-1] = past.mean() + edge * (1 - 1e-5)
    assert score(values) == 0.0
    values[-1] = past.mean() + edge * (1 + 1e-5)
    assert score(values) > 0.0


def test_olmo_core_looks_upward_only() -> None:
    values = series(400)
    values[300] = -9.0
    assert olmo_core_spike_score(values) == 0.0
    values[300] = 9.0
    assert olmo_core_spike_score(values) == pytest.approx(100 / (400 - 63))


@pytest.mark.parametrize("score", [olmo_2_spike_score, olmo_core_spike_score])
def test_a_nan_is_a_spike_and_blinds_nothing(score: object) -> None:
    values = series(2000)
    values[1500], values[1510] = math.nan, 9.0
    clean = series(2000)
    clean[1500], clean[1510] = 9.0, 9.0
    assert callable(score)
    assert score(values) == pytest.approx(score(clean))
    # The control: read literally, the NaN is in the window of 1510 and no comparison is true.
    assert not values[1510] > np.mean(values[1382:1510]) + 6 * np.std(values[1382:1510])


def test_a_constant_series_has_no_spikes() -> None:
    assert olmo_2_spike_score(np.full(1200, 2.0)) == 0.0
    assert olmo_core_spike_score(np.full(1200, 2.0)) == 0.0
    assert olmo_core_spike_score([]) is None
    assert olmo_core_spike_score([math.nan]) == 100.0


def test_long_series_are_judged_in_pieces_alike() -> None:
    values = series(3000)
    values[[1100, 1700, 2900]] = 5.0
    assert olmo_2_spike_score(values) == pytest.approx(100 * 3 / 2000)


def test_only_one_series_is_taken() -> None:
    with pytest.raises(ValueError, match="one series"):
        olmo_2_spike_score(np.zeros((2, 3)))
