"""How many parameters a model has, by its architecture and method alone."""

from __future__ import annotations

from wesar_sweep.config.methods import Method
from wesar_sweep.config.run import Architecture


def model_parameters(architecture: Architecture) -> int:
    """Weights that the model computes with: matrices and gains of norms.

    What a method trains beside them folds away (`wesar_sweep.model.fold`), so equal sizes of
    different methods are equal here.
    """
    a = architecture
    matrices = sum(outputs * inputs for _, outputs, inputs in _matrices(a))
    gains = (2 * a.depth + 1) * a.width + (2 * a.depth * a.head_width if a.qk_norm else 0)
    return matrices + gains


def trained_parameters(architecture: Architecture, method: Method) -> int:
    """Parameters that the optimizer trains: those of the model, and the method's gates or gains.

    wesar has a gate a matrix, residual_scaling one on each o and w, weight_norm a gain an output
    row and sigma_reparam a γ a matrix, both not on the embedding.
    """
    matrices = _matrices(architecture)
    match method.reparametrization:
        case "none":
            extra = 0
        case "wesar":
            extra = len(matrices)
        case "residual_scaling":
            extra = sum(role in ("o", "w") for role, _, _ in matrices)
        case "weight_norm":
            extra = sum(outputs for role, outputs, _ in matrices if role != "e")
        case "sigma_reparam":
            extra = sum(role != "e" for role, _, _ in matrices)
    return model_parameters(architecture) + extra


def _matrices(a: Architecture) -> list[tuple[str, int, int]]:
    """Role, outputs and inputs of every matrix."""
    ups = ("u", "g") if a.ffn == "swiglu" else ("u",)
    layer = [(role, a.width, a.width) for role in "qkvo"]
    layer += [(role, a.ffn_width, a.width) for role in ups]
    layer.append(("w", a.width, a.ffn_width))
    ends = [("e", a.vocabulary, a.width)]
    if not a.tied:
        ends.append(("p", a.vocabulary, a.width))
    return layer * a.depth + ends
