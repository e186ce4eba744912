"""What `gpu_kernels.py` measures: each fused op, its reference, its count of bytes and FLOPs.

A contest is one op at one shape. Its tensors have the real sizes and types; its reference is the
plain torch that the op's tests compare it with, as a function that autograd and torch.compile take.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from gpu import Case
from torch import Tensor

from wesar_sweep.config.run import default_ffn_width
from wesar_sweep.kernels import attention as attention_reference
from wesar_sweep.kernels import data_order as data_order_reference
from wesar_sweep.kernels import embedding as embedding_reference
from wesar_sweep.kernels import rms_norm as rms_norm_reference
from wesar_sweep.kernels import rope as rope_reference

BF16 = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Work:
    """Counted for all runs together."""

    bytes: float
    flops: float = 0.0


@dataclass(slots=True)
class Contest:
    """One op at one shape, ready to run."""

    op: str
    case: Case
    inputs: dict[str, Tensor]
    """What the reference takes, by its argument names; all but `shared` have the run axis first."""
    reference: Callable[..., tuple[Tensor, ...]]
    forward: Callable[[], tuple[Tensor, ...]]
    """The fused op on `inputs`; its results in the order of the reference's."""
    work: Work
    wrt: tuple[str, ...] = ()
    """Inputs that a gradient is taken by."""
    backward: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None = None
    """The fused op's gradients in the order of `wrt`, given the outputs' gradients; after
    `forward`."""
    backward_work: Work | None = None
    timed: Callable[[], object] | None = None
    """What is measured where `forward` prepares something first; None: `forward`."""
    joint: bool = False
    """`forward` gives outputs and then gradients in one go, for outputs' gradients of ones."""
    shared: frozenset[str] = frozenset()
    liger: Callable[..., tuple[Tensor, ...]] | None = None
    """Liger-Kernel's counterpart of the reference."""
    liger_inputs: dict[str, Tensor] | None = None
    """What it takes; None: what the reference takes."""
    liger_says: str = ""
    """In what it differs, or why there is none."""
    tolerance: float = 1e-2
    """‖fused − reference‖/‖reference‖ with the reference in float32. Rounding each result to
    bfloat16 gives 2e-3; sums of rounded intermediates up to three times that."""
    apart: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """forward, backward: the same by one kernel of ours (or cuBLAS's) an op, where the op joins
    several."""
    tiles: Mapping[str, Callable[[Any], Callable[[], object]]] = field(default_factory=dict)
    """For the sweep: kernel -> from tiles, a call with them; None are the op's own."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Kernel -> the tiles that it takes by itself, whose neighbours are tried."""


Build = Callable[[Case, torch.device, torch.dtype], Contest]


def random(*shape: int, like: tuple[torch.device, torch.dtype], scale: float = 1.0) -> Tensor:
    """Normal values, never zeros: those are faster."""
    device, dtype = like
    return (torch.randn(*shape, device=device, dtype=torch.float32) * scale).to(dtype)


