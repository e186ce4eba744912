"""The optimizer pass of K runs: from the gradient of W̄ to the new W, its moments and the new W̄.

What `kernels.reparametrization` (pull the gradient back), `kernels.adamw` (clip, update) and again
`reparametrization` (make W̄ anew) compute one after another, for all methods mixed in one stack.
With G the gradient by W̄, the gradient by W is affine in G and W for every form::

    dW_oi = a_o G_oi + b_o W_oi + c u_o v_i
    scalar    a = α            b = 0                     c = 0
    row       a = g/n          b = −(g/n) dg/n           c = 0          n = ‖W_o‖, dg = G_o·W_o / n
    spectral  a = γ/s          b = 0                     c = −(γ/s) dγ  s = uᵀWv, dγ = Σ G∘W / s

so a first pass takes sums (G·W, G·G, W·W; for spectral uᵀGv), from which gates, norms and
coefficients follow (s is known since W̄ was made), and a second pass does the rest. Bytes a matrix
parameter with bfloat16 G and W̄: 6 in the first pass, 28 in the second, 34 in all; in plain torch
about 90. A spectral matrix costs 4 or 8.5 more: see `fused.spectral`. Gates, gains and norms are
few: see `fused.adamw`.

Sums have one order: no atomics. A tile's sum is one partial sum; where a stack has the row form,
which needs the sums of each output row, tiles are whole rows and a row is a partial sum.

A thread has 8 values of a tile in 64 registers (16 where tiles are rows): so 1,024 threads are on a
multiprocessor, with 112 KB of loads in flight, and some load while others store.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.adamw import AdamW
from wesar_sweep.kernels.fused import adamw as fused_adamw
from wesar_sweep.kernels.fused import spectral

_VALUES = 2048
"""Of a tile."""
_WIDTH = 128
"""Of a tile: a warp reads and writes 512 bytes on end. It divides every usual width, 768 too."""
_LONGEST = 2048
"""Longest piece of a row that is worked on at once where tiles are whole rows."""

_PLAIN = (
    "K", "M", "plane", "first_matrix", "first_sum", "first_change", "own_sums", "row_blocks",
    "column_blocks",
)  # fmt: skip
"""Numbers that only place a program and differ between groups: Triton compiles a kernel anew for an
integer that is 1 or a multiple of 16, and gains nothing by these."""


@dataclass(frozen=True, slots=True)
class Group:
    """M matrices of one shape, one after another in the flat row."""

    name: str
    start: int
    """First parameter in the row."""
    count: int
    outputs: int
    inputs: int
    first_matrix: int
    first_row: int
    """Number of its first output row among those of all matrices."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie in the flat rows; the tail is all that is no matrix, and does not decay."""

    groups: tuple[Group, ...]
    gains: slice
    """Of all norms, the same in both rows: the tail begins with them."""
    gates: slice
    row_gains: slice | None
    """One an output row of every matrix, in the order of `Group.first_row`; None: no row form."""


@dataclass(frozen=True, slots=True)
class Forms:
    """What each matrix of each run is; see `kernels.reparametrization`."""

    form_KM: Tensor
    """int64: 0 scalar, 1 row, 2 spectral."""
    gate_trains_KM: Tensor
    """bool."""
    left: dict[str, Tensor]
    """u of the groups that may be spectral, by name, [K, M, O]; updated in place."""
    right: dict[str, Tensor]
    """v, [K, M, I]."""
    spectral_norm_KM: Tensor
    """s = uᵀWv where spectral, float32; updated in place."""


@dataclass(frozen=True, slots=True)
class Update:
    """Norms of one update."""

    grad_norm_K: Tensor
    """Of the gradient by all parameters, before clipping."""
    weight_norm_KM: Tensor
    """‖W‖ of each matrix before the update."""
    gradient_norm_KM: Tensor
    """‖dW‖ of each matrix before clipping."""
    change_KX: Tensor
    """Σ ΔW² of each tile; `change_norm` makes matrices of it."""


def change_norm(update: Update, places: Places) -> Tensor:
    """‖ΔW‖ of each matrix, decay included, float32 [K, M]."""
    parts, first = [], 0
    for g in places.groups:
        tiles = g.count * _tile(g, whole_rows=places.row_gains is not None).count
        part_KX = update.change_KX[:, first : first + tiles]
        parts.append(part_KX.unflatten(1, (g.count, -1)).sum(dim=2).sqrt())
        first += tiles
    return torch.cat(parts, dim=1)


