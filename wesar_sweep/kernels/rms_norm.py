"""Root-mean-square normalisation: y = g ⊙ x / √(mean(x²) + ε) (Zhang & Sennrich 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def reference(x_K___D: Tensor, gain_KD: Tensor | None = None) -> Tensor:
    """Normalise the last axis; statistics in float32 whatever the input's type.

    Args:
        x_K___D: [K, ..., D].
        gain_KD: One gain a run and channel, [K, D]; None leaves it out.

    Returns:
        Of the shape and type of `x_K___D`.
    """
    y_K___D = F.rms_norm(x_K___D.float(), (x_K___D.shape[-1],), eps=EPS)
    if gain_KD is not None:
        K, D = gain_KD.shape
        y_K___D = y_K___D * gain_KD.float().view(K, *(1,) * (x_K___D.ndim - 2), D)
    return y_K___D.to(x_K___D.dtype)
