"""The knobs: every quantity that a study fixes or searches, each under its one name.

A knob is a key of ``model:`` or ``training:``, or ``method``; two keys of ``training:`` hold for
the whole study and are none. What else a study is lies in `wesar_sweep.config.study`, how knobs
vary in `wesar_sweep.config.space`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.words import allowed, branches

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

Scalar = bool | int | float | str | None
"""A value of one knob. None means off, as everywhere in a study file."""

Schedule = Literal["cosine", "linear", "wsd", "constant"]
Precision = Literal["bf16", "tf32", "fp32"]
Kind = Literal["integer", "number", "boolean", "name"]


class Model(Frozen):
    """The decoder's shape: every key here changes the shape of a tensor. Each can be searched."""

    width: Count = Field(
        default=64, description="Width d of the residual stream; a multiple of heads."
    )
    depth: Count = Field(default=2, description="Layers N.")
    heads: Count = Field(default=2, description="Attention heads a layer.")
    context: Annotated[int, Field(ge=2)] = Field(default=64, description="Tokens a sequence.")
    ffn: Literal["gelu", "swiglu"] = Field(
        default="gelu", description="Kind of the feed-forward block."
    )
    ffn_width: Count | None = Field(
        default=None,
        description="Default 4·width for gelu, 8/3·width rounded up to a multiple of 8 for swiglu.",
    )
    position: Literal["rope", "none"] = Field(
        default="rope", description="Position encoding of queries and keys."
    )
    tied: bool = Field(default=False, description="Share the embedding and the prediction matrix.")
    qk_norm: bool = Field(
        default=False, description="RMS-normalise queries and keys a head before the dot product."
    )


class Recipe(Frozen):
    """The recipe of one run. Each key can be searched, all but ``batch`` inside one stack."""

    steps: Count = Field(default=300, description="Optimizer steps.")
    batch: Count = Field(default=8, description="Sequences a step.")
    lr: Positive = Field(default=1e-3, description="Peak learning rate.")
    schedule: Schedule = Field(default="cosine", description="Learning rate after the warm-up.")
    warmup: Annotated[int, Field(ge=0)] = Field(default=20, description="Steps of linear warm-up.")
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="Learning rate at the last step, as a share of the peak."
    )
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="Share of the steps that the wsd schedule decays over."
    )
    sigma2: Positive = Field(default=4e-5, description="Variance of every matrix under WeSaR.")
    weight_decay: NonNegative = Field(
        default=0.1, description="Decoupled decay of matrices, not of gates or norms."
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="AdamW's decay of the mean."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.95, description="AdamW's decay of the square."
    )
    eps: Positive = Field(
        default=1e-8, description="AdamW's term beside the root of the second moment."
    )
    clip: Positive | None = Field(
        default=1.0, description="Largest norm of the gradient; null means off."
    )
    z_loss: NonNegative = Field(
        default=0.0, description="Weight of the squared log-partition in the loss."
    )


class Training(Recipe):
    """The recipe, and with which numbers the whole study is trained: these are never searched.

    Runs of one stack share their kernels, and a difference between two precisions is one between
    two studies.
    """

    precision: Precision | None = Field(
        default=None,
        description="Numbers of activations and matrix products; default bf16 on a GPU, fp32 on a "
        "CPU.",
    )
    deterministic: bool = Field(
        default=False,
        description="On a GPU, take only kernels that repeat themselves bit for bit; on a CPU all "
        "do.",
    )


WHOLE_STUDY = tuple(name for name in Training.model_fields if name not in Recipe.model_fields)
"""Keys of ``training:`` that are no knobs, since one value holds for every run of a study."""


@dataclass(frozen=True, slots=True)
class Knob:
    """What is known of a knob before any study is read."""

    name: str
    section: Literal["model", "training"] | None
    """Section of the study file that fixes it; None for ``method``, at the top level."""
    kind: Kind
    """``name``: one of a few words."""
    allowed: str
    """The values it takes, in plain words."""
    default: Scalar
    description: str

    @property
    def fixed_path(self) -> str:
        """Where a study file fixes it, such as ``training.lr``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def numeric(self) -> bool:
        """Whether it can vary over a range."""
        return self.kind in ("integer", "number")


DEFAULT_METHOD = "wesar"
METHOD_DESCRIPTION = "The method where `space` does not vary it."


@cache
def knob_table() -> Mapping[str, Knob]:
    """Every knob by its name, in the order of the documentation: method, model, training."""
    knobs = {
        "method": Knob(
            "method", None, "name", "the name of a method", DEFAULT_METHOD, METHOD_DESCRIPTION
        )
    }
    for section, model in (("model", Model), ("training", Recipe)):
        for name, schema in model.model_json_schema()["properties"].items():
            found = {branch.get("type") for branch in branches(schema)}
            kind: Kind = next((k for k in get_args(Kind) if k in found), "name")
            knobs[name] = Knob(
                name=name,
                section=section,  # type: ignore[arg-type]
                kind=kind,
                allowed=allowed(schema),
                default=model.model_fields[name].default,
                description=schema["description"],
            )
    return MappingProxyType(knobs)


def canonical(knob: str, value: Scalar) -> Scalar:
    """The value in the knob's own type: a whole number for a fraction's knob becomes a float."""
    known = knob_table().get(knob)
    if known is not None and known.kind == "number" and type(value) is int:
        return float(value)
    return value


def accepts(knob: str, value: Scalar) -> bool:
    """Whether a value keeps the type and the bounds of its knob; any text is a method's name."""
    if knob == "method":
        return isinstance(value, str)
    try:
        _adapter(knob).validate_python(value)
    except ValidationError:
        return False
    return True


@cache
def _adapter(knob: str) -> TypeAdapter[Any]:
    field = {**Model.model_fields, **Recipe.model_fields}[knob]
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    kind: Any = field.annotation
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    return TypeAdapter(kind, config=strict)
