"""Causal attention of K runs at short contexts, on packed rows.

    y = softmax(q kᵀ / √E + causal mask) v

Blockwise with a running maximum (Milakov & Gimelshein 2018; Dao 2023). Queries and keys come
rotated; their gradients can be rotated back on the way out, since each block of them leaves the
chip once. (Rotating on the way in would rotate a block of keys once a block of queries: that took
longer than the pass over memory it saves; docs/LOG.md.)

Gradients go straight into the packed rows that the next product reads. One program owns a block of
positions in both of its roles: as queries against the keys up to it, for dq, then as keys under the
queries behind it, for dk and dv; so every program of a sequence has the same work, and the scores
of the diagonal are made once. Where queries have a first key (`kernels.attention.first_keys`),
blocks of keys that none of a block's queries sees are passed over; first keys never fall along a
sequence, so such blocks lie at the ends. The sums have one order: no atomics. Bytes a row of D:
forward reads 6 D, writes 2 D; backward reads 10 D (again mostly from the L2 cache), writes 6 D.
FLOPs a row: 2·T·D forward, 7·T·D backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.tiles import halves, last_first, load, padded, program, store


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    block: int
    """Queries, and keys, that are worked on at once."""
    num_warps: int
    num_stages: int
    registers: int | None = None
    """Most a thread takes; None leaves it to the compiler."""


def tiles(context: int, head_width: int) -> Tiles:
    """Blocks of 64 keep the masked half of a short context small."""
    return Tiles(_block(context), 4, 2 if head_width > 64 else 3)


def backward_tiles(context: int, head_width: int) -> Tiles:
    """One stage and three programs a multiprocessor ran faster than two of either stage."""
    return Tiles(_block(context), 4, 1, 168 if head_width == 64 else None)


def _block(context: int) -> int:
    return min(64, padded(context))


def use_fused(context: int, head_width: int, dtype: torch.dtype) -> bool:
    """Whether these kernels are preferred to torch's."""
    return dtype == torch.bfloat16 and context <= 512 and head_width <= 128


