"""Contests of attention, with the rotation of queries and keys and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from contest import Contest, Work, random
from gpu import Case
from torch import Tensor

from wesar_sweep.kernels import attention as attention_reference
from wesar_sweep.kernels import rope as rope_reference


def attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Attention of rotated queries and keys and its gradients by them, against torch's."""
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
    elements, sums, scores = _attention_work(qkv, case)
    return Contest(
        op="attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_attention_of(case),
        forward=forward,
        work=Work(4 * elements + sums, 4.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        backward=backward,
        backward_work=Work(8 * elements + sums, 10.0 * scores * a.head_width),
        tiles={
            "forward": lambda t: lambda: forward(t),
            "backward": lambda t: lambda: backward(grads, t),
        },
        chosen={
            "forward": fused.tiles(a.context, a.head_width),
            "backward": fused.backward_tiles(a.context, a.head_width),
        },
    )


def rotated_attention(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Rotation and attention, one after the other; backward the rotation is inside of attention."""
    from wesar_sweep.kernels.fused import attention as fused
    from wesar_sweep.kernels.fused import rope as fused_rope

    a = case.architecture
    K, M, D = case.slots, a.tokens_per_step, a.width
    shape = {"heads": a.heads, "head_width": a.head_width, "context": a.context}
    rotation = rope_reference.tables(a.context, a.head_width, device=device)
    qkv = random(K, M, 3 * D, like=(device, dtype))
    v, out = qkv[..., 2 * D :], torch.empty_like(qkv)
    kept: dict[str, Tensor] = {}

    def forward() -> tuple[Tensor, ...]:
        kept["qk"], _ = fused_rope.forward(qkv, *rotation, **shape)
        kept["y"], kept["lse"] = fused.forward(*kept["qk"].chunk(2, dim=2), v, **shape)
        return (kept["y"],)

    def gradients(dy: Tensor, **options: Any) -> None:
        q, k = kept["qk"].chunk(2, dim=2)
        fused.backward(dy, q, k, v, kept["y"], kept["lse"], out=out, **options, **shape)

    def backward(grads: Sequence[Tensor], tiles: Any = None) -> tuple[Tensor, ...]:
        gradients(grads[0], rotation=rotation, tiles_=tiles)
        return (out,)

    def backward_apart() -> object:
        gradients(grads[0])
        dq, dk, _ = out.chunk(3, dim=2)
        return fused_rope.backward(dq, dk, qkv, *rotation, None, None, out=out, **shape)

    grads = [random(K, M, D, like=(device, dtype))]
    elements, sums, scores = _attention_work(qkv, case)
    return Contest(
        op="rotated_attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_attention_of(case, rotation),
        forward=forward,
        # The rotation reads and writes queries and keys: 4 D more.
        work=Work(8 * elements + sums, 4.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        backward=backward,
        backward_work=Work(8 * elements + sums, 10.0 * scores * a.head_width),
        apart={"backward": backward_apart},
        tiles={"backward": lambda t: lambda: backward(grads, t)},
        chosen={"backward": fused.backward_tiles(a.context, a.head_width)},
    )


def _attention_work(qkv_KMX: Tensor, case: Case) -> tuple[float, float, float]:
    """(Bytes of queries alone, bytes of the kept sums, scores that are not masked).

    FLOPs are those of the products that must be: two of E a score forward, and backward five: the
    scores, their gradient, and those of queries, keys and values.
    """
    a = case.architecture
    return (
        qkv_KMX.numel() // 3 * qkv_KMX.element_size(),
        4 * case.slots * a.tokens_per_step * a.heads,
        case.slots * a.batch * a.heads * a.context**2 / 2,
    )


def _attention_of(
    case: Case, rotation: tuple[Tensor, Tensor] | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    a = case.architecture

    def reference(qkv_KMX: Tensor) -> tuple[Tensor, ...]:
        if rotation is not None:
            qkv_KMX = rotate(qkv_KMX, case, rotation)
        heads = qkv_KMX.unflatten(2, (3, a.heads, a.head_width)).unflatten(1, (-1, a.context))
        y_KBTHE = attention_reference.attention(*heads.unbind(3))
        return (y_KBTHE.flatten(3, 4).flatten(1, 2),)

    return reference


def rotate(qkv_KMX: Tensor, case: Case, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries and keys of packed rows rotated, values as they are, in plain torch."""
    a = case.architecture
    qk_KMX, v_KMD = qkv_KMX.split((2 * a.width, a.width), dim=2)
    heads = qk_KMX.unflatten(2, (2 * a.heads, a.head_width)).unflatten(1, (-1, a.context))
    turned = rope_reference.reference(heads, *rotation).flatten(3, 4).flatten(1, 2)
    return torch.cat((turned, v_KMD), dim=2)


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

    elements, sums, scores = _attention_work(qkv, case)
    return Contest(
        op="library_attention",
        case=case,
        inputs={"qkv_KMX": qkv},
        reference=_attention_of(case),
        forward=forward,
        work=Work(12 * elements + 2 * sums, 14.0 * scores * a.head_width),
        wrt=("qkv_KMX",),
        joint=True,
    )
