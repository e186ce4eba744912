"""Feed-forward activations: GELU (Hendrycks & Gimpel 2016) and SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu_reference(u_KMF: Tensor) -> Tensor:
    """Compute x·Φ(x) with the exact error function, elementwise on [K, M, F]."""
    return F.gelu(u_KMF)


def swiglu_reference(u_KMF: Tensor, gate_KMF: Tensor) -> Tensor:
    """Compute u ⊙ g·sigmoid(g), elementwise on [K, M, F]."""
    return u_KMF * F.silu(gate_KMF)