def forward(
    q_KMD: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    *,
    heads: int,
    head_width: int,
    context: int,
    first_KM: Tensor | None = None,
    peaks: list[Tensor] | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Mixed values.

    Args:
        q_KMD: Rotated queries [K, B·T, H·E], any strides over runs and rows.
        k_KMD: Rotated keys, strides like the queries'.
        v_KMD: Values.
        heads: H.
        head_width: E, even.
        context: T.
        first_KM: First key that each query sees, by its place in its sequence, int32 [K, B·T],
            contiguous, never falling along a sequence; None: the sequence's first.
        peaks: Takes each run's largest logit q·k/√E of any position and head, float32 [K], where
            given.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        (y [K, B·T, H·E] contiguous; log₂ of each row's scaled sum, float32 [K, B, H, T]).
    """
    K, M, D = q_KMD.shape
    t = tiles_ or tiles(context, head_width)
    y_KMD = torch.empty(K, M, D, dtype=q_KMD.dtype, device=q_KMD.device)
    lse = torch.empty(K, M // context, heads, context, dtype=torch.float32, device=q_KMD.device)
    peak = torch.empty_like(lse) if peaks is not None else None
    blocks = triton.cdiv(context, t.block)
    width = padded(head_width)
    programs = K * (M // context) * heads * blocks
    assert q_KMD.stride() == k_KMD.stride()
    _forward[(programs,)](
        q_KMD, k_KMD, v_KMD, first_KM, y_KMD, lse, peak,
        q_KMD.stride(0), q_KMD.stride(1), v_KMD.stride(0), v_KMD.stride(1),
        M, D, heads, context, blocks, _scale(head_width), last_first(programs, reverse),
        E=head_width, BLOCK=t.block, WIDTH=width, PEAK=peak is not None,
        DOCUMENTS=first_KM is not None, EVEN=context % t.block == 0 and head_width == width,
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    if peaks is not None and peak is not None:
        # The kernel's logits are powers of 2.
        peaks.append(peak.flatten(1).amax(dim=1) * math.log(2))
    return y_KMD, lse


def backward(
    dy_KMD: Tensor,
    q_KMD: Tensor,
    k_KMD: Tensor,
    v_KMD: Tensor,
    y_KMD: Tensor,
    kept: Tensor,
    *,
    heads: int,
    head_width: int,
    context: int,
    out: Tensor,
    first_KM: Tensor | None = None,
    rotation: tuple[Tensor, Tensor] | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> None:
    """Gradients of queries, keys and values, into `out`.

    Args:
        dy_KMD: Gradient of y, contiguous.
        q_KMD: As in `forward`.
        k_KMD: As in `forward`.
        v_KMD: As in `forward`.
        y_KMD: From `forward`.
        kept: The second result of `forward`.
        heads: H.
        head_width: E; a power of two from 16 on where a rotation is given.
        context: T.
        out: [K, B·T, 3·H·E], contiguous.
        first_KM: As in `forward`.
        rotation: cos and sin of `kernels.rope.tables`, float32 [T, E/2]: gradients are then those
            before the rotation. None: of the rotated queries and keys.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.
    """
    K, M, D = q_KMD.shape
    t = tiles_ or backward_tiles(context, head_width)
    cos, sin = rotation or (None, None)
    blocks = triton.cdiv(context, t.block)
    width = padded(head_width)
    limit = {} if t.registers is None else {"maxnreg": t.registers}
    programs = K * (M // context) * heads * blocks
    _backward[(programs,)](
        dy_KMD, q_KMD, k_KMD, v_KMD, first_KM, y_KMD, kept, out, cos, sin,
        q_KMD.stride(0), q_KMD.stride(1), v_KMD.stride(0), v_KMD.stride(1),
        M, D, heads, context, blocks, _scale(head_width), head_width**-0.5,
        last_first(programs, reverse),
        E=head_width, BLOCK=t.block, WIDTH=width, TURN=cos is not None,
        DOCUMENTS=0 if first_KM is None else triton.next_power_of_2(blocks),
        TAIL=context % t.block != 0, EVEN=context % t.block == 0 and head_width == width,
        num_warps=t.num_warps, num_stages=t.num_stages, **limit,
    )  # fmt: skip


def _scale(head_width: int) -> float:
    """Of logits whose powers are taken to the base 2."""
    return head_width**-0.5 * math.log2(math.e)


@triton.jit(do_not_specialize=("flip",))
def _forward(
    q, k, v, first_key, y, lse, peak,
    qk_run, qk_row, v_run, v_row, M, D, H, T, blocks, scale, flip,
    E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PEAK: tl.constexpr,
    DOCUMENTS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    n = program(flip)
    block, head = n % blocks, (n // blocks) % H
    sequence = n // (blocks * H)
    sequences = M // T
    run = (sequence // sequences).to(tl.int64)
    first = (sequence % sequences) * T
    e = tl.arange(0, WIDTH)
    own = e[None, :] < E
    row = block * BLOCK + tl.arange(0, BLOCK)
    q_in = (row < T)[:, None] & own
    q_at = q + run * qk_run + (first + row)[:, None] * qk_row + head * E + e[None, :]
    q_QE = load(q_at, q_in, EVEN)
    top = tl.full((BLOCK,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    y_QE = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    start = 0
    if DOCUMENTS:
        firsts = first_key + sequence.to(tl.int64) * T
        own_first = load(firsts + row, row < T, EVEN)
        start = tl.load(firsts + block * BLOCK) // BLOCK * BLOCK
    for begin in range(start, (block + 1) * BLOCK, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        k_in = (at < T)[:, None] & own
        k_at = k + run * qk_run + (first + at)[:, None] * qk_row + head * E + e[None, :]
        v_at = v + run * v_run + (first + at)[:, None] * v_row + head * E + e[None, :]
        k_KE = load(k_at, k_in, EVEN)
        v_KE = load(v_at, k_in, EVEN)
        s = tl.dot(q_QE, tl.trans(k_KE), input_precision="ieee")
        s *= scale
        s = tl.where(at[None, :] <= row[:, None], s, -float("inf"))
        if DOCUMENTS:
            s = tl.where(at[None, :] >= own_first[:, None], s, -float("inf"))
        new = tl.maximum(top, tl.max(s, axis=1))
        base = new
        if DOCUMENTS:
            # A query that has seen no key yet has -inf twice: powers of 0, not NaN.
            base = tl.where(new == -float("inf"), 0.0, new)
        power = tl.exp2(s - base[:, None])
        kept = tl.exp2(top - base)
        total = total * kept + tl.sum(power, axis=1)
        p = power.to(v_KE.dtype)
        y_QE = tl.dot(p, v_KE, y_QE * kept[:, None], input_precision="ieee")
        top = new
    out = y + (run * M + first + row)[:, None] * D + head * E + e[None, :]
    store(out, (y_QE / total[:, None]).to(q_QE.dtype), q_in, EVEN)
    rows_at = (sequence.to(tl.int64) * H + head) * T + row
    store(lse + rows_at, top + tl.log2(total), row < T, EVEN)
    if PEAK:
        # A maximum passes NaN by.
        top = tl.where(total == total, top, float("nan"))
        store(peak + rows_at, top, row < T, EVEN)


@triton.jit
def _hand_out(
    out, x_RE, cos, sin, row, T, stride,
    E: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows of a gradient to their place, rotated back where asked."""
    here = (row < T)[:, None]
    if TURN:
        left, right = halves(x_RE)
        e = tl.arange(0, WIDTH // 2)
        angle = row[:, None] * (WIDTH // 2) + e[None, :]
        c = load(cos + angle, here, EVEN)
        s = load(sin + angle, here, EVEN)
        at = out + row[:, None] * stride + e[None, :]
        store(at, (left * c + right * s).to(out.dtype.element_ty), here, EVEN)
        store(at + WIDTH // 2, (right * c - left * s).to(out.dtype.element_ty), here, EVEN)
    else:
        e = tl.arange(0, WIDTH)
        at = out + row[:, None] * stride + e[None, :]
        store(at, x_RE.to(out.dtype.element_ty), here & (e < E)[None, :], EVEN)


@triton.jit(do_not_specialize=("flip",))
def _backward(
    dy, q, k, v, first_key, y, lse, out, cos, sin,
    qk_run, qk_row, v_run, v_row, M, D, H, T, blocks, scale, plain_scale, flip,
    E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr,
    DOCUMENTS: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """`DOCUMENTS`: room for the blocks of a sequence, where queries have a first key, or 0."""
    n = program(flip)
    block, head = n % blocks, (n // blocks) % H
    sequence = n // (blocks * H)
    sequences = M // T
    run = (sequence // sequences).to(tl.int64)
    first = (sequence % sequences) * T
    e = tl.arange(0, WIDTH)
    own = (e < E)[None, :]
    lane = tl.arange(0, BLOCK)
    row = block * BLOCK + lane
    mask = (row < T)[:, None] & own
    q_first = q + run * qk_run + first * qk_row + head * E + e[None, :]
    k_first = k + run * qk_run + first * qk_row + head * E + e[None, :]
    v_first = v + run * v_run + first * v_row + head * E + e[None, :]
    y_first = y + (run * M + first) * D + head * E + e[None, :]
    dy_first = dy + (run * M + first) * D + head * E + e[None, :]
    lse_first = lse + (sequence.to(tl.int64) * H + head) * T
    q_RE = load(q_first + row[:, None] * qk_row, mask, EVEN)
    k_RE = load(k_first + row[:, None] * qk_row, mask, EVEN)
    v_RE = load(v_first + row[:, None] * v_row, mask, EVEN)
    dy_RE = load(dy_first + row[:, None] * D, mask, EVEN)
    y_RE = load(y_first + row[:, None] * D, mask, EVEN)
    sums = load(lse_first + row, row < T, EVEN)
    d = tl.sum(dy_RE.to(tl.float32) * y_RE.to(tl.float32), axis=1)

    # As queries, against the keys of the blocks before.
    dq_RE = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    start = 0
    stop = blocks
    if DOCUMENTS:
        firsts = first_key + sequence.to(tl.int64) * T
        own_first = load(firsts + row, row < T, EVEN)
        start = tl.load(firsts + block * BLOCK) // BLOCK
        # Blocks whose first query looks back as far as to this block: no later one does.
        each = tl.arange(0, DOCUMENTS)
        looks_to = tl.load(firsts + each * BLOCK, mask=each < blocks, other=2147483647)
        stop = tl.sum((looks_to < (block + 1) * BLOCK).to(tl.int32), axis=0)
    for other in range(start, block):
        at = other * BLOCK + lane
        k_OE = load(k_first + at[:, None] * qk_row, own, EVEN)
        v_OE = load(v_first + at[:, None] * v_row, own, EVEN)
        s = tl.dot(q_RE, tl.trans(k_OE), input_precision="ieee")
        p = tl.exp2(s * scale - sums[:, None])
        if DOCUMENTS:
            p = tl.where(at[None, :] >= own_first[:, None], p, 0.0)
        dp = tl.dot(dy_RE, tl.trans(v_OE), input_precision="ieee")
        ds = (p * (dp - d[:, None])).to(q_RE.dtype)
        dq_RE = tl.dot(ds, k_OE, dq_RE, input_precision="ieee")

    # Against its own keys.
    s = tl.dot(q_RE, tl.trans(k_RE), input_precision="ieee")
    seen = lane[None, :] <= lane[:, None]
    if TAIL:
        seen = seen & (row < T)[:, None]
    if DOCUMENTS:
        seen = seen & (row[None, :] >= own_first[:, None])
    p = tl.where(seen, tl.exp2(s * scale - sums[:, None]), 0.0)
    dp = tl.dot(dy_RE, tl.trans(v_RE), input_precision="ieee")
    ds = (p * (dp - d[:, None])).to(q_RE.dtype)
    dq_RE = tl.dot(ds, k_RE, dq_RE, input_precision="ieee")
    place = out + (run * M + first) * 3 * D + head * E
    _hand_out(place, dq_RE * plain_scale, cos, sin, row, T, 3 * D, E, WIDTH, TURN, EVEN)
    dv_RE = tl.dot(tl.trans(p.to(q_RE.dtype)), dy_RE, input_precision="ieee")
    dk_RE = tl.dot(tl.trans(ds), q_RE, input_precision="ieee")

    # As keys, under the queries of the blocks behind.
    for other in range(block + 1, stop):
        at = other * BLOCK + lane
        o_in = own
        if TAIL:
            o_in = own & (at < T)[:, None]
        q_OE = load(q_first + at[:, None] * qk_row, o_in, EVEN)
        dy_OE = load(dy_first + at[:, None] * D, o_in, EVEN)
        y_OE = load(y_first + at[:, None] * D, o_in, EVEN)
        other_sums = load(lse_first + at, at < T, EVEN)
        other_d = tl.sum(dy_OE.to(tl.float32) * y_OE.to(tl.float32), axis=1)
        s = tl.dot(k_RE, tl.trans(q_OE), input_precision="ieee")
        p = tl.exp2(s * scale - other_sums[None, :])
        if TAIL:
            p = tl.where((at < T)[None, :], p, 0.0)
        if DOCUMENTS:
            other_first = load(firsts + at, at < T, EVEN)
            p = tl.where(row[:, None] >= other_first[None, :], p, 0.0)
        dv_RE = tl.dot(p.to(q_RE.dtype), dy_OE, dv_RE, input_precision="ieee")
        dp = tl.dot(v_RE, tl.trans(dy_OE), input_precision="ieee")
        ds = (p * (dp - other_d[None, :])).to(q_RE.dtype)
        dk_RE = tl.dot(ds, q_OE, dk_RE, input_precision="ieee")
    _hand_out(place + D, dk_RE * plain_scale, cos, sin, row, T, 3 * D, E, WIDTH, TURN, EVEN)
    _hand_out(place + 2 * D, dv_RE, cos, sin, row, T, 3 * D, E, WIDTH, False, EVEN)
