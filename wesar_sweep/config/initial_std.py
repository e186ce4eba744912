"""Initial standard deviations by role.

Sources: He et al. 2015 and Nguyen & Salazar 2019 ("small"), both as tabulated by Nishida et al.
2024, Table 1; Glorot & Bengio 2010; Radford et al. 2019 (GPT-2). N layers, width d, feed-forward
width F:

============  =================  =================  ======================  ==================
role          he                 small              xavier                  gpt2
============  =================  =================  ======================  ==================
q k v u g p   √(1/d)             √(2/(5d))          √(2/(inputs+outputs))   0.02
o             √(1/(2Nd))         √(2/(5d))/√(2N)    √(2/(inputs+outputs))   0.02/√(2N)
w             √(1/(NF))          √(2/(5d))/√(2N)    √(2/(inputs+outputs))   0.02/√(2N)
e             √(1/d)             √(2/(5d))          √(2/(inputs+outputs))   0.02
============  =================  =================  ======================  ==================

With F = 4d the he entry of w is √(2/(8Nd)), as printed in the paper. Its table gives the embedding
under WeSaR alone (σ, with a gate of 1); without a gate the embedding takes √(1/d), the he std of
the prediction matrix, which has its shape. Stds are never guessed from a tensor's shape: stacked
weights have axes that are no fan. The draws themselves are in `wesar_sweep.model.initialisation`.
"""

from __future__ import annotations

import math

from wesar_sweep.config.methods import Initialisation
from wesar_sweep.config.run import Architecture


def initial_std(role: str, *, init: Initialisation, architecture: Architecture) -> float:
    """Standard deviation of a matrix's entries by its role (`config.matrices.role_of`)."""
    d, N, F = architecture.width, architecture.depth, architecture.ffn_width
    residual = role in ("o", "w")
    match init:
        case "he":
            std = math.sqrt(1 / (N * F)) if role == "w" else math.sqrt(1 / d)
            return std / math.sqrt(2 * N) if role == "o" else std
        case "small" | "gpt2":
            std = 0.02 if init == "gpt2" else math.sqrt(2 / (5 * d))
            return std / math.sqrt(2 * N) if residual else std
        case "xavier":
            fans = {"e": architecture.vocabulary + d, "p": architecture.vocabulary + d}
            fans |= {"u": d + F, "g": d + F, "w": d + F}
            return math.sqrt(2 / fans.get(role, 2 * d))
