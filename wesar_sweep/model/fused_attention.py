"""Attention by the fused kernels: head norms, rotation, mixing, and their gradients.

Where the rotation goes depends on who else is there: inside the product before it (narrow models),
inside attention's own backward pass (contexts of `kernels.fused.attention`), or as a pass of its
own, also wherever norms of the heads stand before it. To keep attention within documents costs our
own kernels next to nothing, and they skip what is not seen; the library's are slower for it and
take memory (`kernels.fused.library_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from wesar_sweep.config.run import Architecture
from wesar_sweep.kernels import attention as attention_reference
from wesar_sweep.kernels import rope as rope_tables
from wesar_sweep.kernels.fused import attention, library_attention, linear, rope
from wesar_sweep.model.direction import Direction

PROBE_BYTES = 2**29
"""Attention logits that a probe makes at a time, where the library keeps them to itself."""


class _Heads(TypedDict):
    """How a row of D is divided, as the ops of attention take it."""

    heads: int
    head_width: int
    context: int


@dataclass(frozen=True, slots=True)
class DocumentMask:
    """What keeps attention within documents, for all layers of a pass."""

    first_KM: Tensor
    """First key that each query sees, int32."""
    bias: Tensor | None
    """The same for the library; None where it is not used."""


@dataclass(slots=True)
class Attended:
    """What the backward pass needs of attention."""

    qkv_KMX: Tensor
    """From the product; rotated where that product rotates."""
    statistics: Tensor | None
    """Of the query and key norms."""
    q_KMD: Tensor
    """Rotated."""
    k_KMD: Tensor
    v_KMD: Tensor
    mixed_KMD: Tensor
    lse: Tensor | None
    """Of `fused.attention`."""
    tape: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """Of the library's."""
    mask: DocumentMask | None


