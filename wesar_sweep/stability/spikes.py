"""What a loss spike is: rule ``v1``, on one curve and on its excess over runs with its batches.

The rule, in the words of `wesar_sweep.config.study.Spikes` (``window``, ``z``, ``min_jump``). The
*trailing median* and the *MAD* (median absolute deviation from it) of a step are those of the last
``window`` finite losses before it; at the start of a curve of those there are, but at least
`MIN_HISTORY`. A step is *high* if its loss exceeds the trailing median by more than
max(``min_jump``, ``z``·1.4826·MAD), or is not finite.

- A spike **starts** at a high step after one that was not high.
- It **has recovered** at the first step whose loss is back within one robust standard deviation
  (1.4826·MAD) of the median it left. Both are frozen at its start. (A loss that was not finite
  before there was any history has recovered when it is finite.)
- A new spike starts only once the last has recovered, or ``window`` steps after its start: by then
  the trailing median has learnt the new level and judges anew. So a ragged descent is one spike.

Steps of a spike stay in the window: the median and the MAD bear up to half a window of them without
noticing, and a loss that stays up for longer is a new level, from which a further spike can be
told. Values that are not finite never enter the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from wesar_sweep.config.study import Spikes

MIN_HISTORY = 8
"""Finite losses before a step without which only a value that is not finite can be high."""

MIN_PAIRED_RUNS = 5
"""Runs live at a step without which their median says nothing of the batch."""

ROBUST_SIGMA = 1.4826
"""Standard deviation of a normal distribution in units of its MAD."""

Series = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike of one curve."""

    start: int
    """First high step, from 0."""
    peak: int
    """Step of the highest value from the start to the recovery, at most ``window`` steps."""
    height: float
    """Value at the peak over the trailing median at the start, in nats; inf where not finite."""
    steps_to_recover: int | None
    """Steps from the start to the recovery; None where the curve ends before."""


def find_spikes(loss: ArrayLike, rule: Spikes) -> list[Spike]:
    """The spikes of one run's loss, in order.

    Cannot tell a hard batch from an instability; `find_paired_spikes` can.

    Args:
        loss: [S] training loss in nats a token; NaN and inf count as high.
        rule: Window, z and min_jump.

    Returns:
        One `Spike` each, ascending in `start`.

    Raises:
        ValueError: `loss` is not one series.
    """
    loss_S = np.asarray(loss, dtype=np.float64)
    if loss_S.ndim != 1:
        raise ValueError(f"loss must be one series, not of shape {loss_S.shape}")
    return list(_spikes(loss_S, rule))


def paired_excess(losses: ArrayLike, *, min_runs: int = MIN_PAIRED_RUNS) -> Series:
    """Each run's loss minus the median over the runs that saw the same batch at the same step.

    What all runs feel at a step is in the batch; what is left is the run's own. The median is over
    the live runs with a finite loss at the step, the run itself among them. Note that a batch can
    be hard for good models and not for bad ones; the excess keeps that difference.

    Args:
        losses: [runs, S] training losses of runs with one data order (same seed, batch, context and
            corpus); NaN where a run is not live: not yet begun, ended, or diverged.
        min_runs: Least number of finite losses at a step.

    Returns:
        [runs, S], float64: NaN where the run is not live or the step has fewer than `min_runs`
        finite losses; inf where the run's loss is.

    Raises:
        ValueError: `losses` is not two-dimensional.
    """
    losses_RS = np.asarray(losses, dtype=np.float64)
    if losses_RS.ndim != 2:
        raise ValueError(f"losses must be [runs, steps], not of shape {losses_RS.shape}")
    finite_RS = np.isfinite(losses_RS)
    enough_S = finite_RS.sum(axis=0) >= min_runs
    excess_RS = np.full(losses_RS.shape, np.nan)
    if enough_S.any():
        judged = np.where(finite_RS, losses_RS, np.nan)[:, enough_S]
        excess_RS[:, enough_S] = losses_RS[:, enough_S] - np.nanmedian(judged, axis=0)
    return excess_RS


def find_paired_spikes(
    losses: ArrayLike, rule: Spikes, *, min_runs: int = MIN_PAIRED_RUNS
) -> list[list[Spike] | None]:
    """The spikes of each run's `paired_excess`: instabilities, the hard batches taken out.

    Steps that cannot be judged, because too few runs were live, are passed over as if they had not
    been; how many could be is the number of finite values in `paired_excess`.

    Args:
        losses: [runs, S] as `paired_excess` takes them.
        rule: Window, z and min_jump, as for `find_spikes`.
        min_runs: Least number of finite losses at a step.

    Returns:
        One list a run; None for a run with no step that could be judged: report its raw spikes
        then, and say so.

    Raises:
        ValueError: `losses` is not two-dimensional.
    """
    found: list[list[Spike] | None] = []
    for excess_S in paired_excess(losses, min_runs=min_runs):
        judged = np.flatnonzero(~np.isnan(excess_S))
        if not len(judged):
            found.append(None)
            continue
        found.append(
            [
                Spike(
                    start=int(judged[spike.start]),
                    peak=int(judged[spike.peak]),
                    height=spike.height,
                    steps_to_recover=None
                    if spike.steps_to_recover is None
                    else int(judged[spike.start + spike.steps_to_recover] - judged[spike.start]),
                )
                for spike in _spikes(excess_S[judged], rule)
            ]
        )
    return found


