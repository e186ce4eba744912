"""Every op by its name, with the reference that any faster version must equal.

A faster version is tested against its reference in outputs and gradients, at K 1 and 3, at odd
sizes, in each dtype; `benchmarks/` times one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from wesar_sweep.kernels import (
    adamw,
    attention,
    cross_entropy,
    data_order,
    embedding,
    feed_forward,
    linear,
    reparametrization,
    rms_norm,
    rope,
)


@dataclass(frozen=True, slots=True)
class Op:
    """One op: its reference in plain torch and, if there is one, the version training uses."""

    reference: Callable[..., Any]
    fast: Callable[..., Any] | None = None


OPS: Mapping[str, Op] = MappingProxyType(
    {
        "adamw": Op(adamw.reference),
        "attention": Op(attention.reference, attention.attention),
        "cross_entropy": Op(cross_entropy.reference, cross_entropy.cross_entropy),
        "data_order": Op(data_order.reference),
        "embedding": Op(embedding.reference),
        "gelu": Op(feed_forward.gelu_reference),
        "linear": Op(linear.reference, linear.linear),
        "rms_norm": Op(rms_norm.reference),
        "rope": Op(rope.reference),
        "row_pullback": Op(reparametrization.row_pullback),
        "scalar_pullback": Op(reparametrization.scalar_pullback),
        "spectral_pullback": Op(reparametrization.spectral_pullback),
        "swiglu": Op(feed_forward.swiglu_reference),
        "z_loss": Op(cross_entropy.z_reference),
    }
)
