"""Root-mean-square normalisation with the residual add before it, of K runs.

    s = x + δ        r = 1 / √(mean(s²) + ε)        y = g ⊙ s · r
    ds = r (g ⊙ dy − ŝ · mean(g ⊙ dy ⊙ ŝ)) + dres        dg = Σ_rows dy ⊙ ŝ        ŝ = s · r

(Zhang & Sennrich 2019.) Bytes a row of D bfloat16 values: forward reads x, δ and writes s, y: 8 D,
against 14 D of an add, a norm and a cast one after another; backward reads dy, s, dres and writes
ds: 8 D. FLOPs are few: memory bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.rms_norm import EPS

_PROGRAMS = 1024
"""Programs that fill a GPU several times over: more only leave more partial sums to add."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    rows: int
    """Rows that are worked on at once."""
    loops: int
    """How often, in the backward pass: fewer partial sums of the gain's gradient."""
    num_warps: int


def tiles(width: int) -> Tiles:
    """About 4,096 values at once: 16 bytes and two or more loads a thread."""
    padded = triton.next_power_of_2(width)
    rows = max(1, min(32, 4096 // padded))
    return Tiles(rows=rows, loops=8, num_warps=4 if padded <= 4096 else 8)


def _backward_tiles(width: int, *, rows: int) -> Tiles:
    """Half as many rows, whose sums of the gain's gradient stay in registers over the loop."""
    t = tiles(width)
    t = replace(t, rows=max(1, t.rows // 2))
    loops = triton.next_power_of_2(triton.cdiv(rows, _PROGRAMS * t.rows))
    return replace(t, loops=min(64, max(t.loops, loops)))


def forward(
    x_KMD: Tensor,
    gain_KD: Tensor | None,
    delta_KMD: Tensor | None = None,
    *,
    switch_K: Tensor | None = None,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise.

    Args:
        x_KMD: [K, M, D], contiguous.
        gain_KD: [K, D], any stride over K; None leaves it out.
        delta_KMD: What is added first; None adds nothing.
        switch_K: Where given, runs with False pass through: y = s.
        tiles_: Shape of a program.

    Returns:
        (s [K, M, D], x itself where nothing is added; y [K, M, D]; r float32 [K, M]).
    """
    K, M, D = x_KMD.shape
    t = tiles_ or tiles(D)
    sum_KMD = x_KMD if delta_KMD is None else torch.empty_like(x_KMD)
    y_KMD = torch.empty_like(x_KMD)
    rstd_KM = torch.empty(K, M, dtype=torch.float32, device=x_KMD.device)
    blocks = triton.cdiv(M, t.rows)
    _forward[(K * blocks,)](
        x_KMD, delta_KMD, gain_KD, switch_K, sum_KMD, y_KMD, rstd_KM,
        M, D, blocks, 0 if gain_KD is None else gain_KD.stride(0), EPS,
        ADD=delta_KMD is not None, GAIN=gain_KD is not None, SWITCH=switch_K is not None,
        ROWS=t.rows, WIDTH=triton.next_power_of_2(D), num_warps=t.num_warps,
    )  # fmt: skip
    return sum_KMD, y_KMD, rstd_KM


def backward(
    dy_KMD: Tensor,
    sum_KMD: Tensor,
    rstd_KM: Tensor,
    gain_KD: Tensor | None,
    dsum_KMD: Tensor | None = None,
    *,
    switch_K: Tensor | None = None,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the sum and the gain.

    Args:
        dy_KMD: Gradient of y, [K, M, D].
        sum_KMD: s, from `forward`.
        rstd_KM: r, from `forward`.
        gain_KD: As in `forward`.
        dsum_KMD: Gradient that reaches the sum past the norm; None is zero.
        switch_K: As in `forward`.
        tiles_: Shape of a program.

    Returns:
        (ds [K, M, D], float32 dg [K, D] or None without a gain).
    """
    K, M, D = dy_KMD.shape
    t = tiles_ or tiles(D)
    if tiles_ is None and _PROGRAMS * t.rows * t.loops < K * M:
        loops = triton.next_power_of_2(triton.cdiv(K * M, _PROGRAMS * t.rows))
        t = replace(t, loops=min(64, loops))
    dx_KMD = torch.empty_like(dy_KMD)
    blocks = triton.cdiv(M, t.rows * t.loops)
    partial = dx_KMD
    if gain_KD is not None:
        partial = torch.empty(K, blocks, D, dtype=torch.float32, device=dy_KMD.device)
    _backward[(K * blocks,)](
        dy_KMD, sum_KMD, rstd_KM, gain_KD, dsum_KMD, switch_K, dx_KMD, partial,
        M, D, blocks, 0 if gain_KD is None else gain_KD.stride(0),
        ADD=dsum_KMD is not None, GAIN=gain_KD is not None, SWITCH=switch_K is not None,
        ROWS=t.rows, LOOPS=t.loops, WIDTH=triton.next_power_of_2(D), num_warps=t.num_warps,
    )  # fmt: skip
    return dx_KMD, None if gain_KD is None else sum_partials(partial)


def sum_partials(partial_KBD: Tensor) -> Tensor:
    """Sum over the middle axis in one fixed order, float32 [K, D]."""
    K, blocks, D = partial_KBD.shape
    out_KD = torch.empty(K, D, dtype=torch.float32, device=partial_KBD.device)
    width = min(32, triton.next_power_of_2(D))
    columns = triton.cdiv(D, width)
    _sum_partials[(K * columns,)](
        partial_KBD, out_KD, blocks, D, columns, ROWS=128, WIDTH=width, num_warps=4
    )
    return out_KD


@triton.jit
def _forward(
    x, delta, gain, switch, sum_, y, rstd, M, D, blocks, gain_stride, eps,
    ADD: tl.constexpr, GAIN: tl.constexpr, SWITCH: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0) // blocks
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < M)[:, None] & (column < D)[None, :]
    first = run.to(tl.int64) * M * D
    place = row[:, None] * D + column[None, :]
    s = tl.load(x + first + place, mask=mask, other=0.0)
    if ADD:
        s = (s.to(tl.float32) + tl.load(delta + first + place, mask=mask, other=0.0)).to(s.dtype)
        tl.store(sum_ + first + place, s, mask=mask)
    s32 = s.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(s32 * s32, axis=1) / D + eps)
    out = s32 * r[:, None]
    if GAIN:
        offset = run.to(tl.int64) * gain_stride
        g = tl.load(gain + offset + column, mask=column < D, other=0.0).to(tl.float32)
        out = out * g[None, :]
    if SWITCH:
        out = tl.where(tl.load(switch + run) != 0, out, s32)
    tl.store(y + first + place, out.to(s.dtype), mask=mask)
    tl.store(rstd + run.to(tl.int64) * M + row, r, mask=row < M)


@triton.jit
def _backward(
    dy, sum_, rstd, gain, dsum, switch, dx, partial, M, D, blocks, gain_stride,
    ADD: tl.constexpr, GAIN: tl.constexpr, SWITCH: tl.constexpr,
    ROWS: tl.constexpr, LOOPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    column = tl.arange(0, WIDTH)
    first = run.to(tl.int64) * M * D
    if GAIN:
        offset = run.to(tl.int64) * gain_stride
        g = tl.load(gain + offset + column, mask=column < D, other=0.0).to(tl.float32)
        # A sum for each row of the tile: adding rows up takes shared memory, and waits, once.
        dgain = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for turn in range(LOOPS):
        row = (block * LOOPS + turn) * ROWS + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & (column < D)[None, :]
        place = row[:, None] * D + column[None, :]
        d_in = tl.load(dy + first + place, mask=mask, other=0.0)
        d = d_in.to(tl.float32)
        s = tl.load(sum_ + first + place, mask=mask, other=0.0).to(tl.float32)
        r = tl.load(rstd + run.to(tl.int64) * M + row, mask=row < M, other=0.0)
        s_hat = s * r[:, None]
        gd = d
        if GAIN:
            dgain += d * s_hat
            gd = d * g[None, :]
        mean = tl.sum(gd * s_hat, axis=1) / D
        out = (gd - s_hat * mean[:, None]) * r[:, None]
        if SWITCH:
            out = tl.where(tl.load(switch + run) != 0, out, d)
        if ADD:
            out += tl.load(dsum + first + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + first + place, out.to(d_in.dtype), mask=mask)
    if GAIN:
        offset = tl.program_id(0).to(tl.int64) * D
        tl.store(partial + offset + column, tl.sum(dgain, axis=0), mask=column < D)


@triton.jit
def _sum_partials(partial, out, blocks, D, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    run = tl.program_id(0) // columns
    column = (tl.program_id(0) % columns) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & (column < D)[None, :]
        place = (run.to(tl.int64) * blocks + row[:, None]) * D + column[None, :]
        total += tl.sum(tl.load(partial + place, mask=mask, other=0.0), axis=0)
    tl.store(out + run.to(tl.int64) * D + column, total, mask=column < D)
