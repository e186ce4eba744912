"""Causal attention: softmax(q kᵀ / √E + causal mask) v, a head at a time (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logits(q_KBTHE: Tensor, k_KBTHE: Tensor) -> Tensor:
    """Scaled dot products in float32, [K, B, H, T, T], -inf where a key lies after the query."""
    T, E = q_KBTHE.shape[2], q_KBTHE.shape[4]
    q, k = (x.float().transpose(2, 3) for x in (q_KBTHE, k_KBTHE))
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu_(1)
    return (q @ k.transpose(-1, -2) * E**-0.5).masked_fill_(later, -torch.inf)


def reference(q_KBTHE: Tensor, k_KBTHE: Tensor, v_KBTHE: Tensor) -> Tensor:
    """The formula as it stands; keeps the [T, T] matrix of every head.

    Args:
        q_KBTHE: Queries, [K, B, T, H, E].
        k_KBTHE: Keys, the same shape.
        v_KBTHE: Values, the same shape.

    Returns:
        [K, B, T, H, E].
    """
    p_KBHTT = torch.softmax(logits(q_KBTHE, k_KBTHE), dim=-1)
    return (p_KBHTT @ v_KBTHE.float().transpose(2, 3)).transpose(2, 3).to(v_KBTHE.dtype)


def attention(q_KBTHE: Tensor, k_KBTHE: Tensor, v_KBTHE: Tensor) -> Tensor:
    """`reference` through torch's fused attention, each (run, sequence, head) by itself."""
    K, B = q_KBTHE.shape[:2]
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q_KBTHE, k_KBTHE, v_KBTHE))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).unflatten(0, (K, B))


def max_logit(q_KBTHE: Tensor, k_KBTHE: Tensor) -> Tensor:
    """Largest attention logit of each run, [K]; grows before a collapse (Dehghani et al. 2023)."""
    return logits(q_KBTHE, k_KBTHE).amax(dim=(1, 2, 3, 4))
