"""Root-mean-square normalisation with the residual add before it, of K runs.

    s = x + δ        r = 1 / √(mean(s²) + ε)        y = g ⊙ s · r
    ds = r (g ⊙ dy − ŝ · mean(g ⊙ dy ⊙ ŝ)) + dres        dg = Σ_rows dy ⊙ ŝ        ŝ = s · r

(Zhang & Sennrich 2019.) Bytes a row of D bfloat16 values: forward reads x, δ and writes s, y: 8 D,
against 14 D of an add, a norm and a cast one after another; backward reads dy, s, dres and writes
ds: 8 D. FLOPs are few: memory bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.tiles import last_first, program
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
    return Tiles(rows=rows, loops=1, num_warps=4 if padded <= 4096 else 8)


def backward_tiles(width: int, *, rows: int) -> Tiles:
    """Half as many values: the sums of the gain's gradient stay in registers, as do the next loads.

    Args:
        width: D.
        rows: Of all runs together.
    """
    padded = triton.next_power_of_2(width)
    own = max(1, min(16, 2048 // padded))
    loops = triton.next_power_of_2(triton.cdiv(rows, _PROGRAMS * own))
    return Tiles(own, min(64, max(8, loops)), 4 if padded <= 4096 else 8)


def partial_sums(runs: int, rows: int, width: int) -> int:
    """Partial sums a run of the gain's gradient that `backward` leaves."""
    t = backward_tiles(width, rows=runs * rows)
    return triton.cdiv(rows, t.rows * t.loops)


