"""Contests of ops that work row by row, or gather rows: bound by memory traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from contest import Contest, Work, random
from gpu import Case, tokens
from torch import Tensor

from wesar_sweep.config.run import default_ffn_width
from wesar_sweep.kernels import data_order as data_order_reference
from wesar_sweep.kernels import embedding as embedding_reference
from wesar_sweep.kernels import rms_norm as rms_norm_reference
from wesar_sweep.kernels import rope as rope_reference


def rms_norm(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Residual add, then norm; both ways, the sum over the gain's gradient included."""
    from wesar_sweep.kernels.fused import rms_norm as fused

    K, M, D = case.slots, case.batch * case.context, case.width
    like = (device, dtype)
    x, delta = random(K, M, D, like=like), random(K, M, D, like=like)
    gain = random(K, D, like=like, scale=0.1) + 1

    def reference(x_KMD: Tensor, delta_KMD: Tensor, gain_KD: Tensor) -> tuple[Tensor, ...]:
        sum_KMD = x_KMD + delta_KMD
        return sum_KMD, rms_norm_reference.reference(sum_KMD, gain_KD)

    kept: dict[str, Any] = {}

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        kept["sum"], y, kept["rstd"] = fused.forward(x, gain, delta, tiles_=tiles)
        return kept["sum"], y

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        t = tiles or chosen
        parts = x.new_empty(K, triton.cdiv(M, t.rows * t.loops), D, dtype=torch.float32)
        dx = fused.backward(
            grads[1], kept["sum"], kept["rstd"], gain, grads[0], partial_KBD=parts, tiles_=t
        )
        return dx, dx, fused.sum_partials(parts)

    def liger(x_KMD: Tensor, delta_KMD: Tensor, gain_KD: Tensor) -> tuple[Tensor, ...]:
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm

        y, s = liger_fused_add_rms_norm(
            x_KMD.flatten(0, 1),
            delta_KMD.flatten(0, 1),
            gain_KD[0],
            rms_norm_reference.EPS,
            0.0,
            "gemma",
            False,
        )
        return s, y

    grads = [random(K, M, D, like=like) for _ in range(2)]
    chosen = fused.backward_tiles(D, rows=K * M)
    size = x.element_size()
    return Contest(
        op="rms_norm",
        case=case,
        inputs={"x_KMD": x, "delta_KMD": delta, "gain_KD": gain},
        reference=reference,
        forward=forward,
        work=Work(4 * K * M * D * size + 4 * K * M),
        wrt=("x_KMD", "delta_KMD", "gain_KD"),
        backward=backward,
        backward_work=Work(4 * K * M * D * size + 4 * K * M),
        liger=liger,
        liger_says="one gain for all runs",
        tiles={
            "forward": lambda t: lambda: forward(t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen={"forward": fused.tiles(D), "backward": chosen},
    )


def rope(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Queries and keys of packed projections, rotated."""
    from wesar_sweep.kernels.fused import rope as fused

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    cos, sin = rope_reference.tables(a.context, a.head_width, device=device)
    qkv = random(K, M, 3 * D, like=(device, dtype))

    def reference(qkv_KMX: Tensor) -> tuple[Tensor, ...]:
        qk = qkv_KMX[..., : 2 * D].unflatten(2, (2 * a.heads, a.head_width))
        qk_KBTHE = qk.unflatten(1, (-1, a.context))
        return (rope_reference.reference(qk_KBTHE, cos, sin).flatten(1, 2).flatten(2, 3),)

    out = torch.empty_like(qkv)

    def backward(grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dq, dk = grads[0].chunk(2, dim=2)
        fused.backward(dq, dk, qkv, cos, sin, None, None, out=out, **shape)
        return (out[..., : 2 * D],)

    def liger(qkv_KMX: Tensor) -> tuple[Tensor, ...]:
        from liger_kernel.transformers.functional import liger_rope

        B = K * a.batch
        heads = qkv_KMX[..., : 2 * D].reshape(B, a.context, 2 * a.heads, a.head_width)
        q, k = heads.transpose(1, 2).split(a.heads, dim=1)
        cos_1TE, sin_1TE = (torch.cat((t, t), dim=1).unsqueeze(0) for t in (cos, sin))
        return tuple(liger_rope(q, k, cos_1TE, sin_1TE))

    elements = K * M * 2 * D
    return Contest(
        op="rope",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=reference,
        forward=lambda: (fused.forward(qkv, cos, sin, **shape)[0],),
        work=Work(2 * elements * qkv.element_size()),
        wrt=("qkv_KMX",),
        backward=backward,
        backward_work=Work(2 * elements * qkv.element_size()),
        liger=liger,
        liger_says="copies its part of the packed projections first",
    )


def gelu(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The exact GELU."""
    from wesar_sweep.kernels.fused import feed_forward as fused

    a = case.architecture
    shape = (case.slots, a.tokens_per_step, a.ffn_width)
    u = random(*shape, like=(device, dtype))
    size = u.numel() * u.element_size()
    return Contest(
        op="gelu",
        case=case,
        inputs={"u_KMF": u},
        reference=lambda u_KMF: (F.gelu(u_KMF),),
        forward=lambda: (fused.gelu_forward(u),),
        work=Work(2 * size),
        wrt=("u_KMF",),
        backward=lambda grads: (fused.gelu_backward(grads[0], u),),
        backward_work=Work(3 * size),
        liger_says="none: its GEGLU is gated and takes the tanh approximation",
    )


def swiglu(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The gated unit u · silu(g) of packed [u, g], as wide as studies have it by default."""
    from wesar_sweep.kernels.fused import feed_forward as fused

    a = case.architecture
    hidden = default_ffn_width("swiglu", a.width)
    u = random(case.slots, a.tokens_per_step, 2 * hidden, like=(device, dtype))
    size = u.numel() // 2 * u.element_size()

    def reference(u_KM2F: Tensor) -> tuple[Tensor, ...]:
        up, gate = u_KM2F.chunk(2, dim=2)
        return (up * F.silu(gate),)

    def liger(gate_KMF: Tensor, up_KMF: Tensor) -> tuple[Tensor, ...]:
        from liger_kernel.transformers.functional import liger_swiglu

        return (liger_swiglu(gate_KMF, up_KMF),)

    up, gate = (part.contiguous() for part in u.chunk(2, dim=2))
    return Contest(
        op="swiglu",
        case=case,
        inputs={"u_KM2F": u},
        reference=reference,
        forward=lambda: (fused.swiglu_forward(u),),
        work=Work(3 * size),
        wrt=("u_KM2F",),
        backward=lambda grads: (fused.swiglu_backward(grads[0], u),),
        backward_work=Work(5 * size),
        liger=liger,
        liger_inputs={"gate_KMF": gate, "up_KMF": up},
        liger_says="its halves lie apart",
    )


def cross_entropy(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Loss and gradient by whole logits, for small vocabularies."""
    from wesar_sweep.kernels.fused import cross_entropy as fused

    K, M, V = case.slots, case.batch * case.context, case.vocabulary
    logit = random(K, M, V, like=(device, dtype))
    target = torch.randint(V, (K, M), device=device)

    def reference(logit_KMV: Tensor, target_KM: Tensor) -> tuple[Tensor, ...]:
        nll = F.cross_entropy(
            logit_KMV.float().flatten(0, 1), target_KM.flatten(), reduction="none"
        )
        return (nll.view_as(target_KM).mean(dim=1),)

    def forward() -> tuple[Tensor, ...]:
        nll, _, d = fused.forward_backward(logit, target32, None, scale=1 / M)
        return nll.mean(dim=1), d

    def liger(logit_MV: Tensor, target_M: Tensor) -> tuple[Tensor, ...]:
        from liger_kernel.transformers.functional import liger_cross_entropy

        return (liger_cross_entropy(logit_MV, target_M),)

    target32 = target.int()
    return Contest(
        op="cross_entropy",
        case=case,
        inputs={"logit_KMV": logit, "target_KM": target},
        reference=reference,
        forward=forward,
        work=Work(2 * logit.numel() * logit.element_size()),
        wrt=("logit_KMV",),
        joint=True,
        liger=liger,
        liger_inputs={"logit_MV": logit.flatten(0, 1).clone(), "target_M": target.flatten()},
        liger_says="one mean over all runs; writes the gradient over the logits",
    )


def linear_cross_entropy(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Prediction, loss and gradients without all logits at once, for large vocabularies."""
    from wesar_sweep.kernels.fused import cross_entropy as fused

    K, M, D, V = case.slots, case.batch * case.context, case.width, case.vocabulary
    like = (device, dtype)
    h, w = random(K, M, D, like=like), random(K, V, D, like=like, scale=D**-0.5)
    target = torch.randint(V, (K, M), device=device)
    target32 = target.int()

    def reference(h_KMD: Tensor, w_KVD: Tensor, target_KM: Tensor) -> tuple[Tensor, ...]:
        logit_KMV = torch.bmm(h_KMD, w_KVD.transpose(1, 2))
        nll = F.cross_entropy(
            logit_KMV.float().flatten(0, 1), target_KM.flatten(), reduction="none"
        )
        return (nll.view_as(target_KM).mean(dim=1),)

    dw = torch.empty_like(w)

    def forward() -> tuple[Tensor, ...]:
        nll, _, dh = fused.linear_cross_entropy(h, w, target32, None, scale=1 / M, dw_out_KVD=dw)
        return nll.mean(dim=1), dh, dw

    def liger(h_KMD: Tensor, w_KVD: Tensor, target_KM: Tensor) -> tuple[Tensor, ...]:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return (liger_fused_linear_cross_entropy(h_KMD[0], w_KVD[0], target_KM[0]),)

    size = h.element_size()
    return Contest(
        op="linear_cross_entropy",
        case=case,
        inputs={"h_KMD": h, "w_KVD": w, "target_KM": target},
        reference=reference,
        forward=forward,
        work=Work((2 * h.numel() + 2 * w.numel() + 4 * K * M * V) * size, 6.0 * K * M * V * D),
        wrt=("h_KMD", "w_KVD"),
        joint=True,
        liger=liger if K == 1 else None,
    )


def embedding(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Gather of each run's table, and its gradient."""
    from wesar_sweep.kernels.fused import embedding as fused

    K, M, D, V = case.slots, case.batch * case.context, case.width, case.vocabulary
    w = random(K, V, D, like=(device, dtype))
    token = torch.randint(V, (K, M), device=device)
    token32, dw = token.int(), torch.empty_like(w)

    def reference(w_KVD: Tensor, token_KM: Tensor) -> tuple[Tensor, ...]:
        return (embedding_reference.reference(token_KM.unsqueeze(1), w_KVD).squeeze(1),)

    def backward(grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
        fused.backward(grads[0], token32, vocabulary=V, out_KVD=dw)
        return (dw,)

    rows, whole = K * M * D * w.element_size(), w.numel() * w.element_size()
    return Contest(
        op="embedding",
        case=case,
        inputs={"w_KVD": w, "token_KM": token},
        reference=reference,
        forward=lambda: (fused.forward(token32, w),),
        work=Work(rows + whole),
        wrt=("w_KVD",),
        backward=backward,
        backward_work=Work(rows + whole),
    )


def data_order(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Where each sequence starts, and its tokens."""
    from wesar_sweep.kernels.fused import data_order as fused

    a = case.architecture
    token_S = tokens(a.vocabulary, device=device)
    seed = torch.arange(case.slots, device=device)
    step = seed * 7 + 3

    def reference(seed_K: Tensor, step_K: Tensor, token_S: Tensor) -> tuple[Tensor, ...]:
        first = data_order_reference.reference(
            seed_K, step_K.unsqueeze(0), tokens=len(token_S), batch=a.batch, context=a.context
        )
        x, y = data_order_reference.gather(token_S, first[0], context=a.context)
        return x.flatten(1), y.flatten(1)

    return Contest(
        op="data_order",
        case=case,
        inputs={"seed_K": seed, "step_K": step, "token_S": token_S},
        reference=reference,
        forward=lambda: fused.gather(token_S, seed, step, batch=a.batch, context=a.context),
        work=Work(case.slots * a.tokens_per_step * (8 + token_S.element_size())),
        shared=frozenset({"token_S"}),
        compiles=False,
        tolerance=0.0,
    )
