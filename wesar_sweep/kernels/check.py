"""Every kernel against its reference on this machine: three runs of odd shapes, in seconds.

For `wesar-sweep doctor`, which asks whether this device, driver and compiler make of the kernels
what they should. Whether the kernels are right is for the tests, which go further: more shapes,
memory that nobody wrote, NaN in a neighbour.

A check's figure is the largest error of any output or gradient, as a share of the largest value of
that tensor.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from wesar_sweep.kernels import (
    adamw,
    attention,
    cross_entropy,
    data_order,
    embedding,
    feed_forward,
    rms_norm,
    rope,
)
from wesar_sweep.kernels import reparametrization as rp

_ROUNDED = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""bf16: operands, what is kept between two products and results are rounded to 8 bits (0.4 % each).
fp32: hundreds of terms are summed in another order (1e-6), and tf32 for float32 (5e-4) is seen.
What is broken is wrong by far more."""
_EXACT = {torch.int32: 0.0}


@dataclass(frozen=True, slots=True)
class Check:
    """One op: the outputs and gradients of its kernels beside those of its reference."""

    op: str
    worst_error: Callable[[torch.device, torch.dtype], float]
    tolerances: Mapping[torch.dtype, float]
    """Type of the inputs -> the largest error that they may give."""

    def dtypes(self, device: torch.device) -> tuple[torch.dtype, ...]:
        """The types to check on a device.

        Triton's interpreter, which stands in for a GPU in tests, multiplies bfloat16 as if it were
        integers.
        """
        on_gpu = device.type == "cuda"
        return tuple(dtype for dtype in self.tolerances if on_gpu or dtype != torch.bfloat16)


def why_unused(device: torch.device) -> str | None:
    """Why a device does without the kernels; None where they can run."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "they are for GPUs, and a CPU trains by the references in plain torch"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def checks() -> list[Check]:
    """A check of every op that has kernels, none of them run yet."""
    return [
        Check("attention", _attention, _ROUNDED),
        Check("attention (documents)", _attention_within_documents, _ROUNDED),
        Check("attention (library)", _library_attention, _ROUNDED),
        Check("attention (library, documents)", _library_within_documents, _ROUNDED),
        Check("cross_entropy", _cross_entropy, _ROUNDED),
        Check("cross_entropy (long rows)", _long_cross_entropy, _ROUNDED),
        Check("cross_entropy (in chunks)", _linear_cross_entropy, _ROUNDED),
        Check("data_order", _data_order, _EXACT),
        Check("embedding", _embedding, _ROUNDED),
        Check("embedding (large)", _large_embedding, _ROUNDED),
        Check("gelu", _gelu, _ROUNDED),
        Check("linear (forward)", _linear_forward, _ROUNDED),
        Check("linear (backward)", _linear_backward, _ROUNDED),
        Check("optimizer", _optimizer, _ROUNDED),
        Check("prediction", _prediction, _ROUNDED),
        Check("rms_norm", _rms_norm, _ROUNDED),
        Check("rope", _rope, _ROUNDED),
        Check("swiglu", _swiglu, _ROUNDED),
    ]


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest |got − want| / max |want|; infinite where `got` is not finite or of another shape."""
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    difference = float((got.double() - want.double()).abs().max())
    return difference / max(float(want.double().abs().max()), 1e-30)


def _worst(pairs: Iterable[tuple[Tensor | None, Tensor]]) -> float:
    return max(math.inf if got is None else relative_error(got, want) for got, want in pairs)


class _Heads(TypedDict):
    heads: int
    head_width: int
    context: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """Odd where that is hard, and small enough for the device."""

    K: int
    B: int
    T: int
    H: int
    E: int
    F: int
    V: int

    @property
    def M(self) -> int:
        """Rows of a run."""
        return self.B * self.T

    @property
    def D(self) -> int:
        """Width."""
        return self.H * self.E

    @property
    def heads(self) -> _Heads:
        """As the kernels over heads take it."""
        return {"heads": self.H, "head_width": self.E, "context": self.T}


