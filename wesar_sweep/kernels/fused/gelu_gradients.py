"""The backward pass of a narrow feed-forward layer but for its input, in one kernel, for K runs.

With u the argument of GELU, h the input of the product up, dy the gradient of the layer's output::

    da = dy W_down        a = gelu(u)        du = da ⊙ gelu'(u)
    dW_down = dyᵀ a       dW_up = duᵀ h

A program owns a block of F's columns and goes through all rows of a run, so both weight gradients
stay in its registers and a is never written: a row of bfloat16 values is 2·(2F + 2D) bytes, where
`linear.gelu_linear_backward` and two products move 2·(5F + 4D). FLOPs: 6·D·F a row. dy and h come
through the L2 cache once a block of columns.

All tiles are transposed, [columns, rows]: what the first product leaves in registers is then the
left operand of the others as it lies, and only u and du pass through shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.fused.feed_forward import gelu_and_slope
from wesar_sweep.kernels.fused.tiles import last_first, load, padded, program, store

_ROWS, _COLUMNS = 32, 64
_WARPS, _STAGES = 4, 3
"""The best of those tried on an H200 at width 128; see docs/LOG.md."""
_FEWEST = 128
"""Programs below which a GPU stands half empty, and kernels that divide the rows too are faster."""


def preferred(runs: int, ffn_width: int) -> bool:
    """Whether there are enough blocks of columns to fill a GPU."""
    return runs * triton.cdiv(ffn_width, _COLUMNS) >= _FEWEST


def backward(
    dy_KMD: Tensor,
    w_KDF: Tensor,
    u_KMF: Tensor,
    h_KMD: Tensor,
    *,
    dw_down_KDF: Tensor,
    dw_up_KFD: Tensor,
    reverse: bool = False,
) -> Tensor:
    """Gradients of u and of both weights.

    Args:
        dy_KMD: Gradient of gelu(u) W_downᵀ, contiguous.
        w_KDF: W_down, any stride over K.
        u_KMF: What was activated, h W_upᵀ.
        h_KMD: Input of the product up.
        dw_down_KDF: Takes the gradient of W_down, any stride over K.
        dw_up_KFD: Takes that of W_up.
        reverse: Begin with the last program (`tiles.last_first`).

    Returns:
        Gradient of u, [K, M, F].
    """
    (K, M, F), D = u_KMF.shape, dy_KMD.shape[2]
    du_KMF = torch.empty_like(u_KMF)
    blocks = triton.cdiv(F, _COLUMNS)
    _gelu_gradients[(K * blocks,)](
        dy_KMD, w_KDF, u_KMF, h_KMD, du_KMF, dw_down_KDF, dw_up_KFD, M, D, F, blocks,
        w_KDF.stride(0), dw_down_KDF.stride(0), dw_up_KFD.stride(0),
        last_first(K * blocks, reverse),
        EVEN=M % _ROWS == 0 and padded(D) == D and F % _COLUMNS == 0,
        ROWS=_ROWS, COLUMNS=_COLUMNS, WIDTH=padded(D), STAGES=_STAGES, num_warps=_WARPS,
    )  # fmt: skip
    return du_KMF


@triton.jit(do_not_specialize=("flip",))
def _gelu_gradients(
    dy, w, u, h, du, dw_down, dw_up, M, D, F, blocks, w_stride, down_stride, up_stride, flip,
    EVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    number = program(flip)
    run = (number // blocks).to(tl.int64)
    f, d = (number % blocks) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDTH)
    in_f, in_d = f < F, d < D
    down_at = d[:, None] * F + f[None, :]
    in_down = in_d[:, None] & in_f[None, :]
    w_FD = tl.trans(load(w + run * w_stride + down_at, in_down, EVEN))
    down_FD = tl.zeros((COLUMNS, WIDTH), dtype=tl.float32)
    up_FD = tl.zeros((COLUMNS, WIDTH), dtype=tl.float32)
    row = tl.arange(0, ROWS)
    wide = run * M * F + row[:, None] * F + f[None, :]
    narrow = run * M * D + row[:, None] * D + d[None, :]
    u_MF = load(u + wide, (row < M)[:, None] & in_f[None, :], EVEN)
    for begin in tl.range(0, M, ROWS, num_stages=STAGES):
        inside = (begin + row < M)[:, None]
        dy_MD = load(dy + narrow + begin * D, inside & in_d[None, :], EVEN)
        da_FM = tl.dot(w_FD, tl.trans(dy_MD), input_precision="ieee")
        value_FM, slope_FM = gelu_and_slope(tl.trans(u_MF).to(tl.float32))
        # The next rows', a step ahead; after the last ones the first again, which are not used.
        after = tl.where(begin + ROWS < M, begin + ROWS, 0)
        u_MF = load(u + wide + after * F, (after + row < M)[:, None] & in_f[None, :], EVEN)
        down_FD = tl.dot(value_FM.to(dy_MD.dtype), dy_MD, down_FD, input_precision="ieee")
        h_MD = load(h + narrow + begin * D, inside & in_d[None, :], EVEN)
        du_FM = (da_FM * slope_FM).to(dy_MD.dtype)
        up_FD = tl.dot(du_FM, h_MD, up_FD, input_precision="ieee")
        store(du + wide + begin * F, tl.trans(du_FM), inside & in_f[None, :], EVEN)
    up_at = dw_up + run * up_stride + f[:, None] * D + d[None, :]
    store(up_at, up_FD.to(dw_up.dtype.element_ty), in_f[:, None] & in_d[None, :], EVEN)
    down_DF = tl.trans(down_FD.to(dw_down.dtype.element_ty))
    store(dw_down + run * down_stride + down_at, down_DF, in_down, EVEN)
