"""Causal attention of K runs through torch's fused kernels, for contexts beyond `fused.attention`'s.

Formula: `kernels.attention`. Queries and keys come rotated. The library's own backward pass is
reached through autograd, as an island: its forward pass is taped here and its tape is run in
`backward`. FlashAttention's and cuDNN's backward passes add up the queries' gradient in no fixed
order; with `torch.use_deterministic_algorithms` torch takes a variant that does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Preferred first; the first that takes the shapes, types and device is used."""


def forward(
    q_KMD: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    cos_TE: Tensor | None,
    sin_TE: Tensor | None,
    *,
    heads: int,
    head_width: int,
    context: int,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Mixed values.

    Args:
        q_KMD: Rotated queries [K, B·T, H·E], any strides but the last.
        k_KMD: Rotated keys.
        v_KMD: Values.
        cos_TE: None: rotation is done before.
        sin_TE: None.
        heads: H.
        head_width: E.
        context: T.

    Returns:
        ([K, B·T, H·E]; the tape for `backward`).
    """
    assert cos_TE is None and sin_TE is None

    def split(x_KMD: Tensor) -> Tensor:
        x_KBTHE = x_KMD.unflatten(2, (heads, head_width)).unflatten(1, (-1, context))
        return x_KBTHE.flatten(0, 1).transpose(1, 2).detach()

    q, k, v = (split(x) for x in (q_KMD, k_KMD, v_KMD))
    with torch.enable_grad(), sdpa_kernel(_ORDER, set_priority=True):
        for x in (q, k, v):
            x.requires_grad_()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y_KMD = y.detach().transpose(1, 2).reshape(*q_KMD.shape)
    return y_KMD, (q, k, v, y)


def backward(
    dy_KMD: Tensor,
    q_KMD: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    y_KMD: Tensor,
    kept: tuple[Tensor, Tensor, Tensor, Tensor],
    cos_TE: Tensor | None,
    sin_TE: Tensor | None,
    *,
    heads: int,
    head_width: int,
    context: int,
    out: Tensor,
) -> None:
    """Gradients of rotated queries, rotated keys and values, into `out`.

    Args:
        dy_KMD: Gradient of the mixed values, contiguous.
        q_KMD: As in `forward`.
        k_KMD: As in `forward`.
        v_KMD: As in `forward`.
        y_KMD: Not needed: on the tape.
        kept: The tape.
        cos_TE: None.
        sin_TE: None.
        heads: H.
        head_width: E.
        context: T.
        out: [K, B·T, 3·H·E].
    """
    q, k, v, y = kept
    dy = dy_KMD.unflatten(2, (heads, head_width)).unflatten(1, (-1, context))
    dy = dy.flatten(0, 1).transpose(1, 2)
    gradients = torch.autograd.grad(y, (q, k, v), dy)
    for part_KMD, gradient in zip(out.chunk(3, dim=2), gradients, strict=True):
        part_KBTHE = part_KMD.unflatten(2, (heads, head_width)).unflatten(1, (-1, context))
        part_KBTHE.copy_(gradient.transpose(1, 2).unflatten(0, (out.shape[0], -1)))
