"""Matrix product of each run with its own weight: y_k = x_k W̄_kᵀ.

On a CPU the answer for one run must not depend, in its last bit, on how many others are stacked
with it. Whether a BLAS keeps that is a property of its build, so it is measured once a process
(`batched_product_is_independent`), and where it does not hold the product is taken run by run.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_PROBE_SHAPES_OIM = ((7, 5, 3), (24, 24, 51), (96, 32, 512), (32, 128, 512), (256, 64, 128))
"""Outputs, inputs, rows: around the sizes at which BLAS libraries change their code path."""


def reference(x_KMI: Tensor, w_KOI: Tensor) -> Tensor:
    """The product run by run, which cannot depend on K.

    Args:
        x_KMI: Activations, [K, rows, inputs].
        w_KOI: Effective weights, [K, outputs, inputs].

    Returns:
        [K, rows, outputs].
    """
    return torch.stack([x_MI @ w_OI.T for x_MI, w_OI in zip(x_KMI, w_KOI, strict=True)])


def linear(x_KMI: Tensor, w_KOI: Tensor) -> Tensor:
    """`reference` as one batched product where that gives the same bits for every K."""
    if x_KMI.device.type == "cpu" and not batched_product_is_independent():
        return reference(x_KMI, w_KOI)
    return torch.bmm(x_KMI, w_KOI.transpose(1, 2))


@functools.cache
def batched_product_is_independent() -> bool:
    """Whether `torch.bmm` on this CPU gives a run the same bits for every K, both ways."""
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs, rows in _PROBE_SHAPES_OIM:
        x_KMI = torch.randn(16, rows, inputs, generator=generator)
        w_KOI = torch.randn(16, outputs, inputs, generator=generator)
        dy_KMO = torch.randn(16, rows, outputs, generator=generator)
        for left, right in (
            (x_KMI, w_KOI.transpose(1, 2)),
            (dy_KMO, w_KOI),
            (dy_KMO.transpose(1, 2), x_KMI),
        ):
            together = torch.bmm(left, right)
            for first, count in ((0, 1), (5, 1), (1, 3), (3, 8)):
                part = slice(first, first + count)
                if not torch.equal(
                    torch.bmm(left[part].clone(), right[part].clone()), together[part]
                ):
                    _log.warning(
                        "batched matrix products depend on the batch size on this CPU: "
                        "taking them run by run, which is slower for very small models"
                    )
                    return False
    return True
