"""Which way each kernel of a pass goes through its rows: against the one before it.

What a kernel wrote last is still in the L2 cache, so the next one begins there
(`kernels.fused.tiles`). No bit of a result depends on it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Direction:
    """The direction of the last kernel, and so of the next."""

    def __init__(self) -> None:
        self._down = False

    def turn(self) -> bool:
        """For the next kernel, as its `reverse`."""
        self._down = not self._down
        return self._down

    def up(self) -> None:
        """A kernel went up: the library's do always."""
        self._down = False

    def product(self, x_KMI: Tensor, w_KIO: Tensor, *, out: Tensor | None = None) -> Tensor:
        """A product of the library's, [K, M, O]."""
        self.up()
        return torch.bmm(x_KMI, w_KIO) if out is None else torch.bmm(x_KMI, w_KIO, out=out)
