"""Methods: what a name such as ``wesar`` stands for, and the parts of methods of your own.

A method is an initialisation, a reparametrization and two switches of the embedding. The
mathematics of the parts is in `wesar_sweep.config.initial_std`, `.parametrization` and
`wesar_sweep.kernels`; here are only their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

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

    @property
    def uses_sigma2(self) -> bool:
        """Whether sigma2 means anything here: only WeSaR draws every matrix with one σ."""
        return self.reparametrization == "wesar"


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
