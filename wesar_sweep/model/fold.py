"""Folding: the effective weights of one run by label. Without gates, inference costs nothing."""

from __future__ import annotations

from torch import Tensor

from wesar_sweep.model.layout import Layout


def fold(effective_P: Tensor, layout: Layout) -> dict[str, Tensor]:
    """One run's effective row as tensors by the names of `model.plain.PlainDecoder`.

    Args:
        effective_P: [`layout.effective_size`], from `training.stack.Stack.effective_KP`.
        layout: Where each matrix lies.

    Returns:
        Label -> [O, I] for matrices and [D] or [E] for gains of norms.
    """
    a = layout.architecture
    row = effective_P.unsqueeze(0)
    folded = {
        label: matrix
        for group in layout.groups
        for label, matrix in zip(group.labels, group.view(row)[0], strict=True)
    }
    *layer_gains, last = effective_P[layout.norm_gains].unflatten(0, (layout.norms, a.width))
    for n in range(a.depth):
        folded[f"layers.{n}.norm_attention"] = layer_gains[2 * n]
        folded[f"layers.{n}.norm_feed_forward"] = layer_gains[2 * n + 1]
    folded["norm"] = last
    if a.qk_norm:
        gain_NCE = effective_P[layout.qk_gains].unflatten(0, (a.depth, 2, a.head_width))
        for n in range(a.depth):
            folded[f"layers.{n}.norm_q"], folded[f"layers.{n}.norm_k"] = gain_NCE[n]
    return folded
