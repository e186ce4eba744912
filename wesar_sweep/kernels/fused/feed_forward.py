"""GELU and SwiGLU of K runs, elementwise, with a cheap and nearly exact Φ.

    gelu(x) = x Φ(x)                  gelu'(x) = Φ(x) + x φ(x)              φ(x) = e^(−x²/2)/√(2π)
    swiglu(u, g) = u · g σ(g)         d/du = g σ(g),  d/dg = u (σ(g) + g σ(g)(1 − σ(g)))

(Hendrycks & Gimpel 2016; Shazeer 2020.) Φ(−a) = 2^p(a) for a ≥ 0 with a polynomial p of degree 7, a
minimax fit of log₂ Φ over [0, 9]: gelu(x) = relu(x) − a·2^p(a) is then within 5.4e-7 of the exact
value, and within 4.2e-4 of it relatively in the tail: a fraction of a bfloat16's last place. It
takes one exponential and seven multiply-adds, where erf takes about thirty operations: at width 128
that is what keeps a product with a GELU beside it bound by memory.

Bytes a value in bfloat16: forward 4, backward 6. `reverse` begins with the last program
(`tiles.last_first`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.tiles import last_first, program

_BLOCK = 2048
_WARPS = 4


@triton.jit
def _tail(a):
    """Φ(−a) for a ≥ 0, float32."""
    p = -1.32946e-06 * a + 5.112502e-05
    p = p * a - 0.00084977
    p = p * a + 0.008220486
    p = p * a - 0.053476635
    p = p * a - 0.45882142
    p = p * a - 1.1511598
    p = p * a - 0.9999988
    return tl.exp2(p)


@triton.jit
def gelu_value(x):
    """gelu(x) of float32 values; NaN stays NaN."""
    a = tl.abs(x)
    bounded = tl.minimum(a, 13.0)
    return 0.5 * (x + a) - bounded * _tail(bounded)


@triton.jit
def gelu_and_slope(x):
    """(gelu(x), gelu'(x)) of float32 values."""
    a = tl.abs(x)
    bounded = tl.minimum(a, 13.0)
    tail = _tail(bounded)
    value = 0.5 * (x + a) - bounded * tail
    below = tl.where(x < 0, tail, 1.0 - tail)
    # e^(−x²/2)/√(2π) = 2^(−x² log₂(e)/2 − log₂(√(2π)))
    density = tl.exp2(bounded * bounded * -0.72134752 - 1.32574806)
    return value, below + x * density


def gelu_forward(u_KMF: Tensor, *, reverse: bool = False) -> Tensor:
    """gelu(u), elementwise, of u's type."""
    a_KMF = torch.empty_like(u_KMF)
    size = u_KMF.numel()
    blocks = triton.cdiv(size, _BLOCK)
    _gelu_forward[(blocks,)](
        u_KMF, a_KMF, size, last_first(blocks, reverse), BLOCK=_BLOCK, num_warps=_WARPS
    )
    return a_KMF


def gelu_backward(da_KMF: Tensor, u_KMF: Tensor, *, reverse: bool = False) -> Tensor:
    """Gradient of u.

    Args:
        da_KMF: Gradient of gelu(u).
        u_KMF: Its argument.
        reverse: See above.
    """
    du_KMF = torch.empty_like(u_KMF)
    size = u_KMF.numel()
    blocks = triton.cdiv(size, _BLOCK)
    _gelu_backward[(blocks,)](
        da_KMF, u_KMF, du_KMF, size, last_first(blocks, reverse), BLOCK=_BLOCK, num_warps=_WARPS
    )
    return du_KMF


def swiglu_forward(u_KM2F: Tensor, *, reverse: bool = False) -> Tensor:
    """U · g σ(g).

    Args:
        u_KM2F: [K, M, 2F]: F columns u, then F columns g.
        reverse: See above.

    Returns:
        [K, M, F].
    """
    K, M, F2 = u_KM2F.shape
    a_KMF = u_KM2F.new_empty(K, M, F2 // 2)
    size = a_KMF.numel()
    blocks = triton.cdiv(size, _BLOCK)
    _swiglu_forward[(blocks,)](
        u_KM2F, a_KMF, size, F2 // 2, last_first(blocks, reverse), BLOCK=_BLOCK, num_warps=_WARPS
    )
    return a_KMF


def swiglu_backward(da_KMF: Tensor, u_KM2F: Tensor, *, reverse: bool = False) -> Tensor:
    """Gradients of u and g, packed as they are, [K, M, 2F]."""
    du_KM2F = torch.empty_like(u_KM2F)
    size = da_KMF.numel()
    blocks = triton.cdiv(size, _BLOCK)
    _swiglu_backward[(blocks,)](
        da_KMF, u_KM2F, du_KM2F, size, da_KMF.shape[2], last_first(blocks, reverse),
        BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return du_KM2F


@triton.jit(do_not_specialize=("flip",))
def _gelu_forward(u, a, size, flip, BLOCK: tl.constexpr):
    number = program(flip)
    place = number.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(u + place, mask=place < size, other=0.0)
    tl.store(a + place, gelu_value(x.to(tl.float32)).to(x.dtype), mask=place < size)


@triton.jit(do_not_specialize=("flip",))
def _gelu_backward(da, u, du, size, flip, BLOCK: tl.constexpr):
    number = program(flip)
    place = number.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    x = tl.load(u + place, mask=mask, other=0.0)
    d = tl.load(da + place, mask=mask, other=0.0).to(tl.float32)
    _, slope = gelu_and_slope(x.to(tl.float32))
    tl.store(du + place, (d * slope).to(x.dtype), mask=mask)


@triton.jit(do_not_specialize=("flip",))
def _swiglu_forward(u, a, size, F, flip, BLOCK: tl.constexpr):
    number = program(flip)
    place = number.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    up_place = place + place // F * F
    up = tl.load(u + up_place, mask=mask, other=0.0)
    gate = tl.load(u + up_place + F, mask=mask, other=0.0).to(tl.float32)
    value = up.to(tl.float32) * gate * tl.sigmoid(gate)
    tl.store(a + place, value.to(up.dtype), mask=mask)


@triton.jit(do_not_specialize=("flip",))
def _swiglu_backward(da, u, du, size, F, flip, BLOCK: tl.constexpr):
    number = program(flip)
    place = number.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    up_place = place + place // F * F
    up_in = tl.load(u + up_place, mask=mask, other=0.0)
    up = up_in.to(tl.float32)
    gate = tl.load(u + up_place + F, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(da + place, mask=mask, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    silu = gate * sigma
    tl.store(du + up_place, (d * silu).to(up_in.dtype), mask=mask)
    dgate = d * up * (sigma + silu * (1.0 - sigma))
    tl.store(du + up_place + F, dgate.to(up_in.dtype), mask=mask)
