"""The matrices and gains of a flat row as a decoder's passes take them: a layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wesar_sweep.model.layout import Layout


@dataclass(frozen=True, slots=True)
class LayerViews:
    """Views of flat rows of effective weights, or of the gradients in their places."""

    embed_KVD: Tensor
    qkv: list[Tensor]
    """[K, 3D, D] each."""
    o: tuple[Tensor, ...]
    up: list[Tensor]
    """[K, F, D] each, or [K, 2F, D] with SwiGLU (up, gate)."""
    down: tuple[Tensor, ...]
    predict_KVD: Tensor
    norms: tuple[Tensor, ...]
    """[K, D] each, in the order of use."""
    heads: tuple[Tensor, ...] | None
    """[K, 2, E] a layer, for queries and keys."""

    @classmethod
    def of(cls, row_KP: Tensor, layout: Layout) -> LayerViews:
        """The views of these rows.

        Args:
            row_KP: Flat rows, any stride over K.
            layout: Where each matrix lies in them.
        """
        a = layout.architecture
        by_name = {group.name: group.view(row_KP) for group in layout.groups}
        up = 2 if a.ffn == "swiglu" else 1
        norm_KND = row_KP[:, layout.norm_gains].unflatten(1, (layout.norms, a.width))
        heads = None
        if a.qk_norm:
            heads = row_KP[:, layout.qk_gains].unflatten(1, (a.depth, 2, a.head_width)).unbind(1)
        embed_KVD = by_name["embed"].squeeze(1)
        return cls(
            embed_KVD=embed_KVD,
            qkv=[by_name["qkv"][:, 3 * n : 3 * n + 3].flatten(1, 2) for n in range(a.depth)],
            o=by_name["o"].unbind(1),
            up=[by_name["up"][:, up * n : up * n + up].flatten(1, 2) for n in range(a.depth)],
            down=by_name["down"].unbind(1),
            predict_KVD=embed_KVD if a.tied else by_name["predict"].squeeze(1),
            norms=norm_KND.unbind(1),
            heads=heads,
        )

    def head_gains(self, layer: int) -> Tensor | None:
        """[K, 2, E] of a layer, or None without head norms."""
        return None if self.heads is None else self.heads[layer]
