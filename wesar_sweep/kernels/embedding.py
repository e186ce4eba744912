"""Embedding gather: each run looks its tokens up in its own table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(token_KBT: Tensor, w_KVD: Tensor) -> Tensor:
    """Rows of each run's table.

    Args:
        token_KBT: Token ids in [0, V), [K, B, T].
        w_KVD: Effective embedding, [K, V, D].

    Returns:
        [K, B, T, D]. The gradient of `w_KVD` sums over the places where a token stands.
    """
    K, V, D = w_KVD.shape
    first_K = torch.arange(K, device=token_KBT.device).mul_(V).view(K, 1, 1)
    return F.embedding(token_KBT + first_K, w_KVD.reshape(K * V, D))
