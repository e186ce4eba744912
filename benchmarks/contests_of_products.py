"""Contests of ops with matrix products inside, attention apart, and of the optimizer pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from contest import Contest, Work, random
from contests_of_attention import rotate
from gpu import Case
from torch import Tensor

from wesar_sweep.kernels import rms_norm as rms_norm_reference
from wesar_sweep.kernels import rope as rope_reference


def norm_qkv(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Norm and product to queries, keys and values; gradients by x and gain, residual included."""
    return _norm_linear("norm_qkv", case, 3 * case.width, device, dtype)


def norm_qkv_rotated(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """The same with queries and keys rotated inside; backward attention rotates, not this op."""
    from wesar_sweep.kernels.fused import linear as fused
    from wesar_sweep.kernels.fused import rms_norm as fused_norm
    from wesar_sweep.kernels.fused import rope as fused_rope

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    rotation = rope_reference.tables(a.context, a.head_width, device=device)
    x, gain, w = _norm_linear_inputs(case, 3 * D, device, dtype)

    def reference(x_KMD: Tensor, gain_KD: Tensor, w_KOD: Tensor) -> tuple[Tensor, ...]:
        h_KMD = rms_norm_reference.reference(x_KMD, gain_KD)
        return (rotate(torch.bmm(h_KMD, w_KOD.transpose(1, 2)), case, rotation),)

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        return (fused.norm_linear(x, gain, w, rotation=rotation, tiles_=tiles)[0],)

    def apart() -> object:
        _, h, _ = fused_norm.forward(x, gain)
        qkv = torch.bmm(h, w.transpose(1, 2))
        return fused_rope.forward(
            qkv, *rotation, heads=a.heads, head_width=a.head_width, context=a.context
        )

    return Contest(
        op="norm_qkv_rotated",
        case=case,
        inputs={"x_KMD": x, "gain_KD": gain, "w_KOD": w},
        reference=reference,
        forward=forward,
        work=Work((5 * K * M * D + w.numel()) * x.element_size(), 2.0 * K * M * D * 3 * D),
        apart={"forward": apart},
        tiles={"forward": lambda t: lambda: forward(t)},
        chosen={"forward": fused._TURNED},
    )


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
    x, gain, w = _norm_linear_inputs(case, outputs, device, dtype)

    def reference(x_KMD: Tensor, gain_KD: Tensor, w_KOD: Tensor) -> tuple[Tensor, ...]:
        h_KMD = rms_norm_reference.reference(x_KMD, gain_KD)
        # The sum stands for the residual stream that goes on past the norm.
        return torch.bmm(h_KMD, w_KOD.transpose(1, 2)), x_KMD + 0

    kept: dict[str, Tensor] = {}

    def forward(tiles: Any = None) -> tuple[Tensor, ...]:
        y, _, kept["rstd"] = fused.norm_linear(x, gain, w, tiles_=tiles)
        return y, x

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        t = tiles or fused._NORM_BACKWARD
        parts = x.new_empty(K, triton.cdiv(M, t.rows), D, dtype=torch.float32)
        dx = fused.linear_norm_backward(
            grads[0], w, x, kept["rstd"], gain, grads[1], partial_KBI=parts, tiles_=t
        )
        return dx, fused_norm.sum_partials(parts)

    def forward_apart() -> object:
        _, h, _ = fused_norm.forward(x, gain)
        return torch.bmm(h, w.transpose(1, 2))

    def backward_apart() -> object:
        dh = torch.bmm(grads[0], w)
        parts = x.new_empty(K, fused_norm.partial_sums(K, M, D), D, dtype=torch.float32)
        dx = fused_norm.backward(dh, x, kept["rstd"], gain, grads[1], partial_KBD=parts)
        return dx, fused_norm.sum_partials(parts)

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
        chosen={"forward": fused._FORWARD, "backward": fused._NORM_BACKWARD},
    )


