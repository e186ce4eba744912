"""The decoder's forward and backward pass by hand, over the fused kernels of a GPU.

Computes what `model.decoder` computes through autograd, for K runs at once, and writes the gradient
of every effective weight straight into a flat row. Two ways through a layer, by its width: where
`kernels.fused.linear` pays (narrow models, bound by memory traffic) norms, rotations, activations
and residual adds are part of the products; elsewhere the products are cuBLAS's and the rest is one
kernel an op, and what was activated is kept, which is cheaper than to make it again.
Nothing here waits for the GPU or asks a tensor for its value, so a step can be captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wesar_sweep.kernels.fused import (
    cross_entropy,
    embedding,
    feed_forward,
    gelu_gradients,
    linear,
    prediction,
    rms_norm,
)
from wesar_sweep.kernels.rms_norm import EPS
from wesar_sweep.model.decoder import EmbeddingSwitches, Taps
from wesar_sweep.model.direction import Direction
from wesar_sweep.model.fused_attention import Attended, FusedAttention
from wesar_sweep.model.layer_views import LayerViews
from wesar_sweep.model.layout import Layout

FULL_LOGITS_VOCABULARY = 4096
"""Up to this vocabulary a step's logits are kept whole; above, a chunk of rows at a time."""


@dataclass(slots=True)
class _Projected:
    """What the backward pass needs of a norm and the product after it."""

    x_KMD: Tensor
    """Residual stream before the norm."""
    h_KMD: Tensor
    rstd_KM: Tensor


@dataclass(slots=True)
class _Layer:
    """What the backward pass needs of one layer."""

    before_attention: _Projected
    attended: Attended
    before_feed_forward: _Projected
    u_KMF: Tensor
    activated_KMF: Tensor | None
    """None where the backward pass makes it again."""


