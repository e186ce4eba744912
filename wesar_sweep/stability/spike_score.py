"""Spike scores as others define them: one number a series, for comparison with their papers.

Two definitions that share a name and differ; report either by its own name with its window. Both
can be taken of any series, such as the loss or the gradient norm. In both a value that is not
finite counts as a spike and never enters a window, so that one NaN does not blind the score for
what follows it (OLMo-core's code is blind for a whole window then).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

OLMO_2_SIGMA = 7.0
OLMO_2_WINDOW = 1000
OLMO_CORE_SIGMA = 6.0
OLMO_CORE_WINDOW = 128

Series = NDArray[np.float64]


def olmo_2_spike_score(values: ArrayLike, *, window: int = OLMO_2_WINDOW) -> float | None:
    """Percentage of values at least 7 standard deviations from the mean of the previous `window`.

    Source: OLMo 2 (arXiv 2501.00656, §3.2): "the percentage of values in a time series that are at
    least seven standard deviations away from a rolling average of the last 1,000 values". Upward or
    downward. The paper does not say what the deviation is taken over nor what holds before the
    1,000th value; here it is the sample deviation of the same window, and values with a shorter
    history are neither spikes nor counted.

    Args:
        values: [S], any series.
        window: Finite values before the one judged; name it where it is not 1,000.

    Returns:
        Percent of the values that can be judged; None where there is none (S <= `window`).
    """
    return _score(values, sigma=OLMO_2_SIGMA, window=window, least=window, upward_only=False)


def olmo_core_spike_score(values: ArrayLike, *, window: int = OLMO_CORE_WINDOW) -> float | None:
    """Percentage of values that OLMo-core's step skipping would skip for this series.

    Source: OLMo-core, ``optim/skip_step_optimizer.py``, `SkipStepOptimizer.get_step_factor`: more
    than 6 sample standard deviations *above* the mean of the previous 128 values; judged as soon as
    there are max(20, `window` // 2) values, the one judged among them.

    Args:
        values: [S], any series.
        window: Finite values before the one judged, at the most.

    Returns:
        Percent of the values that can be judged; None where there is none.
    """
    least = max(20, window // 2) - 1
    return _score(values, sigma=OLMO_CORE_SIGMA, window=window, least=least, upward_only=True)


def _score(
    values: ArrayLike, *, sigma: float, window: int, least: int, upward_only: bool
) -> float | None:
    values_S = np.asarray(values, dtype=np.float64)
    if values_S.ndim != 1:
        raise ValueError(f"values must be one series, not of shape {values_S.shape}")
    finite_S = np.isfinite(values_S)
    mean_S, variance_S, error_S = _trailing_moments(values_S, finite_S, window=window, least=least)
    with np.errstate(invalid="ignore"):
        distance_S = values_S - mean_S
        away_S = distance_S if upward_only else np.abs(distance_S)
        # A constant series has deviation 0, from which 0 is not "away".
        far_S = (away_S > 0) & (away_S > sigma * np.sqrt(variance_S))
        least_S = sigma * np.sqrt(np.maximum(variance_S - error_S, 0)) * (1 - 1e-9)
        doubt_S = (away_S >= least_S) & (
            away_S <= sigma * np.sqrt(variance_S + error_S) * (1 + 1e-9)
        )
    before_S = np.cumsum(finite_S) - finite_S
    finite = values_S[finite_S]
    for step in np.flatnonzero(doubt_S & finite_S).tolist():
        past = finite[max(0, before_S[step] - window) : before_S[step]]
        away = values_S[step] - past.mean()
        limit = sigma * past.std(ddof=1)
        far_S[step] = away > limit if upward_only else abs(away) >= limit and away != 0
    judged_S = ~finite_S | np.isfinite(mean_S)
    spikes = np.count_nonzero(judged_S & (far_S | ~finite_S))
    return 100.0 * spikes / np.count_nonzero(judged_S) if judged_S.any() else None


def _trailing_moments(
    values_S: Series, finite_S: NDArray[np.bool_], *, window: int, least: int
) -> tuple[Series, Series, Series]:
    """Mean and sample variance of the last `window` finite values, and what its rounding may be.

    NaN with fewer than `least` values. In time that grows with S and not with the window: a report
    takes the score of a thousand curves.
    """
    finite = values_S[finite_S]
    # By number of finite values before: entry n is of finite[max(0, n - window) : n].
    mean, variance, error = (np.full(len(finite) + 1, np.nan) for _ in range(3))
    for count in range(least, min(window, len(finite) + 1)):
        mean[count], variance[count] = finite[:count].mean(), finite[:count].var(ddof=1)
        error[count] = 1e-12 * variance[count]
    if len(finite) >= window:
        centre = np.median(finite)
        total, square = (_window_sums((finite - centre) ** power, window) for power in (1, 2))
        mean[window:] = centre + total / window
        variance[window:] = np.maximum(square - total**2 / window, 0) / (window - 1)
        error[window:] = 1e-12 * square / (window - 1)
    before_S: NDArray[np.int64] = np.cumsum(finite_S) - finite_S
    return mean[before_S], variance[before_S], error[before_S]


def _window_sums(values: Series, window: int) -> Series:
    """[S - window + 1] sums of each stretch, of its own values alone: no large one taken off again.

    A stretch is the end of one block and the beginning of the next, summed from their border.
    """
    blocks = np.pad(values, (0, -len(values) % window)).reshape(-1, window)
    to_end = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    from_start = blocks.cumsum(axis=1).ravel()
    starts = np.arange(len(values) - window + 1)
    return to_end[starts] + np.where(starts % window, from_start[starts + window - 1], 0.0)
