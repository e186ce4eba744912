"""α₀: by how much each effective weight W̄ moves, at initialisation, when its W does.

Every form of `wesar_sweep.kernels.reparametrization` is W̄ = c W at the start, and with its gate
held (for the spectral form u and v too) a step ΔW moves W̄ by c ΔW, less its part that only makes a
row (row form) or W (spectral form) longer. So α₀ = c = ‖W̄‖/‖W‖:

============  =========  ============================================================
form          α₀         why
============  =========  ============================================================
scalar        α          W̄ = αW; wesar: std of the role / σ, and 1 for the embedding
row           1          W̄ = gW/‖W‖_row, and g begins as ‖W‖_row
spectral      γ/σ₁(W)    γ = 1, and σ₁ ≈ std(√O + √I) for a Gaussian [O, I] matrix
============  =========  ============================================================

σ₁ of a Gaussian matrix: Vershynin, arXiv 1011.3027, Theorem 5.32. That is its limit for large
matrices; at width 32 the draws lie 5 % below it.
"""

from __future__ import annotations

import math
from statistics import median

from wesar_sweep.config.matrices import matrix_shapes, role_of
from wesar_sweep.config.methods import Method
from wesar_sweep.config.parametrization import MatrixParametrization, parametrize
from wesar_sweep.config.run import Architecture


def initial_gate(rule: MatrixParametrization, *, outputs: int, inputs: int) -> float:
    """α₀ of one matrix [O, I] that is drawn and gated by this rule."""
    match rule.form:
        case "scalar":
            return rule.gate
        case "row":
            return 1.0
        case "spectral":
            return rule.gate / (rule.std * (math.sqrt(outputs) + math.sqrt(inputs)))


def median_initial_gate(
    method: Method, *, sigma2: float | None, architecture: Architecture
) -> float:
    """α₀ of the median weight matrix: the factor between lr and the effective lr.

    The embedding is left out: it is a table to look up in, which no method scales (under WeSaR its
    gate is 1 by definition), and so is the one matrix that embeds and predicts where they are tied.
    The median is over matrices, a layer's each by itself, so it is that of q, k, v and u in most
    methods; o and w differ from it by about √(2N).
    """
    gates = [
        initial_gate(
            parametrize(role_of(label), method=method, sigma2=sigma2, architecture=architecture),
            outputs=shape.outputs,
            inputs=shape.inputs,
        )
        for shape in matrix_shapes(architecture)
        if shape.name != "embed"
        for label in shape.labels
    ]
    return median(gates)
