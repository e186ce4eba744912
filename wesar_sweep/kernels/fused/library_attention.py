"""Causal attention of K runs through torch's own kernels, beyond `fused.attention`'s contexts.

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
        heads: H.
        head_width: E.
        context: T.

    Returns:
        ([K, B·T, H·E]; the tape for `backward`).
    """

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
    kept: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    heads: int,
    head_width: int,
    context: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rotated queries, rotated keys and values.

    Args:
        dy_KMD: Gradient of the mixed values, contiguous.
        kept: The tape.
        heads: H.
        head_width: E.
        context: T.

    Returns:
        Three [K, B·T, H·E], views of the library's tensors where its layout allows.
    """
    q, k, v, y = kept
    dy = dy_KMD.unflatten(2, (heads, head_width)).unflatten(1, (-1, context))
    dy = dy.flatten(0, 1).transpose(1, 2)
    dq, dk, dv = (
        x.transpose(1, 2).reshape(dy_KMD.shape) for x in torch.autograd.grad(y, (q, k, v), dy)
    )
    return dq, dk, dv
