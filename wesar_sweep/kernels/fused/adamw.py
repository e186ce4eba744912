"""AdamW of K runs in their fused optimizer pass: its scalars, its step, and what is no matrix.

The formulas of `kernels.adamw`. The norms' gains, gates and row gains of a run are one stretch of
its row; they do not decay and are few, so that what they cost is launches: two in all, where plain
torch takes about sixty.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty

from wesar_sweep.kernels.adamw import AdamW

_BLOCK = 1024


def scalars(square_KM: Tensor, gradient_KS: Tensor, *, adamw: AdamW) -> tuple[Tensor, Tensor]:
    """The norm of each run's gradient and the factors of its step.

    Args:
        square_KM: Sum of squares of all gradients of a matrix, its gate's and gains' too; float32.
        gradient_KS: Of the norms' gains, any type and any stride over K.
        adamw: Hyperparameters of each run at this step.

    Returns:
        (norm [K]; clip factor, NaN where the norm is not finite, β₁, β₂, 1/√(1 − β₂ᵗ), ε, 1 − η λ,
        η / (1 − β₁ᵗ) as [7, K]), float32.
    """
    K, matrices = square_KM.shape
    grad_norm_K, scalars_7K = (
        empty(K, device=square_KM.device),
        empty(7, K, device=square_KM.device),
    )
    _clip[(K,)](
        square_KM, gradient_KS, grad_norm_K, scalars_7K,
        adamw.lr_K, adamw.beta1_K, adamw.beta2_K, adamw.eps_K, adamw.weight_decay_K, adamw.clip_K,
        adamw.step_K, K, gradient_KS.stride(0), gradient_KS.shape[1], matrices,
        BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return grad_norm_K, scalars_7K


def update_tail(
    parameter_KP: Tensor,
    first_KP: Tensor,
    second_KP: Tensor,
    gradient_KQ: Tensor,
    dgate_KM: Tensor,
    dgain_KR: Tensor | None,
    scalars_7K: Tensor,
    *,
    gains: slice,
    out: Tensor,
) -> None:
    """Update norms' gains, then gates, then row gains, which end each row, in place.

    Args:
        parameter_KP: Flat rows, float32, any stride over K.
        first_KP: First moments, float32.
        second_KP: Second moments, float32.
        gradient_KQ: Gradient of the effective weights, whose gains are those of the parameters.
        dgate_KM: Gradient of the gates, float32.
        dgain_KR: Of the row gains, any stride over K; None where there are none.
        scalars_7K: Of `scalars`.
        gains: Place of the norms' gains.
        out: Effective weights: gets the new norms' gains.
    """
    K, matrices = dgate_KM.shape
    norm_gains = gains.stop - gains.start
    tail = norm_gains + matrices + (0 if dgain_KR is None else dgain_KR.shape[1])
    _tail[(triton.cdiv(tail, _BLOCK), K)](
        parameter_KP, first_KP, second_KP, gradient_KQ, out, dgate_KM, dgain_KR, scalars_7K, K,
        parameter_KP.stride(0), first_KP.stride(0), second_KP.stride(0), gradient_KQ.stride(0),
        out.stride(0), 0 if dgain_KR is None else dgain_KR.stride(0),
        gains.start, norm_gains, matrices, tail,
        ROW_FORM=dgain_KR is not None, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=("K",))
def _clip(
    squares_KM, gradient, grad_norm, scalars, lr_K, beta1_K, beta2_K, eps_K, weight_decay_K,
    clip_K, step_K, K, gradient_stride, norm_gains, matrices, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norm of a run's gradient, and what AdamW multiplies with, a run a program.

    Scalars: clip factor, β₁, β₂, 1/√(1 − β₂ᵗ), ε, 1 − η λ, η / (1 − β₁ᵗ).
    """
    run = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, matrices, BLOCK):
        at = run * matrices + begin + lane
        squares += tl.load(squares_KM + at, mask=begin + lane < matrices, other=0.0)
    for begin in range(0, norm_gains, BLOCK):
        at = run * gradient_stride + begin + lane
        g = tl.load(gradient + at, mask=begin + lane < norm_gains, other=0.0).to(tl.float32)
        squares += g * g
    norm = tl.sqrt(tl.sum(squares, axis=0))
    tl.store(grad_norm + run, norm)
    factor = tl.minimum(tl.load(clip_K + run) / (norm + 1e-6), 1.0)
    lr, beta1, beta2 = tl.load(lr_K + run), tl.load(beta1_K + run), tl.load(beta2_K + run)
    step = tl.load(step_K + run).to(tl.int32)
    correction1 = 1.0 - _power(beta1, step)
    correction2 = 1.0 - _power(beta2, step)
    tl.store(scalars + run, tl.where(norm < float("inf"), factor, float("nan")))
    tl.store(scalars + K + run, beta1)
    tl.store(scalars + 2 * K + run, beta2)
    tl.store(scalars + 3 * K + run, 1.0 / tl.sqrt(correction2))
    tl.store(scalars + 4 * K + run, tl.load(eps_K + run))
    tl.store(scalars + 5 * K + run, 1.0 - lr * tl.load(weight_decay_K + run))
    tl.store(scalars + 6 * K + run, lr / correction1)


@triton.jit
def _power(base, exponent):
    """A base to a whole number, by squaring: 1 − βᵗ of small t would not survive exp and log."""
    result = base * 0.0 + 1.0
    for bit in range(31):
        result = tl.where((exponent >> bit) & 1 == 1, result * base, result)
        base = base * base
    return result


@triton.jit
def step(w, d, m, n, scalars, K, run):
    """(new w, m, n) of the clipped gradient d; decay is the caller's."""
    beta1 = tl.load(scalars + K + run)
    beta2 = tl.load(scalars + 2 * K + run)
    m += (1.0 - beta1) * (d - m)
    n = beta2 * n + (1.0 - beta2) * d * d
    denominator = tl.sqrt(n) * tl.load(scalars + 3 * K + run) + tl.load(scalars + 4 * K + run)
    return w - tl.load(scalars + 6 * K + run) * m / denominator, m, n


@triton.jit(do_not_specialize=("K",))
def _tail(
    parameter, first, second, gradient, effective, dgate, dgain, scalars, K,
    parameter_stride, first_stride, second_stride, gradient_stride, effective_stride,
    dgain_stride, start, norm_gains, matrices, tail, ROW_FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW of what is no matrix and does not decay: norms' gains, gates, row gains."""
    run = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, is_gain = place < tail, place < norm_gains
    gate = place - norm_gains
    g = tl.load(gradient + run * gradient_stride + start + place, mask=is_gain, other=0.0)
    is_gate = (gate >= 0) & (gate < matrices)
    g = g.to(tl.float32) + tl.load(dgate + run * matrices + gate, mask=is_gate, other=0.0)
    if ROW_FORM:
        row = gate - matrices
        g += tl.load(dgain + run * dgain_stride + row, mask=(row >= 0) & inside, other=0.0)
    at = start + place
    w = tl.load(parameter + run * parameter_stride + at, mask=inside, other=0.0)
    m = tl.load(first + run * first_stride + at, mask=inside, other=0.0)
    n = tl.load(second + run * second_stride + at, mask=inside, other=0.0)
    w, m, n = step(w, g * tl.load(scalars + run), m, n, scalars, K, run)
    tl.store(parameter + run * parameter_stride + at, w, mask=inside)
    tl.store(first + run * first_stride + at, m, mask=inside)
    tl.store(second + run * second_stride + at, n, mask=inside)
    bar = w.to(effective.dtype.element_ty)
    tl.store(effective + run * effective_stride + at, bar, mask=is_gain)
