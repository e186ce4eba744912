"""Causal attention: softmax(q kᵀ / √E + causal mask) v, a head at a time (Vaswani et al. 2017).

Where documents are packed into one sequence, attention may be kept within each: a query then sees
no key before the first token of its own document.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def first_keys(token_KBT: Tensor, *, document_end: int) -> Tensor:
    """Position of the first token of each token's document, never falling along a sequence.

    Args:
        token_KBT: Token ids, any integer type that torch compares.
        document_end: The token that ends a document, and belongs to it.

    Returns:
        int32 [K, B, T].
    """
    T = token_KBT.shape[-1]
    place_T = torch.arange(T, dtype=torch.int32, device=token_KBT.device)
    begins_KBT = torch.zeros(token_KBT.shape, dtype=torch.int32, device=token_KBT.device)
    ended_KBT = token_KBT[..., :-1] == document_end
    begins_KBT[..., 1:] = torch.where(ended_KBT, place_T[1:], 0)
    return begins_KBT.cummax(dim=-1).values


def seen(first_KBT: Tensor) -> Tensor:
    """Whether a query (the last axis but one) sees a key, bool [K, B, T, T]."""
    T = first_KBT.shape[-1]
    place_T = torch.arange(T, device=first_KBT.device)
    return (place_T >= first_KBT.unsqueeze(-1)) & (place_T <= place_T.unsqueeze(-1))


def logits(q_KBTHE: Tensor, k_KBTHE: Tensor, first_KBT: Tensor | None = None) -> Tensor:
    """Scaled dot products in float32, [K, B, H, T, T], -inf where a query does not see a key."""
    T, E = q_KBTHE.shape[2], q_KBTHE.shape[4]
    q, k = (x.float().transpose(2, 3) for x in (q_KBTHE, k_KBTHE))
    if first_KBT is None:
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu_(1)
    else:
        hidden = ~seen(first_KBT).unsqueeze(2)
    return (q @ k.transpose(-1, -2) * E**-0.5).masked_fill_(hidden, -torch.inf)


def reference(
    q_KBTHE: Tensor, k_KBTHE: Tensor, v_KBTHE: Tensor, first_KBT: Tensor | None = None
) -> Tensor:
    """The formula as it stands; keeps the [T, T] matrix of every head.

    Args:
        q_KBTHE: Queries, [K, B, T, H, E].
        k_KBTHE: Keys, the same shape.
        v_KBTHE: Values, the same shape.
        first_KBT: First key that each query sees (`first_keys`); None: that of its sequence.

    Returns:
        [K, B, T, H, E].
    """
    p_KBHTT = torch.softmax(logits(q_KBTHE, k_KBTHE, first_KBT), dim=-1)
    return (p_KBHTT @ v_KBTHE.float().transpose(2, 3)).transpose(2, 3).to(v_KBTHE.dtype)


def attention(
    q_KBTHE: Tensor, k_KBTHE: Tensor, v_KBTHE: Tensor, first_KBT: Tensor | None = None
) -> Tensor:
    """`reference` through torch's fused attention, each (run, sequence, head) by itself.

    With first keys its backward pass keeps their mask, a byte a (query, key) of a sequence.
    """
    K, B = q_KBTHE.shape[:2]
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q_KBTHE, k_KBTHE, v_KBTHE))
    if first_KBT is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        mask = seen(first_KBT).flatten(0, 1).unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).unflatten(0, (K, B))


def max_logit(q_KBTHE: Tensor, k_KBTHE: Tensor, first_KBT: Tensor | None = None) -> Tensor:
    """Largest attention logit of each run, [K]; grows before a collapse (Dehghani et al. 2023)."""
    return logits(q_KBTHE, k_KBTHE, first_KBT).amax(dim=(1, 2, 3, 4))
