"""Methods: what a name such as ``wesar`` stands for, and the parts of methods of your own.

A method is an initialisation, a reparametrization and two switches of the embedding. The
mathematics of the parts is in `wesar_sweep.config.initial_std`, `.parametrization` and
`wesar_sweep.kernels`; here are only their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen

Initialisation = Literal["he", "small", "xavier", "gpt2"]
Reparametrization = Literal["none", "wesar", "weight_norm", "sigma_reparam", "residual_scaling"]


class Method(Frozen):
    """A combination of initialisation, reparametrization and embedding switches."""

    init: Initialisation = Field(
        default="he",
        description="Initial std by role: he, small (Nguyen & Salazar), xavier or gpt2.",
    )
    reparametrization: Reparametrization = Field(
        default="none",
        description="How the effective weight is made of the parameters the optimizer owns.",
    )
    scaled_embed: bool = Field(
        default=False,
        description="Multiply the embedding output by sqrt(width) (Takase et al. 2023).",
    )
    embed_norm: bool = Field(
        default=False, description="RMS-normalise the embedding output (Takase et al. 2023)."
    )

    sigma2_at_width: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="With wesar: sigma2 is the variance at this width, and falls as 1/width from "
        "there; null: the same at every width.",
    )

    @property
    def uses_sigma2(self) -> bool:
        """Whether sigma2 means anything here: only WeSaR draws every matrix with one σ."""
        return self.reparametrization == "wesar"

    def sigma(self, sigma2: float, *, width: int) -> float:
        """The std that every matrix is drawn with under WeSaR, at a width.

        √σ², as in the paper; with `sigma2_at_width` √(σ² · that width / width), so that the gates
        α₀ = std of the role / σ of He's initialisation are the same at every width.
        """
        share = 1.0 if self.sigma2_at_width is None else self.sigma2_at_width / width
        return math.sqrt(sigma2 * share)


BUILT_IN_METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "he": Method(init="he"),
        "small": Method(init="small"),
        "xavier": Method(init="xavier"),
        "gpt2": Method(init="gpt2"),
        "wesar": Method(init="he", reparametrization="wesar"),
        "weight_norm": Method(init="he", reparametrization="weight_norm"),
        "sigma_reparam": Method(init="he", reparametrization="sigma_reparam"),
        "residual_scaling": Method(init="he", reparametrization="residual_scaling"),
        "scaled_embed": Method(init="small", scaled_embed=True),
        "embed_norm": Method(init="small", embed_norm=True),
    }
)
"""The methods every study knows; `methods:` in a file adds to them and may not redefine one."""
