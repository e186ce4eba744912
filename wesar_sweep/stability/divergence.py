"""When a run has diverged: rule ``v1``, online and over a whole curve.

The rule, in the words of `wesar_sweep.config.study.Divergence` (``window``, ``patience``,
``margin``, ``delta``). Steps are counted from 0; the loss and the gradient norm of a step are those
before its update. The *smoothed* loss of a step is the mean of the last ``window`` losses up to it,
and exists only when there are that many. A run has diverged at the first step where

1. the loss or the gradient norm is not finite; or
2. the smoothed loss has been more than ``margin`` above the initial loss for ``patience`` steps on
   end, counting only steps after the warm-up (step >= ``warmup``; the mean itself may still reach
   back into it). The run need not have been below before: one that jumps up at once and stays there
   has diverged too. The margin is for runs that learn nothing: their training text may be a hair
   harder than the validation text.

A run that reaches its end has diverged there (at its last step) if

3. the smoothed loss of the last step exceeds the run's own best, which is the least of its initial
   loss and its smoothed losses, by more than ``delta`` nats.

A run shorter than ``window`` has no smoothed loss and is not judged by 2 and 3.

The initial loss is the validation loss before the first step. Means are taken in float64, oldest
loss first, so that a verdict does not depend on how the curve was cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wesar_sweep.config.study import Divergence

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A run has diverged."""

    step: int
    """The step, from 0, at which the rule was fulfilled."""
    reason: str
    """Why, in words with numbers; contains ``not finite`` exactly where that was the cause."""