def _norm_linear_inputs(
    case: Case, outputs: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual stream, gain and weights."""
    K, M, D = case.slots, case.batch * case.context, case.width
    like = (device, dtype)
    x, w = random(K, M, D, like=like), random(K, outputs, D, like=like, scale=D**-0.5)
    return x, random(K, D, like=like, scale=0.1) + 1, w


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
        work=Work((3 * x.numel() + w.numel()) * x.element_size(), 2.0 * x.numel() * D),
        apart={"forward": lambda: torch.baddbmm(residual, x, w.transpose(1, 2))},
        tiles={"forward": lambda t: lambda: fused.linear_add(x, w, residual, tiles_=t)},
        chosen={"forward": fused._LINEAR_ADD},
    )


def gelu_linear_add(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Activation, product down and residual add; the gradient by what was activated.

    The weight's gradient needs the activation: the op makes it again as it goes back, where its
    parts have kept it, so their backward pass does not write it.
    """
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
        return fused_feed_forward.gelu_backward(da, u)

    grads = [random(K, M, D, like=like)]
    size, flops = u.element_size(), 2.0 * u.numel() * D
    return Contest(
        op="gelu_linear_add",
        case=case,
        inputs={"u_KMF": u, "w_KDF": w, "residual_KMD": residual},
        reference=reference,
        forward=lambda: (fused.gelu_linear_add(u, w, residual),),
        work=Work((u.numel() + 2 * residual.numel() + w.numel()) * size, flops),
        wrt=("u_KMF",),
        backward=backward,
        backward_work=Work((3 * u.numel() + residual.numel() + w.numel()) * size, flops),
        apart={"forward": forward_apart, "backward": backward_apart},
        tiles={
            "forward": lambda t: lambda: fused.gelu_linear_add(u, w, residual, tiles_=t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen={"forward": fused._GELU_LINEAR_ADD, "backward": fused._GELU_BACKWARD},
    )


def gelu_gradients(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Back through the product down and GELU, with the gradients of both products' weights."""
    from wesar_sweep.kernels.fused import gelu_gradients as fused
    from wesar_sweep.kernels.fused import linear as fused_linear

    K, M, D = case.slots, case.batch * case.context, case.width
    hidden = case.architecture.ffn_width
    like = (device, dtype)
    dy, h = random(K, M, D, like=like), random(K, M, D, like=like)
    u, w = random(K, M, hidden, like=like), random(K, D, hidden, like=like, scale=D**-0.5)

    def reference(
        dy_KMD: Tensor, w_KDF: Tensor, u_KMF: Tensor, h_KMD: Tensor
    ) -> tuple[Tensor, ...]:
        # gelu'(u) = Φ(u) + u φ(u)
        cdf = 0.5 * (1 + torch.erf(u_KMF * 0.5**0.5))
        density = torch.exp(-0.5 * u_KMF.square()) * (2 * torch.pi) ** -0.5
        du_KMF = torch.bmm(dy_KMD, w_KDF) * (cdf + u_KMF * density)
        dw_down_KDF = torch.bmm(dy_KMD.mT, u_KMF * cdf)
        return du_KMF, dw_down_KDF, torch.bmm(du_KMF.mT, h_KMD)

    def forward() -> tuple[Tensor, ...]:
        dw_down, dw_up = torch.empty_like(w), w.new_empty(K, hidden, D)
        du = fused.backward(dy, w, u, h, dw_down_KDF=dw_down, dw_up_KFD=dw_up)
        return du, dw_down, dw_up

    def apart() -> object:
        du, a = fused_linear.gelu_linear_backward(dy, w, u)
        return du, torch.bmm(dy.mT, a), torch.bmm(du.mT, h)

    elements = 2 * u.numel() + 2 * dy.numel() + 3 * w.numel()
    return Contest(
        op="gelu_gradients",
        case=case,
        inputs={"dy_KMD": dy, "w_KDF": w, "u_KMF": u, "h_KMD": h},
        reference=reference,
        forward=forward,
        work=Work(elements * dy.element_size(), 6.0 * u.numel() * D),
        apart={"forward": apart},
    )


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
    rows.load(range(K), [run] * K)
    table.load(range(K), [run] * K)
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
            forms=fused.Forms(
                rows.form_KM, rows.gate_trains_KM, rows.left, rows.right, rows.spectral_norm_KM
            ),
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
        compiles=False,
        work=Work(K * layout.size * (28 + 3 * size)),
    )
