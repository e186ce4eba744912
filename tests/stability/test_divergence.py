"""Rule v1 of divergence: each part, online in blocks of any size, and on a whole curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.config.study import Divergence
from wesar_sweep.stability.divergence import DivergenceDetector, Verdict, judge, trailing_mean

RULE = Divergence(window=4, patience=5, delta=0.5)


def online(
    loss: np.ndarray,
    grad_norm: np.ndarray,
    *,
    rule: Divergence = RULE,
    warmup: int = 0,
    initial_loss: float = 5.0,
    cuts: tuple[int, ...] = (),
    ended: bool = True,
) -> Verdict | None:
    detector = DivergenceDetector(rule, warmup=warmup, initial_loss=initial_loss)
    for block, norms in zip(np.split(loss, cuts), np.split(grad_norm, cuts), strict=True):
        verdict = detector.update(block, norms)
        if verdict is not None:
            return verdict
    return detector.finish() if ended else None


def verdict_on(loss: list[float], **options: object) -> Verdict | None:
    """Both ways at once; they must agree."""
    series = np.array(loss, dtype=np.float32)
    norms = np.ones_like(series)
    first = online(series, norms, **options)  # type: ignore[arg-type]
    options.pop("cuts", None)
    settings_ = {"rule": RULE, "warmup": 0, "initial_loss": 5.0, **options}
    assert judge(series, grad_norm=norms, **settings_) == first  # type: ignore[arg-type]
    return first


def test_a_run_that_learns_has_not_diverged() -> None:
    assert verdict_on(list(np.linspace(5, 2, 60))) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value: float) -> None:
    verdict = verdict_on([5, 4, 3, value, 3, 3, 3, 3])
    assert verdict == Verdict(3, f"loss not finite ({value:g}) at step 3")


def test_a_gradient_norm_that_is_not_finite() -> None:
    loss, norms = np.full(6, 3.0), np.array([1, 1, math.inf, 1, 1, math.nan])
    expected = Verdict(2, "gradient norm not finite (inf) at step 2")
    assert online(loss, norms) == expected
    assert judge(loss, grad_norm=norms, rule=RULE, warmup=0, initial_loss=5.0) == expected


def test_above_the_initial_loss_for_patience_steps() -> None:
    # Smoothed over 4: above 5 from the step whose window holds [4, 4, 4, 10], step 10, on.
    loss = [4.0] * 10 + [10.0] * 20
    verdict = verdict_on(loss, rule=Divergence(window=4, patience=5, delta=100))
    assert verdict is not None and verdict.step == 14
    assert verdict.reason == (
        "smoothed loss more than 0.05 above the initial loss 5 for 5 steps, up to step 14 where it "
        "was 10 (mean of 4 steps)"
    )


def test_a_streak_one_step_too_short_is_none() -> None:
    loss = [4.0] * 10 + [10.0] + [4.0] * 20  # above in the 4 windows that hold the 10
    lenient = Divergence(window=4, patience=5, delta=100)
    assert verdict_on(loss, rule=lenient) is None
    strict = Divergence(window=4, patience=4, delta=100)
    assert verdict_on(loss, rule=strict) == Verdict(
        13,
        "smoothed loss more than 0.05 above the initial loss 5 for 4 steps, up to step 13 where it "
        "was 5.5 (mean of 4 steps)",
    )


def test_an_interrupted_streak_starts_anew() -> None:
    once = [10.0] + [4.0] * 3
    loss = [4.0] * 8 + once + [1.0] * 4 + once
    assert verdict_on(loss, rule=Divergence(window=4, patience=8, delta=100)) is None


def test_warmup_is_not_counted() -> None:
    loss = [10.0] * 20 + [4.0] * 30
    rule = Divergence(window=4, patience=5, delta=100)
    assert verdict_on(loss, rule=rule, warmup=20) is None
    late = verdict_on(loss, rule=rule, warmup=12)
    assert late is not None and late.step == 16
    control = verdict_on(loss, rule=rule, warmup=0)
    assert control is not None and control.step == 3 + 4


def test_a_run_that_learns_nothing_has_not_diverged() -> None:
    # Its training text may be a little harder than the validation text: within the margin.
    assert verdict_on([5.0] * 100) is None
    assert verdict_on([5.04] * 100) is None
    assert verdict_on([5.06] * 100) is not None
    exact = Divergence(**{**RULE.model_dump(), "margin": 0.0})
    assert verdict_on([5.0] * 100, rule=exact) is None
    assert verdict_on([5.0 + 1e-6] * 100, rule=exact) is not None


def test_a_short_run_that_ends_above_its_start_has_diverged() -> None:
    """It never was above for `patience` steps, but its best is its initial loss."""
    rule = Divergence(window=4, patience=50, delta=0.5)
    loss = [5.0, 7.0, 9.0, 9.5, 9.5, 9.5, 9.5, 9.5]
    verdict = verdict_on(loss, rule=rule)
    assert verdict is not None and verdict.step == 7
    assert "above the run's best 5;" in verdict.reason
    assert verdict_on([5.0, 5.2, 5.3, 5.4, 5.4, 5.4], rule=rule) is None


def test_the_end_above_the_runs_own_best() -> None:
    loss = [4.0] * 20 + [1.0] * 4 + [1.6] * 10
    verdict = verdict_on(loss)
    assert verdict == Verdict(
        33,
        "smoothed loss 1.6 at the end is 0.6 above the run's best 1; 0.5 allowed (mean of 4 steps)",
    )
    assert verdict_on(loss, rule=Divergence(window=4, patience=5, delta=0.7)) is None


def test_exactly_delta_above_the_best_is_allowed() -> None:
    loss = [4.0] * 20 + [1.0] * 4 + [1.5] * 10
    assert verdict_on(loss) is None
    assert verdict_on([*loss[:-1], 1.5 + 1e-5]) is not None


def test_the_end_rule_waits_for_the_end() -> None:
    loss = [4.0] * 20 + [1.0] * 4 + [1.6] * 10
    assert verdict_on(loss, ended=False) is None
    assert verdict_on(loss + [1.0] * 10) is None


def test_a_spike_that_heals_is_no_divergence() -> None:
    loss = [3.0] * 30 + [9.0] + [3.0] * 30
    assert verdict_on(loss) is None


def test_a_run_shorter_than_the_window_is_judged_on_finiteness_alone() -> None:
    assert verdict_on([5.0, 50.0, 500.0]) is None
    assert verdict_on([5.0, 50.0, math.nan]) == Verdict(2, "loss not finite (nan) at step 2")
    assert verdict_on([]) is None


def test_the_verdict_stands() -> None:
    detector = DivergenceDetector(RULE, warmup=0, initial_loss=5.0)
    first = detector.update([1.0, math.nan], [1.0, 1.0])
    assert first is not None and first.step == 1
    assert detector.update([math.inf, 1.0], [1.0, 1.0]) is first
    assert detector.finish() is first and detector.verdict is first


def test_an_initial_loss_that_is_not_finite_is_a_verdict_at_step_0() -> None:
    verdict = verdict_on([5.0] * 10, initial_loss=math.nan)
    assert verdict is not None and verdict.step == 0 and "not finite" in verdict.reason


def test_series_of_different_length_are_refused() -> None:
    detector = DivergenceDetector(RULE, warmup=0, initial_loss=5.0)
    with pytest.raises(ValueError, match="one length"):
        detector.update([1.0, 2.0], [1.0])


def test_a_huge_loss_takes_nothing_from_the_precision_of_later_ones() -> None:
    values = np.concatenate([np.full(8, 3.0), [1e30], np.full(50, 3.0)])
    assert trailing_mean(values, window=4)[-1] == 3.0
    running = np.cumsum(values)  # the control: what a running sum would have made of it
    assert (running[-1] - running[-5]) / 4 != 3.0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_blocks_of_any_size_and_the_whole_curve_agree(data: st.DataObject) -> None:
    steps = data.draw(st.integers(0, 80))
    kinds = st.sampled_from([1.0, 2.0, 4.9, 5.0, 5.1, 9.0])
    odd = st.sampled_from([math.nan, math.inf]) if data.draw(st.booleans()) else kinds
    loss = np.array(data.draw(st.lists(kinds | odd, min_size=steps, max_size=steps)))
    loss = loss + data.draw(st.sampled_from([0.0, 0.1, 1 / 3]))
    norms = np.where(np.arange(steps) == data.draw(st.integers(-1, 300)), math.nan, 1.0)
    rule = Divergence(
        window=data.draw(st.integers(1, 9)),
        patience=data.draw(st.integers(1, 9)),
        delta=data.draw(st.sampled_from([0.01, 0.5, 5.0])),
    )
    warmup = data.draw(st.integers(0, 30))
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, steps), max_size=12))))
    options = {"rule": rule, "warmup": warmup, "initial_loss": 5.0}
    whole = judge(loss, grad_norm=norms, **options)
    assert online(loss, norms, cuts=cuts, **options) == whole  # type: ignore[arg-type]
    one_by_one = tuple(range(1, steps))
    assert online(loss, norms, cuts=one_by_one, **options) == whole  # type: ignore[arg-type]
