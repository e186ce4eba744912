"""Rotary positions on the queries and keys of packed rows, after RMSNorm of each head where asked.

    (l, r) -> (l cos − r sin, r cos + l sin) for the halves l, r of a head, at t = row mod context

(Su et al. 2021; head norms: Henry et al. 2020.) Bytes a row of D: reads 4 D, writes 4 D; the
backward pass as much, and 4 D more with norms, against 20 D and more of slices, products and a
concatenation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.rms_norm import sum_partials
from wesar_sweep.kernels.fused.tiles import last_first, program
from wesar_sweep.kernels.rms_norm import EPS

_VALUES = 2048
"""Pairs that a program turns at once."""
_LOOPS = 8
"""How often in the backward pass: fewer partial sums of the gains' gradients."""


def forward(
    qkv_KMX: Tensor,
    cos_TE: Tensor | None,
    sin_TE: Tensor | None,
    *,
    heads: int,
    head_width: int,
    context: int,
    gain_K2E: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Normalise and rotate.

    Args:
        qkv_KMX: [K, M, 3·D], contiguous: heads of queries, of keys, of values.
        cos_TE: From `kernels.rope.tables`, float32 [T, E/2]; None rotates nothing.
        sin_TE: As cos_TE.
        heads: H.
        head_width: E, even.
        context: T; row m of a run stands at position m mod T.
        gain_K2E: Gains of the query and the key norm, [K, 2, E], any stride over K; None: no norm.
        reverse: Begin with the last program (`tiles.last_first`).

    Returns:
        (queries and keys [K, M, 2·D]; float32 [K, M, 2·H] of 1/√(mean + ε), or None).
    """
    K, M, _ = qkv_KMX.shape
    qk_KMY = qkv_KMX.new_empty(K, M, 2 * heads * head_width)
    rstd_KMH = None
    if gain_K2E is not None:
        rstd_KMH = torch.empty(K, M, 2 * heads, dtype=torch.float32, device=qkv_KMX.device)
    half = head_width // 2
    width = triton.next_power_of_2(half)
    rows = max(1, _VALUES // width)
    blocks = triton.cdiv(M * 2 * heads, rows)
    _forward[(K * blocks,)](
        qkv_KMX, qk_KMY, rstd_KMH, cos_TE, sin_TE, gain_K2E,
        M, heads, context, blocks, half, 0 if gain_K2E is None else gain_K2E.stride(0), EPS,
        last_first(K * blocks, reverse),
        ROTATE=cos_TE is not None, NORM=gain_K2E is not None,
        ROWS=rows, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return qk_KMY, rstd_KMH


def backward(
    dq_KMD: Tensor,
    dk_KMD: Tensor,
    qkv_KMX: Tensor,
    cos_TE: Tensor | None,
    sin_TE: Tensor | None,
    rstd_KMH: Tensor | None,
    gain_K2E: Tensor | None,
    *,
    heads: int,
    head_width: int,
    context: int,
    out: Tensor,
    reverse: bool = False,
) -> Tensor | None:
    """Gradients of queries and keys, into the first 2·D columns of `out`.

    Args:
        dq_KMD: Gradient of the rotated queries, [K, M, D], any strides over runs and rows; it may
            be `out`'s own first columns.
        dk_KMD: Of the rotated keys, with the queries' strides; it may be `out`'s own.
        qkv_KMX: As in `forward`.
        cos_TE: As in `forward`.
        sin_TE: As in `forward`.
        rstd_KMH: From `forward`.
        gain_K2E: As in `forward`.
        heads: H.
        head_width: E.
        context: T.
        out: [K, M, 3·D]; the columns of the values are left alone.
        reverse: Begin with the last program (`tiles.last_first`).

    Returns:
        float32 [K, 2, E], the gains' gradient, or None without norms.
    """
    K, M, _ = qkv_KMX.shape
    assert dq_KMD.stride() == dk_KMD.stride()
    half = head_width // 2
    width = triton.next_power_of_2(half)
    rows = max(1, _VALUES // width)
    # Queries and keys have a gain each, so a program works on rows of one kind.
    blocks = triton.cdiv(M * heads, rows * _LOOPS)
    partial = None
    if gain_K2E is not None:
        partial = torch.empty(K * 2, blocks, 2 * half, dtype=torch.float32, device=out.device)
    _backward[(K * 2 * blocks,)](
        dq_KMD, dk_KMD, qkv_KMX, out, rstd_KMH, cos_TE, sin_TE, gain_K2E, partial,
        M, heads, context, blocks, half, dq_KMD.stride(0), dq_KMD.stride(1),
        0 if gain_K2E is None else gain_K2E.stride(0), last_first(K * 2 * blocks, reverse),
        ROTATE=cos_TE is not None, NORM=gain_K2E is not None,
        ROWS=rows, LOOPS=_LOOPS, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return None if partial is None else sum_partials(partial).view(K, 2, head_width)


@triton.jit(do_not_specialize=("flip",))
def _forward(
    qkv, qk, rstd, cos, sin, gain, M, H, T, blocks, half, gain_stride, eps, flip,
    ROTATE: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    n = (number % blocks) * ROWS + tl.arange(0, ROWS)
    row, head = n // (2 * H), n % (2 * H)
    e = tl.arange(0, WIDTH)
    mask = (row < M)[:, None] & (e < half)[None, :]
    source = run * M * 6 * H * half + (row * 6 * H + 2 * head)[:, None] * half + e[None, :]
    left_in = tl.load(qkv + source, mask=mask, other=0.0)
    left = left_in.to(tl.float32)
    right = tl.load(qkv + source + half, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
        r = 1.0 / tl.sqrt(squares / (2 * half) + eps)
        tl.store(rstd + run * M * 2 * H + n, r, mask=row < M)
        g = gain + run * gain_stride + (head // H)[:, None] * 2 * half + e[None, :]
        left = left * r[:, None] * tl.load(g, mask=mask, other=0.0).to(tl.float32)
        right = right * r[:, None] * tl.load(g + half, mask=mask, other=0.0).to(tl.float32)
    if ROTATE:
        angle = (row % T)[:, None] * half + e[None, :]
        c = tl.load(cos + angle, mask=mask, other=0.0)
        s = tl.load(sin + angle, mask=mask, other=0.0)
        left, right = left * c - right * s, right * c + left * s
    place = run * M * 4 * H * half + (row * 4 * H + 2 * head)[:, None] * half + e[None, :]
    tl.store(qk + place, left.to(left_in.dtype), mask=mask)
    tl.store(qk + place + half, right.to(left_in.dtype), mask=mask)


@triton.jit(do_not_specialize=("flip",))
def _backward(
    dq, dk, qkv, out, rstd, cos, sin, gain, partial, M, H, T, blocks, half, d_run, d_row,
    gain_stride, flip,
    ROTATE: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, LOOPS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // (2 * blocks)).to(tl.int64)
    kind = (number // blocks) % 2
    block = number % blocks
    e = tl.arange(0, WIDTH)
    if NORM:
        g = gain + run * gain_stride + kind * 2 * half + e
        g_left = tl.load(g, mask=e < half, other=0.0).to(tl.float32)
        g_right = tl.load(g + half, mask=e < half, other=0.0).to(tl.float32)
        # A sum for each row of the tile: adding rows up takes shared memory, and waits, once.
        dg_left = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        dg_right = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for turn in range(LOOPS):
        n = (block * LOOPS + turn) * ROWS + tl.arange(0, ROWS)
        row, head = n // H, kind * H + n % H
        mask = (row < M)[:, None] & (e < half)[None, :]
        d_place = run * d_run + row[:, None] * d_row + (n % H)[:, None] * 2 * half + e[None, :]
        if kind == 0:
            d_in = tl.load(dq + d_place, mask=mask, other=0.0)
            d_right = tl.load(dq + d_place + half, mask=mask, other=0.0).to(tl.float32)
        else:
            d_in = tl.load(dk + d_place, mask=mask, other=0.0)
            d_right = tl.load(dk + d_place + half, mask=mask, other=0.0).to(tl.float32)
        d_left = d_in.to(tl.float32)
        if ROTATE:
            angle = (row % T)[:, None] * half + e[None, :]
            c = tl.load(cos + angle, mask=mask, other=0.0)
            s = tl.load(sin + angle, mask=mask, other=0.0)
            d_left, d_right = d_left * c + d_right * s, d_right * c - d_left * s
        place = run * M * 6 * H * half + (row * 6 * H + 2 * head)[:, None] * half + e[None, :]
        if NORM:
            r = tl.load(rstd + run * M * 2 * H + row * 2 * H + head, mask=row < M, other=0.0)
            left = tl.load(qkv + place, mask=mask, other=0.0).to(tl.float32) * r[:, None]
            right = tl.load(qkv + place + half, mask=mask, other=0.0).to(tl.float32) * r[:, None]
            dg_left += d_left * left
            dg_right += d_right * right
            d_left *= g_left[None, :]
            d_right *= g_right[None, :]
            mean = tl.sum(d_left * left, axis=1) + tl.sum(d_right * right, axis=1)
            mean = mean / (2 * half)
            d_left = (d_left - left * mean[:, None]) * r[:, None]
            d_right = (d_right - right * mean[:, None]) * r[:, None]
        tl.store(out + place, d_left.to(d_in.dtype), mask=mask)
        tl.store(out + place + half, d_right.to(d_in.dtype), mask=mask)
    if NORM:
        first = number.to(tl.int64) * 2 * half
        tl.store(partial + first + e, tl.sum(dg_left, axis=0), mask=e < half)
        tl.store(partial + first + half + e, tl.sum(dg_right, axis=0), mask=e < half)
