"""Products of narrow models with what stands before and after them inside, for K runs.

At a width of 128 or 256 every product of a layer is bound by memory traffic, so a pass over memory
for a norm, an activation or a residual add costs as much as the product itself. Here they are part
of it. Bytes a row of D bfloat16 values, F = 4 D (in brackets: one kernel an op):

===========================  =======================================  ==========  =============
`norm_linear`                h = norm(x), y = h wᵀ                    2·(2D + O)  [2·(4D + O)]
`linear_add`                 y = res + x wᵀ                           2·3D        [2·5D]
`gelu_linear_add`            y = res + gelu(u) wᵀ                     2·(F + 2D)  [2·(3F + 5D)]
`gelu_linear_backward`       du = (dy w) ⊙ gelu'(u), a = gelu(u)      2·(3F + D)  [2·(5F + D)]
`linear_norm_backward`       dx = dres + norm'(dy w)                  2·(O + 3D)  [2·(O + 6D)]
===========================  =======================================  ==========  =============

FLOPs are 2·I·O a row each. Weights come through the L2 cache. Accumulation is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.feed_forward import gelu_and_slope, gelu_value
from wesar_sweep.kernels.fused.rms_norm import sum_partials
from wesar_sweep.kernels.rms_norm import EPS


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    rows: int
    columns: int
    """Of the longer side, that are worked on at once."""
    num_warps: int
    num_stages: int


_FORWARD = Tiles(128, 64, 8, 3)
_BACKWARD = Tiles(64, 64, 4, 3)
"""The best of nine on an H200 at widths 128 and 256; see docs/LOG.md."""


def supported(width: int, ffn_width: int, dtype: torch.dtype) -> bool:
    """Whether these kernels are preferred to cuBLAS's products between elementwise kernels."""
    # At a width of 256 the two are level on an H200, and cuBLAS gains with every width above.
    return dtype == torch.bfloat16 and width <= 128 and ffn_width <= 1024


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def norm_linear(
    x_KMI: Tensor, gain_KI: Tensor, w_KOI: Tensor, *, tiles_: Tiles | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm, then the product.

    Args:
        x_KMI: [K, M, I], contiguous.
        gain_KI: Gains of the norm, any stride over K.
        w_KOI: Weights, any stride over K.
        tiles_: Shape of a program.

    Returns:
        (y [K, M, O]; h [K, M, I], the norm's output; 1/√(mean + ε) float32 [K, M]).
    """
    (K, M, I), O = x_KMI.shape, w_KOI.shape[1]
    t = tiles_ or _FORWARD
    y_KMO = x_KMI.new_empty(K, M, O)
    h_KMI = torch.empty_like(x_KMI)
    rstd_KM = torch.empty(K, M, dtype=torch.float32, device=x_KMI.device)
    blocks = triton.cdiv(M, t.rows)
    _norm_linear[(K * blocks,)](
        x_KMI, gain_KI, w_KOI, y_KMO, h_KMI, rstd_KM,
        M, O, I, blocks, gain_KI.stride(0), w_KOI.stride(0), EPS,
        ROWS=t.rows, COLUMNS=t.columns, WIDTH=_padded(I),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return y_KMO, h_KMI, rstd_KM


def linear_add(
    x_KMI: Tensor, w_KOI: Tensor, residual_KMO: Tensor, *, tiles_: Tiles | None = None
) -> Tensor:
    """Residual + x wᵀ, [K, M, O]."""
    return _accumulate(x_KMI, w_KOI, residual_KMO, gelu=False, tiles_=tiles_)


def gelu_linear_add(
    u_KMF: Tensor, w_KDF: Tensor, residual_KMD: Tensor, *, tiles_: Tiles | None = None
) -> Tensor:
    """Residual + gelu(u) wᵀ, [K, M, D]."""
    return _accumulate(u_KMF, w_KDF, residual_KMD, gelu=True, tiles_=tiles_)


def _accumulate(
    x_KMI: Tensor, w_KOI: Tensor, residual_KMO: Tensor, *, gelu: bool, tiles_: Tiles | None
) -> Tensor:
    K, M, O = residual_KMO.shape
    t = tiles_ or _FORWARD
    y_KMO = torch.empty_like(residual_KMO)
    blocks = triton.cdiv(M, t.rows)
    _linear_add[(K * blocks,)](
        x_KMI, w_KOI, residual_KMO, y_KMO, M, O, x_KMI.shape[2], blocks, w_KOI.stride(0),
        GELU=gelu, ROWS=t.rows, COLUMNS=min(t.columns, 64), WIDTH=_padded(O),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return y_KMO


def gelu_linear_backward(
    dy_KMD: Tensor, w_KDF: Tensor, u_KMF: Tensor, *, tiles_: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """Through the product down and the activation.

    Args:
        dy_KMD: Gradient of gelu(u) wᵀ.
        w_KDF: Weights, any stride over K.
        u_KMF: What was activated.
        tiles_: Shape of a program.

    Returns:
        (gradient of u [K, M, F]; gelu(u), for the weight's gradient).
    """
    (K, M, F), D = u_KMF.shape, dy_KMD.shape[2]
    t = tiles_ or _BACKWARD
    du_KMF, a_KMF = torch.empty_like(u_KMF), torch.empty_like(u_KMF)
    blocks = triton.cdiv(M, t.rows)
    _gelu_linear_backward[(K * blocks,)](
        dy_KMD, w_KDF, u_KMF, du_KMF, a_KMF, M, D, F, blocks, w_KDF.stride(0),
        ROWS=t.rows, COLUMNS=min(t.columns, 64), WIDTH=_padded(D),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return du_KMF, a_KMF


def linear_norm_backward(
    dy_KMO: Tensor,
    w_KOI: Tensor,
    x_KMI: Tensor,
    rstd_KM: Tensor,
    gain_KI: Tensor,
    dresidual_KMI: Tensor | None,
    *,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Through the product and the norm before it.

    Args:
        dy_KMO: Gradient of the product.
        w_KOI: Weights, any stride over K.
        x_KMI: What was normed.
        rstd_KM: From `norm_linear`.
        gain_KI: Gains of the norm, any stride over K.
        dresidual_KMI: Gradient that reaches x past the norm; None is zero.
        tiles_: Shape of a program.

    Returns:
        (gradient of x [K, M, I]; float32 gradient of the gain [K, I]).
    """
    (K, M, I), O = x_KMI.shape, dy_KMO.shape[2]
    t = tiles_ or _BACKWARD
    dx_KMI = torch.empty_like(x_KMI)
    blocks = triton.cdiv(M, t.rows)
    partial_KBI = torch.empty(K, blocks, I, dtype=torch.float32, device=x_KMI.device)
    _linear_norm_backward[(K * blocks,)](
        dy_KMO, w_KOI, x_KMI, rstd_KM, gain_KI, dresidual_KMI, dx_KMI, partial_KBI,
        M, O, I, blocks, w_KOI.stride(0), gain_KI.stride(0),
        ADD=dresidual_KMI is not None,
        ROWS=t.rows, COLUMNS=min(t.columns, 64), WIDTH=_padded(I),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return dx_KMI, sum_partials(partial_KBI)


@triton.jit
def _norm_linear(
    x, gain, w, y, h, rstd, M, O, I, blocks, gain_stride, w_stride, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    mask = (row < M)[:, None] & (i < I)[None, :]
    place = (run * M + row)[:, None] * I + i[None, :]
    loaded = tl.load(x + place, mask=mask, other=0.0)
    value = loaded.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / I + eps)
    g = tl.load(gain + run * gain_stride + i, mask=i < I, other=0.0).to(tl.float32)
    normed = (value * r[:, None] * g[None, :]).to(loaded.dtype)
    tl.store(h + place, normed, mask=mask)
    tl.store(rstd + run * M + row, r, mask=row < M)
    for begin in range(0, O, COLUMNS):
        o = begin + tl.arange(0, COLUMNS)
        w_at = w + run * w_stride + o[:, None] * I + i[None, :]
        w_OI = tl.load(w_at, mask=(o < O)[:, None] & (i < I)[None, :], other=0.0)
        out = tl.dot(normed, tl.trans(w_OI), input_precision="ieee").to(loaded.dtype)
        y_at = y + (run * M + row)[:, None] * O + o[None, :]
        tl.store(y_at, out, mask=(row < M)[:, None] & (o < O)[None, :])


@triton.jit
def _linear_add(
    x, w, residual, y, M, O, I, blocks, w_stride,
    GELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    o = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, I, COLUMNS):
        i = begin + tl.arange(0, COLUMNS)
        x_at = x + (run * M + row)[:, None] * I + i[None, :]
        value = tl.load(x_at, mask=(row < M)[:, None] & (i < I)[None, :], other=0.0)
        if GELU:
            value = gelu_value(value.to(tl.float32)).to(value.dtype)
        w_at = w + run * w_stride + o[:, None] * I + i[None, :]
        w_OI = tl.load(w_at, mask=(o < O)[:, None] & (i < I)[None, :], other=0.0)
        total = tl.dot(value, tl.trans(w_OI), total, input_precision="ieee")
    place = (run * M + row)[:, None] * O + o[None, :]
    mask = (row < M)[:, None] & (o < O)[None, :]
    there = tl.load(residual + place, mask=mask, other=0.0)
    tl.store(y + place, (total + there.to(tl.float32)).to(there.dtype), mask=mask)


@triton.jit
def _gelu_linear_backward(
    dy, w, u, du, a, M, D, F, blocks, w_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)
    dy_at = dy + (run * M + row)[:, None] * D + d[None, :]
    dy_MD = tl.load(dy_at, mask=(row < M)[:, None] & (d < D)[None, :], other=0.0)
    for begin in range(0, F, COLUMNS):
        f = begin + tl.arange(0, COLUMNS)
        mask = (row < M)[:, None] & (f < F)[None, :]
        w_at = w + run * w_stride + d[:, None] * F + f[None, :]
        w_DF = tl.load(w_at, mask=(d < D)[:, None] & (f < F)[None, :], other=0.0)
        place = (run * M + row)[:, None] * F + f[None, :]
        u_MF = tl.load(u + place, mask=mask, other=0.0)
        da = tl.dot(dy_MD, w_DF, input_precision="ieee")
        value, slope = gelu_and_slope(u_MF.to(tl.float32))
        tl.store(du + place, (da * slope).to(u_MF.dtype), mask=mask)
        tl.store(a + place, value.to(u_MF.dtype), mask=mask)


@triton.jit
def _linear_norm_backward(
    dy, w, x, rstd, gain, dresidual, dx, partial, M, O, I, blocks, w_stride, gain_stride,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    dh = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, O, COLUMNS):
        o = begin + tl.arange(0, COLUMNS)
        dy_at = dy + (run * M + row)[:, None] * O + o[None, :]
        dy_MO = tl.load(dy_at, mask=(row < M)[:, None] & (o < O)[None, :], other=0.0)
        w_at = w + run * w_stride + o[:, None] * I + i[None, :]
        w_OI = tl.load(w_at, mask=(o < O)[:, None] & (i < I)[None, :], other=0.0)
        dh = tl.dot(dy_MO, w_OI, dh, input_precision="ieee")
    mask = (row < M)[:, None] & (i < I)[None, :]
    place = (run * M + row)[:, None] * I + i[None, :]
    loaded = tl.load(x + place, mask=mask, other=0.0)
    r = tl.load(rstd + run * M + row, mask=row < M, other=0.0)
    x_hat = loaded.to(tl.float32) * r[:, None]
    g = tl.load(gain + run * gain_stride + i, mask=i < I, other=0.0).to(tl.float32)
    dgain = tl.sum(dh * x_hat, axis=0)
    tl.store(partial + tl.program_id(0).to(tl.int64) * I + i, dgain, mask=i < I)
    gd = dh * g[None, :]
    mean = tl.sum(gd * x_hat, axis=1) / I
    out = (gd - x_hat * mean[:, None]) * r[:, None]
    if ADD:
        out += tl.load(dresidual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx + place, out.to(loaded.dtype), mask=mask)
