"""Products of narrow models with what stands before and after them inside, for K runs.

At a width of 128 every product of a layer is bound by memory traffic, so a pass over memory for a
norm, a rotation, an activation or a residual add costs as much as the product itself. Here they are
part of it. Bytes a row of D bfloat16 values, F = 4 D (in brackets: one kernel an op):

===========================  =======================================  ==========  =============
`norm_linear`                h = norm(x), y = h wᵀ                    2·(2D + O)  [2·(3D + O)]
… with a rotation            … of the first 2/3 of y (queries, keys)  2·(2D + O)  [2·(7D + O)]
`linear_add`                 y = res + x wᵀ                           2·3D        [2·5D]
`gelu_linear_add`            y = res + gelu(u) wᵀ                     2·(F + 2D)  [2·(3F + 4D)]
`gelu_linear_backward`       du = (dy w) ⊙ gelu'(u), a = gelu(u)      2·(3F + D)  [2·(4F + D)]
`linear_norm_backward`       dx = dres + norm'(dy w)                  2·(O + 3D)  [2·(O + 5D)]
===========================  =======================================  ==========  =============

Going back, a stack of many runs takes `gelu_gradients` instead of `gelu_linear_backward`. FLOPs are
2·I·O a row each. Weights come through the L2 cache. Accumulation is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.feed_forward import gelu_and_slope, gelu_value
from wesar_sweep.kernels.fused.tiles import halves, last_first, load, padded, program, store
from wesar_sweep.kernels.rms_norm import EPS


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    rows: int
    columns: int
    """Of the longer side, that are worked on at once."""
    num_warps: int
    num_stages: int


_FORWARD = Tiles(128, 64, 8, 4)
_TURNED = Tiles(64, 64, 4, 2)
_LINEAR_ADD = Tiles(64, 64, 4, 2)
_GELU_LINEAR_ADD = Tiles(64, 64, 4, 3)
_GELU_BACKWARD = Tiles(64, 64, 4, 3)
_NORM_BACKWARD = Tiles(64, 64, 4, 4)
"""The best of those tried on an H200 at width 128; see docs/LOG.md."""


def supported(width: int, ffn_width: int, dtype: torch.dtype) -> bool:
    """Whether these kernels are preferred to cuBLAS's products between elementwise kernels."""
    # At a width of 256 the two are level on an H200, and cuBLAS gains with every width above.
    return dtype == torch.bfloat16 and width <= 128 and ffn_width <= 1024


def _even(t: Tiles, rows: int, narrow: int, long: int) -> bool:
    """Whether no tile reaches past an edge."""
    return rows % t.rows == 0 and narrow == padded(narrow) and long % t.columns == 0


def turns(head_width: int) -> bool:
    """Whether heads of this width can be rotated inside a kernel, a head a tile."""
    return head_width >= 16 and head_width == triton.next_power_of_2(head_width)