def _shape(device: torch.device, dtype: torch.dtype) -> _Shape:
    # Under the interpreter a program takes a millisecond.
    if device.type == "cpu":
        return _Shape(K=3, B=2, T=9, H=2, E=16, F=48, V=33)
    # In float32 a product of these widths spills its registers and takes seconds to compile;
    # training takes the library's there.
    if dtype == torch.float32:
        return _Shape(K=3, B=3, T=70, H=2, E=16, F=96, V=65)
    return _Shape(K=3, B=3, T=130, H=2, E=64, F=512, V=257)


class _Maker:
    """Random tensors of one check, always the same ones."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.shape = device, dtype, _shape(device, dtype)
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(*shape, generator=self._generator) * scale
        return drawn.to(self.device, dtype or self.dtype)

    def in_row(self, *shape: int, scale: float = 1.0) -> Tensor:
        """[K, ...] as weights lie in the flat rows of a stack: other weights between two runs."""
        size = math.prod(shape[1:])
        row_KP = self(shape[0], size + 24, scale=scale)
        return row_KP[:, 8 : 8 + size].unflatten(1, shape[1:])

    def tokens(self, *shape: int, below: int) -> Tensor:
        """Token ids, int32."""
        drawn = torch.randint(below, shape, generator=self._generator, dtype=torch.int32)
        return drawn.to(self.device)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().float().requires_grad_()


def _packed_reference(qkv_KMX: Tensor, s: _Shape, first_KM: Tensor | None) -> Tensor:
    """Attention by its formula on packed rows, [K, M, D]."""
    q, k, v = qkv_KMX.unflatten(2, (3, s.H, s.E)).unflatten(1, (s.B, s.T)).unbind(3)
    first_KBT = None if first_KM is None else first_KM.unflatten(1, (s.B, s.T))
    return attention.reference(q, k, v, first_KBT).reshape(s.K, s.M, s.D)


def _first_keys(make: _Maker) -> Tensor:
    """Of documents of five tokens or so, but for one sequence, which is one document."""
    s = make.shape
    token_KBT = make.tokens(s.K, s.B, s.T, below=5)
    token_KBT[0, 0] = 1
    return attention.first_keys(token_KBT, document_end=0).flatten(1)


def _rotated(qkv_KMX: Tensor, angles: tuple[Tensor, Tensor], s: _Shape) -> Tensor:
    """Packed rows with queries and keys rotated, [K, M, 3D]."""
    parts = qkv_KMX.unflatten(2, (3, s.H, s.E)).unflatten(1, (s.B, s.T)).unbind(3)
    turned = [rope.reference(part, *angles) for part in parts[:2]]
    return torch.stack((*turned, parts[2]), dim=3).reshape(s.K, s.M, 3 * s.D)


def _attention(device: torch.device, dtype: torch.dtype, *, documents: bool = False) -> float:
    from wesar_sweep.kernels.fused import attention as fused
    from wesar_sweep.kernels.fused import linear

    make = _Maker(device, dtype)
    s = make.shape
    qkv, dy = make(s.K, s.M, 3 * s.D), make(s.K, s.M, s.D)
    first = _first_keys(make) if documents else None
    leaf = _leaf(qkv)
    want = _packed_reference(leaf, s, first)
    (dwant,) = torch.autograd.grad(want, leaf, dy.float())
    q, k, v = qkv.split(s.D, dim=2)
    y, kept = fused.forward(q, k, v, first_KM=first, **s.heads)
    out = torch.full_like(qkv, torch.nan)
    fused.backward(dy, q, k, v, y, kept, out=out, first_KM=first, **s.heads)
    pairs = [(y, want.detach()), (out, dwant)]
    if linear.turns(s.E):
        angles = rope.tables(s.T, s.E, device=device)
        before = _leaf(qkv)
        (dturned,) = torch.autograd.grad(_rotated(before, angles, s), before, out.float())
        turned = torch.full_like(qkv, torch.nan)
        fused.backward(dy, q, k, v, y, kept, out=turned, first_KM=first, rotation=angles, **s.heads)
        pairs.append((turned, dturned))
    return _worst(pairs)


def _attention_within_documents(device: torch.device, dtype: torch.dtype) -> float:
    return _attention(device, dtype, documents=True)


def _library_attention(
    device: torch.device, dtype: torch.dtype, *, documents: bool = False
) -> float:
    from wesar_sweep.kernels.fused import library_attention as fused

    make = _Maker(device, dtype)
    s = make.shape
    qkv, dy = make(s.K, s.M, 3 * s.D), make(s.K, s.M, s.D)
    first = _first_keys(make) if documents else None
    leaf = _leaf(qkv)
    want = _packed_reference(leaf, s, first)
    (dwant,) = torch.autograd.grad(want, leaf, dy.float())
    bias = None if first is None else fused.bias(first, context=s.T, dtype=dtype)
    y, tape = fused.forward(*qkv.split(s.D, dim=2), bias=bias, **s.heads)
    grads = fused.backward(dy, tape, **s.heads)
    return _worst([(y, want.detach()), *zip(grads, dwant.split(s.D, dim=2), strict=True)])


def _library_within_documents(device: torch.device, dtype: torch.dtype) -> float:
    return _library_attention(device, dtype, documents=True)


def _losses(
    logit_KMV: Tensor, target_KM: Tensor, z_loss_K: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss of each row; squared log-partition; the weighted sum over all of it)."""
    lse_KM = torch.logsumexp(logit_KMV, dim=-1)
    nll_KM = lse_KM - logit_KMV.gather(2, target_KM.long().unsqueeze(2)).squeeze(2)
    z_KM = lse_KM.square()
    return nll_KM, z_KM, (nll_KM + z_loss_K.unsqueeze(1) * z_KM).sum()


