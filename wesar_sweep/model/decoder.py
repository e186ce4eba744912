"""The decoder-only Transformer over effective weights, K runs at once.

Pre-norm RMSNorm, rotary positions, no biases, GELU or SwiGLU (Nishida et al. 2024, §4.1). The
forward pass knows nothing of gates or methods: it sees the effective weight W̄ of each matrix.
Nothing here reduces over K.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wesar_sweep.config.run import Architecture
from wesar_sweep.kernels import attention, embedding, feed_forward, linear, rms_norm, rope
from wesar_sweep.model.layout import Layout


@dataclass(frozen=True, slots=True)
class EffectiveWeights:
    """What the forward pass reads; each a leaf of the autograd graph when training."""

    embed_KVD: Tensor
    qkv_KMDD: Tensor
    """M = 3N matrices, query, key, value a layer."""
    o_KMDD: Tensor
    up_KMFD: Tensor
    """M = N, or 2N with SwiGLU (up, gate a layer)."""
    down_KMDF: Tensor
    predict_KVD: Tensor | None
    """None where the embedding is the prediction matrix."""
    norm_KD: Tensor
    """[K, norms, D] gains, in the order of use."""
    qk_norm_KE: Tensor | None
    """[K, 2N, E] gains of query and key norms."""

    @property
    def prediction_KVD(self) -> Tensor:
        """The prediction matrix, whichever it is."""
        return self.embed_KVD if self.predict_KVD is None else self.predict_KVD

    def leaves(self) -> list[Tensor]:
        """All tensors, in the order of `Layout.groups`, then the gains."""
        named = [self.embed_KVD, self.qkv_KMDD, self.o_KMDD, self.up_KMFD, self.down_KMDF]
        return named + [
            x for x in (self.predict_KVD, self.norm_KD, self.qk_norm_KE) if x is not None
        ]


def effective_weights(row_KP: Tensor, layout: Layout, *, train: bool) -> EffectiveWeights:
    """The weights as views of the flat effective rows.

    Args:
        row_KP: [K, `layout.effective_size`].
        layout: Where each matrix lies.
        train: Make each view a leaf that gathers a gradient.
    """
    a = layout.architecture

    def leaf(view: Tensor) -> Tensor:
        return view.detach().requires_grad_(train)

    views = {group.name: group.view(row_KP) for group in layout.groups}
    norm_KND = row_KP[:, layout.norm_gains].unflatten(1, (layout.norms, a.width))
    qk_KNE = (
        row_KP[:, layout.qk_gains].unflatten(1, (2 * a.depth, a.head_width)) if a.qk_norm else None
    )
    return EffectiveWeights(
        embed_KVD=leaf(views["embed"].squeeze(1)),
        qkv_KMDD=leaf(views["qkv"]),
        o_KMDD=leaf(views["o"]),
        up_KMFD=leaf(views["up"]),
        down_KMDF=leaf(views["down"]),
        predict_KVD=leaf(views["predict"].squeeze(1)) if "predict" in views else None,
        norm_KD=leaf(norm_KND),
        qk_norm_KE=leaf(qk_KNE) if qk_KNE is not None else None,
    )


@dataclass(frozen=True, slots=True)
class EmbeddingSwitches:
    """What methods do to the embedding output, a run; None where no run of the stack does it."""

    scale_K: Tensor | None = None
    """Factor: √width under scaled_embed, else 1."""
    normalise_K: Tensor | None = None
    """Whether the output is RMS-normalised (embed_norm), bool."""


@dataclass(slots=True)
class Taps:
    """Activation probes of one forward pass, gathered only when asked for."""

    max_attention_logit: list[Tensor] = field(default_factory=list)
    """One [K] a layer."""
    residual_rms: list[Tensor] = field(default_factory=list)
    """One [K] a layer: root mean square of the residual stream after it."""
    max_output_logit: list[Tensor] = field(default_factory=list)
    """One [K]."""

    def probes(self) -> dict[str, Tensor]:
        """Probe name -> [K, layers] or [K, 1]."""
        return {
            "max_attention_logit": torch.stack(self.max_attention_logit, dim=1),
            "residual_rms": torch.stack(self.residual_rms, dim=1),
            "max_output_logit": torch.stack(self.max_output_logit, dim=1),
        }


def forward(
    weights: EffectiveWeights,
    token_KBT: Tensor,
    *,
    architecture: Architecture,
    rotation: tuple[Tensor, Tensor] | None,
    switches: EmbeddingSwitches,
    taps: Taps | None = None,
    document_end: int | None = None,
) -> Tensor:
    """Logits of every run.

    Args:
        weights: Effective weights of K runs.
        token_KBT: Token ids, [K, B, T], T at most the context of `rotation`.
        architecture: Shapes.
        rotation: Tables of `kernels.rope.tables`; None without positions.
        switches: What the runs' methods do to the embedding output.
        taps: Gathers activation probes where given.
        document_end: The token past which attention does not look back; None: it does.

    Returns:
        [K, B·T, V], float32 on a CPU and the weights' type elsewhere.
    """
    h_KMD = hidden(
        weights,
        token_KBT,
        architecture=architecture,
        rotation=rotation,
        switches=switches,
        taps=taps,
        document_end=document_end,
    )
    logit_KMV = linear.linear(h_KMD, weights.prediction_KVD)
    if taps is not None:
        taps.max_output_logit.append(logit_KMV.detach().float().abs().amax(dim=(1, 2)))
    return logit_KMV


def hidden(
    weights: EffectiveWeights,
    token_KBT: Tensor,
    *,
    architecture: Architecture,
    rotation: tuple[Tensor, Tensor] | None,
    switches: EmbeddingSwitches,
    taps: Taps | None = None,
    document_end: int | None = None,
) -> Tensor:
    """What the prediction matrix of every run is given: `forward` before its last product.

    Args:
        weights: As `forward`.
        token_KBT: As `forward`.
        architecture: As `forward`.
        rotation: As `forward`.
        switches: As `forward`.
        taps: As `forward`, but for the output logits.
        document_end: As `forward`.

    Returns:
        [K, B·T, D].
    """
    a = architecture
    K, B, T = token_KBT.shape
    x_KMD = _embed(weights.embed_KVD, token_KBT, switches).flatten(1, 2)
    first_KBT = None
    if document_end is not None:
        first_KBT = attention.first_keys(token_KBT, document_end=document_end)

    qkv_N = weights.qkv_KMDD.unflatten(1, (a.depth, 3)).flatten(2, 3).unbind(1)
    up_N = weights.up_KMFD.unflatten(1, (a.depth, -1)).flatten(2, 3).unbind(1)
    o_N, down_N = weights.o_KMDD.unbind(1), weights.down_KMDF.unbind(1)
    gain_N = weights.norm_KD.unbind(1)
    qk_gain_N = (
        weights.qk_norm_KE.unflatten(1, (a.depth, 2)).unbind(1)
        if weights.qk_norm_KE is not None
        else None
    )

    for n in range(a.depth):
        h_KMD = rms_norm.reference(x_KMD, gain_N[2 * n])
        qkv_KBTHE = linear.linear(h_KMD, qkv_N[n]).view(K, B, T, 3 * a.heads, a.head_width)
        qk_KBTHE, v_KBTHE = qkv_KBTHE.split((2 * a.heads, a.heads), dim=3)
        if qk_gain_N is not None:
            qk_KBTHE = _normalise_heads(qk_KBTHE, qk_gain_N[n], heads=a.heads)
        if rotation is not None:
            qk_KBTHE = rope.reference(qk_KBTHE, rotation[0][:T], rotation[1][:T])
        q_KBTHE, k_KBTHE = qk_KBTHE.split(a.heads, dim=3)
        if taps is not None:
            taps.max_attention_logit.append(
                attention.max_logit(q_KBTHE.detach(), k_KBTHE.detach(), first_KBT)
            )
        mixed_KBTHE = attention.attention(q_KBTHE, k_KBTHE, v_KBTHE, first_KBT)
        mixed_KMD = mixed_KBTHE.reshape(K, B * T, a.width)
        x_KMD = x_KMD + linear.linear(mixed_KMD, o_N[n])

        h_KMD = rms_norm.reference(x_KMD, gain_N[2 * n + 1])
        u_KMF = linear.linear(h_KMD, up_N[n])
        if a.ffn == "swiglu":
            u_KMF = feed_forward.swiglu_reference(*u_KMF.chunk(2, dim=2))
        else:
            u_KMF = feed_forward.gelu_reference(u_KMF)
        x_KMD = x_KMD + linear.linear(u_KMF, down_N[n])
        if taps is not None:
            taps.residual_rms.append(x_KMD.detach().float().square().mean(dim=(1, 2)).sqrt())

    return rms_norm.reference(x_KMD, gain_N[2 * a.depth])


def _embed(embed_KVD: Tensor, token_KBT: Tensor, switches: EmbeddingSwitches) -> Tensor:
    """Embedding output [K, B, T, D], scaled or normalised where a run's method says so."""
    x_KBTD = embedding.reference(token_KBT, embed_KVD)
    if switches.scale_K is not None:
        x_KBTD = x_KBTD * switches.scale_K.to(x_KBTD.dtype).view(-1, 1, 1, 1)
    if switches.normalise_K is not None:
        normalised_KBTD = rms_norm.reference(x_KBTD)
        x_KBTD = torch.where(switches.normalise_K.view(-1, 1, 1, 1), normalised_KBTD, x_KBTD)
    return x_KBTD


def _normalise_heads(qk_KBTHE: Tensor, gain_KE: Tensor, *, heads: int) -> Tensor:
    """RMSNorm of every head, a gain for queries and one for keys [K, 2, E] (Henry et al. 2020)."""
    normalised = rms_norm.reference(qk_KBTHE)
    gain_KHE = gain_KE.to(normalised.dtype).repeat_interleave(heads, dim=1)
    return normalised * gain_KHE[:, None, None]
