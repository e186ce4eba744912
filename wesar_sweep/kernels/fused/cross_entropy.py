"""Next-token cross-entropy of K runs with z-loss, and its gradient by the logits in one go.

    nll = lse − l_y        z = lse²        lse = log Σ exp l
    dl = scale · (softmax(l) · (1 + 2 z_loss lse) − onehot(y))

z-loss: Chowdhery et al. 2022, §5. Bytes a row of V bfloat16 logits: read 2 V, write 2 V (over the
logits themselves if asked); rows too long for registers are read twice, the second time mostly from
the L2 cache. With `linear_cross_entropy` the logits of a large vocabulary exist a chunk of rows at
a time and never in float32; as Hsu et al. 2024 (Liger Kernel) do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.tiles import last_first, program

_WHOLE_ROW = 4096
"""Longest row that a program holds at once."""
_CHUNK_BYTES = 2**31
"""Logits of all runs that exist at once in `linear_cross_entropy`: long products, little memory."""


def forward_backward(
    logit_KMV: Tensor,
    target_KM: Tensor,
    z_loss_K: Tensor | None,
    *,
    scale: float,
    out: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Loss of every row, and the gradient by the logits.

    Args:
        logit_KMV: [K, M, V], contiguous.
        target_KM: Token ids, [K, M].
        z_loss_K: Weight of the z-loss, float32 [K]; None where no run has one.
        scale: What the gradient is multiplied with: 1 / rows of a run's step.
        out: Takes the gradient; may be `logit_KMV`, which is then gone.
        reverse: Begin with the last program (`tiles.last_first`).

    Returns:
        (nll float32 [K, M]; z float32 [K, M] or None; dl [K, M, V]).
    """
    if out is None:
        out = torch.empty_like(logit_KMV)
    nll_KM, z_KM = _launch(logit_KMV, target_KM, z_loss_K, scale=scale, out=out, reverse=reverse)
    return nll_KM, z_KM, out


def loss(logit_KMV: Tensor, target_KM: Tensor, *, reverse: bool = False) -> Tensor:
    """Negative log-likelihood of every row, float32 [K, M]; `reverse` as in `forward_backward`."""
    return _launch(logit_KMV, target_KM, None, scale=0.0, out=None, reverse=reverse)[0]