class DivergenceDetector:
    """Rule ``v1`` over a curve that comes in pieces. One detector a run.

    To go on after a restart, feed a new detector the curve so far.
    """

    def __init__(self, rule: Divergence, *, warmup: int, initial_loss: float) -> None:
        """Start at step 0.

        Args:
            rule: Window, patience and delta.
            warmup: Steps of the learning rate's warm-up, in which rule 2 is silent.
            initial_loss: Validation loss before the first step, in nats a token. Where it is not
                finite pass a finite stand-in (such as the loss of a uniform guess), or the verdict
                is given at step 0.
        """
        self._rule = rule
        self._warmup = warmup
        self._initial_loss = float(initial_loss)
        self._steps = 0
        self._above = 0
        self._tail: Series = np.zeros(0)
        self._least = self._initial_loss
        self._last = np.nan
        self._verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What was decided so far; once given, a verdict stands."""
        return self._verdict

    def update(self, loss: ArrayLike, grad_norm: ArrayLike) -> Verdict | None:
        """Take the next steps of the run, in order, in a block of any length.

        Args:
            loss: [S] training loss in nats a token.
            grad_norm: [S] norm of the gradient before clipping.

        Returns:
            The verdict, whose step may lie anywhere in the block; None while there is none. The
            rest of the block after it, and all later blocks, are ignored.

        Raises:
            ValueError: The two differ in length.
        """
        loss_S, grad_norm_S = _pair(loss, grad_norm)
        if self._verdict is not None or not len(loss_S):
            return self._verdict
        bad = _first_not_finite(loss_S, grad_norm_S, initial_loss=self._initial_loss)
        self._watch(loss_S[:bad])
        if self._verdict is None and bad is not None:
            self._verdict = _not_finite(
                self._steps, loss_S[bad], grad_norm_S[bad], initial_loss=self._initial_loss
            )
        return self._verdict

    def finish(self) -> Verdict | None:
        """Judge the end of a run that has done all its steps (rule 3)."""
        if self._verdict is None:
            self._verdict = _end_rule(
                self._rule, least=self._least, last=self._last, step=self._steps - 1
            )
        return self._verdict

    def _watch(self, loss_S: Series) -> None:
        """Rule 2 over finite losses, and what rule 3 needs."""
        window = self._rule.window
        known = np.concatenate([self._tail, loss_S])
        # The first smoothed value belongs to the first new step whose window is full.
        first = self._steps + max(0, window - 1 - len(self._tail))
        for step, smoothed in enumerate(trailing_mean(known, window=window).tolist(), start=first):
            self._least = min(self._least, smoothed)
            self._last = smoothed
            above = step >= self._warmup and smoothed > self._initial_loss + self._rule.margin
            self._above = self._above + 1 if above else 0
            if self._above == self._rule.patience:
                self._verdict = _above_initial(
                    self._rule, step=step, smoothed=smoothed, initial_loss=self._initial_loss
                )
                return
        self._steps += len(loss_S)
        self._tail = known[max(0, len(known) - window + 1) :]


def judge(
    loss: ArrayLike,
    *,
    grad_norm: ArrayLike,
    rule: Divergence,
    warmup: int,
    initial_loss: float,
    ended: bool = True,
) -> Verdict | None:
    """The verdict of rule ``v1`` on a whole curve: what a `DivergenceDetector` fed with it says.

    Args:
        loss: [S] training loss in nats a token.
        grad_norm: [S] norm of the gradient before clipping.
        rule: Window, patience and delta.
        warmup: Steps of warm-up.
        initial_loss: Validation loss before the first step.
        ended: Whether the curve is all of the run, so that rule 3 applies.

    Returns:
        The verdict, or None where the run has not diverged.

    Raises:
        ValueError: The two series differ in length.
    """
    loss_S, grad_norm_S = _pair(loss, grad_norm)
    bad = _first_not_finite(loss_S, grad_norm_S, initial_loss=initial_loss)
    smoothed = trailing_mean(loss_S[:bad], window=rule.window)
    step = np.arange(len(smoothed)) + rule.window - 1
    above = (smoothed > initial_loss + rule.margin) & (step >= warmup)
    # The length of the streak that ends here: distance to the last step that was not above.
    last_below = np.maximum.accumulate(np.where(above, -1, np.arange(len(above))))
    full = np.flatnonzero(np.arange(len(above)) - last_below >= rule.patience)
    if len(full):
        at = int(full[0])
        return _above_initial(
            rule, step=int(step[at]), smoothed=float(smoothed[at]), initial_loss=initial_loss
        )
    if bad is not None:
        return _not_finite(bad, loss_S[bad], grad_norm_S[bad], initial_loss=initial_loss)
    if not ended or not len(smoothed):
        return None
    return _end_rule(
        rule,
        least=min(float(smoothed.min()), initial_loss),
        last=float(smoothed[-1]),
        step=len(loss_S) - 1,
    )


def trailing_mean(values: Series, *, window: int) -> Series:
    """Mean of each `window` neighbours, oldest added first.

    A running sum would keep for ever what a huge value took from its precision, and a reduction
    over an axis adds in an order that depends on the array's length; this does neither.

    Args:
        values: [S], float64.
        window: Number of values averaged, at least 1.

    Returns:
        [max(0, S - window + 1)], float64; the first belongs to step window - 1.
    """
    count = max(0, len(values) - window + 1)
    total = np.zeros(count)
    with np.errstate(over="ignore"):
        for offset in range(window if count else 0):
            total += values[offset : offset + count]
    return total / window


def _pair(loss: ArrayLike, grad_norm: ArrayLike) -> tuple[Series, Series]:
    loss_S = np.asarray(loss, dtype=np.float64)
    grad_norm_S = np.asarray(grad_norm, dtype=np.float64)
    if loss_S.ndim != 1 or loss_S.shape != grad_norm_S.shape:
        raise ValueError(
            f"loss and grad_norm must be two series of one length, not of shapes {loss_S.shape} "
            f"and {grad_norm_S.shape}"
        )
    return loss_S, grad_norm_S


def _first_not_finite(loss_S: Series, grad_norm_S: Series, *, initial_loss: float) -> int | None:
    if not np.isfinite(initial_loss):
        return 0 if len(loss_S) else None
    bad = np.flatnonzero(~(np.isfinite(loss_S) & np.isfinite(grad_norm_S)))
    return int(bad[0]) if len(bad) else None


def _not_finite(step: int, loss: float, grad_norm: float, *, initial_loss: float) -> Verdict:
    if not np.isfinite(initial_loss):
        return Verdict(step, f"validation loss before the first step not finite ({initial_loss:g})")
    what, value = ("gradient norm", grad_norm) if np.isfinite(loss) else ("loss", loss)
    return Verdict(step, f"{what} not finite ({value:g}) at step {step}")


def _above_initial(rule: Divergence, *, step: int, smoothed: float, initial_loss: float) -> Verdict:
    return Verdict(
        step,
        f"smoothed loss more than {rule.margin:g} above the initial loss {initial_loss:.4g} for "
        f"{rule.patience} steps, "
        f"up to step {step} where it was {smoothed:.4g} (mean of {rule.window} steps)",
    )


def _end_rule(rule: Divergence, *, least: float, last: float, step: int) -> Verdict | None:
    # NaN, where no window was ever full, compares false.
    if not last > least + rule.delta:
        return None
    return Verdict(
        step,
        f"smoothed loss {last:.4g} at the end is {last - least:.3g} above the run's best "
        f"{least:.4g}; {rule.delta:g} allowed (mean of {rule.window} steps)",
    )
