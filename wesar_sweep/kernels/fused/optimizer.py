"""The optimizer pass of K runs: from the gradient of W̄ to the new W, its moments and the new W̄.

What `kernels.reparametrization` (pull the gradient back), `kernels.adamw` (clip, update) and again
`reparametrization` (make W̄ anew) compute one after another, for all methods mixed in one stack.
With G the gradient by W̄, the gradient by W is affine in G and W for every form::

    dW_oi = a_o G_oi + b_o W_oi + c u_o v_i
    scalar    a = α            b = 0                     c = 0
    row       a = g/n          b = −(g/n) dg/n           c = 0          n = ‖W_o‖, dg = G_o·W_o / n
    spectral  a = γ/s          b = 0                     c = −(γ/s) dγ  s = uᵀWv, dγ = Σ G∘W / s

so a first pass takes sums a row (G·W, G·G, W·W; for spectral G·v and W·v), from which gates, norms
and coefficients follow, and a second pass does the rest. Bytes a matrix parameter with bfloat16 G
and W̄: 6 in the first pass, 28 in the second, 34 in all; in plain torch about 90.
Sums have one order: no atomics. A spectral matrix costs three more reads of W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels import adamw as reference
from wesar_sweep.kernels.adamw import AdamW

_VALUES = 4096
_WIDTH = 2048
"""Longest piece of a row that is worked on at once."""

_PLAIN = ("K", "M", "blocks", "first_matrix", "plane")
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

    @property
    def rows(self) -> int:
        """Output rows of all matrices."""
        last = self.groups[-1]
        return last.first_row + last.count * last.outputs


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


@dataclass(frozen=True, slots=True)
class Update:
    """Norms of one update."""

    grad_norm_K: Tensor
    """Of the gradient by all parameters, before clipping."""
    weight_norm_KM: Tensor
    """‖W‖ of each matrix before the update."""
    gradient_norm_KM: Tensor
    """‖dW‖ of each matrix before clipping."""
    change_row_KR: Tensor
    """Σ ΔW² of each output row; `change_norm` makes matrices of it."""


def change_norm(update: Update, places: Places) -> Tensor:
    """‖ΔW‖ of each matrix, decay included, float32 [K, M]."""
    parts = []
    for g in places.groups:
        rows = update.change_row_KR[:, g.first_row : g.first_row + g.count * g.outputs]
        parts.append(rows.unflatten(1, (g.count, g.outputs)).sum(dim=2).sqrt())
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
    rows, matrices = places.rows, len(forms.form_KM[0])
    with_rows = places.row_gains is not None

    def new(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32, device=device)

    sums_K5R, coefficients_K2R = new(K, 5, rows), new(K, 2, rows)
    matrix_5KM = new(5, K, matrices)
    dgain_KR = new(K, rows) if with_rows else sums_K5R
    for g in places.groups:
        spectral = g.name in forms.left
        t = _tile(g)
        _sums[(K * g.count * t.blocks,)](
            parameter_KP, gradient_KQ, forms.right.get(g.name), forms.form_KM, sums_K5R,
            parameter_KP.stride(0), gradient_KQ.stride(0), matrices, rows,
            g.start, g.count, g.outputs, g.inputs, g.first_matrix, g.first_row, t.blocks,
            SPECTRAL=spectral, ROWS=t.rows, WIDTH=t.width, num_warps=4,
        )  # fmt: skip
        _matrices[(K * g.count,)](
            sums_K5R, coefficients_K2R, matrix_5KM, dgain_KR, parameter_KP,
            forms.left.get(g.name), forms.form_KM, forms.gate_trains_KM,
            parameter_KP.stride(0), places.gates.start,
            places.row_gains.start if places.row_gains is not None else 0,
            matrices, rows, K * matrices, g.count, g.outputs, g.first_matrix, g.first_row,
            SPECTRAL=spectral, ROW_FORM=with_rows, BLOCK=256, num_warps=4,
        )  # fmt: skip
    dgate_KM, square_KM, weight_norm_KM, gradient_norm_KM, rank_one_KM = matrix_5KM.unbind(0)

    tail = slice(places.gains.start, None)
    tail_gradient = [gradient_KQ[:, places.gains].float(), dgate_KM]
    if with_rows:
        tail_gradient.append(dgain_KR)
    tail_KS = torch.cat(tail_gradient, dim=1)
    grad_norm_K = (square_KM.sum(dim=1) + tail_KS.square().sum(dim=1)).sqrt()
    reference.reference(
        parameter_KP[:, tail],
        first_KP[:, tail],
        second_KP[:, tail],
        tail_KS,
        grad_norm_K=grad_norm_K,
        adamw=adamw,
        decayed=0,
    )
    effective_KQ[:, places.gains] = parameter_KP[:, places.gains].to(effective_KQ.dtype)

    scalars_7K = torch.stack(
        (
            reference.clip_factor(grad_norm_K, adamw.clip_K),
            adamw.beta1_K,
            adamw.beta2_K,
            (1 - adamw.beta2_K**adamw.step_K).rsqrt(),
            adamw.eps_K,
            1 - adamw.lr_K * adamw.weight_decay_K,
            adamw.lr_K / (1 - adamw.beta1_K**adamw.step_K),
        )
    )
    change_KR = new(K, rows)
    for g in places.groups:
        spectral = g.name in forms.left
        t = _tile(g)
        _update[(K * g.count * t.blocks,)](
            parameter_KP, first_KP, second_KP, gradient_KQ, effective_KQ,
            coefficients_K2R, rank_one_KM, scalars_7K, change_KR,
            forms.left.get(g.name), forms.right.get(g.name), forms.form_KM,
            K, parameter_KP.stride(0), first_KP.stride(0), second_KP.stride(0),
            gradient_KQ.stride(0), effective_KQ.stride(0),
            places.gates.start,
            places.row_gains.start if places.row_gains is not None else 0,
            matrices, rows, g.start, g.count, g.outputs, g.inputs, g.first_matrix, g.first_row,
            t.blocks,
            SPECTRAL=spectral, ROW_FORM=with_rows,
            ROWS=t.rows, WIDTH=t.width, num_warps=4,
        )  # fmt: skip
        if spectral:
            _spectral[(K * g.count,)](
                parameter_KP, effective_KQ, forms.left[g.name], forms.right[g.name],
                forms.form_KM, parameter_KP.stride(0), effective_KQ.stride(0),
                places.gates.start, matrices, g.start, g.count, g.outputs, g.inputs,
                g.first_matrix,
                ROWS=max(1, _VALUES // triton.next_power_of_2(g.inputs)),
                WIDTH=triton.next_power_of_2(g.inputs), num_warps=8,
            )  # fmt: skip
    return Update(grad_norm_K, weight_norm_KM, gradient_norm_KM, change_KR)


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int
    width: int
    blocks: int
    """Programs a matrix."""


def _tile(group: Group) -> _Tile:
    width = min(_WIDTH, triton.next_power_of_2(group.inputs))
    rows = max(1, min(triton.next_power_of_2(group.outputs), _VALUES // width))
    return _Tile(rows, width, triton.cdiv(group.outputs, rows))


@triton.jit(do_not_specialize=_PLAIN)
def _sums(
    parameter, gradient, right, form, sums, parameter_stride, gradient_stride, matrices, all_rows,
    start, M, O, I, first_matrix, first_row, blocks,
    SPECTRAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums of every output row of a group: G·W, G·G, W·W, and where spectral G·v, W·v."""
    run = (tl.program_id(0) // (M * blocks)).to(tl.int64)
    matrix = (tl.program_id(0) // blocks) % M
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    place = start + (matrix.to(tl.int64) * O + row[:, None]) * I
    gw = tl.zeros((ROWS,), dtype=tl.float32)
    gg = tl.zeros((ROWS,), dtype=tl.float32)
    ww = tl.zeros((ROWS,), dtype=tl.float32)
    gv = tl.zeros((ROWS,), dtype=tl.float32)
    wv = tl.zeros((ROWS,), dtype=tl.float32)
    if SPECTRAL:
        is_spectral = tl.load(form + run * matrices + first_matrix + matrix) == 2
    for begin in range(0, I, WIDTH):
        column = begin + tl.arange(0, WIDTH)
        mask = (row < O)[:, None] & (column < I)[None, :]
        at = place + column[None, :]
        w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
        g = tl.load(gradient + run * gradient_stride + at, mask=mask, other=0.0).to(tl.float32)
        gw += tl.sum(g * w, axis=1)
        gg += tl.sum(g * g, axis=1)
        ww += tl.sum(w * w, axis=1)
        if SPECTRAL:
            if is_spectral:
                v = tl.load(right + (run * M + matrix) * I + column, mask=column < I, other=0.0)
                gv += tl.sum(g * v[None, :], axis=1)
                wv += tl.sum(w * v[None, :], axis=1)
    out = sums + run * 5 * all_rows + first_row + matrix * O + row
    tl.store(out, gw, mask=row < O)
    tl.store(out + all_rows, gg, mask=row < O)
    tl.store(out + 2 * all_rows, ww, mask=row < O)
    if SPECTRAL:
        tl.store(out + 3 * all_rows, gv, mask=row < O)
        tl.store(out + 4 * all_rows, wv, mask=row < O)


@triton.jit(do_not_specialize=_PLAIN)
def _matrices(
    sums, coefficients, matrix_values, dgain, parameter, left, form, gate_trains,
    parameter_stride, gates_start, row_gains_start, matrices, all_rows, plane, M, O,
    first_matrix, first_row,
    SPECTRAL: tl.constexpr, ROW_FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gate gradients, norms and the coefficients of dW, a matrix a program."""
    run = (tl.program_id(0) // M).to(tl.int64)
    matrix = tl.program_id(0) % M
    own = run * matrices + first_matrix + matrix
    kind = tl.load(form + own)
    gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
    first = first_row + matrix * O
    source = sums + run * 5 * all_rows + first
    target = coefficients + run * 2 * all_rows + first
    lane = tl.arange(0, BLOCK)
    gw = tl.zeros((BLOCK,), dtype=tl.float32)
    gg = tl.zeros((BLOCK,), dtype=tl.float32)
    ww = tl.zeros((BLOCK,), dtype=tl.float32)
    ugv = tl.zeros((BLOCK,), dtype=tl.float32)
    uwv = tl.zeros((BLOCK,), dtype=tl.float32)
    rows_squared = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, O, BLOCK):
        row = begin + lane
        inside = row < O
        gw_row = tl.load(source + row, mask=inside, other=0.0)
        gg_row = tl.load(source + all_rows + row, mask=inside, other=0.0)
        ww_row = tl.load(source + 2 * all_rows + row, mask=inside, other=0.0)
        gw += gw_row
        gg += gg_row
        ww += ww_row
        if ROW_FORM:
            gain_at = parameter + run * parameter_stride + row_gains_start + first + row
            gain = tl.load(gain_at, mask=inside, other=0.0)
            length = tl.sqrt(tl.where(inside, ww_row, 1.0))
            d = gw_row / length
            ratio = gain / length
            rest = tl.maximum(gg_row - d * d, 0.0, propagate_nan=tl.PropagateNan.ALL)
            rows_squared += ratio * ratio * rest
            is_row = kind == 1
            tl.store(dgain + run * all_rows + first + row, tl.where(is_row, d, 0.0), mask=inside)
            tl.store(target + row, ratio, mask=inside & is_row)
            tl.store(target + all_rows + row, -ratio * d / length, mask=inside & is_row)
        if SPECTRAL:
            if kind == 2:
                u = tl.load(left + (run * M + matrix) * O + row, mask=inside, other=0.0)
                ugv += u * tl.load(source + 3 * all_rows + row, mask=inside, other=0.0)
                uwv += u * tl.load(source + 4 * all_rows + row, mask=inside, other=0.0)
    total_gw, total_gg = tl.sum(gw, axis=0), tl.sum(gg, axis=0)
    dgate = total_gw
    scale = gate
    rank_one = tl.full((), 0.0, dtype=tl.float32)
    square = gate * gate * total_gg
    if SPECTRAL:
        if kind == 2:
            s = tl.sum(uwv, axis=0)
            dgate = total_gw / s
            scale = gate / s
            rank_one = -scale * dgate
            rest = total_gg - 2.0 * dgate * tl.sum(ugv, axis=0) + dgate * dgate
            square = scale * scale * tl.maximum(rest, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ROW_FORM:
        square = tl.where(kind == 1, tl.sum(rows_squared, axis=0), square)
    trains = tl.load(gate_trains + own) != 0
    tl.store(matrix_values + own, tl.where(trains, dgate, 0.0))
    tl.store(matrix_values + plane + own, square)
    tl.store(matrix_values + 2 * plane + own, tl.sqrt(tl.sum(ww, axis=0)))
    tl.store(matrix_values + 3 * plane + own, tl.sqrt(square))
    tl.store(matrix_values + 4 * plane + own, rank_one)
    if kind != 1:
        for begin in range(0, O, BLOCK):
            row = begin + lane
            tl.store(target + row, tl.zeros((BLOCK,), tl.float32) + scale, mask=row < O)
            tl.store(target + all_rows + row, tl.zeros((BLOCK,), tl.float32), mask=row < O)


@triton.jit(do_not_specialize=_PLAIN)
def _update(
    parameter, first, second, gradient, effective, coefficients, rank_one, scalars, change,
    left, right, form, K, parameter_stride, first_stride, second_stride, gradient_stride,
    effective_stride, gates_start, row_gains_start, matrices, all_rows,
    start, M, O, I, first_matrix, first_row, blocks,
    SPECTRAL: tl.constexpr, ROW_FORM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The second pass: rows of one matrix a program."""
    run = (tl.program_id(0) // (M * blocks)).to(tl.int64)
    matrix = (tl.program_id(0) // blocks) % M
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    inside = row < O
    place = start + (matrix.to(tl.int64) * O + row[:, None]) * I
    own = run * matrices + first_matrix + matrix
    kind = tl.load(form + own)
    at_row = first_row + matrix * O + row
    scale = tl.load(coefficients + run * 2 * all_rows + at_row, mask=inside, other=0.0)
    clip = tl.load(scalars + run)
    beta1 = tl.load(scalars + K + run)
    beta2 = tl.load(scalars + 2 * K + run)
    correction = tl.load(scalars + 3 * K + run)
    eps = tl.load(scalars + 4 * K + run)
    decay = tl.load(scalars + 5 * K + run)
    lr = tl.load(scalars + 6 * K + run)
    gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
    moved = tl.zeros((ROWS,), dtype=tl.float32)
    length = tl.zeros((ROWS,), dtype=tl.float32)
    own_rows = gate + tl.zeros((ROWS,), dtype=tl.float32)
    for begin in range(0, I, WIDTH):
        column = begin + tl.arange(0, WIDTH)
        mask = inside[:, None] & (column < I)[None, :]
        at = place + column[None, :]
        w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
        g = tl.load(gradient + run * gradient_stride + at, mask=mask, other=0.0).to(tl.float32)
        m = tl.load(first + run * first_stride + at, mask=mask, other=0.0)
        n = tl.load(second + run * second_stride + at, mask=mask, other=0.0)
        d = g * scale[:, None]
        if ROW_FORM:
            if kind == 1:
                bend = coefficients + run * 2 * all_rows + all_rows + at_row
                d += w * tl.load(bend, mask=inside, other=0.0)[:, None]
        if SPECTRAL:
            if kind == 2:
                u = tl.load(left + (run * M + matrix) * O + row, mask=inside, other=0.0)
                v = tl.load(right + (run * M + matrix) * I + column, mask=column < I, other=0.0)
                d += tl.load(rank_one + own) * u[:, None] * v[None, :]
        d *= clip
        m += (1.0 - beta1) * (d - m)
        n = beta2 * n + (1.0 - beta2) * d * d
        new = w * decay - lr * m / (tl.sqrt(n) * correction + eps)
        tl.store(first + run * first_stride + at, m, mask=mask)
        tl.store(second + run * second_stride + at, n, mask=mask)
        tl.store(parameter + run * parameter_stride + at, new, mask=mask)
        new = tl.where(mask, new, 0.0)
        moved += tl.sum((new - w) * (new - w), axis=1)
        if ROW_FORM:
            length += tl.sum(new * new, axis=1)
            if WIDTH >= I:
                if kind == 1:
                    gain_at = parameter + run * parameter_stride + row_gains_start + at_row
                    gain = tl.load(gain_at, mask=inside, other=0.0)
                    own_rows = gain / tl.sqrt(tl.where(inside, length, 1.0))
        whole = kind != 2
        if ROW_FORM:
            whole = whole & ((kind != 1) | (WIDTH >= I))
        if whole:
            bar = (new * own_rows[:, None]).to(effective.dtype.element_ty)
            tl.store(effective + run * effective_stride + at, bar, mask=mask)
    tl.store(change + run * all_rows + at_row, moved, mask=inside)
    if ROW_FORM:
        if (kind == 1) & (WIDTH < I):
            gain_at = parameter + run * parameter_stride + row_gains_start + at_row
            gain = tl.load(gain_at, mask=inside, other=0.0)
            own_rows = gain / tl.sqrt(tl.where(inside, length, 1.0))
            for begin in range(0, I, WIDTH):
                column = begin + tl.arange(0, WIDTH)
                mask = inside[:, None] & (column < I)[None, :]
                at = place + column[None, :]
                w = tl.load(parameter + run * parameter_stride + at, mask=mask, other=0.0)
                bar = (w * own_rows[:, None]).to(effective.dtype.element_ty)
                tl.store(effective + run * effective_stride + at, bar, mask=mask)


@triton.jit(do_not_specialize=_PLAIN)
def _spectral(
    parameter, effective, left, right, form, parameter_stride, effective_stride, gates_start,
    matrices, start, M, O, I, first_matrix, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One step of power iteration on the new W, then W̄ = γ/s W; s = uᵀWv = ‖Wv‖."""
    run = (tl.program_id(0) // M).to(tl.int64)
    matrix = tl.program_id(0) % M
    if tl.load(form + run * matrices + first_matrix + matrix) == 2:
        column = tl.arange(0, WIDTH)
        source = parameter + run * parameter_stride + start + matrix.to(tl.int64) * O * I
        u_at = left + (run * M + matrix) * O
        v = tl.zeros((WIDTH,), dtype=tl.float32)
        for begin in range(0, O, ROWS):
            row = begin + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            w = tl.load(source + row[:, None] * I + column[None, :], mask=mask, other=0.0)
            u = tl.load(u_at + row, mask=row < O, other=0.0)
            v += tl.sum(w * u[:, None], axis=0)
        v = v / tl.maximum(tl.sqrt(tl.sum(v * v, axis=0)), 1e-12, propagate_nan=tl.PropagateNan.ALL)
        tl.store(right + (run * M + matrix) * I + column, v, mask=column < I)
        tl.debug_barrier()
        square = tl.full((), 0.0, dtype=tl.float32)
        for begin in range(0, O, ROWS):
            row = begin + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            w = tl.load(source + row[:, None] * I + column[None, :], mask=mask, other=0.0)
            wv = tl.sum(w * v[None, :], axis=1)
            square += tl.sum(wv * wv, axis=0)
            tl.store(u_at + row, wv, mask=row < O)
        s = tl.maximum(tl.sqrt(square), 1e-12, propagate_nan=tl.PropagateNan.ALL)
        gate = tl.load(parameter + run * parameter_stride + gates_start + first_matrix + matrix)
        tl.debug_barrier()
        target = effective + run * effective_stride + start + matrix.to(tl.int64) * O * I
        for begin in range(0, O, ROWS):
            row = begin + tl.arange(0, ROWS)
            mask = (row < O)[:, None] & (column < I)[None, :]
            at = row[:, None] * I + column[None, :]
            w = tl.load(source + at, mask=mask, other=0.0)
            wv = tl.load(u_at + row, mask=row < O, other=0.0)
            tl.debug_barrier()
            tl.store(u_at + row, wv / s, mask=row < O)
            bar = (w * (gate / s)).to(effective.dtype.element_ty)
            tl.store(target + at, bar, mask=mask)