def update(
    parameter_KP: Tensor,
    first_KP: Tensor,
    second_KP: Tensor,
    gradient_KQ: Tensor,
    effective_KQ: Tensor,
    *,
    adamw: AdamW,
    places: Places,
    forms: Forms,
) -> Update:
    """Update parameters, moments and effective weights in place.

    Args:
        parameter_KP: Flat rows, float32, any stride over K.
        first_KP: First moments, float32.
        second_KP: Second moments, float32.
        gradient_KQ: Gradient of the effective weights, bfloat16 or float32.
        effective_KQ: The effective weights, made anew.
        adamw: Hyperparameters of each run at this step.
        places: Where things lie.
        forms: What each matrix is.

    Returns:
        Norms of this update.
    """
    K, device = len(parameter_KP), parameter_KP.device
    matrices = forms.form_KM.shape[1]
    with_rows = places.row_gains is not None
    tiles = {g.name: _tile(g, whole_rows=with_rows) for g in places.groups}
    sums = sum(g.count * tiles[g.name].sums for g in places.groups)
    changes = sum(g.count * tiles[g.name].count for g in places.groups)

    def new(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    sums_K4X, matrix_6KM = new(K, 4, sums), new(6, K, matrices)
    coefficients_K3R = new(K, 3, sums) if with_rows else matrix_6KM
    row_gains_start = places.row_gains.start if places.row_gains is not None else 0
    first_sum = 0
    for g in places.groups:
        t, is_spectral = tiles[g.name], g.name in forms.left
        _sums[(K * g.count * t.count,)](
            parameter_KP, gradient_KQ, forms.left.get(g.name), forms.right.get(g.name),
            forms.form_KM, sums_K4X, parameter_KP.stride(0), gradient_KQ.stride(0), matrices, sums,
            g.start, g.count, g.outputs, g.inputs, g.first_matrix, first_sum,
            t.row_blocks, t.column_blocks, t.sums,
            SPECTRAL=is_spectral, ROW_FORM=with_rows,
            ROWS=t.rows, WIDTH=t.width, SPAN=t.span, num_warps=4,
        )  # fmt: skip
        _matrices[(K * g.count,)](
            sums_K4X, coefficients_K3R, matrix_6KM, parameter_KP,
            forms.form_KM, forms.gate_trains_KM, forms.spectral_norm_KM,
            parameter_KP.stride(0), places.gates.start, row_gains_start + g.first_row,
            matrices, sums, K * matrices, g.count, t.sums, g.first_matrix, first_sum,
            SPECTRAL=is_spectral, ROW_FORM=with_rows, BLOCK=256, num_warps=4,
        )  # fmt: skip
        first_sum += g.count * t.sums

    grad_norm_K, scalars_7K = fused_adamw.scalars(
        matrix_6KM[1], gradient_KQ[:, places.gains], adamw=adamw
    )
    fused_adamw.update_tail(
        parameter_KP,
        first_KP,
        second_KP,
        gradient_KQ,
        matrix_6KM[0],
        coefficients_K3R[:, 2] if with_rows else None,
        scalars_7K,
        gains=places.gains,
        out=effective_KQ,
    )

    change_KX = new(K, changes)
    first_sum = first_change = 0
    for g in places.groups:
        t, is_spectral = tiles[g.name], g.name in forms.left
        gather = is_spectral and not spectral.is_whole(g.outputs, g.inputs)
        partial_KMXI = new(K, g.count, t.row_blocks, g.inputs) if gather else None
        _update[(K * g.count * t.count,)](
            parameter_KP, first_KP, second_KP, gradient_KQ, effective_KQ,
            coefficients_K3R, matrix_6KM, scalars_7K, change_KX, partial_KMXI,
            forms.left.get(g.name), forms.right.get(g.name), forms.form_KM,
            K, parameter_KP.stride(0), first_KP.stride(0), second_KP.stride(0),
            gradient_KQ.stride(0), effective_KQ.stride(0),
            places.gates.start, row_gains_start + g.first_row, matrices, K * matrices,
            sums, changes,
            g.start, g.count, g.outputs, g.inputs, g.first_matrix, first_sum, first_change,
            t.row_blocks, t.column_blocks,
            SPECTRAL=is_spectral, GATHER=gather, ROW_FORM=with_rows,
            ROWS=t.rows, WIDTH=t.width, SPAN=t.span, num_warps=4 if with_rows else 8,
        )  # fmt: skip
        if is_spectral:
            spectral.refresh(
                parameter_KP,
                forms.left[g.name],
                forms.right[g.name],
                partial_KMXI,
                forms.form_KM,
                forms.spectral_norm_KM,
                start=g.start,
                first_matrix=g.first_matrix,
                gates_start=places.gates.start,
                out=effective_KQ,
            )
        first_sum += g.count * t.sums
        first_change += g.count * t.count
    return Update(grad_norm_K, matrix_6KM[2], matrix_6KM[3], change_KX)


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a program of a group works on: `rows` by `span`, in pieces of `width`."""

    rows: int
    width: int
    span: int
    row_blocks: int
    column_blocks: int
    sums: int
    """Partial sums a matrix."""

    @property
    def count(self) -> int:
        """Tiles a matrix."""
        return self.row_blocks * self.column_blocks


def _tile(group: Group, *, whole_rows: bool) -> _Tile:
    width = min(_LONGEST if whole_rows else _WIDTH, triton.next_power_of_2(group.inputs))
    rows = max(1, min(triton.next_power_of_2(group.outputs), _VALUES // width))
    pieces, row_blocks = triton.cdiv(group.inputs, width), triton.cdiv(group.outputs, rows)
    if whole_rows:
        return _Tile(rows, width, pieces * width, row_blocks, 1, group.outputs)
    return _Tile(rows, width, width, row_blocks, pieces, row_blocks * pieces)


@triton.jit(do_not_specialize=_PLAIN)
def _sums(
    parameter, gradient, left, right, form, sums, parameter_stride, gradient_stride, matrices,
    all_sums, start, M, O, I, first_matrix, first_sum, row_blocks, column_blocks, own_sums,
    SPECTRAL: tl.constexpr, ROW_FORM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Sums of a tile, or of each row of it: G·W, G·G, W·W, and where spectral uᵀGv."""
    blocks = row_blocks * column_blocks
    block = tl.program_id(0) % blocks
    matrix = (tl.program_id(0) // blocks) % M
    run = (tl.program_id(0) // (M * blocks)).to(tl.int64)
    row = (block // column_blocks) * ROWS + tl.arange(0, ROWS)
    place = start + (matrix.to(tl.int64) * O + row[:, None]) * I
    gw = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    gg = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    ww = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    ugv = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    if SPECTRAL:
        is_spectral = tl.load(form + run * matrices + first_matrix + matrix) == 2
    for begin in range(0, SPAN, WIDTH):
        column = (block % column_blocks) * SPAN + begin + tl.arange(0, WIDTH)
        mask = (row < O)[:, None] & (column < I)[None, :]
        at = place + column[None, :]
        w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
        g = tl.load(gradient + run * gradient_stride + at, mask=mask, other=0.0).to(tl.float32)
        gw += g * w
        gg += g * g
        ww += w * w
        if SPECTRAL:
            if is_spectral:
                u = tl.load(left + (run * M + matrix) * O + row, mask=row < O, other=0.0)
                v = tl.load(right + (run * M + matrix) * I + column, mask=column < I, other=0.0)
                ugv += g * (u[:, None] * v[None, :])
    out = sums + run * 4 * all_sums + first_sum + matrix * own_sums
    # The four together: [ROWS, WIDTH, 2, 2], in one trip through shared memory.
    four = tl.join(tl.join(gw, ww), tl.join(gg, ugv))
    plane = tl.arange(0, 4)
    if ROW_FORM:
        of_rows = tl.sum(tl.reshape(four, (ROWS, WIDTH, 4)), axis=1)
        at = out + plane[None, :] * all_sums + row[:, None]
        tl.store(at, of_rows, mask=(row < O)[:, None])
    else:
        tl.store(
            out + plane * all_sums + block, tl.sum(tl.reshape(four, (ROWS * WIDTH, 4)), axis=0)
        )


@triton.jit(do_not_specialize=_PLAIN)
def _matrices(
    sums, coefficients, matrix_values, parameter, form, gate_trains, spectral_norm,
    parameter_stride, gates_start, row_gains_start, matrices, all_sums, plane, M, own_sums,
    first_matrix, first_sum,
    SPECTRAL: tl.constexpr, ROW_FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gate gradients, norms and the coefficients of dW, a matrix a program.

    Planes of `matrix_values`: dgate, Σ of squares of all of the matrix's gradients, ‖W‖, ‖dW‖, c
    and a; of `coefficients`, a row each and for the row form alone: a, b, dg.
    """
    run = (tl.program_id(0) // M).to(tl.int64)
    matrix = tl.program_id(0) % M
    own = run * matrices + first_matrix + matrix
    kind = tl.load(form + own)
    gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
    source = sums + run * 4 * all_sums + first_sum + matrix * own_sums
    lane = tl.arange(0, BLOCK)
    gw = tl.zeros((BLOCK,), dtype=tl.float32)
    gg = tl.zeros((BLOCK,), dtype=tl.float32)
    ww = tl.zeros((BLOCK,), dtype=tl.float32)
    ugv = tl.zeros((BLOCK,), dtype=tl.float32)
    rows_squared = tl.zeros((BLOCK,), dtype=tl.float32)
    gains_squared = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, own_sums, BLOCK):
        part = begin + lane
        inside = part < own_sums
        gw_part = tl.load(source + part, mask=inside, other=0.0)
        gg_part = tl.load(source + all_sums + part, mask=inside, other=0.0)
        ww_part = tl.load(source + 2 * all_sums + part, mask=inside, other=0.0)
        gw += gw_part
        gg += gg_part
        ww += ww_part
        if ROW_FORM:
            gain_at = parameter + run * parameter_stride + row_gains_start + matrix * own_sums
            gain = tl.load(gain_at + part, mask=inside, other=0.0)
            length = tl.sqrt(tl.where(inside, ww_part, 1.0))
            d = gw_part / length
            ratio = gain / length
            rest = tl.maximum(gg_part - d * d, 0.0, propagate_nan=tl.PropagateNan.ALL)
            rows_squared += ratio * ratio * rest
            gains_squared += d * d
            is_row = kind == 1
            target = coefficients + run * 3 * all_sums + first_sum + matrix * own_sums + part
            tl.store(target, ratio, mask=inside & is_row)
            tl.store(target + all_sums, -ratio * d / length, mask=inside & is_row)
            tl.store(target + 2 * all_sums, tl.where(is_row, d, 0.0), mask=inside)
        if SPECTRAL:
            if kind == 2:
                ugv += tl.load(source + 3 * all_sums + part, mask=inside, other=0.0)
    total_gw, total_gg = tl.sum(gw, axis=0), tl.sum(gg, axis=0)
    dgate = total_gw
    scale = gate
    rank_one = tl.full((), 0.0, dtype=tl.float32)
    square = gate * gate * total_gg
    if SPECTRAL:
        if kind == 2:
            s = tl.load(spectral_norm + own)
            dgate = total_gw / s
            scale = gate / s
            rank_one = -scale * dgate
            rest = total_gg - 2.0 * dgate * tl.sum(ugv, axis=0) + dgate * dgate
            square = scale * scale * tl.maximum(rest, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ROW_FORM:
        square = tl.where(kind == 1, tl.sum(rows_squared, axis=0), square)
    dgate = tl.where(tl.load(gate_trains + own) != 0, dgate, 0.0)
    all_squares = square + dgate * dgate
    if ROW_FORM:
        all_squares += tl.where(kind == 1, tl.sum(gains_squared, axis=0), 0.0)
    tl.store(matrix_values + own, dgate)
    tl.store(matrix_values + plane + own, all_squares)
    tl.store(matrix_values + 2 * plane + own, tl.sqrt(tl.sum(ww, axis=0)))
    tl.store(matrix_values + 3 * plane + own, tl.sqrt(square))
    tl.store(matrix_values + 4 * plane + own, rank_one)
    tl.store(matrix_values + 5 * plane + own, scale)


@triton.jit(do_not_specialize=_PLAIN)
def _update(
    parameter, first, second, gradient, effective, coefficients, matrix_values, scalars, change,
    partial, left, right, form, K, parameter_stride, first_stride, second_stride, gradient_stride,
    effective_stride, gates_start, row_gains_start, matrices, plane, all_sums, all_changes,
    start, M, O, I, first_matrix, first_sum, first_change, row_blocks, column_blocks,
    SPECTRAL: tl.constexpr, GATHER: tl.constexpr, ROW_FORM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The second pass, a tile a program.

    Where W is made anew for power iteration, the tile's part of Wᵀu is kept: [row blocks, I] a
    matrix, I being whole.
    """
    blocks = row_blocks * column_blocks
    block = tl.program_id(0) % blocks
    matrix = (tl.program_id(0) // blocks) % M
    run = (tl.program_id(0) // (M * blocks)).to(tl.int64)
    row_block = block // column_blocks
    row = row_block * ROWS + tl.arange(0, ROWS)
    inside = row < O
    place = start + (matrix.to(tl.int64) * O + row[:, None]) * I
    own = run * matrices + first_matrix + matrix
    kind = tl.load(form + own)
    clip = tl.load(scalars + run)
    decay = tl.load(scalars + 5 * K + run)
    gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
    scale = tl.load(matrix_values + 5 * plane + own)
    if ROW_FORM:
        row_scale = tl.zeros((ROWS,), dtype=tl.float32) + scale
        bend = tl.zeros((ROWS,), dtype=tl.float32)
        gain = tl.zeros((ROWS,), dtype=tl.float32)
        bar_scale = tl.zeros((ROWS,), dtype=tl.float32) + gate
        if kind == 1:
            at_row = matrix * O + row
            coefficient = coefficients + run * 3 * all_sums + first_sum + at_row
            row_scale = tl.load(coefficient, mask=inside, other=0.0)
            bend = tl.load(coefficient + all_sums, mask=inside, other=0.0)
            gain_at = parameter + run * parameter_stride + row_gains_start + at_row
            gain = tl.load(gain_at, mask=inside, other=0.0)
        length = tl.zeros((ROWS,), dtype=tl.float32)
    if SPECTRAL:
        u = tl.zeros((ROWS,), dtype=tl.float32)
        if kind == 2:
            u = tl.load(left + (run * M + matrix) * O + row, mask=inside, other=0.0)
    moved = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for begin in range(0, SPAN, WIDTH):
        column = (block % column_blocks) * SPAN + begin + tl.arange(0, WIDTH)
        mask = inside[:, None] & (column < I)[None, :]
        at = place + column[None, :]
        # Four values a thread of bfloat16 too, as of float32: eight would make each tile of
        # float32 pass through shared memory on its way from loads of eight to stores of four.
        narrow = tl.max_contiguous(at, (1, 4))
        w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
        g = tl.load(gradient + run * gradient_stride + narrow, mask=mask, other=0.0).to(tl.float32)
        m = tl.load(first + run * first_stride + at, mask=mask, other=0.0)
        n = tl.load(second + run * second_stride + at, mask=mask, other=0.0)
        d = g * row_scale[:, None] + w * bend[:, None] if ROW_FORM else g * scale
        if SPECTRAL:
            if kind == 2:
                v = tl.load(right + (run * M + matrix) * I + column, mask=column < I, other=0.0)
                d += tl.load(matrix_values + 4 * plane + own) * u[:, None] * v[None, :]
        new, m, n = fused_adamw.step(w * decay, d * clip, m, n, scalars, K, run)
        tl.store(first + run * first_stride + at, m, mask=mask)
        tl.store(second + run * second_stride + at, n, mask=mask)
        tl.store(parameter + run * parameter_stride + at, new, mask=mask)
        new = tl.where(mask, new, 0.0)
        moved += (new - w) * (new - w)
        if GATHER:
            if kind == 2:
                part = (run * M + matrix) * row_blocks + row_block
                tl.store(partial + part * I + column, tl.sum(new * u[:, None], axis=0), column < I)
        if ROW_FORM:
            length += tl.sum(new * new, axis=1)
            if WIDTH == SPAN:
                if kind == 1:
                    bar_scale = gain / tl.sqrt(tl.where(inside, length, 1.0))
            if (kind == 0) | ((kind == 1) & (WIDTH == SPAN)):
                bar = (new * bar_scale[:, None]).to(effective.dtype.element_ty)
                tl.store(effective + run * effective_stride + narrow, bar, mask=mask)
        else:
            if kind != 2:
                bar = (new * gate).to(effective.dtype.element_ty)
                tl.store(effective + run * effective_stride + narrow, bar, mask=mask)
    tl.store(change + run * all_changes + first_change + matrix * blocks + block, tl.sum(moved))
    if ROW_FORM:
        if (kind == 1) & (WIDTH < SPAN):
            bar_scale = gain / tl.sqrt(tl.where(inside, length, 1.0))
            for begin in range(0, SPAN, WIDTH):
                column = begin + tl.arange(0, WIDTH)
                mask = inside[:, None] & (column < I)[None, :]
                at = place + column[None, :]
                w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
                bar = (w * bar_scale[:, None]).to(effective.dtype.element_ty)
                tl.store(effective + run * effective_stride + at, bar, mask=mask)
