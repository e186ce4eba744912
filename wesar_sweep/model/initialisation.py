"""Draws of initial weights, keyed by (seed, parameter name).

Their standard deviations are in `wesar_sweep.config.initial_std`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def standard_normal(
    shape: tuple[int, ...], *, seed: int, name: str, out: Tensor | None = None
) -> Tensor:
    """Draws from N(0, 1), float32 on the CPU, that depend on (seed, name, shape) alone.

    Args:
        shape: Of what is drawn.
        seed: The run's.
        name: The parameter's.
        out: Takes them where given, contiguous and of that shape.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator, out=out)
