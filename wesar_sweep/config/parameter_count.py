"""How many parameters a model has, by its architecture and method alone."""

from __future__ import annotations

from wesar_sweep.config.matrices import matrix_shapes, role_of
from wesar_sweep.config.methods import Method
from wesar_sweep.config.run import Architecture


def model_parameters(architecture: Architecture) -> int:
    """Weights that the model computes with: matrices and gains of norms.

    What a method trains beside them folds away (`wesar_sweep.model.fold`), so equal sizes of
    different methods are equal here.
    """
    a = architecture
    matrices = sum(one.outputs * one.inputs * len(one.labels) for one in matrix_shapes(a))
    gains = (2 * a.depth + 1) * a.width + (2 * a.depth * a.head_width if a.qk_norm else 0)
    return matrices + gains


def trained_parameters(architecture: Architecture, method: Method) -> int:
    """Parameters that the optimizer trains: those of the model, and the method's gates or gains.

    wesar has a gate a matrix, residual_scaling one on each o and w, weight_norm a gain an output
    row and sigma_reparam a γ a matrix, both not on the embedding.
    """
    matrices = [
        (role_of(label), shape.outputs)
        for shape in matrix_shapes(architecture)
        for label in shape.labels
    ]
    match method.reparametrization:
        case "none":
            extra = 0
        case "wesar":
            extra = len(matrices)
        case "residual_scaling":
            extra = sum(role in ("o", "w") for role, _ in matrices)
        case "weight_norm":
            extra = sum(outputs for role, outputs in matrices if role != "e")
        case "sigma_reparam":
            extra = sum(role != "e" for role, _ in matrices)
    return model_parameters(architecture) + extra
