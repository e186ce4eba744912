"""What `gpu_kernels.py` measures: each fused op, its reference, its count of bytes and FLOPs.

A contest is one op at one shape. Its tensors have the real sizes and types; its reference is the
plain torch that the op's tests compare it with, as a function that autograd and torch.compile take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from gpu import Case
from torch import Tensor

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
    tiles: Mapping[str, Callable[[Any], Callable[[], object]]] = field(default_factory=dict)
    """For the sweep: kernel -> from tiles, a call with them."""
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Kernel -> tiles to try; the first are the ones that the op chooses by itself (None)."""


Build = Callable[[Case, torch.device, torch.dtype], Contest | None]


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
        options={
            "forward": [None] + _rms_tiles(fused.Tiles, D, loops=(1,)),
            "backward": [None] + _rms_tiles(fused.Tiles, D, loops=(2, 8, 32)),
        },
    )


def _rms_tiles(make: Any, width: int, *, loops: Sequence[int]) -> list[Any]:
    padded = 1 << (width - 1).bit_length()
    return [
        make(rows=max(1, values // padded), loops=many, num_warps=warps)
        for values in (2048, 4096, 8192)
        for many in loops
        for warps in (4, 8)
    ]


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
        fused.backward(grads[0], qkv, cos, sin, None, None, out=out, **shape)
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
    """u · silu(g) of packed [u, g]; about as many hidden units as leave the parameters alike."""
    from wesar_sweep.kernels.fused import feed_forward as fused

    a = case.architecture
    hidden = 8 * -(-a.width // 3)
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


def cross_entropy(case: Case, device: torch.device, dtype: torch.dtype) -> Contest | None:
    """Loss and gradient by whole logits, for small vocabularies."""
    from wesar_sweep.kernels.fused import cross_entropy as fused

    K, M, V = case.slots, case.batch * case.context, case.vocabulary
    if V > 4096:
        return None
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


def linear_cross_entropy(case: Case, device: torch.device, dtype: torch.dtype) -> Contest | None:
    """Prediction, loss and gradients without all logits at once, for large vocabularies."""
    from wesar_sweep.kernels.fused import cross_entropy as fused

    K, M, D, V = case.slots, case.batch * case.context, case.width, case.vocabulary
    if V <= 4096 and device.type == "cuda":
        return None
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


def attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest | None:
    """Rotation and attention, as the decoder chooses it; the reference is rotation and SDPA."""
    from wesar_sweep.kernels.fused import attention as fused

    a = case.architecture
    if not fused.use_fused(a.context, a.head_width, dtype):
        return None
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    cos, sin = rope_reference.tables(a.context, a.head_width, device=device)
    qkv = random(K, M, 3 * D, like=(device, dtype))
    q, k, v = qkv.split(D, dim=2)
    out = torch.empty_like(qkv)
    kept: dict[str, Tensor] = {}

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        kept["y"], kept["lse"] = fused.forward(q, k, v, cos, sin, tiles=tiles, **shape)
        return (kept["y"],)

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        y, lse = kept["y"], kept["lse"]
        fused.backward(grads[0], q, k, v, y, lse, cos, sin, out=out, tiles=tiles, **shape)
        return (out,)

    grads = [random(K, M, D, like=(device, dtype))]
    elements = K * M * D * qkv.element_size()
    scores = K * a.batch * a.heads * a.context**2 // 2
    return Contest(
        op="attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_rotated_attention(case, cos, sin),
        forward=forward,
        work=Work(4 * elements, 4.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        backward=backward,
        backward_work=Work(8 * elements, 10.0 * scores * a.head_width),
        tiles={
            "forward": lambda t: lambda: forward(t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        options=_options(fused, "attention", case),
    )


def _rotated_attention(case: Case, cos: Tensor, sin: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    a = case.architecture

    def reference(qkv_KMX: Tensor) -> tuple[Tensor, ...]:
        heads = qkv_KMX.unflatten(2, (3, a.heads, a.head_width)).unflatten(1, (-1, a.context))
        q, k, v = heads.unbind(3)
        q, k = (rope_reference.reference(x, cos, sin) for x in (q, k))
        return (attention_reference.attention(q, k, v).flatten(3, 4).flatten(1, 2),)

    return reference


def library_attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Rotation in a kernel of its own, then the library's attention."""
    from wesar_sweep.kernels.fused import library_attention as fused
    from wesar_sweep.kernels.fused import rope as fused_rope

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    cos, sin = rope_reference.tables(a.context, a.head_width, device=device)
    qkv = random(K, M, 3 * D, like=(device, dtype))
    out, ones = torch.empty_like(qkv), torch.ones(K, M, D, device=device, dtype=dtype)

    def forward() -> tuple[Tensor, ...]:
        qk, _ = fused_rope.forward(qkv, cos, sin, **shape)
        q, k = qk.split(D, dim=2)
        v = qkv[..., 2 * D :]
        y, tape = fused.forward(q, k, v, None, None, **shape)
        fused.backward(ones, q, k, v, y, tape, None, None, out=out, **shape)
        dqk = out[..., : 2 * D].contiguous()
        fused_rope.backward(dqk, qkv, cos, sin, None, None, out=out, **shape)
        return y, out

    elements = K * M * D * qkv.element_size()
    scores = K * a.batch * a.heads * a.context**2 // 2
    return Contest(
        op="library_attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_rotated_attention(case, cos, sin),
        forward=forward,
        work=Work(24 * elements, 14.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        joint=True,
    )


def _options(fused: Any, op: str, case: Case) -> dict[str, list[Any]]:
    """Tiles worth trying, by the op's own description of them."""
    return {}


CONTESTS: Mapping[str, Build] = {
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
}
