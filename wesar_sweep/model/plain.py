"""The same decoder as an ordinary torch module for one run, with no trial axis and no gates.

What a folded run is exported to, what the stacked engine is tested against, and the baseline of the
benchmarks: written the way a training script would write it, sharing no code with `decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wesar_sweep.config.run import Architecture


class PlainDecoder(nn.Module):
    """A pre-norm decoder; parameter names end in the roles of `model.layout` (``layers.0.q``).

    Args:
        architecture: Shapes.
        embed_scale: Factor on the embedding output (√width under scaled_embed).
        embed_norm: RMS-normalise the embedding output.
    """

    def __init__(
        self, architecture: Architecture, *, embed_scale: float = 1.0, embed_norm: bool = False
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.embed_scale, self.embed_norm = embed_scale, embed_norm
        self.e = nn.Embedding(a.vocabulary, a.width)
        self.layers = nn.ModuleList(PlainLayer(a) for _ in range(a.depth))
        self.norm = nn.RMSNorm(a.width, eps=1e-6)
        self.p = nn.Linear(a.width, a.vocabulary, bias=False)
        if a.tied:
            self.p.weight = self.e.weight

    def forward(self, token_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        x = self.e(token_BT) * self.embed_scale
        if self.embed_norm:
            x = F.rms_norm(x, (x.shape[-1],), eps=1e-6)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.p(self.norm(x))
        return logits

    def load_effective(self, effective: Mapping[str, Tensor]) -> PlainDecoder:
        """Take folded weights by label (`model.fold`); a missing or extra one is an error."""
        own = {
            name.removesuffix(".weight"): parameter for name, parameter in self.named_parameters()
        }
        assert own.keys() == effective.keys(), own.keys() ^ effective.keys()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(effective[name])
        return self


class PlainLayer(nn.Module):
    """Attention and feed-forward, each with its norm before and a residual around."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.norm_attention = nn.RMSNorm(a.width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(a.width, a.width, bias=False) for _ in range(4))
        if a.qk_norm:
            self.norm_q = nn.RMSNorm(a.head_width, eps=1e-6)
            self.norm_k = nn.RMSNorm(a.head_width, eps=1e-6)
        self.norm_feed_forward = nn.RMSNorm(a.width, eps=1e-6)
        self.u = nn.Linear(a.width, a.ffn_width, bias=False)
        if a.ffn == "swiglu":
            self.g = nn.Linear(a.width, a.ffn_width, bias=False)
        self.w = nn.Linear(a.ffn_width, a.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One layer on [B, T, D]."""
        a = self.a
        h = self.norm_attention(x)
        q, k, v = (
            projection(h).unflatten(-1, (a.heads, a.head_width)).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        if a.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        if a.position == "rope":
            q, k = rotate(q), rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.norm_feed_forward(x)
        u = self.u(h) * F.silu(self.g(h)) if a.ffn == "swiglu" else F.gelu(self.u(h))
        out: Tensor = x + self.w(u)
        return out


def rotate(x: Tensor) -> Tensor:
    """Rotary positions on [B, H, T, E] by complex multiplication of (x_i, x_{i+E/2})."""
    T, E = x.shape[-2:]
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(0, E, 2, device=x.device) / E)
    angle = torch.outer(torch.arange(T, device=x.device), frequency)
    turned = torch.complex(x[..., : E // 2], x[..., E // 2 :]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((turned.real, turned.imag), dim=-1)
