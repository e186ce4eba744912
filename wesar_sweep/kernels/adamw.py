"""AdamW with every hyperparameter a run's own (Loshchilov & Hutter 2019), after per-run clipping.

With c = min(1, clip / (‖g‖ + 1e-6)), t the step from 1 and η the scheduled learning rate::

    m ← β₁ m + (1 − β₁) c g            v ← β₂ v + (1 − β₂) (c g)²
    p ← (1 − η λ) p − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

as in `torch.nn.utils.clip_grad_norm_` followed by `torch.optim.AdamW`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdamW:
    """Hyperparameters of K runs at their present step, each float32 [K]."""

    lr_K: Tensor
    """Scheduled learning rate η of this step."""
    beta1_K: Tensor
    beta2_K: Tensor
    eps_K: Tensor
    weight_decay_K: Tensor
    clip_K: Tensor
    """Largest gradient norm; infinity means off."""
    step_K: Tensor
    """Number of this update, from 1."""


def clip_factor(grad_norm_K: Tensor, clip_K: Tensor) -> Tensor:
    """What each run's gradient is multiplied with, [K]; NaN where the norm is not finite."""
    factor_K = (clip_K / (grad_norm_K + 1e-6)).clamp(max=1.0)
    return torch.where(torch.isfinite(grad_norm_K), factor_K, torch.nan)


def reference(
    parameter_KP: Tensor,
    first_KP: Tensor,
    second_KP: Tensor,
    grad_KP: Tensor,
    *,
    grad_norm_K: Tensor,
    adamw: AdamW,
    decayed: int,
) -> None:
    """Update K runs in place; `grad_KP` is used as scratch and holds no gradient afterwards.

    Args:
        parameter_KP: All parameters of each run, [K, P].
        first_KP: First moments m, [K, P].
        second_KP: Second moments v, [K, P].
        grad_KP: Gradients before clipping, [K, P].
        grad_norm_K: Their norm a run, [K].
        adamw: Hyperparameters, [K] each.
        decayed: The first so many parameters decay; the rest (norm gains, gates) do not.
    """

    def column(x_K: Tensor) -> Tensor:
        return x_K.unsqueeze(1)

    grad_KP.mul_(column(clip_factor(grad_norm_K, adamw.clip_K)))
    first_KP.lerp_(grad_KP, column(1 - adamw.beta1_K))
    second_KP.mul_(column(adamw.beta2_K)).add_(grad_KP.square_().mul_(column(1 - adamw.beta2_K)))
    correction1_K = 1 - adamw.beta1_K**adamw.step_K
    correction2_K = 1 - adamw.beta2_K**adamw.step_K
    denominator_KP = torch.sqrt(second_KP, out=grad_KP)
    denominator_KP.mul_(column(correction2_K.rsqrt())).add_(column(adamw.eps_K))
    parameter_KP[:, :decayed].mul_(column(1 - adamw.lr_K * adamw.weight_decay_K))
    update_KP = torch.div(first_KP, denominator_KP, out=grad_KP)
    parameter_KP.sub_(update_KP.mul_(column(adamw.lr_K / correction1_K)))
