"""The matrices of a decoder: their labels, roles and shapes, by its architecture alone."""

from __future__ import annotations

from dataclasses import dataclass

from wesar_sweep.config.run import Architecture


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """Matrices of one shape [O, I] that the model uses together, such as queries and keys."""

    name: str
    labels: tuple[str, ...]
    """One a matrix, such as ``layers.0.q``; what stands after the last dot is its role."""
    outputs: int
    inputs: int


def role_of(label: str) -> str:
    """``layers.0.q`` -> ``q``; the roles are e q k v o u g w p (SCIENCE: g is SwiGLU's gate)."""
    return label.rpartition(".")[2]


def matrix_shapes(architecture: Architecture) -> list[MatrixShape]:
    """All matrices, in the order of the flat row of parameters (`model.layout`)."""
    a = architecture
    layers = range(a.depth)
    up_roles = ("u", "g") if a.ffn == "swiglu" else ("u",)

    def in_layers(roles: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"layers.{n}.{role}" for n in layers for role in roles)

    shapes = [
        MatrixShape("embed", ("e",), a.vocabulary, a.width),
        MatrixShape("qkv", in_layers(("q", "k", "v")), a.width, a.width),
        MatrixShape("o", in_layers(("o",)), a.width, a.width),
        MatrixShape("up", in_layers(up_roles), a.ffn_width, a.width),
        MatrixShape("down", in_layers(("w",)), a.width, a.ffn_width),
    ]
    if not a.tied:
        shapes.append(MatrixShape("predict", ("p",), a.vocabulary, a.width))
    return shapes
