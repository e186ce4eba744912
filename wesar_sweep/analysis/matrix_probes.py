"""What was probed of the matrices of a run's layers, as arrays: by role, finite, against the past.

Embedding and prediction belong to no layer and are left out. P probes, X matrices. What is not
finite, as at the end of a diverged run, is NaN here and is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wesar_sweep.store.rows import Curve

ROLES = ("q", "k", "v", "o", "u", "g", "w")
"""The matrices of a layer; a layer has a gate projection g only where its feed-forward is gated."""

HISTORY = 20
"""Probes before one that say what was usual when it was made."""

MIN_HISTORY = 5
"""Finite ones among them without which nothing was usual yet."""

Values = NDArray[np.float64]


def columns_by_role(curve: Curve, probe: str) -> Mapping[str, NDArray[np.int64]]:
    """Role -> the columns of a probe that are this matrix of some layer; empty without the probe.

    Args:
        curve: A run's.
        probe: Such as ``update_ratio``.
    """
    found: dict[str, list[int]] = {}
    for column, label in enumerate(curve.probe_axes.get(probe, ())):
        parts = label.split(".")
        if len(parts) == 3 and parts[0] == "layers" and parts[2] in ROLES:
            found.setdefault(parts[2], []).append(column)
    return {role: np.array(found[role], dtype=np.int64) for role in ROLES if role in found}


def together(columns: Mapping[str, NDArray[np.int64]], roles: Sequence[str]) -> NDArray[np.int64]:
    """The columns of several roles; of those that there are."""
    return np.concatenate([np.empty(0, np.int64), *(columns[r] for r in roles if r in columns)])


def finite_values(curve: Curve, probe: str) -> Values:
    """[P, X] a probe of all its matrices, NaN for what is not finite."""
    values_PX = np.asarray(curve.probes[probe], dtype=np.float64)
    return np.where(np.isfinite(values_PX), values_PX, np.nan)


def finite_median(values: Values, *, axis: int | None = None) -> Values:
    """The median of what is finite, NaN where nothing is.

    As numpy's nanmedian, which is ten times slower along a short axis and warns of what is empty.
    """
    flat = values.reshape(-1) if axis is None else np.moveaxis(values, axis, -1)
    if flat.shape[-1] == 0:
        return np.full(flat.shape[:-1], np.nan)
    # NaN is sorted to the end.
    ordered = np.sort(flat, axis=-1)
    count = np.isfinite(flat).sum(axis=-1)
    places = np.stack([np.maximum(count - 1, 0) // 2, count // 2], axis=-1)
    middle: Values = np.take_along_axis(ordered, places, axis=-1).mean(axis=-1)
    return middle


def jumps(values_PX: Values, *, history: int = HISTORY) -> Values:
    """Each value over the median of the `history` probes before it, of its own matrix.

    Args:
        values_PX: Finite or NaN.
        history: How many; of fewer, at the start, all.

    Returns:
        [P, X]: 1 where nothing changes; NaN where the value is, or where fewer than `MIN_HISTORY`
        before it are finite, or all of those are 0.
    """
    before_PX = np.full((history, values_PX.shape[1]), np.nan)
    padded = np.concatenate([before_PX, values_PX])
    past_PXH = sliding_window_view(padded, history, axis=0)[: len(values_PX)]
    usual_PX = finite_median(past_PXH, axis=-1)
    known_PX = (np.isfinite(past_PXH).sum(axis=-1) >= MIN_HISTORY) & (usual_PX > 0)
    return np.where(known_PX, values_PX, np.nan) / np.where(known_PX, usual_PX, 1.0)


def largest(values: Values, *, axis: int | None = None) -> Values:
    """The largest of what is finite, NaN where nothing is."""
    found = np.max(values, axis=axis, initial=-np.inf, where=np.isfinite(values))
    return np.where(np.isfinite(found), found, np.nan)