def _spikes(values_S: Series, rule: Spikes) -> Iterator[Spike]:
    places = np.flatnonzero(_may_be_high(values_S, rule))
    median_S, mad_S = _trailing_statistics(values_S, places, window=rule.window)
    with np.errstate(invalid="ignore"):
        jump_S = values_S - median_S
        # NaN, where there is too little history or no need to know, compares false.
        high_S = jump_S > np.maximum(rule.min_jump, rule.z * ROBUST_SIGMA * mad_S)
    high_S |= ~np.isfinite(values_S)
    starts = np.flatnonzero(high_S & ~np.concatenate([[False], high_S[:-1]]))
    # A value that is not finite is the highest there is, and never a recovery.
    value_S = np.where(np.isfinite(values_S), values_S, np.inf)
    blocked_until = 0
    for start in starts.tolist():
        if start < blocked_until:
            continue
        level = median_S[start] + ROBUST_SIGMA * mad_S[start]
        if np.isnan(level):
            # Not finite before there was any history: any finite loss is a recovery.
            level = np.finfo(np.float64).max
        back = np.flatnonzero(value_S[start + 1 :] <= level)
        recovery = start + 1 + int(back[0]) if len(back) else None
        blocked_until = min(len(values_S), start + rule.window)
        if recovery is not None:
            blocked_until = min(recovery, blocked_until)
        peak = start + int(np.argmax(value_S[start:blocked_until]))
        yield Spike(
            start=start,
            peak=peak,
            height=float(value_S[peak] - median_S[start])
            if np.isfinite(value_S[peak])
            else float("inf"),
            steps_to_recover=None if recovery is None else recovery - start,
        )


def _may_be_high(values_S: Series, rule: Spikes) -> NDArray[np.bool_]:
    """The steps that may be high: at all others the loss is too near a bound below the median.

    A report looks at a thousand curves, and nearly no step of them is high: a median of every
    window would take most of its time. The k-th smallest of a stretch is a bound below the k-th
    smallest of every window inside it, so one bound does for many steps.
    """
    finite_S = np.isfinite(values_S)
    finite = values_S[finite_S]
    window, block = rule.window, max(1, rule.window // 2)
    # By number of finite values before, as in `_trailing_statistics`.
    below = np.minimum.accumulate(np.concatenate([[np.inf], finite]))
    if (count := len(finite) + 1 - window) > 0:
        blocks = -(-count // block)
        length = window + block - 1
        padded = np.pad(
            finite, (0, max(0, (blocks - 1) * block + length - len(finite))), constant_values=np.inf
        )
        stretches = sliding_window_view(padded, length)[: blocks * block : block]
        middle = (window - 1) // 2
        bound = np.partition(stretches, middle, axis=1)[:, middle]
        below[window:] = np.repeat(bound, block)[:count]
    before_S: NDArray[np.int64] = np.cumsum(finite_S) - finite_S
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = ~finite_S | (values_S - below[before_S] > rule.min_jump)
    return found


def _trailing_statistics(
    values_S: Series, places: NDArray[np.int64], *, window: int
) -> tuple[Series, Series]:
    """Median and MAD of the last `window` finite values before some steps; NaN at all others.

    NaN without history too.
    """
    finite_S = np.isfinite(values_S)
    finite = values_S[finite_S]
    # So many finite values stand before each place.
    before: NDArray[np.int64] = (np.cumsum(finite_S) - finite_S)[places]
    median_S, mad_S = np.full((2, len(values_S)), np.nan)
    for count in np.unique(before[(before >= MIN_HISTORY) & (before < window)]).tolist():
        at = places[before == count]
        median = np.median(finite[:count])
        median_S[at], mad_S[at] = median, np.median(np.abs(finite[:count] - median))
    if len(finite) >= window:
        # Blocks keep the copies that a median makes to a few megabytes, however long the curve.
        block = max(1, 500_000 // window)
        windows = sliding_window_view(finite, window)
        whole = np.flatnonzero(before >= window)
        for first in range(0, len(whole), block):
            some = whole[first : first + block]
            part = windows[before[some] - window]
            median_B = np.median(part, axis=1)
            median_S[places[some]] = median_B
            mad_S[places[some]] = np.median(np.abs(part - median_B[:, None]), axis=1)
    return median_S, mad_S