def _launch(
    logit_KMV: Tensor,
    target_KM: Tensor,
    z_loss_K: Tensor | None,
    *,
    scale: float,
    out: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    K, M, V = logit_KMV.shape
    nll_KM = torch.empty(K, M, dtype=torch.float32, device=logit_KMV.device)
    z_KM = None if z_loss_K is None else torch.empty_like(nll_KM)
    whole = V <= _WHOLE_ROW
    width = triton.next_power_of_2(V) if whole else _WHOLE_ROW
    rows = max(1, min(16, 4096 // width))
    blocks = triton.cdiv(M, rows)
    kernel = _whole_rows if whole else _long_rows
    kernel[(K * blocks,)](
        logit_KMV, target_KM, z_loss_K, nll_KM, z_KM, out,
        M, V, blocks, target_KM.stride(0), scale, last_first(K * blocks, reverse),
        Z=z_loss_K is not None, GRADIENT=out is not None,
        ROWS=rows, WIDTH=width, num_warps=4 if whole else 8,
    )  # fmt: skip
    return nll_KM, z_KM


def run_mean(value_KM: Tensor) -> Tensor:
    """Mean over a run's rows, float32 [K], in an order that does not depend on K."""
    K, M = value_KM.shape
    mean_K = torch.empty(K, dtype=torch.float32, device=value_KM.device)
    _run_mean[(K,)](value_KM, mean_K, M, BLOCK=1024, num_warps=4)
    return mean_K


def chunk_rows(runs: int, rows: int, vocabulary: int, element_bytes: int) -> int:
    """Rows a run whose logits exist at once: at least 1,024, so that products stay long."""
    fit = _CHUNK_BYTES // (runs * vocabulary * element_bytes)
    return min(rows, max(1024, fit // 128 * 128))


def linear_cross_entropy(
    h_KMD: Tensor,
    w_KVD: Tensor,
    target_KM: Tensor,
    z_loss_K: Tensor | None,
    *,
    scale: float,
    dw_out_KVD: Tensor,
    rows: int | None = None,
    max_logit: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Cross-entropy of h wᵀ without all its logits at once.

    Args:
        h_KMD: Normed output of the last layer, contiguous.
        w_KVD: Prediction matrices, any stride over K.
        target_KM: Token ids.
        z_loss_K: As in `forward_backward`.
        scale: As in `forward_backward`.
        dw_out_KVD: Takes the gradient of w; summed in float32 over chunks.
        rows: Rows a chunk; None: `chunk_rows`.
        max_logit: Takes the largest absolute logit of each run, [K], where given.

    Returns:
        (nll float32 [K, M]; z or None; gradient of h [K, M, D]).
    """
    K, M, _ = h_KMD.shape
    rows = rows or chunk_rows(K, M, w_KVD.shape[1], h_KMD.element_size())
    dh_KMD = torch.empty_like(h_KMD)
    nll, z, largest = [], [], []
    total_KVD: Tensor | None = None
    for start in range(0, M, rows):
        part = slice(start, min(M, start + rows))
        h_KRD = h_KMD[:, part]
        logit_KRV = torch.bmm(h_KRD, w_KVD.transpose(1, 2))
        if max_logit is not None:
            largest.append(logit_KRV.abs().amax(dim=(1, 2)).float())
        nll_KR, z_KR, dlogit_KRV = forward_backward(
            logit_KRV, target_KM[:, part], z_loss_K, scale=scale, out=logit_KRV, reverse=True
        )
        nll.append(nll_KR)
        z += [] if z_KR is None else [z_KR]
        torch.bmm(dlogit_KRV, w_KVD, out=dh_KMD[:, part])
        if rows >= M:
            torch.bmm(dlogit_KRV.transpose(1, 2), h_KRD, out=dw_out_KVD)
        else:
            dw_KVD = torch.bmm(dlogit_KRV.transpose(1, 2), h_KRD)
            total_KVD = dw_KVD.float() if total_KVD is None else total_KVD.add_(dw_KVD)
    if total_KVD is not None:
        dw_out_KVD.copy_(total_KVD)
    if max_logit is not None:
        max_logit.append(torch.stack(largest).amax(dim=0))
    return torch.cat(nll, dim=1), torch.cat(z, dim=1) if z else None, dh_KMD


def linear_loss(
    h_KMD: Tensor, w_KVD: Tensor, target_KM: Tensor, *, rows: int | None = None
) -> Tensor:
    """Negative log-likelihood of every row of h wᵀ, float32 [K, M], a chunk of logits at a time."""
    K, M, _ = h_KMD.shape
    rows = rows or chunk_rows(K, M, w_KVD.shape[1], h_KMD.element_size())
    parts = [slice(start, min(M, start + rows)) for start in range(0, M, rows)]
    return torch.cat(
        [
            loss(torch.bmm(h_KMD[:, part], w_KVD.mT), target_KM[:, part], reverse=True)
            for part in parts
        ],
        dim=1,
    )


@triton.jit(do_not_specialize=("flip",))
def _whole_rows(
    logit, target, z_loss, nll, z, out, M, V, blocks, target_stride, scale, flip,
    Z: tl.constexpr, GRADIENT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = (number % blocks) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mask = (row < M)[:, None] & (column < V)[None, :]
    place = (run * M + row)[:, None] * V + column[None, :]
    loaded = tl.load(logit + place, mask=mask, other=-float("inf"))
    # Rows past the end must not make NaN of nothing.
    value = tl.where((row < M)[:, None], loaded.to(tl.float32), 0.0)
    y = tl.load(target + run * target_stride + row, mask=row < M, other=0).to(tl.int32)
    top = tl.max(value, axis=1)
    power = tl.exp(value - top[:, None])
    total = tl.sum(power, axis=1)
    lse = top + tl.log(total)
    own = column[None, :] == y[:, None]
    at_target = tl.sum(tl.where(own, value, 0.0), axis=1)
    # A NaN among the logits passes by the maximum, but not by the sum.
    tl.store(nll + run * M + row, lse - at_target, mask=row < M)
    share = scale / total
    if Z:
        tl.store(z + run * M + row, lse * lse, mask=row < M)
        share = share * (1.0 + 2.0 * tl.load(z_loss + run) * lse)
    if GRADIENT:
        d = power * share[:, None] - tl.where(own, scale, 0.0)
        tl.store(out + place, d.to(loaded.dtype), mask=mask)


@triton.jit(do_not_specialize=("flip",))
def _long_rows(
    logit, target, z_loss, nll, z, out, M, V, blocks, target_stride, scale, flip,
    Z: tl.constexpr, GRADIENT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    row = number % blocks
    first = (run * M + row) * V
    y = tl.load(target + run * target_stride + row).to(tl.int32)
    column = tl.arange(0, WIDTH)
    top = tl.full((WIDTH,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for start in range(0, V, WIDTH):
        inside = start + column < V
        value = tl.load(logit + first + start + column, mask=inside, other=-float("inf"))
        value = value.to(tl.float32)
        new = tl.maximum(top, value)
        # A lane that has seen nothing yet has -inf twice: its power is 0, not NaN.
        grown = tl.where(new == -float("inf"), 0.0, tl.exp(value - new))
        kept = tl.where(top == -float("inf"), 0.0, total * tl.exp(top - new))
        total, top = kept + grown, new
    best = tl.max(top, axis=0)
    rescale = tl.where(top == -float("inf"), 0.0, tl.exp(top - best))
    sum_ = tl.sum(total * rescale, axis=0)
    lse = best + tl.log(sum_)
    at_target = tl.load(logit + first + y).to(tl.float32)
    tl.store(nll + run * M + row, lse - at_target)
    share = 1.0
    if Z:
        tl.store(z + run * M + row, lse * lse)
        share = 1.0 + 2.0 * tl.load(z_loss + run) * lse
    if GRADIENT:
        # The target's logit has been read above, before it may be written over.
        tl.debug_barrier()
        for start in range(0, V, WIDTH):
            inside = start + column < V
            loaded = tl.load(logit + first + start + column, mask=inside, other=-float("inf"))
            p = tl.exp(loaded.to(tl.float32) - lse) * share
            d = scale * (p - tl.where(start + column == y, 1.0, 0.0))
            tl.store(out + first + start + column, d.to(loaded.dtype), mask=inside)


@triton.jit
def _run_mean(value, mean, M, BLOCK: tl.constexpr):
    run = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, M, BLOCK):
        total += tl.load(value + run * M + start + column, mask=start + column < M, other=0.0)
    tl.store(mean + run, tl.sum(total, axis=0) / M)