def forward(
    x_KMD: Tensor,
    gain_KD: Tensor | None,
    delta_KMD: Tensor | None = None,
    *,
    switch_K: Tensor | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise.

    Args:
        x_KMD: [K, M, D], contiguous.
        gain_KD: [K, D], any stride over K; None leaves it out.
        delta_KMD: What is added first; None adds nothing.
        switch_K: Where given, runs with False pass through: y = s.
        reverse: Begin with the last program (`tiles.last_first`).
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
        last_first(K * blocks, reverse),
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
    partial_KBD: Tensor | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> Tensor:
    """Gradient of the sum, and in parts the gain's.

    Args:
        dy_KMD: Gradient of y, [K, M, D].
        sum_KMD: s, from `forward`.
        rstd_KM: r, from `forward`.
        gain_KD: As in `forward`.
        dsum_KMD: Gradient that reaches the sum past the norm; None is zero.
        switch_K: As in `forward`.
        partial_KBD: Takes the parts of the gain's gradient, float32 [K, `partial_sums`, D], for
            `sum_gains`; needed with a gain.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        ds [K, M, D].
    """
    K, M, D = dy_KMD.shape
    t = tiles_ or backward_tiles(D, rows=K * M)
    dx_KMD = torch.empty_like(dy_KMD)
    blocks = triton.cdiv(M, t.rows * t.loops)
    assert gain_KD is None or (partial_KBD is not None and partial_KBD.shape == (K, blocks, D))
    _backward[(K * blocks,)](
        dy_KMD, sum_KMD, rstd_KM, gain_KD, dsum_KMD, switch_K, dx_KMD, partial_KBD,
        M, D, blocks, 0 if gain_KD is None else gain_KD.stride(0), last_first(K * blocks, reverse),
        ADD=dsum_KMD is not None, GAIN=gain_KD is not None, SWITCH=switch_K is not None,
        ROWS=t.rows, LOOPS=t.loops, WIDTH=triton.next_power_of_2(D), num_warps=t.num_warps,
    )  # fmt: skip
    return dx_KMD


def sum_partials(partial_KBD: Tensor) -> Tensor:
    """Sum over the middle axis in one fixed order, float32 [K, D]."""
    K, _, D = partial_KBD.shape
    out_KD = torch.empty(K, D, dtype=torch.float32, device=partial_KBD.device)
    sum_gains(partial_KBD.unsqueeze(0), out_KD)
    return out_KD


def sum_gains(partial_NKBD: Tensor, out_KX: Tensor, *, add: bool = False) -> None:
    """The gradients of N norms' gains from their parts, in one launch and one fixed order of sums.

    Args:
        partial_NKBD: float32, contiguous.
        out_KX: Takes [K, N·D], of any float type and any stride over K.
        add: Onto what stands there.
    """
    N, K, blocks, D = partial_NKBD.shape
    width = min(32, triton.next_power_of_2(D))
    columns = triton.cdiv(D, width)
    _sum_partials[(N * K * columns,)](
        partial_NKBD, out_KX, K, blocks, D, columns, out_KX.stride(0),
        ADD=add, ROWS=128, WIDTH=width, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=("flip",))
def _forward(
    x, delta, gain, switch, sum_, y, rstd, M, D, blocks, gain_stride, eps, flip,
    ADD: tl.constexpr, GAIN: tl.constexpr, SWITCH: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = number // blocks
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
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


@triton.jit(do_not_specialize=("flip",))
def _backward(
    dy, sum_, rstd, gain, dsum, switch, dx, partial, M, D, blocks, gain_stride, flip,
    ADD: tl.constexpr, GAIN: tl.constexpr, SWITCH: tl.constexpr,
    ROWS: tl.constexpr, LOOPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = number // blocks
    block = number % blocks
    column = tl.arange(0, WIDTH)
    own = (column < D)[None, :]
    first = run.to(tl.int64) * M * D
    rstd_first = rstd + run.to(tl.int64) * M
    if GAIN:
        offset = run.to(tl.int64) * gain_stride
        g = tl.load(gain + offset + column, mask=column < D, other=0.0).to(tl.float32)
        # A sum for each row of the tile: adding rows up takes shared memory, and waits, once.
        dgain = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    row = block * LOOPS * ROWS + tl.arange(0, ROWS)
    end = tl.minimum(M, (block + 1) * LOOPS * ROWS)
    place = row[:, None] * D + column[None, :]
    mask = (row < M)[:, None] & own
    next_d = tl.load(dy + first + place, mask=mask, other=0.0)
    next_s = tl.load(sum_ + first + place, mask=mask, other=0.0)
    next_r = tl.load(rstd_first + row, mask=row < M, other=0.0)
    next_add = next_d
    if ADD:
        next_add = tl.load(dsum + first + place, mask=mask, other=0.0)
    for _ in range(LOOPS):
        here, inside = place, mask
        d_in, s, r, add = next_d, next_s.to(tl.float32), next_r, next_add
        # The next rows are under way while these are worked on.
        row += ROWS
        place = row[:, None] * D + column[None, :]
        mask = (row < end)[:, None] & own
        next_d = tl.load(dy + first + place, mask=mask, other=0.0)
        next_s = tl.load(sum_ + first + place, mask=mask, other=0.0)
        next_r = tl.load(rstd_first + row, mask=row < end, other=0.0)
        if ADD:
            next_add = tl.load(dsum + first + place, mask=mask, other=0.0)
        d = d_in.to(tl.float32)
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
            out += add.to(tl.float32)
        tl.store(dx + first + here, out.to(d_in.dtype), mask=inside)
    if GAIN:
        offset = number.to(tl.int64) * D
        tl.store(partial + offset + column, tl.sum(dgain, axis=0), mask=column < D)


@triton.jit(do_not_specialize=("K",))
def _sum_partials(
    partial, out, K, blocks, D, columns, out_stride,
    ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) // columns
    norm, run = number // K, number % K
    column = (tl.program_id(0) % columns) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, blocks, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < blocks)[:, None] & (column < D)[None, :]
        place = (number.to(tl.int64) * blocks + row[:, None]) * D + column[None, :]
        total += tl.sum(tl.load(partial + place, mask=mask, other=0.0), axis=0)
    at = out + run.to(tl.int64) * out_stride + norm * D + column
    if ADD:
        total += tl.load(at, mask=column < D, other=0.0).to(tl.float32)
    tl.store(at, total.to(out.dtype.element_ty), mask=column < D)
