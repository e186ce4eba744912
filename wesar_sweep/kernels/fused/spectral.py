"""One step of power iteration on the new W of K runs, then W̄ = γ/s W, for sigma_reparam.

What `reparametrization.power_iteration` and `spectral_effective` compute of the spectral matrices::

    v ← Wᵀu / ‖Wᵀu‖        u ← Wv / s        s = ‖Wv‖        W̄ = γ/s W

v needs all of W, s all of W after v, and W̄ all of W after s. A matrix that fits in the registers of
a program is read once: 4 bytes a parameter, and the 2 of W̄ that `fused.optimizer` then leaves to
this pass. One of up to 256 KB is read three times by one program, but two of them mostly from the
caches. For a larger one the optimizer, which has the new W at hand, keeps the parts of Wᵀu; W is
read for Wv and again for W̄: 8 bytes, and half a byte for the parts, written and read, of 16 rows
each (where the optimizer's tiles are whole rows: 8 bytes by the rows of a tile). Sums have one
order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty

from wesar_sweep.kernels.fused.tiles import program

_HELD = 16384
"""Largest matrix that one program holds, 64 values a thread."""
_STREAMED = 65536
"""Largest that one program does: what the caches hold of those that are done at once."""
_VALUES = 4096
"""Of a tile of a larger one that is summed, 16 values a thread; twice as many of one that is not,
for which the compiler would otherwise save registers until it spills."""
_PIECE, _WARPS = 16384, 16
"""What a program that does a matrix in passes reads at once, and its warps."""
_LONGEST = 1024
"""Piece of a row."""


def is_whole(outputs: int, inputs: int) -> bool:
    """Whether one program does such a matrix, and no parts of Wᵀu are asked for."""
    return _size(outputs, inputs) <= _STREAMED


def _size(outputs: int, inputs: int) -> int:
    return triton.next_power_of_2(outputs) * triton.next_power_of_2(inputs)


def refresh(
    parameter_KP: Tensor,
    left_KMO: Tensor,
    right_KMI: Tensor,
    partial_KMXI: Tensor | None,
    form_KM: Tensor,
    spectral_norm_KM: Tensor,
    *,
    start: int,
    first_matrix: int,
    gates_start: int,
    out: Tensor,
) -> None:
    """Update u, v and W̄ of one group of matrices in place, where a matrix is spectral.

    Args:
        parameter_KP: Flat rows with the new W and γ, float32.
        left_KMO: u, float32.
        right_KMI: v, float32.
        partial_KMXI: Parts whose sum over X is Wᵀu, float32; None where `is_held`.
        form_KM: Form of all matrices, int64; 2 is spectral.
        spectral_norm_KM: s, float32, all matrices'.
        start: First parameter of the group in the row.
        first_matrix: Number of its first matrix.
        gates_start: Place of the first gate in the row.
        out: Effective weights, the same places as in `parameter_KP`.
    """
    K, M, O = left_KMO.shape
    I, matrices = right_KMI.shape[2], form_KM.shape[1]
    width = triton.next_power_of_2(I)
    where = (matrices, start, M, O, I, first_matrix)
    strides = (parameter_KP.stride(0), out.stride(0), gates_start)
    if partial_KMXI is None:
        assert is_whole(O, I), (O, I)
        rows, held = triton.next_power_of_2(O), _size(O, I) <= _HELD
        kernel = _held if held else _streamed
        kernel[(K * M,)](
            parameter_KP, out, left_KMO, right_KMI, form_KM, spectral_norm_KM, *strides, *where,
            ROWS=rows if held else max(1, _PIECE // width), WIDTH=width,
            num_warps=min(8, max(1, rows * width // 2048)) if held else _WARPS,
        )  # fmt: skip
        return
    _right[(K * M,)](
        partial_KMXI, right_KMI, form_KM, matrices, M, I, first_matrix, partial_KMXI.shape[2],
        ROWS=max(1, _VALUES // width), WIDTH=width, num_warps=8,
    )  # fmt: skip
    width = min(width, _LONGEST)
    rows = min(triton.next_power_of_2(O), _VALUES // width)
    blocks = triton.cdiv(O, rows)
    square_KMX = empty(K, M, blocks, device=left_KMO.device)
    _left[(K * M * blocks,)](
        parameter_KP, left_KMO, right_KMI, square_KMX, form_KM, parameter_KP.stride(0), *where,
        blocks, ROWS=rows, WIDTH=width, num_warps=8,
    )  # fmt: skip
    rows *= 2
    _effective[(K * M * triton.cdiv(O, rows),)](
        parameter_KP, out, left_KMO, square_KMX, form_KM, spectral_norm_KM, *strides, *where,
        triton.cdiv(O, rows), blocks,
        ROWS=rows, WIDTH=width, SQUARES=triton.next_power_of_2(blocks), num_warps=8,
    )  # fmt: skip


@triton.jit
def _length(square):
    """√ of a sum of squares, above nought; NaN stays."""
    return tl.maximum(tl.sqrt(square), 1e-12, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=("M", "first_matrix", "blocks", "parts"))
def _held(
    parameter, effective, left, right, form, spectral_norm, parameter_stride, effective_stride,
    gates_start, matrices, start, M, O, I, first_matrix,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All of it, a matrix a program."""
    # From the end: what the kernel before has left in the cache.
    number = program(tl.num_programs(0) - 1)
    run = (number // M).to(tl.int64)
    matrix = number % M
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        mask = (row < O)[:, None] & (column < I)[None, :]
        at = start + matrix.to(tl.int64) * O * I + row[:, None] * I + column[None, :]
        u_at = left + (run * M + matrix) * O + row
        w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
        u = tl.load(u_at, mask=row < O, other=0.0)
        gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
        v = tl.sum(w * u[:, None], axis=0)
        v = v / _length(tl.sum(v * v, axis=0))
        tl.store(right + (run * M + matrix) * I + column, v, mask=column < I)
        u = tl.sum(w * v[None, :], axis=1)
        s = _length(tl.sum(u * u, axis=0))
        tl.store(u_at, u / s, mask=row < O)
        tl.store(spectral_norm + run * matrices + first_matrix + matrix, s)
        bar = (w * (gate / s)).to(effective.dtype.element_ty)
        tl.store(effective + run * effective_stride + at, bar, mask=mask)


@triton.jit(do_not_specialize=("M", "first_matrix", "blocks", "parts"))
def _streamed(
    parameter, effective, left, right, form, spectral_norm, parameter_stride, effective_stride,
    gates_start, matrices, start, M, O, I, first_matrix,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All of it in three passes, a matrix a program: down, up and down again over its rows.

    So each pass begins with the rows that the one before has left in the caches.
    """
    # From the end: what the kernel before has left in the cache.
    number = program(tl.num_programs(0) - 1)
    run = (number // M).to(tl.int64)
    matrix = number % M
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        column = tl.arange(0, WIDTH)
        place = start + matrix.to(tl.int64) * O * I + column[None, :]
        w_at = parameter + run * parameter_stride + place
        bar_at = effective + run * effective_stride + place
        u_at = left + (run * M + matrix) * O
        sums = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        for begin in tl.range(0, O, ROWS, num_stages=1):
            row = begin + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            u = tl.load(u_at + row, mask=row < O, other=0.0)
            sums += tl.load(w_at + row[:, None] * I, mask=mask, other=0.0) * u[:, None]
        v = tl.sum(sums, axis=0)
        v = v / _length(tl.sum(v * v, axis=0))
        tl.store(right + (run * M + matrix) * I + column, v, mask=column < I)
        square = tl.zeros((ROWS,), dtype=tl.float32)
        for back in tl.range(0, O, ROWS, num_stages=1):
            row = (tl.cdiv(O, ROWS) - 1) * ROWS - back + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            wv = tl.load(w_at + row[:, None] * I, mask=mask, other=0.0) * v[None, :]
            u = tl.sum(wv, axis=1)
            tl.store(u_at + row, u, mask=row < O)
            square += u * u
        s = _length(tl.sum(square, axis=0))
        tl.store(spectral_norm + run * matrices + first_matrix + matrix, s)
        gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
        # What other threads have stored of u is read now.
        tl.debug_barrier()
        for begin in tl.range(0, O, ROWS, num_stages=1):
            row = begin + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            u = tl.load(u_at + row, mask=row < O, other=0.0)
            tl.store(u_at + row, u / s, mask=row < O)
            w = tl.load(w_at + row[:, None] * I, mask=mask, other=0.0)
            bar = (w * (gate / s)).to(effective.dtype.element_ty)
            tl.store(bar_at + row[:, None] * I, bar, mask=mask)


@triton.jit(do_not_specialize=("M", "first_matrix", "blocks", "parts"))
def _right(
    partial, right, form, matrices, M, I, first_matrix, parts,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The right vector v = Wᵀu / ‖Wᵀu‖ of its parts, a matrix a program."""
    run = (tl.program_id(0) // M).to(tl.int64)
    matrix = tl.program_id(0) % M
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        column = tl.arange(0, WIDTH)
        sums = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        for begin in range(0, parts, ROWS):
            part = begin + tl.arange(0, ROWS)
            at = ((run * M + matrix) * parts + part[:, None]) * I + column[None, :]
            mask = (part < parts)[:, None] & (column < I)[None, :]
            sums += tl.load(partial + at, mask=mask, other=0.0)
        v = tl.sum(sums, axis=0)
        v = v / _length(tl.sum(v * v, axis=0))
        tl.store(right + (run * M + matrix) * I + column, v, mask=column < I)


@triton.jit(do_not_specialize=("M", "first_matrix", "blocks", "parts"))
def _left(
    parameter, left, right, square, form, parameter_stride,
    matrices, start, M, O, I, first_matrix, blocks, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Product Wv in the place of u, and its square a block of rows."""
    block = tl.program_id(0) % blocks
    matrix = (tl.program_id(0) // blocks) % M
    run = (tl.program_id(0) // (M * blocks)).to(tl.int64)
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        row = block * ROWS + tl.arange(0, ROWS)
        place = run * parameter_stride + start + (matrix.to(tl.int64) * O + row[:, None]) * I
        wv = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        for begin in range(0, I, WIDTH):
            column = begin + tl.arange(0, WIDTH)
            mask = (row < O)[:, None] & (column < I)[None, :]
            v = tl.load(right + (run * M + matrix) * I + column, mask=column < I, other=0.0)
            wv += tl.load(parameter + place + column[None, :], mask=mask, other=0.0) * v[None, :]
        u = tl.sum(wv, axis=1)
        tl.store(left + (run * M + matrix) * O + row, u, mask=row < O)
        tl.store(square + (run * M + matrix) * blocks + block, tl.sum(u * u, axis=0))


@triton.jit(do_not_specialize=("M", "first_matrix", "blocks", "parts"))
def _effective(
    parameter, effective, left, square, form, spectral_norm, parameter_stride, effective_stride,
    gates_start, matrices, start, M, O, I, first_matrix, blocks, parts,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """The left vector u = Wv / s and W̄ = γ/s W of a block of rows."""
    # From the end: what the kernel before has left in the cache.
    number = program(tl.num_programs(0) - 1)
    block = number % blocks
    matrix = (number // blocks) % M
    run = (number // (M * blocks)).to(tl.int64)
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        part = tl.arange(0, SQUARES)
        squares = square + (run * M + matrix) * parts + part
        s = _length(tl.sum(tl.load(squares, mask=part < parts, other=0.0), axis=0))
        gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
        row = block * ROWS + tl.arange(0, ROWS)
        u_at = left + (run * M + matrix) * O + row
        tl.store(u_at, tl.load(u_at, mask=row < O, other=0.0) / s, mask=row < O)
        if block == 0:
            tl.store(spectral_norm + run * matrices + first_matrix + matrix, s)
        place = start + (matrix.to(tl.int64) * O + row[:, None]) * I
        for begin in range(0, I, WIDTH):
            column = begin + tl.arange(0, WIDTH)
            mask = (row < O)[:, None] & (column < I)[None, :]
            at = place + column[None, :]
            w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
            bar = (w * (gate / s)).to(effective.dtype.element_ty)
            tl.store(effective + run * effective_stride + at, bar, mask=mask)