def _z_losses(make: _Maker) -> Tensor:
    return torch.linspace(0.0, 0.1, make.shape.K, device=make.device)


def _rows_of_logits(make: _Maker, *, vocabulary: int, rows: int) -> float:
    from wesar_sweep.kernels.fused import cross_entropy as fused

    runs = make.shape.K
    logit = make(runs, rows, vocabulary, scale=3.0)
    target, z_loss = make.tokens(runs, rows, below=vocabulary), _z_losses(make)
    leaf = _leaf(logit)
    nll, z, total = _losses(leaf, target, z_loss)
    (dlogit,) = torch.autograd.grad(total / rows, leaf)
    got_nll, got_z, got_dlogit = fused.forward_backward(logit, target, z_loss, scale=1 / rows)
    mean = cross_entropy.reference(logit, target.long())
    return _worst(
        [
            (got_nll, nll.detach()),
            (got_z, z.detach()),
            (got_dlogit, dlogit),
            (fused.run_mean(fused.loss(logit, target)), mean),
        ]
    )


def _cross_entropy(device: torch.device, dtype: torch.dtype) -> float:
    make = _Maker(device, dtype)
    return _rows_of_logits(make, vocabulary=make.shape.V, rows=make.shape.M)


def _long_cross_entropy(device: torch.device, dtype: torch.dtype) -> float:
    return _rows_of_logits(_Maker(device, dtype), vocabulary=5003, rows=7)


