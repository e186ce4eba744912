"""Embedding gather of K runs, and the gradient of their tables in a fixed order of sums.

    x_m = scale · W̄[token_m]        dW̄[v] = scale · Σ_{m: token_m = v} dx_m

A small vocabulary's gradient is the product onehotᵀ dx, the one-hot rows made on the fly: 4·V·D
FLOPs a row on the tensor cores, and each dx is read once a tile of the vocabulary (mostly from the
L2 cache). A large vocabulary's rows are sorted by token, and each table row sums its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.tiles import padded

_PRODUCT_VOCABULARY = 1024
"""Up to here the gradient is a product with one-hot rows."""


def forward(token_KM: Tensor, w_KVD: Tensor, scale_K: Tensor | None = None) -> Tensor:
    """Rows of each run's table, times its scale where given.

    Args:
        token_KM: Token ids, [K, M], contiguous.
        w_KVD: Tables, any stride over K.
        scale_K: float32 [K].

    Returns:
        [K, M, D] of the table's type.
    """
    (K, M), D = token_KM.shape, w_KVD.shape[2]
    x_KMD = w_KVD.new_empty(K, M, D)
    width = triton.next_power_of_2(D)
    rows = max(1, min(64, 4096 // width))
    blocks = triton.cdiv(M, rows)
    _forward[(K * blocks,)](
        token_KM, w_KVD, scale_K, x_KMD, M, D, blocks, w_KVD.stride(0),
        SCALE=scale_K is not None, ROWS=rows, WIDTH=width, num_warps=4,
    )  # fmt: skip
    return x_KMD


def backward(
    dx_KMD: Tensor,
    token_KM: Tensor,
    *,
    vocabulary: int,
    out_KVD: Tensor,
    scale_K: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """Gradient of each table, into `out_KVD`.

    Args:
        dx_KMD: Gradient of what `forward` gave, contiguous.
        token_KM: As in `forward`.
        vocabulary: V.
        out_KVD: [K, V, D], any stride over K.
        scale_K: As in `forward`.
        accumulate: Add onto what stands there.
    """
    K, M, D = dx_KMD.shape
    if vocabulary > _PRODUCT_VOCABULARY:
        _sorted_backward(dx_KMD, token_KM, vocabulary, out_KVD, scale_K, accumulate)
        return
    rows_V = min(128, padded(vocabulary))
    width = min(128, padded(D))
    tiles_V, tiles_D = triton.cdiv(vocabulary, rows_V), triton.cdiv(D, width)
    # Few runs: the rows are split over more programs, and their parts summed in order.
    parts = max(1, min(triton.cdiv(M, 512), 512 // max(1, K * tiles_V * tiles_D)))
    part_KPVD = torch.empty(K, parts, vocabulary, D, dtype=torch.float32, device=dx_KMD.device)
    _product[(K * tiles_V * tiles_D * parts,)](
        dx_KMD, token_KM, part_KPVD, M, vocabulary, D, tiles_V, tiles_D, parts,
        triton.cdiv(triton.cdiv(M, parts), 64) * 64,
        V_TILE=rows_V, D_TILE=width, ROWS=64, num_warps=4,
    )  # fmt: skip
    size = vocabulary * D
    blocks = triton.cdiv(size, 1024)
    _sum_parts[(K * blocks,)](
        part_KPVD, out_KVD, scale_K, size, parts, blocks, out_KVD.stride(0),
        SCALE=scale_K is not None, ADD=accumulate, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def _sorted_backward(
    dx_KMD: Tensor,
    token_KM: Tensor,
    vocabulary: int,
    out_KVD: Tensor,
    scale_K: Tensor | None,
    accumulate: bool,
) -> None:
    K, M, D = dx_KMD.shape
    sorted_KM, order_KM = torch.sort(token_KM.int(), dim=1, stable=True)
    edge = torch.arange(vocabulary + 1, device=token_KM.device, dtype=torch.int32)
    first_KE = torch.searchsorted(sorted_KM, edge.expand(K, -1).contiguous())
    width = min(1024, triton.next_power_of_2(D))
    tiles_D = triton.cdiv(D, width)
    _segments[(K * vocabulary * tiles_D,)](
        dx_KMD, order_KM, first_KE, out_KVD, scale_K, M, vocabulary, D, tiles_D, out_KVD.stride(0),
        SCALE=scale_K is not None, ADD=accumulate, ROWS=8, WIDTH=width, num_warps=4,
    )  # fmt: skip


@triton.jit
def _forward(
    token, w, scale, x, M, D, blocks, w_stride,
    SCALE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < M)[:, None] & (column < D)[None, :]
    t = tl.load(token + run * M + row, mask=row < M, other=0).to(tl.int64)
    value = tl.load(w + run * w_stride + t[:, None] * D + column[None, :], mask=mask, other=0.0)
    if SCALE:
        value = (value.to(tl.float32) * tl.load(scale + run)).to(value.dtype)
    tl.store(x + (run * M + row)[:, None] * D + column[None, :], value, mask=mask)


@triton.jit
def _product(
    dx, token, part, M, V, D, tiles_V, tiles_D, parts, part_rows,
    V_TILE: tl.constexpr, D_TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    tile_D = n % tiles_D
    tile_V = (n // tiles_D) % tiles_V
    piece = (n // (tiles_D * tiles_V)) % parts
    run = (n // (tiles_D * tiles_V * parts)).to(tl.int64)
    v = tile_V * V_TILE + tl.arange(0, V_TILE)
    d = tile_D * D_TILE + tl.arange(0, D_TILE)
    total = tl.zeros((V_TILE, D_TILE), dtype=tl.float32)
    for start in range(piece * part_rows, tl.minimum(M, (piece + 1) * part_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        t = tl.load(token + run * M + row, mask=row < M, other=-1).to(tl.int32)
        mask = (row < M)[:, None] & (d < D)[None, :]
        value = tl.load(dx + (run * M + row)[:, None] * D + d[None, :], mask=mask, other=0.0)
        onehot = (v[:, None] == t[None, :]).to(value.dtype)
        total = tl.dot(onehot, value, total, input_precision="ieee")
    place = ((run * parts + piece) * V + v)[:, None] * D + d[None, :]
    tl.store(part + place, total, mask=(v < V)[:, None] & (d < D)[None, :])


@triton.jit
def _sum_parts(
    part, out, scale, size, parts, blocks, out_stride,
    SCALE: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    run = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in range(parts):
        total += tl.load(part + (run * parts + piece) * size + place, mask=place < size, other=0.0)
    if SCALE:
        total *= tl.load(scale + run)
    there = tl.load(out + run * out_stride + place, mask=place < size, other=0.0)
    if ADD:
        total += there.to(tl.float32)
    tl.store(out + run * out_stride + place, total.to(there.dtype), mask=place < size)


@triton.jit
def _segments(
    dx, order, first, out, scale, M, V, D, tiles_D, out_stride,
    SCALE: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    tile = n % tiles_D
    v = (n // tiles_D) % V
    run = (n // (tiles_D * V)).to(tl.int64)
    column = tile * WIDTH + tl.arange(0, WIDTH)
    start = tl.load(first + run * (V + 1) + v)
    stop = tl.load(first + run * (V + 1) + v + 1)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for place in range(start, stop, ROWS):
        at = place + tl.arange(0, ROWS)
        row = tl.load(order + run * M + at, mask=at < stop, other=0)
        mask = (at < stop)[:, None] & (column < D)[None, :]
        value = tl.load(dx + (run * M + row)[:, None] * D + column[None, :], mask=mask, other=0.0)
        total += tl.sum(value.to(tl.float32), axis=0)
    if SCALE:
        total *= tl.load(scale + run)
    target = out + run * out_stride + v.to(tl.int64) * D + column
    there = tl.load(target, mask=column < D, other=0.0)
    if ADD:
        total += there.to(tl.float32)
    tl.store(target, total.to(there.dtype), mask=column < D)