class FusedDecoder:
    """The passes of one architecture.

    Args:
        layout: Where each matrix lies in a flat row.
        device: A GPU (or the CPU under Triton's interpreter, in tests).
        dtype: Of weights and activations.
        document_end: The token past which attention does not look back; None: it does.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        device: torch.device,
        dtype: torch.dtype,
        document_end: int | None = None,
    ) -> None:
        a = self._a = layout.architecture
        self._layout = layout
        self._direction = Direction()
        self._narrow = linear.supported(a.width, a.ffn_width, dtype)
        self._one_prediction = prediction.supported(a.width, a.ffn_width, a.vocabulary, dtype)
        self._attention = FusedAttention(
            a, device=device, dtype=dtype, narrow=self._narrow, direction=self._direction,
            document_end=document_end,
        )  # fmt: skip

    # The residual stream is a pair: x, and a part still to be added by the next norm (or None).

    def _project(
        self,
        x_KMD: Tensor,
        delta_KMD: Tensor | None,
        gain_KD: Tensor,
        w_KOD: Tensor,
        *,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, _Projected]:
        """Norm, then product; of narrow models with a rotation of queries and keys where given."""
        if self._narrow:
            assert delta_KMD is None
            y_KMO, h_KMD, rstd_KM = linear.norm_linear(
                x_KMD, gain_KD, w_KOD, rotation=rotation, reverse=self._direction.turn()
            )
        else:
            x_KMD, h_KMD, rstd_KM = rms_norm.forward(
                x_KMD, gain_KD, delta_KMD, reverse=self._direction.turn()
            )
            y_KMO = self._direction.product(h_KMD, w_KOD.mT)
        return y_KMO, _Projected(x_KMD, h_KMD, rstd_KM)

    def _project_backward(
        self,
        dy_KMO: Tensor,
        w_KOD: Tensor,
        gain_KD: Tensor,
        saved: _Projected,
        dresidual_KMD: Tensor | None,
        partial_KBD: Tensor,
    ) -> Tensor:
        """Gradient of the residual stream before the norm; the gain's in parts to `partial_KBD`."""
        if self._narrow:
            return linear.linear_norm_backward(
                dy_KMO, w_KOD, saved.x_KMD, saved.rstd_KM, gain_KD, dresidual_KMD,
                partial_KBI=partial_KBD, reverse=self._direction.turn(),
            )  # fmt: skip
        dh_KMD = self._direction.product(dy_KMO, w_KOD)
        return rms_norm.backward(
            dh_KMD, saved.x_KMD, saved.rstd_KM, gain_KD, dresidual_KMD,
            partial_KBD=partial_KBD, reverse=self._direction.turn(),
        )  # fmt: skip

    def _partials(self, x_KMD: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the parts of the gains' gradients: of the layers' norms, and of the last."""
        K, M, D = x_KMD.shape
        apart = rms_norm.partial_sums(K, M, D)
        inside = linear.partial_sums(M) if self._narrow else apart
        last = apart if self._a.vocabulary > FULL_LOGITS_VOCABULARY else inside
        shapes = [(2 * self._a.depth, K, inside, D), (1, K, last, D)]
        layers_NKBD, last_NKBD = (
            torch.empty(*shape, dtype=torch.float32, device=x_KMD.device) for shape in shapes
        )
        return layers_NKBD, last_NKBD

    def _add_product(
        self, y_KMI: Tensor, w_KDI: Tensor, residual_KMD: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Product onto the residual stream; the sum itself is left to the next norm if wide."""
        if self._narrow:
            turn = self._direction.turn()
            return linear.linear_add(y_KMI, w_KDI, residual_KMD, reverse=turn), None
        return residual_KMD, self._direction.product(y_KMI, w_KDI.mT)

    def _activate(
        self, u_KMF: Tensor, w_KDF: Tensor, residual_KMD: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Activation and product down onto the residual stream; what was activated, if kept."""
        if self._narrow and self._a.ffn == "gelu":
            turn = self._direction.turn()
            return linear.gelu_linear_add(u_KMF, w_KDF, residual_KMD, reverse=turn), None, None
        forward = (
            feed_forward.swiglu_forward if self._a.ffn == "swiglu" else feed_forward.gelu_forward
        )
        a_KMF = forward(u_KMF, reverse=self._direction.turn())
        return *self._add_product(a_KMF, w_KDF, residual_KMD), a_KMF

    def _activate_backward(
        self, dx_KMD: Tensor, w_KDF: Tensor, layer: _Layer, *, down_KDF: Tensor, up_KFD: Tensor
    ) -> Tensor:
        """Gradient of what was activated; those of the products around it to `down`, `up`."""
        u_KMF, a_KMF, h_KMD = layer.u_KMF, layer.activated_KMF, layer.before_feed_forward.h_KMD
        if a_KMF is None and gelu_gradients.preferred(len(u_KMF), self._a.ffn_width):
            return gelu_gradients.backward(
                dx_KMD, w_KDF, u_KMF, h_KMD,
                dw_down_KDF=down_KDF, dw_up_KFD=up_KFD, reverse=self._direction.turn(),
            )  # fmt: skip
        if a_KMF is None:
            turn = self._direction.turn()
            du_KMF, a_KMF = linear.gelu_linear_backward(dx_KMD, w_KDF, u_KMF, reverse=turn)
        else:
            da_KMF = self._direction.product(dx_KMD, w_KDF)
            gelu, swiglu = feed_forward.gelu_backward, feed_forward.swiglu_backward
            backward = swiglu if self._a.ffn == "swiglu" else gelu
            du_KMF = backward(da_KMF, u_KMF, reverse=self._direction.turn())
        self._direction.product(dx_KMD.mT, a_KMF, out=down_KDF)
        self._direction.product(du_KMF.mT, h_KMD, out=up_KFD)
        return du_KMF

    def _embed(
        self, views: LayerViews, token_KM: Tensor, switches: EmbeddingSwitches
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Embedding output, and what the backward pass of its norm needs."""
        x_KMD = embedding.forward(token_KM, views.embed_KVD, switches.scale_K)
        if switches.normalise_K is None:
            return x_KMD, None
        raw_KMD, x_KMD, rstd_KM = rms_norm.forward(x_KMD, None, switch_K=switches.normalise_K)
        return x_KMD, (raw_KMD, rstd_KM)

    def _layers(
        self,
        views: LayerViews,
        x_KMD: Tensor,
        token_KM: Tensor,
        *,
        keep: list[_Layer] | None,
        taps: Taps | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after all layers, as a pair."""
        mask = self._attention.mask(token_KM)
        delta_KMD: Tensor | None = None
        for n in range(self._a.depth):
            qkv_KMX, before = self._project(
                x_KMD, delta_KMD, views.norms[2 * n], views.qkv[n],
                rotation=self._attention.into_product,
            )  # fmt: skip
            if taps is not None and n > 0:
                taps.residual_rms.append(_rms_of(before.rstd_KM))
            peaks = None if taps is None else taps.max_attention_logit
            attended = self._attention.forward(qkv_KMX, views.head_gains(n), mask=mask, peaks=peaks)
            x_KMD, delta_KMD = self._add_product(attended.mixed_KMD, views.o[n], before.x_KMD)
            u_KMF, middle = self._project(x_KMD, delta_KMD, views.norms[2 * n + 1], views.up[n])
            x_KMD, delta_KMD, a_KMF = self._activate(u_KMF, views.down[n], middle.x_KMD)
            if keep is not None:
                keep.append(_Layer(before, attended, middle, u_KMF, a_KMF))
            del a_KMF
        return x_KMD, delta_KMD

    def loss(
        self,
        effective_KP: Tensor,
        token_KM: Tensor,
        target_KM: Tensor,
        *,
        switches: EmbeddingSwitches,
    ) -> Tensor:
        """Mean cross-entropy of each run, nats a token, float32 [K].

        Args:
            effective_KP: Effective weights, a flat row a run.
            token_KM: Inputs, [K, sequences · context] integers.
            target_KM: The tokens after them.
            switches: What the runs' methods do to the embedding output.
        """
        views = LayerViews.of(effective_KP, self._layout)
        self._direction.up()
        x_KMD, _ = self._embed(views, token_KM, switches)
        x_KMD, delta_KMD = self._layers(views, x_KMD, token_KM, keep=None, taps=None)
        gain_KD = views.norms[-1]
        if self._one_prediction:
            nll_KM, _, _, _ = prediction.loss(
                x_KMD, gain_KD, views.predict_KVD, target_KM, None, scale=None,
                reverse=self._direction.turn(),
            )  # fmt: skip
        elif self._a.vocabulary > FULL_LOGITS_VOCABULARY:
            _, h_KMD, _ = rms_norm.forward(x_KMD, gain_KD, delta_KMD)
            nll_KM = cross_entropy.linear_loss(h_KMD, views.predict_KVD, target_KM)
        else:
            logit_KMV, _ = self._project(x_KMD, delta_KMD, gain_KD, views.predict_KVD)
            nll_KM = cross_entropy.loss(logit_KMV, target_KM, reverse=self._direction.turn())
        return cross_entropy.run_mean(nll_KM)

    def hidden(
        self,
        effective_KP: Tensor,
        token_KM: Tensor,
        row_R: Tensor,
        *,
        switches: EmbeddingSwitches,
    ) -> tuple[Tensor, Tensor]:
        """What the prediction matrix of each run is given at some rows, and that matrix.

        Args:
            effective_KP: Effective weights, a flat row a run.
            token_KM: Inputs, [K, sequences · context] integers.
            row_R: Which of the M rows, the same of every run.
            switches: What the runs' methods do to the embedding output.

        Returns:
            (h [K, R, D], w [K, V, D]).
        """
        views = LayerViews.of(effective_KP, self._layout)
        self._direction.up()
        x_KMD, _ = self._embed(views, token_KM, switches)
        x_KMD, delta_KMD = self._layers(views, x_KMD, token_KM, keep=None, taps=None)
        delta_KRD = None if delta_KMD is None else delta_KMD.index_select(1, row_R)
        _, h_KRD, _ = rms_norm.forward(x_KMD.index_select(1, row_R), views.norms[-1], delta_KRD)
        return h_KRD, views.predict_KVD

    def loss_and_gradients(
        self,
        effective_KP: Tensor,
        gradient_KQ: Tensor,
        token_KM: Tensor,
        target_KM: Tensor,
        *,
        switches: EmbeddingSwitches,
        z_loss_K: Tensor | None,
        rows: int,
        add: bool = False,
        taps: Taps | None = None,
    ) -> Tensor:
        """Cross-entropy of each run, and the gradient of its loss (with z-loss) by each weight.

        Args:
            effective_KP: Effective weights, a flat row a run.
            gradient_KQ: Takes the gradients, in the places of the weights.
            token_KM: Inputs.
            target_KM: The tokens after them.
            switches: What the runs' methods do to the embedding output.
            z_loss_K: Weight of the z-loss, float32 [K]; None where no run has one.
            rows: Tokens of a run's whole step: a micro-batch gives its share of the mean.
            add: Onto the gradients that are there, as a further micro-batch.
            taps: Gathers activation probes where given.

        Returns:
            float32 [K]; of a whole step the mean, nats a token.
        """
        a, views = self._a, LayerViews.of(effective_KP, self._layout)
        row_KQ = gradient_KQ
        # Products write over what is there: what is to be added, or is of another type, goes by way
        # of a row of its own.
        if add or gradient_KQ.dtype != effective_KP.dtype:
            row_KQ = torch.empty_like(effective_KP)
        into = LayerViews.of(row_KQ, self._layout)
        gain_views = LayerViews.of(gradient_KQ, self._layout)
        scale = 1 / rows
        kept: list[_Layer] = []

        self._direction.up()
        x_KMD, embed_norm = self._embed(views, token_KM, switches)
        x_KMD, delta_KMD = self._layers(views, x_KMD, token_KM, keep=kept, taps=taps)
        parts_NKBD, last_NKBD = self._partials(x_KMD)
        gain_KD = views.norms[-1]
        if a.vocabulary > FULL_LOGITS_VOCABULARY:
            x_KMD, h_KMD, rstd_KM = rms_norm.forward(x_KMD, gain_KD, delta_KMD)
            nll_KM, _, dh_KMD = cross_entropy.linear_cross_entropy(
                h_KMD,
                views.predict_KVD,
                target_KM,
                z_loss_K,
                scale=scale,
                dw_out_KVD=into.predict_KVD,
                max_logit=None if taps is None else taps.max_output_logit,
            )
            self._direction.up()
            dx_KMD = rms_norm.backward(
                dh_KMD, x_KMD, rstd_KM, gain_KD,
                partial_KBD=last_NKBD[0], reverse=self._direction.turn(),
            )  # fmt: skip
        else:
            if self._one_prediction:
                nll_KM, dl_KMV, normed_KMD, rstd_KM = prediction.loss(
                    x_KMD, gain_KD, views.predict_KVD, target_KM, z_loss_K, scale=scale,
                    peaks=None if taps is None else taps.max_output_logit,
                    reverse=self._direction.turn(),
                )  # fmt: skip
                assert dl_KMV is not None and normed_KMD is not None
                last = _Projected(x_KMD, normed_KMD, rstd_KM)
            else:
                logit_KMV, last = self._project(x_KMD, delta_KMD, gain_KD, views.predict_KVD)
                if taps is not None:
                    taps.max_output_logit.append(logit_KMV.abs().amax(dim=(1, 2)).float())
                nll_KM, _, dl_KMV = cross_entropy.forward_backward(
                    logit_KMV, target_KM, z_loss_K, scale=scale, out=logit_KMV,
                    reverse=self._direction.turn(),
                )  # fmt: skip
            rstd_KM = last.rstd_KM
            self._direction.product(dl_KMV.mT, last.h_KMD, out=into.predict_KVD)
            dx_KMD = self._project_backward(
                dl_KMV, views.predict_KVD, gain_KD, last, None, last_NKBD[0]
            )
        if taps is not None:
            taps.residual_rms.append(_rms_of(rstd_KM))
        head_gains: list[tuple[Tensor, Tensor]] = []

        for n in reversed(range(a.depth)):
            layer = kept.pop()
            du_KMF = self._activate_backward(
                dx_KMD, views.down[n], layer, down_KDF=into.down[n], up_KFD=into.up[n]
            )
            layer.activated_KMF = None
            dx_KMD = self._project_backward(
                du_KMF, views.up[n], views.norms[2 * n + 1], layer.before_feed_forward, dx_KMD,
                parts_NKBD[2 * n + 1],
            )  # fmt: skip
            self._direction.product(dx_KMD.mT, layer.attended.mixed_KMD, out=into.o[n])
            dmixed_KMD = self._direction.product(dx_KMD, views.o[n])
            dqkv_KMX, dheads = self._attention.backward(
                dmixed_KMD, layer.attended, views.head_gains(n)
            )
            if dheads is not None:
                assert gain_views.heads is not None
                head_gains.append((gain_views.heads[n], dheads))
            self._direction.product(dqkv_KMX.mT, layer.before_attention.h_KMD, out=into.qkv[n])
            dx_KMD = self._project_backward(
                dqkv_KMX, views.qkv[n], views.norms[2 * n], layer.before_attention, dx_KMD,
                parts_NKBD[2 * n],
            )  # fmt: skip

        if embed_norm is not None:
            raw_KMD, rstd_KM = embed_norm
            dx_KMD = rms_norm.backward(
                dx_KMD, raw_KMD, rstd_KM, None, switch_K=switches.normalise_K
            )
        embedding.backward(
            dx_KMD,
            token_KM,
            vocabulary=a.vocabulary,
            scale_K=switches.scale_K,
            out_KVD=into.embed_KVD,
            accumulate=a.tied,
        )
        norms_KX = gradient_KQ[:, self._layout.norm_gains]
        rms_norm.sum_gains(parts_NKBD, norms_KX, add=add)
        rms_norm.sum_gains(last_NKBD, norms_KX[:, -a.width :], add=add)
        for place, value in head_gains:
            if add:
                place.add_(value)
            else:
                place.copy_(value)
        if row_KQ is not gradient_KQ:
            matrices = self._layout.matrix_parameters
            if add:
                gradient_KQ[:, :matrices].add_(row_KQ[:, :matrices])
            else:
                gradient_KQ[:, :matrices].copy_(row_KQ[:, :matrices])
        return cross_entropy.run_mean(nll_KM) * (token_KM.shape[1] / rows)


def _rms_of(rstd_KM: Tensor) -> Tensor:
    """Root mean square of each run's rows [K], from what their norm has computed."""
    mean_KM = rstd_KM.float().square().reciprocal() - EPS
    return mean_KM.mean(dim=1).clamp(min=0).sqrt()
