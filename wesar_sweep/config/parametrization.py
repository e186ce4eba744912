"""What a method makes of each matrix: the std of its draw, its gate, and its form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wesar_sweep.config.initial_std import initial_std
from wesar_sweep.config.methods import Method
from wesar_sweep.config.run import Architecture

Form = Literal["scalar", "row", "spectral"]
"""Forms of `wesar_sweep.kernels.reparametrization`."""


@dataclass(frozen=True, slots=True)
class MatrixParametrization:
    """One matrix of one run, at initialisation."""

    form: Form
    std: float
    """Of the draw of the actual parameter W."""
    gate: float
    """Initial α or γ; row gains begin as the row norms, so that W̄ = W."""
    gate_trains: bool


def parametrize(
    role: str, *, method: Method, sigma2: float | None, architecture: Architecture
) -> MatrixParametrization:
    """The rule of each method, by role.

    * wesar: W ~ N(0, σ²) for every matrix; α₀ = std of the role / σ, and 1 for the embedding; σ²
      is the same at every width, or falls as 1/width (`Method.sigma2_at_width`).
    * residual_scaling: the 1/√(2N) of o and w moves out of the draw into a trainable gate.
    * weight_norm, sigma_reparam: every matrix but the embedding, a table to look up in. γ begins at
      1 (Zhai et al. 2023), so W̄ begins with spectral norm 1.

    With tied weights the one matrix that embeds and predicts follows the embedding's rule.
    """
    std = initial_std(role, init=method.init, architecture=architecture)
    match method.reparametrization:
        case "none":
            return MatrixParametrization("scalar", std, 1.0, False)
        case "wesar":
            assert sigma2 is not None
            sigma = method.sigma(sigma2, width=architecture.width)
            return MatrixParametrization("scalar", sigma, 1.0 if role == "e" else std / sigma, True)
        case "residual_scaling":
            if role not in ("o", "w"):
                return MatrixParametrization("scalar", std, 1.0, False)
            depth_scale = 1 / math.sqrt(2 * architecture.depth)
            scaled_by_init = method.init != "xavier"
            return MatrixParametrization(
                "scalar", std / depth_scale if scaled_by_init else std, depth_scale, True
            )
        case "weight_norm":
            if role == "e":
                return MatrixParametrization("scalar", std, 1.0, False)
            return MatrixParametrization("row", std, 1.0, False)
        case "sigma_reparam":
            if role == "e":
                return MatrixParametrization("scalar", std, 1.0, False)
            return MatrixParametrization("spectral", std, 1.0, True)
