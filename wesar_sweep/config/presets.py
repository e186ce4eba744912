"""Shapes by name: the decoders of Nishida et al. 2024 (§4.1), as ``model: {preset: 130m}``.

A preset is a shorthand of the file, not a knob: loading a study puts its numbers in the place of
its name, so that the resolved study shows them. What the file says beside it wins, and so does a
knob that `space` varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from wesar_sweep.config.findings import Finding
from wesar_sweep.config.knobs import Model
from wesar_sweep.config.words import listed, nearest
from wesar_sweep.config.yaml12 import KeyPath

PRESET_PATH: KeyPath = ("model", "preset")


def _paper(width: int, depth: int, heads: int) -> Model:
    """Every key given, so that a preset stays what it is where a default changes."""
    return Model(
        width=width,
        depth=depth,
        heads=heads,
        context=2048,
        ffn="gelu",
        ffn_width=None,
        position="rope",
        tied=False,
        qk_norm=False,
    )


PRESETS: Mapping[str, Model] = MappingProxyType(
    {
        "130m": _paper(width=768, depth=12, heads=12),
        "1.3b": _paper(width=2048, depth=24, heads=16),
        "13b": _paper(width=5120, depth=40, heads=40),
    }
)
"""Name -> shape. The names count parameters with the paper's vocabulary of 32,000 tokens."""


def preset_schema() -> dict[str, Any]:
    """JSON Schema of ``model.preset``."""
    return {
        "enum": [*PRESETS, None],
        "default": None,
        "description": "A shape of the WeSaR paper; what is given beside it, or searched, wins.",
    }


def expand_preset(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The values of a study file with the preset's numbers in the place of its name.

    Args:
        raw: As the file gives them, overrides applied.

    Returns:
        A copy without ``model.preset``, and what is wrong with that name.
    """
    result = dict(raw)
    model = result.get("model")
    if not isinstance(model, Mapping) or "preset" not in model:
        return result, []
    given = {key: value for key, value in model.items() if key != "preset"}
    result["model"] = given
    name = model["preset"]
    if name is None:
        return result, []
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        hint = nearest(str(name), PRESETS)
        return result, [
            Finding(PRESET_PATH, "there is no such preset", allowed=listed(PRESETS), hint=hint)
        ]
    searched = _always_searched(raw.get("space"))
    shape = {key: value for key, value in preset.model_dump().items() if key not in searched}
    result["model"] = {**shape, **given}
    return result, []


def _always_searched(space: object) -> set[str]:
    """Knobs that vary in every cell, which a fixed value beside them would contradict."""
    if not isinstance(space, Mapping):
        return set()
    return {str(knob) for knob, parameter in space.items() if not _condition(parameter)}


def _condition(parameter: object) -> object:
    """What a parameter depends on, given as plain values or, from Python, as a model."""
    if isinstance(parameter, Mapping):
        return parameter.get("when")
    return getattr(parameter, "when", None)
