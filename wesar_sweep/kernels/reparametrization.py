"""How an effective weight is made of the actual parameters, and how its gradient goes back.

Three forms cover every method, on groups of M matrices of one shape a run. G is the gradient of the
loss with respect to the effective weight W̄.

scalar gate (none, with α = 1; wesar, Nishida et al. 2024; residual_scaling, Noci et al. 2022)::

    W̄ = α W              dα = Σ G∘W             dW = α G

row gain (weight_norm; Salimans & Kingma 2016, eq. 2 and 3), n = ‖W‖ a row::

    W̄ = g W / n          dg = Σ_row G∘W / n     dW = g/n (G − dg W/n)

spectral (sigma_reparam; Zhai et al. 2023, §3.1), s = uᵀ W v with u, v held fixed::

    W̄ = γ W / s          dγ = Σ G∘W / s         dW = γ/s (G − dγ u vᵀ)

The forward pass of the model never sees any of this: see `wesar_sweep.model.decoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scalar_effective(w_KMOI: Tensor, gate_KM: Tensor) -> Tensor:
    """W̄ = α W."""
    return w_KMOI * gate_KM[..., None, None]


def scalar_pullback(g_KMOI: Tensor, w_KMOI: Tensor, gate_KM: Tensor) -> tuple[Tensor, Tensor]:
    """(dW [K, M, O, I], dα [K, M]) of the scalar gate."""
    return g_KMOI * gate_KM[..., None, None], (g_KMOI * w_KMOI).sum(dim=(2, 3))


def row_norm(w_KMOI: Tensor) -> Tensor:
    """‖W‖ of each output row, [K, M, O]."""
    return torch.linalg.vector_norm(w_KMOI, dim=3)


def row_effective(w_KMOI: Tensor, gain_KMO: Tensor) -> Tensor:
    """W̄ = g ⊙ W / ‖W‖_row."""
    return w_KMOI * (gain_KMO / row_norm(w_KMOI)).unsqueeze(-1)


def row_pullback(g_KMOI: Tensor, w_KMOI: Tensor, gain_KMO: Tensor) -> tuple[Tensor, Tensor]:
    """(dW [K, M, O, I], dg [K, M, O]) of the row gain."""
    norm_KMO = row_norm(w_KMOI)
    dgain_KMO = (g_KMOI * w_KMOI).sum(dim=3) / norm_KMO
    direction_KMOI = g_KMOI - w_KMOI * (dgain_KMO / norm_KMO).unsqueeze(-1)
    return direction_KMOI * (gain_KMO / norm_KMO).unsqueeze(-1), dgain_KMO


def power_iteration(w_KMOI: Tensor, left_KMO: Tensor) -> tuple[Tensor, Tensor]:
    """One step towards the leading singular vectors: v ← Wᵀu/‖·‖, u ← Wv/‖·‖.

    Returns:
        (left u [K, M, O], right v [K, M, I]), each of length 1.
    """
    right_KMI = torch.nn.functional.normalize((w_KMOI * left_KMO.unsqueeze(3)).sum(dim=2), dim=2)
    left_KMO = torch.nn.functional.normalize((w_KMOI * right_KMI.unsqueeze(2)).sum(dim=3), dim=2)
    return left_KMO, right_KMI


def spectral_norm(w_KMOI: Tensor, left_KMO: Tensor, right_KMI: Tensor) -> Tensor:
    """The estimate s = uᵀ W v of the largest singular value, [K, M]."""
    return ((w_KMOI * right_KMI.unsqueeze(2)).sum(dim=3) * left_KMO).sum(dim=2)


def spectral_effective(
    w_KMOI: Tensor, gate_KM: Tensor, left_KMO: Tensor, right_KMI: Tensor
) -> Tensor:
    """W̄ = (γ / s) W."""
    return w_KMOI * (gate_KM / spectral_norm(w_KMOI, left_KMO, right_KMI))[..., None, None]


def spectral_pullback(
    g_KMOI: Tensor, w_KMOI: Tensor, gate_KM: Tensor, left_KMO: Tensor, right_KMI: Tensor
) -> tuple[Tensor, Tensor]:
    """(dW [K, M, O, I], dγ [K, M]) of the spectral form, u and v held fixed."""
    norm_KM = spectral_norm(w_KMOI, left_KMO, right_KMI)
    dgate_KM = (g_KMOI * w_KMOI).sum(dim=(2, 3)) / norm_KM
    outer_KMOI = left_KMO.unsqueeze(3) * right_KMI.unsqueeze(2)
    direction_KMOI = g_KMOI - outer_KMOI * dgate_KM[..., None, None]
    return direction_KMOI * (gate_KM / norm_KM)[..., None, None], dgate_KM
