"""Causal attention of K runs through torch's own kernels, beyond `fused.attention`'s contexts.

Formula: `kernels.attention`. Queries and keys come rotated. The library's own backward pass is
reached through autograd, as an island: its forward pass is taped here and its tape is run in
`backward`. FlashAttention's and cuDNN's backward passes add up the queries' gradient in no fixed
order; with `torch.use_deterministic_algorithms` torch takes a variant that does.

To keep attention within documents the library takes a bias for every pair of positions. That costs
memory, 2·T bytes a token in bfloat16 (once a pass, whatever the layers: 130 MB for 64 sequences of
1,024), the kernels that read it are slower than those that know the causal mask, and they work on
every block, seen or not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wesar_sweep.kernels import attention

_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Preferred first; the first that takes the shapes, types and device is used."""
_BIASED_ORDER = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Of those, the ones that take any bias."""


def bias(first_KM: Tensor, *, context: int, dtype: torch.dtype) -> Tensor:
    """What `forward` adds to logits: 0, or -inf where a query does not see a key.

    Args:
        first_KM: First key that each query sees (`kernels.attention.first_keys`), [K, B·T].
        context: T.
        dtype: Of queries.

    Returns:
        [K·B, 1, T, T].
    """
    seen = attention.seen(first_KM.view(-1, context)).unsqueeze(1)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def forward(
    q_KMD: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    *,
    heads: int,
    head_width: int,
    context: int,
    bias: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Mixed values.

    Args:
        q_KMD: Rotated queries [K, B·T, H·E], any strides but the last.
        k_KMD: Rotated keys.
        v_KMD: Values.
        heads: H.
        head_width: E.
        context: T.
        bias: Of `bias`; None: the causal mask.

    Returns:
        ([K, B·T, H·E]; the tape for `backward`).
    """

    def split(x_KMD: Tensor) -> Tensor:
        x_KBTHE = x_KMD.unflatten(2, (heads, head_width)).unflatten(1, (-1, context))
        return x_KBTHE.flatten(0, 1).transpose(1, 2).detach()

    q, k, v = (split(x) for x in (q_KMD, k_KMD, v_KMD))
    order = _ORDER if bias is None else _BIASED_ORDER
    with torch.enable_grad(), sdpa_kernel(order, set_priority=True):
        for x in (q, k, v):
            x.requires_grad_()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
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