def _linear_cross_entropy(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import cross_entropy as fused

    make = _Maker(device, dtype)
    s = make.shape
    h, w = make(s.K, s.M, s.D), make.in_row(s.K, s.V, s.D, scale=s.D**-0.5)
    target, z_loss = make.tokens(s.K, s.M, below=s.V), _z_losses(make)
    h_leaf, w_leaf = _leaf(h), _leaf(w)
    nll, z, total = _losses(h_leaf @ w_leaf.mT, target, z_loss)
    dh, dw = torch.autograd.grad(total / s.M, (h_leaf, w_leaf))
    got_dw = torch.full_like(w, torch.nan)
    got_nll, got_z, got_dh = fused.linear_cross_entropy(
        h, w, target, z_loss, scale=1 / s.M, dw_out_KVD=got_dw, rows=s.M // 2 + 1
    )
    return _worst([(got_nll, nll.detach()), (got_z, z.detach()), (got_dh, dh), (got_dw, dw)])


def _prediction(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import prediction as fused

    make = _Maker(device, dtype)
    s = make.shape
    V = min(s.V, 250)
    x, gain, w = make(s.K, s.M, s.D), make.in_row(s.K, s.D), make.in_row(s.K, V, s.D)
    target, z_loss = make.tokens(s.K, s.M, below=V), _z_losses(make)
    h = rms_norm.reference(x.float(), gain.float())
    # The product takes h in its own type.
    logit = _leaf(h.to(dtype).float() @ w.float().mT)
    nll, _, total = _losses(logit, target, z_loss)
    (dlogit,) = torch.autograd.grad(total / s.M, logit)
    alone = fused.loss(x, gain, w, target, None, scale=None)[0]
    peaks: list[Tensor] = []
    got_nll, got_dlogit, got_h, rstd = fused.loss(
        x, gain, w, target, z_loss, scale=1 / s.M, peaks=peaks
    )
    return _worst(
        [
            (got_nll, nll.detach()),
            (alone, nll.detach()),
            (got_dlogit, dlogit),
            (got_h, h),
            (rstd, _rstd(x)),
            (peaks[0], logit.detach().abs().amax(dim=(1, 2))),
        ]
    )


def _data_order(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import data_order as fused

    make = _Maker(device, dtype)
    s = make.shape
    text = make.tokens(5000, below=256).to(torch.uint8)
    # Steps of the first, the second and a late epoch.
    seed = torch.arange(s.K, device=device) + 41
    step = torch.arange(s.K, device=device) * 1000 + 3
    first = data_order.reference(seed, step[None], tokens=len(text), batch=s.B, context=s.T)[0]
    want = data_order.gather(text, first, context=s.T)
    got = fused.gather(text, seed, step, batch=s.B, context=s.T)
    return _worst((mine, theirs.flatten(1)) for mine, theirs in zip(got, want, strict=True))


def _tables(make: _Maker, *, runs: int, vocabulary: int, add: bool) -> float:
    from wesar_sweep.kernels.fused import embedding as fused

    s = make.shape
    token, dx = make.tokens(runs, s.M, below=vocabulary), make(runs, s.M, s.D)
    w, out = make.in_row(runs, vocabulary, s.D), make.in_row(runs, vocabulary, s.D)
    scale = torch.linspace(1.0, 3.0, runs, device=make.device)
    leaf = _leaf(w)
    x = embedding.reference(token.long().unsqueeze(1), leaf).squeeze(1) * scale.view(-1, 1, 1)
    (want,) = torch.autograd.grad(x, leaf, dx.float())
    if add:
        want = want + out.float()
    fused.backward(dx, token, vocabulary=vocabulary, out_KVD=out, scale_K=scale, accumulate=add)
    return _worst([(fused.forward(token, w, scale), x.detach()), (out, want)])


def _embedding(device: torch.device, dtype: torch.dtype) -> float:
    make = _Maker(device, dtype)
    return max(
        _tables(make, runs=make.shape.K, vocabulary=make.shape.V, add=add) for add in (False, True)
    )


def _large_embedding(device: torch.device, dtype: torch.dtype) -> float:
    # A program a table row: one run is enough for the interpreter.
    runs, vocabulary = (1, 1031) if device.type == "cpu" else (3, 5003)
    return _tables(_Maker(device, dtype), runs=runs, vocabulary=vocabulary, add=False)


def _gelu(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import feed_forward as fused

    make = _Maker(device, dtype)
    s = make.shape
    u, da = make(s.K, s.M, s.F, scale=2.0), make(s.K, s.M, s.F)
    leaf = _leaf(u)
    a = feed_forward.gelu_reference(leaf)
    (du,) = torch.autograd.grad(a, leaf, da.float())
    return _worst([(fused.gelu_forward(u), a.detach()), (fused.gelu_backward(da, u), du)])


def _swiglu(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import feed_forward as fused

    make = _Maker(device, dtype)
    s = make.shape
    u, da = make(s.K, s.M, 2 * s.F, scale=2.0), make(s.K, s.M, s.F)
    leaf = _leaf(u)
    a = feed_forward.swiglu_reference(*leaf.chunk(2, dim=2))
    (du,) = torch.autograd.grad(a, leaf, da.float())
    return _worst([(fused.swiglu_forward(u), a.detach()), (fused.swiglu_backward(da, u), du)])


def _rstd(x: Tensor) -> Tensor:
    """1/√(mean + ε) of the last axis."""
    return (x.float().square().mean(-1) + rms_norm.EPS).rsqrt()


def _linear_forward(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import linear as fused

    make = _Maker(device, dtype)
    s = make.shape
    x, gain, residual = make(s.K, s.M, s.D), make.in_row(s.K, s.D), make(s.K, s.M, s.D)
    up, down = (make.in_row(s.K, *sizes, scale=s.D**-0.5) for sizes in ((s.F, s.D), (s.D, s.F)))
    u = make(s.K, s.M, s.F)
    h = rms_norm.reference(x.float(), gain.float())
    y, got_h, got_rstd = fused.norm_linear(x, gain, up)
    plain = residual.float() + u.float() @ down.float().mT
    active = residual.float() + F.gelu(u.float()) @ down.float().mT
    turned = []
    if fused.turns(s.E):
        angles = rope.tables(s.T, s.E, device=device)
        qkv = make.in_row(s.K, 3 * s.D, s.D, scale=s.D**-0.5)
        got = fused.norm_linear(x, gain, qkv, rotation=angles)[0]
        turned.append((got, _rotated(h @ qkv.float().mT, angles, s)))
    return _worst(
        [
            (y, h @ up.float().mT),
            (got_h, h),
            (got_rstd, _rstd(x)),
            (fused.linear_add(u, down, residual), plain),
            (fused.gelu_linear_add(u, down, residual), active),
            *turned,
        ]
    )


def _linear_backward(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import gelu_gradients
    from wesar_sweep.kernels.fused import linear as fused
    from wesar_sweep.kernels.fused.rms_norm import sum_partials

    make = _Maker(device, dtype)
    s = make.shape
    x, gain, dy = make(s.K, s.M, s.D), make.in_row(s.K, s.D), make(s.K, s.M, s.D)
    up, down = (make.in_row(s.K, *sizes, scale=s.D**-0.5) for sizes in ((s.F, s.D), (s.D, s.F)))
    u = make(s.K, s.M, s.F)
    u_leaf, x_leaf, gain_leaf = _leaf(u), _leaf(x), _leaf(gain)
    a = F.gelu(u_leaf)
    (du,) = torch.autograd.grad(a @ down.float().mT, u_leaf, dy.float())
    product = rms_norm.reference(x_leaf, gain_leaf) @ up.float().mT
    dx, dgain = torch.autograd.grad(product, (x_leaf, gain_leaf), u.float())
    got_du, got_a = fused.gelu_linear_backward(dy, down, u)
    dw_down, dw_up = torch.empty_like(down), torch.empty_like(up)
    again_du = gelu_gradients.backward(dy, down, u, x, dw_down_KDF=dw_down, dw_up_KFD=dw_up)
    partial = x.new_empty(s.K, fused.partial_sums(s.M), s.D, dtype=torch.float32)
    got_dx = fused.linear_norm_backward(u, up, x, _rstd(x), gain, dy, partial_KBI=partial)
    return _worst(
        [
            (got_du, du),
            (got_a, a.detach()),
            (again_du, du),
            (dw_down, dy.float().mT @ a.detach()),
            (dw_up, du.mT @ x.float()),
            (got_dx, dx + dy.float()),
            (sum_partials(partial), dgain),
        ]
    )


def _rms_norm(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import rms_norm as fused

    make = _Maker(device, dtype)
    s = make.shape
    x, delta, dy, dsum = (make(s.K, s.M, s.D) for _ in range(4))
    gain = make.in_row(s.K, s.D)
    total = (x.float() + delta.float()).to(dtype)
    leaf, gain_leaf = _leaf(total), _leaf(gain)
    y = rms_norm.reference(leaf, gain_leaf)
    dx, dgain = torch.autograd.grad(y, (leaf, gain_leaf), dy.float())
    got_sum, got_y, got_rstd = fused.forward(x, gain, delta)
    partial = x.new_empty(s.K, fused.partial_sums(s.K, s.M, s.D), s.D, dtype=torch.float32)
    got_dx = fused.backward(dy, total, _rstd(total), gain, dsum, partial_KBD=partial)
    return _worst(
        [
            (got_sum, total),
            (got_y, y.detach()),
            (got_rstd, _rstd(total)),
            (got_dx, dx + dsum.float()),
            (fused.sum_partials(partial), dgain),
        ]
    )


def _rope(device: torch.device, dtype: torch.dtype) -> float:
    from wesar_sweep.kernels.fused import rope as fused

    make = _Maker(device, dtype)
    s = make.shape
    qkv, dqk = make(s.K, s.M, 3 * s.D), make(s.K, s.M, 2 * s.D)
    gain = make.in_row(s.K, 2, s.E)
    cos, sin = rope.tables(s.T, s.E, device=device)
    leaf, gain_leaf = _leaf(qkv), _leaf(gain)
    parts = [
        rope.reference(rms_norm.reference(x.unflatten(1, (s.B, s.T)), one), cos, sin)
        for x, one in zip(
            leaf[..., : 2 * s.D].unflatten(2, (2, s.H, s.E)).unbind(2),
            gain_leaf.unbind(1),
            strict=True,
        )
    ]
    want = torch.stack(parts, dim=3).reshape(s.K, s.M, 2 * s.D)
    dqkv, dgain = torch.autograd.grad(want, (leaf, gain_leaf), dqk.float())
    got, statistics = fused.forward(qkv, cos, sin, gain_K2E=gain, **s.heads)
    out = torch.zeros_like(qkv)
    dq, dk = dqk.chunk(2, dim=2)
    got_dgain = fused.backward(dq, dk, qkv, cos, sin, statistics, gain, out=out, **s.heads)
    return _worst([(got, want.detach()), (out, dqkv), (got_dgain, dgain)])


def _optimizer(device: torch.device, dtype: torch.dtype) -> float:
    """Two matrices a run of each form (scalar, row, spectral), one update."""
    from wesar_sweep.kernels.fused import optimizer as fused

    make = _Maker(device, dtype)
    s, matrices = make.shape, 2
    size, rows = matrices * s.F * s.D, matrices * s.F
    # Row: matrices, one norm's gains, gates, row gains.
    gains = slice(size, size + s.D)
    gates = slice(gains.stop, gains.stop + matrices)
    row_gains = slice(gates.stop, gates.stop + rows)
    f32 = torch.float32
    parameter = make(s.K, row_gains.stop, dtype=f32)
    parameter[:, gains.start :] = 1 + 0.1 * parameter[:, gains.start :]
    first = make(s.K, row_gains.stop, scale=0.1, dtype=f32)
    second = make(s.K, row_gains.stop, dtype=f32).square() + 0.1
    gradient, effective = make(s.K, gains.stop), make(s.K, gains.stop)
    left, right = (F.normalize(make(s.K, matrices, wide, dtype=f32), dim=2) for wide in (s.F, s.D))
    w_KMOI = parameter[:, :size].unflatten(1, (matrices, s.F, s.D))
    norm_KM = rp.spectral_norm(w_KMOI, left, right)
    form_KM = torch.arange(s.K, device=device).unsqueeze(1).expand(s.K, matrices).contiguous()
    trains_KM = form_KM != 1

    def column(*values: float) -> Tensor:
        return torch.tensor(values, device=device)

    recipe = adamw.AdamW(
        lr_K=column(1e-2, 3e-2, 1e-1),
        beta1_K=column(0.9, 0.8, 0.9),
        beta2_K=column(0.95, 0.99, 0.9),
        eps_K=column(1e-8, 1e-8, 1e-6),
        weight_decay_K=column(0.1, 0.0, 0.3),
        clip_K=column(1.0, math.inf, 0.5),
        step_K=column(1.0, 5.0, 300.0),
    )
    plain = _Plain(*(x.clone() for x in (parameter, first, second, left, right)))
    want_norm_K, want_effective = _plain_update(
        plain,
        gradient.float(),
        recipe=recipe,
        shape=(matrices, s.F, s.D),
        tail=(gains, gates, row_gains),
        trains_KM=trains_KM,
    )
    update = fused.update(
        parameter,
        first,
        second,
        gradient,
        effective,
        adamw=recipe,
        places=fused.Places(
            (fused.Group("up", 0, matrices, s.F, s.D, 0, 0),), gains, gates, row_gains
        ),
        forms=fused.Forms(form_KM, trains_KM, {"up": left}, {"up": right}, norm_KM),
    )
    # Power iteration is for spectral runs alone.
    return _worst(
        [
            (update.grad_norm_K, want_norm_K),
            (effective, want_effective),
            (parameter, plain.parameter),
            (first, plain.first),
            (second, plain.second),
            (left[2], plain.left[2]),
            (right[2], plain.right[2]),
        ]
    )


@dataclass(frozen=True, slots=True)
class _Plain:
    """What an update changes in place."""

    parameter: Tensor
    first: Tensor
    second: Tensor
    left: Tensor
    right: Tensor


def _plain_update(
    state: _Plain,
    gradient: Tensor,
    *,
    recipe: adamw.AdamW,
    shape: tuple[int, int, int],
    tail: tuple[slice, slice, slice],
    trains_KM: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same update by the references, in place: run 0 scalar, run 1 row, run 2 spectral.

    Returns:
        (norm of each run's gradient; the new effective weights).
    """
    gains, gates, row_gains = tail
    matrices = gains.start
    parameter, left, right = state.parameter, state.left, state.right
    w, g = (x[:, :matrices].unflatten(1, shape) for x in (parameter, gradient))
    # Of each run alone, as [1, M, ...].
    scalar, row, spectral = (slice(run, run + 1) for run in range(3))
    gate, gain = parameter[:, gates], parameter[:, row_gains].unflatten(1, shape[:2])
    grad = torch.zeros_like(parameter)
    dw = grad[:, :matrices].unflatten(1, shape)
    dgate = grad[:, gates]
    drow = grad[:, row_gains].unflatten(1, shape[:2])
    dw[scalar], dgate[scalar] = rp.scalar_pullback(g[scalar], w[scalar], gate[scalar])
    dw[row], drow[row] = rp.row_pullback(g[row], w[row], gain[row])
    dw[spectral], dgate[spectral] = rp.spectral_pullback(
        g[spectral], w[spectral], gate[spectral], left[spectral], right[spectral]
    )
    dgate.mul_(trains_KM)
    grad[:, gains] = gradient[:, gains]
    grad_norm_K = torch.linalg.vector_norm(grad, dim=1)
    adamw.reference(
        parameter,
        state.first,
        state.second,
        grad,
        grad_norm_K=grad_norm_K,
        adamw=recipe,
        decayed=matrices,
    )
    left[spectral], right[spectral] = rp.power_iteration(w[spectral], left[spectral])
    effective = torch.empty_like(gradient)
    bar = effective[:, :matrices].unflatten(1, shape)
    bar[scalar] = rp.scalar_effective(w[scalar], gate[scalar])
    bar[row] = rp.row_effective(w[row], gain[row])
    bar[spectral] = rp.spectral_effective(
        w[spectral], gate[spectral], left[spectral], right[spectral]
    )
    effective[:, gains] = parameter[:, gains]
    return grad_norm_K, effective
