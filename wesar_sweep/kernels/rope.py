"""Rotary positions (Su et al. 2021): pairs (x_i, x_{i+E/2}) turn by t·θ^(-2i/E), θ = 10,000."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def tables(
    tokens: int, head_width: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles, each [T, E/2] in float32.

    Args:
        tokens: Number of positions, T.
        head_width: Width of a head, E; even.
        device: Where the tables live.
    """
    assert head_width % 2 == 0, head_width
    exponent = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angle = torch.outer(torch.arange(tokens, dtype=torch.float64), THETA**-exponent)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def reference(x_KBTHE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotate each head by its token's angle; lengths are kept.

    Args:
        x_KBTHE: Queries or keys, [K, B, T, H, E].
        cos_TE: From `tables`, [T, E/2].
        sin_TE: From `tables`, [T, E/2].

    Returns:
        Of the shape and type of `x_KBTHE`.
    """
    left, right = x_KBTHE.float().chunk(2, dim=-1)
    cos, sin = cos_TE.unsqueeze(1), sin_TE.unsqueeze(1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x_KBTHE.dtype)
