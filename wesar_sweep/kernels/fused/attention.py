"""Causal attention of K runs at short contexts, on packed rows.

    y = softmax(q kᵀ / √E + causal mask) v

Blockwise with a running maximum (Milakov & Gimelshein 2018; Dao 2023). Gradients go straight into
the packed rows that the next product reads: no transposed or unpacked copy. Bytes a row of D:
forward reads 6 D, writes 2 D, backward reads 10 D twice (mostly from the L2 cache), writes 6 D.
FLOPs a row: 2·T·D forward, 7·T·D backward (a pass for queries, one for keys). The sums have one
order: no atomics. Rotation stays outside (`fused.rope`): inside, each block of keys is rotated once
a block of queries, and that took longer than the pass over memory it saves (docs/LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def tiles(context: int, head_width: int) -> Tiles:
    """Blocks of 64 keep the masked half of a short context small."""
    block = min(64, max(16, triton.next_power_of_2(context)))
    return Tiles(block, block, 4, 2 if head_width > 64 else 3)


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
        tiles_: Shape of a program.

    Returns:
        (y [K, B·T, H·E] contiguous; log₂ of each row's scaled sum, float32 [K, B, H, T]).
    """
    K, M, D = q_KMD.shape
    t = tiles_ or tiles(context, head_width)
    y_KMD = torch.empty(K, M, D, dtype=q_KMD.dtype, device=q_KMD.device)
    lse = torch.empty(K, M // context, heads, context, dtype=torch.float32, device=q_KMD.device)
    blocks = triton.cdiv(context, t.queries)
    assert q_KMD.stride() == k_KMD.stride()
    _forward[(K * (M // context) * heads * blocks,)](
        q_KMD, k_KMD, v_KMD, y_KMD, lse,
        q_KMD.stride(0), q_KMD.stride(1), v_KMD.stride(0), v_KMD.stride(1),
        M, D, heads, context, blocks, _scale(head_width),
        E=head_width, QUERIES=t.queries, KEYS=t.keys,
        WIDTH=max(16, triton.next_power_of_2(head_width)),
        num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
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
    tiles_: Tiles | None = None,
) -> None:
    """Gradients of rotated queries, rotated keys and values, into `out`.

    Args:
        dy_KMD: Gradient of y, contiguous.
        q_KMD: As in `forward`.
        k_KMD: As in `forward`.
        v_KMD: As in `forward`.
        y_KMD: From `forward`.
        kept: The second result of `forward`.
        heads: H.
        head_width: E.
        context: T.
        out: [K, B·T, 3·H·E], contiguous.
        tiles_: Shape of a program.
    """
    K, M, D = q_KMD.shape
    t = tiles_ or tiles(context, head_width)
    delta = torch.empty_like(kept)
    width = max(16, triton.next_power_of_2(head_width))
    common = (
        q_KMD.stride(0), q_KMD.stride(1), v_KMD.stride(0), v_KMD.stride(1), M, D, heads, context,
    )  # fmt: skip
    blocks = triton.cdiv(context, t.queries)
    _backward_queries[(K * (M // context) * heads * blocks,)](
        dy_KMD, q_KMD, k_KMD, v_KMD, y_KMD, kept, delta, out, *common, blocks,
        _scale(head_width), head_width**-0.5,
        E=head_width, QUERIES=t.queries, KEYS=t.keys,
        WIDTH=width, num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip
    blocks = triton.cdiv(context, t.keys)
    _backward_keys[(K * (M // context) * heads * blocks,)](
        dy_KMD, q_KMD, k_KMD, v_KMD, kept, delta, out, *common, blocks,
        _scale(head_width), head_width**-0.5,
        E=head_width, QUERIES=t.queries, KEYS=t.keys,
        WIDTH=width, num_warps=t.num_warps, num_stages=t.num_stages,
    )  # fmt: skip


def _scale(head_width: int) -> float:
    """Of logits whose powers are taken to the base 2."""
    return head_width**-0.5 * math.log2(math.e)


@triton.jit
def _forward(
    q, k, v, y, lse, qk_run, qk_row, v_run, v_row, M, D, H, T, blocks, scale,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    block, head = n % blocks, (n // blocks) % H
    sequence = n // (blocks * H)
    sequences = M // T
    run = (sequence // sequences).to(tl.int64)
    first = (sequence % sequences) * T
    e = tl.arange(0, WIDTH)
    own = e[None, :] < E
    row = block * QUERIES + tl.arange(0, QUERIES)
    q_in = (row < T)[:, None] & own
    q_at = q + run * qk_run + (first + row)[:, None] * qk_row + head * E + e[None, :]
    q_QE = tl.load(q_at, mask=q_in, other=0.0)
    top = tl.full((QUERIES,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    y_QE = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    for begin in range(0, tl.minimum(T, (block + 1) * QUERIES), KEYS):
        at = begin + tl.arange(0, KEYS)
        k_in = (at < T)[:, None] & own
        k_at = k + run * qk_run + (first + at)[:, None] * qk_row + head * E + e[None, :]
        v_at = v + run * v_run + (first + at)[:, None] * v_row + head * E + e[None, :]
        k_KE = tl.load(k_at, mask=k_in, other=0.0)
        v_KE = tl.load(v_at, mask=k_in, other=0.0)
        s = tl.dot(q_QE, tl.trans(k_KE), input_precision="ieee")
        s *= scale
        seen = (at[None, :] <= row[:, None]) & (at < T)[None, :]
        s = tl.where(seen, s, -float("inf"))
        new = tl.maximum(top, tl.max(s, axis=1))
        power = tl.exp2(s - new[:, None])
        kept = tl.exp2(top - new)
        total = total * kept + tl.sum(power, axis=1)
        p = power.to(v_KE.dtype)
        y_QE = tl.dot(p, v_KE, y_QE * kept[:, None], input_precision="ieee")
        top = new
    out = y + (run * M + first + row)[:, None] * D + head * E + e[None, :]
    tl.store(out, (y_QE / total[:, None]).to(q_QE.dtype), mask=q_in)
    lse_at = lse + (sequence.to(tl.int64) * H + head) * T + row
    tl.store(lse_at, top + tl.log2(total), mask=row < T)


@triton.jit
def _backward_queries(
    dy, q, k, v, y, lse, delta, out,
    qk_run, qk_row, v_run, v_row, M, D, H, T, blocks, scale, plain_scale,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    block, head = n % blocks, (n // blocks) % H
    sequence = n // (blocks * H)
    sequences = M // T
    run = (sequence // sequences).to(tl.int64)
    first = (sequence % sequences) * T
    e = tl.arange(0, WIDTH)
    own = e[None, :] < E
    row = block * QUERIES + tl.arange(0, QUERIES)
    q_in = (row < T)[:, None] & own
    q_at = q + run * qk_run + (first + row)[:, None] * qk_row + head * E + e[None, :]
    y_place = (run * M + first + row)[:, None] * D + head * E + e[None, :]
    q_QE = tl.load(q_at, mask=q_in, other=0.0)
    dy_QE = tl.load(dy + y_place, mask=q_in, other=0.0)
    y_QE = tl.load(y + y_place, mask=q_in, other=0.0).to(tl.float32)
    d = tl.sum(dy_QE.to(tl.float32) * y_QE, axis=1)
    rows_at = (sequence.to(tl.int64) * H + head) * T + row
    tl.store(delta + rows_at, d, mask=row < T)
    sums = tl.load(lse + rows_at, mask=row < T, other=0.0)
    dq_QE = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    for begin in range(0, tl.minimum(T, (block + 1) * QUERIES), KEYS):
        at = begin + tl.arange(0, KEYS)
        k_in = (at < T)[:, None] & own
        k_at = k + run * qk_run + (first + at)[:, None] * qk_row + head * E + e[None, :]
        v_at = v + run * v_run + (first + at)[:, None] * v_row + head * E + e[None, :]
        k_KE = tl.load(k_at, mask=k_in, other=0.0)
        v_KE = tl.load(v_at, mask=k_in, other=0.0)
        s = tl.dot(q_QE, tl.trans(k_KE), input_precision="ieee")
        s *= scale
        seen = (at[None, :] <= row[:, None]) & (at < T)[None, :]
        p = tl.where(seen, tl.exp2(s - sums[:, None]), 0.0)
        dp = tl.dot(dy_QE, tl.trans(v_KE), input_precision="ieee")
        ds = (p * (dp - d[:, None])).to(q_QE.dtype)
        dq_QE = tl.dot(ds, k_KE, dq_QE, input_precision="ieee")
    place = out + (run * M + first + row)[:, None] * 3 * D + head * E + e[None, :]
    tl.store(place, (dq_QE * plain_scale).to(q_QE.dtype), mask=q_in)


@triton.jit
def _backward_keys(
    dy, q, k, v, lse, delta, out,
    qk_run, qk_row, v_run, v_row, M, D, H, T, blocks, scale, plain_scale,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    block, head = n % blocks, (n // blocks) % H
    sequence = n // (blocks * H)
    sequences = M // T
    run = (sequence // sequences).to(tl.int64)
    first = (sequence % sequences) * T
    e = tl.arange(0, WIDTH)
    own = e[None, :] < E
    at = block * KEYS + tl.arange(0, KEYS)
    k_in = (at < T)[:, None] & own
    k_at = k + run * qk_run + (first + at)[:, None] * qk_row + head * E + e[None, :]
    v_at = v + run * v_run + (first + at)[:, None] * v_row + head * E + e[None, :]
    k_KE = tl.load(k_at, mask=k_in, other=0.0)
    v_KE = tl.load(v_at, mask=k_in, other=0.0)
    dk_KE = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
    dv_KE = tl.zeros((KEYS, WIDTH), dtype=tl.float32)
    for begin in range((block * KEYS) // QUERIES * QUERIES, T, QUERIES):
        row = begin + tl.arange(0, QUERIES)
        q_in = (row < T)[:, None] & own
        q_at = q + run * qk_run + (first + row)[:, None] * qk_row + head * E + e[None, :]
        y_place = (run * M + first + row)[:, None] * D + head * E + e[None, :]
        q_QE = tl.load(q_at, mask=q_in, other=0.0)
        dy_QE = tl.load(dy + y_place, mask=q_in, other=0.0)
        rows_at = (sequence.to(tl.int64) * H + head) * T + row
        sums = tl.load(lse + rows_at, mask=row < T, other=0.0)
        d = tl.load(delta + rows_at, mask=row < T, other=0.0)
        s = tl.dot(k_KE, tl.trans(q_QE), input_precision="ieee")
        s *= scale
        seen = (at[:, None] <= row[None, :]) & (row < T)[None, :]
        p = tl.where(seen, tl.exp2(s - sums[None, :]), 0.0)
        p_in = p.to(v_KE.dtype)
        dv_KE = tl.dot(p_in, dy_QE, dv_KE, input_precision="ieee")
        dp = tl.dot(v_KE, tl.trans(dy_QE), input_precision="ieee")
        ds = (p * (dp - d[None, :])).to(q_QE.dtype)
        dk_KE = tl.dot(ds, q_QE, dk_KE, input_precision="ieee")
    place = out + (run * M + first + at)[:, None] * 3 * D + D + head * E + e[None, :]
    tl.store(place, (dk_KE * plain_scale).to(k_KE.dtype), mask=k_in)
    tl.store(place + D, dv_KE.to(k_KE.dtype), mask=k_in)