def norm_linear(
    x_KMI: Tensor,
    gain_KI: Tensor,
    w_KOI: Tensor,
    *,
    rotation: tuple[Tensor, Tensor] | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm, then the product, then where asked the rotation of queries and keys.

    Args:
        x_KMI: [K, M, I], contiguous.
        gain_KI: Gains of the norm, any stride over K.
        w_KOI: Weights, any stride over K.
        rotation: cos and sin of `kernels.rope.tables`, float32 [T, E/2]: the first 2/3 of O are
            then heads of width E that are rotated, row m of a run by the angles of m mod T; `turns`
            says for which E. None rotates nothing.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        (y [K, M, O]; h [K, M, I], the norm's output; 1/√(mean + ε) float32 [K, M]).
    """
    (K, M, I), O = x_KMI.shape, w_KOI.shape[1]
    t = tiles_ or (_FORWARD if rotation is None else _TURNED)
    y_KMO = x_KMI.new_empty(K, M, O)
    h_KMI = torch.empty_like(x_KMI)
    rstd_KM = torch.empty(K, M, dtype=torch.float32, device=x_KMI.device)
    cos, sin = rotation or (None, None)
    turned = 0 if cos is None else 2 * O // 3
    blocks = triton.cdiv(M, t.rows)
    _norm_linear[(K * blocks,)](
        x_KMI, gain_KI, w_KOI, y_KMO, h_KMI, rstd_KM, cos, sin,
        M, O, I, turned, 1 if cos is None else len(cos), blocks,
        gain_KI.stride(0), w_KOI.stride(0), EPS, last_first(K * blocks, reverse),
        EVEN=_even(t, M, I, O - turned), HEAD=0 if cos is None else 2 * cos.shape[1],
        ROWS=t.rows, COLUMNS=t.columns, WIDTH=padded(I),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return y_KMO, h_KMI, rstd_KM


def linear_add(
    x_KMI: Tensor,
    w_KOI: Tensor,
    residual_KMO: Tensor,
    *,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> Tensor:
    """Residual + x wᵀ, [K, M, O]; `reverse` and `tiles_` as in `norm_linear`."""
    return _accumulate(
        x_KMI, w_KOI, residual_KMO, gelu=False, reverse=reverse, t=tiles_ or _LINEAR_ADD
    )


def gelu_linear_add(
    u_KMF: Tensor,
    w_KDF: Tensor,
    residual_KMD: Tensor,
    *,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> Tensor:
    """Residual + gelu(u) wᵀ, [K, M, D]; `reverse` and `tiles_` as in `norm_linear`."""
    return _accumulate(
        u_KMF, w_KDF, residual_KMD, gelu=True, reverse=reverse, t=tiles_ or _GELU_LINEAR_ADD
    )


def _accumulate(
    x_KMI: Tensor, w_KOI: Tensor, residual_KMO: Tensor, *, gelu: bool, reverse: bool, t: Tiles
) -> Tensor:
    K, M, O = residual_KMO.shape
    y_KMO = torch.empty_like(residual_KMO)
    blocks = triton.cdiv(M, t.rows)
    _linear_add[(K * blocks,)](
        x_KMI, w_KOI, residual_KMO, y_KMO, M, O, x_KMI.shape[2], blocks, w_KOI.stride(0),
        last_first(K * blocks, reverse),
        EVEN=_even(t, M, O, x_KMI.shape[2]), GELU=gelu,
        ROWS=t.rows, COLUMNS=t.columns, WIDTH=padded(O),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return y_KMO


def gelu_linear_backward(
    dy_KMD: Tensor,
    w_KDF: Tensor,
    u_KMF: Tensor,
    *,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Through the product down and the activation.

    Args:
        dy_KMD: Gradient of gelu(u) wᵀ.
        w_KDF: Weights, any stride over K.
        u_KMF: What was activated.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        (gradient of u [K, M, F]; gelu(u), for the weight's gradient).
    """
    (K, M, F), D = u_KMF.shape, dy_KMD.shape[2]
    t = tiles_ or _GELU_BACKWARD
    du_KMF, a_KMF = torch.empty_like(u_KMF), torch.empty_like(u_KMF)
    blocks = triton.cdiv(M, t.rows)
    _gelu_linear_backward[(K * blocks,)](
        dy_KMD, w_KDF, u_KMF, du_KMF, a_KMF, M, D, F, blocks, w_KDF.stride(0),
        last_first(K * blocks, reverse),
        ROWS=t.rows, COLUMNS=t.columns, WIDTH=padded(D),
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
    partial_KBI: Tensor,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> Tensor:
    """Through the product and the norm before it.

    Args:
        dy_KMO: Gradient of the product.
        w_KOI: Weights, any stride over K.
        x_KMI: What was normed.
        rstd_KM: From `norm_linear`.
        gain_KI: Gains of the norm, any stride over K.
        dresidual_KMI: Gradient that reaches x past the norm; None is zero.
        partial_KBI: Takes the parts of the gain's gradient, float32 [K, `partial_sums`, I], for
            `rms_norm.sum_gains`.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        Gradient of x [K, M, I].
    """
    (K, M, I), O = x_KMI.shape, dy_KMO.shape[2]
    t = tiles_ or _NORM_BACKWARD
    dx_KMI = torch.empty_like(x_KMI)
    blocks = triton.cdiv(M, t.rows)
    assert partial_KBI.shape == (K, blocks, I)
    _linear_norm_backward[(K * blocks,)](
        dy_KMO, w_KOI, x_KMI, rstd_KM, gain_KI, dresidual_KMI, dx_KMI, partial_KBI,
        M, O, I, blocks, w_KOI.stride(0), gain_KI.stride(0), last_first(K * blocks, reverse),
        EVEN=_even(t, M, I, O), ADD=dresidual_KMI is not None,
        ROWS=t.rows, COLUMNS=t.columns, WIDTH=padded(I),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    return dx_KMI


def partial_sums(rows: int) -> int:
    """Partial sums a run of the gain's gradient that `linear_norm_backward` leaves."""
    return triton.cdiv(rows, _NORM_BACKWARD.rows)


@triton.jit(do_not_specialize=("flip",))
def _norm_linear(
    x, gain, w, y, h, rstd, cos, sin, M, O, I, turned, T, blocks, gain_stride, w_stride, eps, flip,
    EVEN: tl.constexpr, HEAD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    here = (row < M)[:, None]
    mask = here & (i < I)[None, :]
    place = (run * M + row)[:, None] * I + i[None, :]
    loaded = load(x + place, mask, EVEN)
    value = loaded.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / I + eps)
    g = load(gain + run * gain_stride + i, i < I, EVEN).to(tl.float32)
    normed = (value * r[:, None] * g[None, :]).to(loaded.dtype)
    store(h + place, normed, mask, EVEN)
    store(rstd + run * M + row, r, row < M, EVEN)
    w_row = w + run * w_stride + i[None, :]
    y_row = y + (run * M + row)[:, None] * O
    if HEAD > 0:
        e = tl.arange(0, HEAD // 2)
        angle = (row % T)[:, None] * (HEAD // 2) + e[None, :]
        for begin in range(0, turned, HEAD):
            o = begin + tl.arange(0, HEAD)
            w_EI = load(w_row + o[:, None] * I, (i < I)[None, :], EVEN)
            left, right = halves(tl.dot(normed, tl.trans(w_EI), input_precision="ieee"))
            # From a cache each time: kept over the loop they would take a quarter of registers.
            c = load(cos + angle, here, EVEN)
            s = load(sin + angle, here, EVEN)
            y_at = y_row + begin + e[None, :]
            store(y_at, (left * c - right * s).to(loaded.dtype), here, EVEN)
            store(y_at + HEAD // 2, (right * c + left * s).to(loaded.dtype), here, EVEN)
    for begin in range(turned, O, COLUMNS):
        o = begin + tl.arange(0, COLUMNS)
        w_OI = load(w_row + o[:, None] * I, (o < O)[:, None] & (i < I)[None, :], EVEN)
        out = tl.dot(normed, tl.trans(w_OI), input_precision="ieee").to(loaded.dtype)
        store(y_row + o[None, :], out, here & (o < O)[None, :], EVEN)


@triton.jit(do_not_specialize=("flip",))
def _linear_add(
    x, w, residual, y, M, O, I, blocks, w_stride, flip,
    EVEN: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
    o = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, I, COLUMNS):
        i = begin + tl.arange(0, COLUMNS)
        x_at = x + (run * M + row)[:, None] * I + i[None, :]
        value = load(x_at, (row < M)[:, None] & (i < I)[None, :], EVEN)
        if GELU:
            value = gelu_value(value.to(tl.float32)).to(value.dtype)
        w_at = w + run * w_stride + o[:, None] * I + i[None, :]
        w_OI = load(w_at, (o < O)[:, None] & (i < I)[None, :], EVEN)
        total = tl.dot(value, tl.trans(w_OI), total, input_precision="ieee")
    place = (run * M + row)[:, None] * O + o[None, :]
    mask = (row < M)[:, None] & (o < O)[None, :]
    there = load(residual + place, mask, EVEN)
    store(y + place, (total + there.to(tl.float32)).to(there.dtype), mask, EVEN)


@triton.jit(do_not_specialize=("flip",))
def _gelu_linear_backward(
    dy, w, u, du, a, M, D, F, blocks, w_stride, flip,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # Always with masks: without, on an H200, it took a tenth longer.
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
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


@triton.jit(do_not_specialize=("flip",))
def _linear_norm_backward(
    dy, w, x, rstd, gain, dresidual, dx, partial, M, O, I, blocks, w_stride, gain_stride, flip,
    EVEN: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, WIDTH)
    dh = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, O, COLUMNS):
        o = begin + tl.arange(0, COLUMNS)
        dy_at = dy + (run * M + row)[:, None] * O + o[None, :]
        dy_MO = load(dy_at, (row < M)[:, None] & (o < O)[None, :], EVEN)
        w_at = w + run * w_stride + o[:, None] * I + i[None, :]
        w_OI = load(w_at, (o < O)[:, None] & (i < I)[None, :], EVEN)
        dh = tl.dot(dy_MO, w_OI, dh, input_precision="ieee")
    mask = (row < M)[:, None] & (i < I)[None, :]
    place = (run * M + row)[:, None] * I + i[None, :]
    loaded = load(x + place, mask, EVEN)
    r = load(rstd + run * M + row, row < M, EVEN)
    x_hat = loaded.to(tl.float32) * r[:, None]
    g = load(gain + run * gain_stride + i, i < I, EVEN).to(tl.float32)
    dgain = tl.sum(dh * x_hat, axis=0)
    store(partial + number.to(tl.int64) * I + i, dgain, i < I, EVEN)
    gd = dh * g[None, :]
    mean = tl.sum(gd * x_hat, axis=1) / I
    out = (gd - x_hat * mean[:, None]) * r[:, None]
    if ADD:
        out += load(dresidual + place, mask, EVEN).to(tl.float32)
    store(dx + place, out.to(loaded.dtype), mask, EVEN)