def rms_norm(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Residual add, then norm; both ways."""
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
        dx, dgain = fused.backward(
            grads[1], kept["sum"], kept["rstd"], gain, grads[0], tiles_=tiles
        )
        return dx, dx, dgain

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
        chosen=dict.fromkeys(("forward", "backward"), fused.tiles(D)),
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
    """The exact GELU; its backward pass gives the activation once more."""
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
        backward=lambda grads: (fused.gelu_backward(grads[0], u, with_activation=True)[0],),
        # With the activation written once more, which the references do not do.
        backward_work=Work(4 * size),
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
        backward=lambda grads: (fused.swiglu_backward(grads[0], u, with_activation=True)[0],),
        backward_work=Work(6 * size),
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
    from gpu import tokens

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
        tolerance=0.0,
    )


def attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Attention of rotated queries and keys, against torch's."""
    from wesar_sweep.kernels.fused import attention as fused

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    qkv = random(K, M, 3 * D, like=(device, dtype))
    q, k, v = qkv.chunk(3, dim=2)
    out = torch.empty_like(qkv)
    kept: dict[str, Tensor] = {}

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        kept["y"], kept["lse"] = fused.forward(q, k, v, tiles_=tiles, **shape)
        return (kept["y"],)

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        y, lse = kept["y"], kept["lse"]
        fused.backward(grads[0], q, k, v, y, lse, out=out, tiles_=tiles, **shape)
        return (out,)

    grads = [random(K, M, D, like=(device, dtype))]
    elements = K * M * D * qkv.element_size()
    scores = K * a.batch * a.heads * a.context**2 // 2
    return Contest(
        op="attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_attention_of(case),
        forward=forward,
        work=Work(4 * elements, 4.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        backward=backward,
        backward_work=Work(8 * elements, 10.0 * scores * a.head_width),
        tiles={
            "forward": lambda t: lambda: forward(t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen=dict.fromkeys(("forward", "backward"), fused.tiles(a.context, a.head_width)),
    )


def _attention_of(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    a = case.architecture

    def reference(qkv_KMX: Tensor) -> tuple[Tensor, ...]:
        heads = qkv_KMX.unflatten(2, (3, a.heads, a.head_width)).unflatten(1, (-1, a.context))
        y_KBTHE = attention_reference.attention(*heads.unbind(3))
        return (y_KBTHE.flatten(3, 4).flatten(1, 2),)

    return reference


def library_attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The library's attention as the decoder reaches it, packed gradients included."""
    from wesar_sweep.kernels.fused import library_attention as fused

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    qkv = random(K, M, 3 * D, like=(device, dtype))
    out, ones = torch.empty_like(qkv), torch.ones(K, M, D, device=device, dtype=dtype)

    def forward() -> tuple[Tensor, ...]:
        y, tape = fused.forward(*qkv.chunk(3, dim=2), **shape)
        gradients = fused.backward(ones, tape, **shape)
        for into, gradient in zip(out.chunk(3, dim=2), gradients, strict=True):
            into.copy_(gradient)
        return y, out

    elements = K * M * D * qkv.element_size()
    scores = K * a.batch * a.heads * a.context**2 // 2
    return Contest(
        op="library_attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_attention_of(case),
        forward=forward,
        work=Work(12 * elements, 14.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        joint=True,
    )


def norm_qkv(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Norm and product to queries, keys and values; gradients by x and gain, residual included."""
    return _norm_linear("norm_qkv", case, 3 * case.width, device, dtype)


def norm_up(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Norm and product to the hidden row."""
    return _norm_linear("norm_up", case, case.architecture.ffn_width, device, dtype)


def _norm_linear(
    op: str, case: Case, outputs: int, device: torch.device, dtype: torch.dtype
) -> Contest:
    from wesar_sweep.kernels.fused import linear as fused
    from wesar_sweep.kernels.fused import rms_norm as fused_norm

    K, M, D = case.slots, case.batch * case.context, case.width
    like = (device, dtype)
    x, w = random(K, M, D, like=like), random(K, outputs, D, like=like, scale=D**-0.5)
    gain = random(K, D, like=like, scale=0.1) + 1

    def reference(x_KMD: Tensor, gain_KD: Tensor, w_KOD: Tensor) -> tuple[Tensor, ...]:
        h_KMD = rms_norm_reference.reference(x_KMD, gain_KD)
        # The sum stands for the residual stream that goes on past the norm.
        return torch.bmm(h_KMD, w_KOD.transpose(1, 2)), x_KMD + 0

    kept: dict[str, Tensor] = {}

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        y, _, kept["rstd"] = fused.norm_linear(x, gain, w, tiles_=tiles)
        return y, x

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        return fused.linear_norm_backward(
            grads[0], w, x, kept["rstd"], gain, grads[1], tiles_=tiles
        )

    def forward_apart() -> object:
        _, h, _ = fused_norm.forward(x, gain)
        return torch.bmm(h, w.transpose(1, 2))

    def backward_apart() -> object:
        dh = torch.bmm(grads[0], w)
        return fused_norm.backward(dh, x, kept["rstd"], gain, grads[1])

    grads = [random(K, M, outputs, like=like), random(K, M, D, like=like)]
    size = x.element_size()
    flops = 2.0 * K * M * D * outputs
    return Contest(
        op=op,
        case=case,
        inputs={"x_KMD": x, "gain_KD": gain, "w_KOD": w},
        reference=reference,
        forward=forward,
        work=Work((K * M * (2 * D + outputs) + w.numel()) * size, flops),
        wrt=("x_KMD", "gain_KD"),
        backward=backward,
        backward_work=Work((K * M * (3 * D + outputs) + w.numel()) * size, flops),
        apart={"forward": forward_apart, "backward": backward_apart},
        tiles={
            "forward": lambda t: lambda: forward(t)[0],
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen=_linear_tiles(),
    )


def linear_add(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The product out of attention onto the residual stream; its gradients are cuBLAS's."""
    from wesar_sweep.kernels.fused import linear as fused

    K, M, D = case.slots, case.batch * case.context, case.width
    like = (device, dtype)
    x, residual = random(K, M, D, like=like), random(K, M, D, like=like)
    w = random(K, D, D, like=like, scale=D**-0.5)

    def reference(x_KMD: Tensor, w_KDD: Tensor, residual_KMD: Tensor) -> tuple[Tensor, ...]:
        return (residual_KMD + torch.bmm(x_KMD, w_KDD.transpose(1, 2)),)

    return Contest(
        op="linear_add",
        case=case,
        inputs={"x_KMD": x, "w_KDD": w, "residual_KMD": residual},
        reference=reference,
        forward=lambda: (fused.linear_add(x, w, residual),),
        work=Work(3 * x.numel() * x.element_size(), 2.0 * x.numel() * D),
        apart={"forward": lambda: torch.baddbmm(residual, x, w.transpose(1, 2))},
        tiles={"forward": lambda t: lambda: fused.linear_add(x, w, residual, tiles_=t)},
        chosen=_linear_tiles(),
    )


def gelu_linear_add(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Activation, product down and residual add; the gradient by what was activated."""
    from wesar_sweep.kernels.fused import feed_forward as fused_feed_forward
    from wesar_sweep.kernels.fused import linear as fused

    K, M, D = case.slots, case.batch * case.context, case.width
    hidden = case.architecture.ffn_width
    like = (device, dtype)
    u, residual = random(K, M, hidden, like=like), random(K, M, D, like=like)
    w = random(K, D, hidden, like=like, scale=hidden**-0.5)

    def reference(u_KMF: Tensor, w_KDF: Tensor, residual_KMD: Tensor) -> tuple[Tensor, ...]:
        return (residual_KMD + torch.bmm(F.gelu(u_KMF), w_KDF.transpose(1, 2)),)

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        return (fused.gelu_linear_backward(grads[0], w, u, tiles_=tiles)[0],)

    def forward_apart() -> object:
        a = fused_feed_forward.gelu_forward(u)
        return torch.baddbmm(residual, a, w.transpose(1, 2))

    def backward_apart() -> object:
        da = torch.bmm(grads[0], w)
        return fused_feed_forward.gelu_backward(da, u, with_activation=True)

    grads = [random(K, M, D, like=like)]
    size, flops = u.element_size(), 2.0 * u.numel() * D
    return Contest(
        op="gelu_linear_add",
        case=case,
        inputs={"u_KMF": u, "w_KDF": w, "residual_KMD": residual},
        reference=reference,
        forward=lambda: (fused.gelu_linear_add(u, w, residual),),
        work=Work((u.numel() + 2 * residual.numel()) * size, flops),
        wrt=("u_KMF",),
        backward=backward,
        backward_work=Work((3 * u.numel() + residual.numel()) * size, flops),
        apart={"forward": forward_apart, "backward": backward_apart},
        tiles={
            "forward": lambda t: lambda: fused.gelu_linear_add(u, w, residual, tiles_=t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen=_linear_tiles(),
    )


def _linear_tiles() -> dict[str, Any]:
    from wesar_sweep.kernels.fused import linear as fused

    return {"forward": fused._FORWARD, "backward": fused._BACKWARD}


def takes(op: str, case: Case, dtype: torch.dtype) -> bool:
    """Whether the decoder takes the op at this shape; of some ops it depends on more than that."""
    from wesar_sweep.kernels.fused import attention as fused_attention
    from wesar_sweep.kernels.fused import linear
    from wesar_sweep.model.fused_decoder import FULL_LOGITS_VOCABULARY

    a = case.architecture
    if op in ("norm_qkv", "norm_up", "linear_add", "gelu_linear_add"):
        return linear.supported(a.width, a.ffn_width, dtype)
    if op == "attention":
        return fused_attention.use_fused(a.context, a.head_width, dtype)
    if op.endswith("cross_entropy"):
        return (op == "cross_entropy") == (a.vocabulary <= FULL_LOGITS_VOCABULARY)
    return True


def optimizer(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The whole update of stacks of wesar: pull-back, clip, AdamW, new effective weights, norms."""
    from wesar_sweep.kernels import adamw as adamw_reference
    from wesar_sweep.kernels.fused import optimizer as fused
    from wesar_sweep.training.fused_step import _places
    from wesar_sweep.training.parameters import ParameterRows, zero_rows
    from wesar_sweep.training.slots import SlotTable

    a, K = case.architecture, case.slots
    rows = ParameterRows(a, slots=K, forms=frozenset({"scalar"}), device=device, dtype=dtype)
    table = SlotTable(K, width=a.width, device=device)
    run = case.run(0)
    for slot in range(K):
        rows.load(slot, run)
        table.load(slot, run)
    layout = rows.layout
    # So large that what is compared is the update, not the weights that it is added to.
    adamw = replace(table.adamw(), lr_K=torch.full((K,), 0.01, device=device))
    first, second = (zero_rows(K, layout.size, device=device) for _ in range(2))
    first.normal_(std=1e-3)
    second.copy_(first.square())
    gradient = zero_rows(K, layout.effective_size, device=device, dtype=dtype)
    gradient.copy_(random(K, layout.effective_size, like=(device, dtype), scale=1e-3))
    before = rows.parameter_KP.clone(), first.clone(), second.clone()

    def reference(
        parameter_KP: Tensor, first_KP: Tensor, second_KP: Tensor, gradient_KQ: Tensor
    ) -> tuple[Tensor, ...]:
        runs = len(parameter_KP)
        whole_KP = torch.zeros_like(parameter_KP)
        whole_KP[:, : layout.effective_size] = gradient_KQ
        new_KP, gate_KM = parameter_KP.clone(), parameter_KP[:, layout.gates]
        for group in layout.groups:
            g, w = group.view(gradient_KQ.float()), group.view(parameter_KP)
            gate = gate_KM[:, group.matrices]
            group.view(whole_KP).copy_(g * gate[..., None, None])
            whole_KP[:, layout.gates][:, group.matrices] = (g * w).sum(dim=(2, 3))
        whole_KP[:, layout.gates] *= rows.gate_trains_KM[:runs]
        moments = first_KP.clone(), second_KP.clone()
        some = {name: getattr(adamw, name)[:runs] for name in adamw.__dataclass_fields__}
        adamw_reference.reference(
            new_KP,
            *moments,
            whole_KP,
            grad_norm_K=torch.linalg.vector_norm(whole_KP, dim=1),
            adamw=adamw_reference.AdamW(**some),
            decayed=layout.matrix_parameters,
        )
        effective_KQ = new_KP[:, : layout.effective_size].clone()
        for group in layout.groups:
            gate = new_KP[:, layout.gates][:, group.matrices]
            group.view(effective_KQ).mul_(gate[..., None, None])
        return new_KP - parameter_KP, *moments, effective_KQ.to(dtype)

    def update() -> object:
        return fused.update(
            rows.parameter_KP,
            first,
            second,
            gradient,
            rows.effective_KP,
            adamw=adamw,
            places=_places(layout),
            forms=fused.Forms(rows.form_KM, rows.gate_trains_KM, rows.left, rows.right),
        )

    def forward() -> tuple[Tensor, ...]:
        for tensor, value in zip((rows.parameter_KP, first, second), before, strict=True):
            tensor.copy_(value)
        update()
        return rows.parameter_KP - before[0], first, second, rows.effective_KP

    size = gradient.element_size()
    return Contest(
        op="optimizer",
        case=case,
        inputs={
            "parameter_KP": before[0],
            "first_KP": before[1],
            "second_KP": before[2],
            "gradient_KQ": gradient,
        },
        reference=reference,
        forward=forward,
        timed=update,
        work=Work(K * layout.size * (28 + 3 * size)),
    )


def neighbours(chosen: Any, *, most: int = 40) -> list[Any]:
    """Tiles worth trying beside the chosen ones: each field halved and doubled, two at a time.

    Fields are powers of two but for `num_stages`; `num_warps` is kept between 1 and 16.
    """
    moves: list[tuple[str, int]] = []
    for part in fields(chosen):
        value = getattr(chosen, part.name)
        if part.name == "num_stages":
            others = [n for n in (1, 2, 3, 4, 5) if n != value]
        else:
            least, largest = (1, 16) if part.name == "num_warps" else (1, 4096)
            others = [n for n in (value // 2, value * 2) if least <= n <= largest]
        moves += [(part.name, n) for n in others]
    found = [chosen, *(replace(chosen, **dict([move])) for move in moves)]
    for one, other in itertools.combinations(moves, 2):
        if one[0] != other[0]:
            found.append(replace(chosen, **dict([one, other])))
    return found[:most]


CONTESTS: Mapping[str, Build] = {
    "norm_qkv": norm_qkv,
    "norm_up": norm_up,
    "linear_add": linear_add,
    "gelu_linear_add": gelu_linear_add,
    "rms_norm": rms_norm,
    "rope": rope,
    "gelu": gelu,
    "swiglu": swiglu,
    "attention": attention,
    "library_attention": library_attention,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "embedding": embedding,
    "data_order": data_order,
    "optimizer": optimizer,
}
