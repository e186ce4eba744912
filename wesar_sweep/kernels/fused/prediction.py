"""The last norm, the prediction and the loss of narrow models as one kernel, for K runs.

    h = norm(x)        l = h wᵀ        nll = lse − l_y        lse = log Σ exp l
    dl = scale · (softmax(l) · (1 + 2 z_loss lse) − onehot(y))

Formulas and sources: `kernels.rms_norm`, `kernels.linear`, `kernels.cross_entropy`. A row of logits
of a byte vocabulary fits into registers, so it never leaves the chip and is never rounded. Bytes a
row of D and V bfloat16 values: reads 2 D, writes 2 D + 2 V; apart (norm and product, then the loss
over its logits) 4 D + 6 V. FLOPs 2·D·V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused import linear
from wesar_sweep.kernels.fused.tiles import last_first, load, padded, program, store
from wesar_sweep.kernels.rms_norm import EPS

LARGEST_VOCABULARY = 256
"""Up to here a program holds a row's logits in registers."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shape of a program."""

    rows: int
    num_warps: int
    registers: int | None
    """Most a thread takes; None leaves it to the compiler."""


_TILES = Tiles(64, 4, None)
"""The best of eight on an H200 at width 128 and vocabulary 256."""


def supported(width: int, ffn_width: int, vocabulary: int, dtype: torch.dtype) -> bool:
    """Whether this kernel is preferred to a product and a loss apart."""
    whole = vocabulary == triton.next_power_of_2(vocabulary)  # Others spill registers.
    return linear.supported(width, ffn_width, dtype) and whole and vocabulary <= LARGEST_VOCABULARY


def loss(
    x_KMD: Tensor,
    gain_KD: Tensor,
    w_KVD: Tensor,
    target_KM: Tensor,
    z_loss_K: Tensor | None,
    *,
    scale: float | None,
    peaks: list[Tensor] | None = None,
    reverse: bool = False,
    tiles_: Tiles | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Loss of every row, and the gradient by the logits.

    Args:
        x_KMD: Residual stream, [K, M, D], contiguous.
        gain_KD: Gains of the norm, any stride over K.
        w_KVD: Prediction matrices, any stride over K.
        target_KM: Token ids, [K, M].
        z_loss_K: Weight of the z-loss, float32 [K]; None where no run has one.
        scale: What the gradient is multiplied with: 1 / rows of a run's step. None: no gradient.
        peaks: Takes each run's largest absolute logit, float32 [K], where given.
        reverse: Begin with the last program (`tiles.last_first`).
        tiles_: Shape of a program.

    Returns:
        (nll float32 [K, M]; dl [K, M, V] and h [K, M, D], or None and None without a gradient;
        1/√(mean + ε) of the norm, float32 [K, M]).
    """
    (K, M, D), V = x_KMD.shape, w_KVD.shape[1]
    nll_KM = torch.empty(K, M, dtype=torch.float32, device=x_KMD.device)
    rstd_KM = torch.empty_like(nll_KM)
    peak_KM = torch.empty_like(nll_KM) if peaks is not None else None
    dlogit_KMV = h_KMD = None
    if scale is not None:
        dlogit_KMV, h_KMD = x_KMD.new_empty(K, M, V), torch.empty_like(x_KMD)
    width, columns = (padded(size) for size in (D, V))
    t = tiles_ or _TILES
    limit = {} if t.registers is None else {"maxnreg": t.registers}
    blocks = triton.cdiv(M, t.rows)
    _loss[(K * blocks,)](
        x_KMD, gain_KD, w_KVD, target_KM, z_loss_K, nll_KM, dlogit_KMV, h_KMD, rstd_KM, peak_KM,
        M, V, D, blocks, gain_KD.stride(0), w_KVD.stride(0), target_KM.stride(0),
        0.0 if scale is None else scale, EPS, last_first(K * blocks, reverse),
        EVEN=M % t.rows == 0 and width == D and columns == V,
        Z=z_loss_K is not None, GRADIENT=scale is not None, PEAK=peak_KM is not None,
        ROWS=t.rows, COLUMNS=columns, WIDTH=width, num_warps=t.num_warps, num_stages=1, **limit,
    )  # fmt: skip
    if peaks is not None and peak_KM is not None:
        peaks.append(peak_KM.amax(dim=1))
    return nll_KM, dlogit_KMV, h_KMD, rstd_KM


@triton.jit(do_not_specialize=("flip",))
def _loss(
    x, gain, w, target, z_loss, nll, dlogit, h, rstd, peak,
    M, V, D, blocks, gain_stride, w_stride, target_stride, scale, eps, flip,
    EVEN: tl.constexpr, Z: tl.constexpr, GRADIENT: tl.constexpr, PEAK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
    d, v = tl.arange(0, WIDTH), tl.arange(0, COLUMNS)
    here, known = row < M, (v < V)[None, :]
    mask = here[:, None] & (d < D)[None, :]
    place = (run * M + row)[:, None] * D + d[None, :]
    w_at = w + run * w_stride + v[:, None] * D + d[None, :]
    w_VD = load(w_at, (v < V)[:, None] & (d < D)[None, :], EVEN)
    loaded = load(x + place, mask, EVEN)
    value = loaded.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / D + eps)
    g = load(gain + run * gain_stride + d, d < D, EVEN).to(tl.float32)
    normed = (value * r[:, None] * g[None, :]).to(loaded.dtype)
    store(rstd + run * M + row, r, here, EVEN)
    if GRADIENT:
        store(h + place, normed, mask, EVEN)
    logit = tl.dot(normed, tl.trans(w_VD), input_precision="ieee")
    y = load(target + run * target_stride + row, here, EVEN).to(tl.int32)
    if not EVEN:
        logit = tl.where(known, logit, -float("inf"))
    top = tl.max(logit, axis=1)
    # Powers of 2: log₂(e) goes into the argument.
    power = tl.exp2((logit - top[:, None]) * 1.4426950408889634)
    total = tl.sum(power, axis=1)
    lse = top + tl.log(total)
    own = v[None, :] == y[:, None]
    # A NaN among the logits passes by the maximum, but not by the sum.
    store(nll + run * M + row, lse - tl.sum(tl.where(own, logit, 0.0), axis=1), here, EVEN)
    if PEAK:
        largest = tl.max(tl.where(known, tl.abs(logit), 0.0), axis=1)
        # A maximum passes NaN by.
        largest = tl.where(total == total, largest, float("nan"))
        store(peak + run * M + row, largest, here, EVEN)
    if GRADIENT:
        share = scale / total
        if Z:
            share = share * (1.0 + 2.0 * tl.load(z_loss + run) * lse)
        dl = power * share[:, None] - tl.where(own, scale, 0.0)
        at = dlogit + (run * M + row)[:, None] * V + v[None, :]
        store(at, dl.to(loaded.dtype), here[:, None] & known, EVEN)