class FusedAttention:
    """The passes through attention of one architecture.

    Args:
        architecture: Its shape.
        device: Where to.
        dtype: Of activations.
        narrow: Whether the product of queries, keys and values takes the rotation inside.
        direction: Of the kernels of the whole pass.
        document_end: The token past which attention does not look back; None: it does.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        device: torch.device,
        dtype: torch.dtype,
        narrow: bool,
        direction: Direction,
        document_end: int | None = None,
    ) -> None:
        a = self._a = architecture
        self._direction, self._dtype, self._document_end = direction, dtype, document_end
        self._own = attention.use_fused(a.context, a.head_width, dtype)
        self._heads = _Heads(heads=a.heads, head_width=a.head_width, context=a.context)
        self._rotation: tuple[Tensor, Tensor] | None = None
        if a.position == "rope":
            self._rotation = rope_tables.tables(a.context, a.head_width, device=device)
        inside = self._rotation if not a.qk_norm and linear.turns(a.head_width) else None
        self.into_product = inside if narrow else None
        """The rotation that the product before is to make."""
        self._out_of_attention = inside if self._own else None

    def mask(self, token_KM: Tensor) -> DocumentMask | None:
        """What keeps attention within the documents of these tokens; None where nothing does."""
        if self._document_end is None:
            return None
        token_KBT = token_KM.unflatten(1, (-1, self._a.context))
        first_KBT = attention_reference.first_keys(token_KBT, document_end=self._document_end)
        first_KM = first_KBT.flatten(1)
        if self._own:
            return DocumentMask(first_KM, None)
        bias = library_attention.bias(first_KM, context=self._a.context, dtype=self._dtype)
        return DocumentMask(first_KM, bias)

    def forward(
        self,
        qkv_KMX: Tensor,
        gain_K2E: Tensor | None,
        *,
        mask: DocumentMask | None,
        peaks: list[Tensor] | None,
    ) -> Attended:
        """Mixed values, and what the backward pass needs.

        Args:
            qkv_KMX: Packed rows, from the product.
            gain_K2E: Gains of the query and key norms, if there are any.
            mask: Of the tokens (`mask`).
            peaks: Takes the largest attention logit of each run, float32 [K], where given.
        """
        qk_KMY, statistics = qkv_KMX[..., : 2 * self._a.width], None
        rotate = self._rotation is not None and self.into_product is None
        if gain_K2E is not None or rotate:
            cos_TE, sin_TE = self._rotation or (None, None)
            qk_KMY, statistics = rope.forward(
                qkv_KMX, cos_TE, sin_TE, gain_K2E=gain_K2E, reverse=self._direction.turn(),
                **self._heads,
            )  # fmt: skip
        q_KMD, k_KMD = qk_KMY.chunk(2, dim=2)
        v_KMD = qkv_KMX.chunk(3, dim=2)[2]
        lse, tape = None, None
        first_KM = None if mask is None else mask.first_KM
        if self._own:
            mixed_KMD, lse = attention.forward(
                q_KMD, k_KMD, v_KMD, first_KM=first_KM, peaks=peaks,
                reverse=self._direction.turn(), **self._heads,
            )  # fmt: skip
        else:
            self._direction.up()
            bias = None if mask is None else mask.bias
            mixed_KMD, tape = library_attention.forward(
                q_KMD, k_KMD, v_KMD, bias=bias, **self._heads
            )
            if peaks is not None:
                peaks.append(self._largest_logit(q_KMD, k_KMD, first_KM))
        return Attended(qkv_KMX, statistics, q_KMD, k_KMD, v_KMD, mixed_KMD, lse, tape, mask)

    def backward(
        self, dy_KMD: Tensor, a: Attended, gain_K2E: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(packed gradient of queries, keys, values, float32 gradient of the head norms' gains)."""
        dqkv_KMX = torch.empty_like(a.qkv_KMX)
        into_q, into_k, into_v = dqkv_KMX.chunk(3, dim=2)
        apart = gain_K2E is not None or self._rotation is not None
        if a.tape is not None:
            self._direction.up()
            dq_KMD, dk_KMD, dv_KMD = library_attention.backward(dy_KMD, a.tape, **self._heads)
            into_v.copy_(dv_KMD)
            if not apart:
                into_q.copy_(dq_KMD)
                into_k.copy_(dk_KMD)
        else:
            assert a.lse is not None
            attention.backward(
                dy_KMD, a.q_KMD, a.k_KMD, a.v_KMD, a.mixed_KMD, a.lse, out=dqkv_KMX,
                first_KM=None if a.mask is None else a.mask.first_KM,
                rotation=self._out_of_attention, reverse=self._direction.turn(), **self._heads,
            )  # fmt: skip
            apart = apart and self._out_of_attention is None
            dq_KMD, dk_KMD = into_q, into_k
        if not apart:
            return dqkv_KMX, None
        cos_TE, sin_TE = self._rotation or (None, None)
        dgain_K2E = rope.backward(
            dq_KMD, dk_KMD, a.qkv_KMX, cos_TE, sin_TE, a.statistics, gain_K2E,
            out=dqkv_KMX, reverse=self._direction.turn(), **self._heads,
        )  # fmt: skip
        return dqkv_KMX, dgain_K2E

    def _largest_logit(self, q_KMD: Tensor, k_KMD: Tensor, first_KM: Tensor | None) -> Tensor:
        """Of each run, [K]; some runs at a time, for a probe alone."""
        a = self._a
        shape = (-1, a.context, a.heads, a.head_width)
        logits_bytes = 4 * a.heads * a.context * q_KMD.shape[1]
        runs = max(1, PROBE_BYTES // logits_bytes)
        found = []
        for start in range(0, len(q_KMD), runs):
            some = slice(start, start + runs)
            q_RMD, k_RMD = q_KMD[some], k_KMD[some]
            first = None if first_KM is None else first_KM[some].unflatten(1, shape[:2])
            q, k = q_RMD.unflatten(2, shape[2:]), k_RMD.unflatten(2, shape[2:])
            q, k = q.unflatten(1, shape[:2]), k.unflatten(1, shape[:2])
            found.append(attention_reference.max_logit(q, k, first))
        return torch.cat(found)
