"""JSON Schema of study and sweep files, shorthands included: for editors and for errors."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any, Literal

from wesar_sweep.config.knobs import Model, Recipe, knob_table
from wesar_sweep.config.methods import BUILT_IN_METHODS
from wesar_sweep.config.presets import preset_schema
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.config.words import METHOD_PATTERN

FileKind = Literal["study", "sweep"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: FileKind) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study or a sweep file, as YAML 1.2 reads it.

    What depends on several keys at once (a width that its heads divide, say) is checked by
    `wesar_sweep.config.load` and no part of the schema.
    """
    return deepcopy(_schema(kind))


@cache
def _schema(kind: FileKind) -> dict[str, Any]:
    if kind == "sweep":
        return {"$schema": _DIALECT, **Sweep.model_json_schema()}
    schema = Study.model_json_schema()
    properties = schema["properties"]
    # The file's name stands in for it.
    schema["required"].remove("name")
    properties["space"] = {
        "type": "object",
        "description": properties["space"]["description"],
        "properties": {knob: _parameter(knob) for knob in knob_table()},
        "additionalProperties": False,
    }
    # The first of two ways: the other is null.
    cells = schema["$defs"]["Sampler"]["properties"]["listed"]["anyOf"][0]
    cells["items"] = {
        "type": "object",
        "properties": {knob: {"anyOf": _value(knob)} for knob in knob_table()},
        "additionalProperties": False,
    }
    # A shorthand of the file, which the model that it becomes knows nothing of.
    schema["$defs"]["Model"]["properties"]["preset"] = preset_schema()
    methods = properties["methods"]
    methods["propertyNames"] = {"pattern": METHOD_PATTERN, "not": {"enum": list(BUILT_IN_METHODS)}}
    return {"$schema": _DIALECT, **schema}


def _parameter(knob: str) -> dict[str, Any]:
    known = knob_table()[knob]
    ways: list[dict[str, Any]] = [
        *_value(knob),
        {"type": "array", "items": {"anyOf": _value(knob)}, "minItems": 1, "uniqueItems": True},
        {"$ref": "#/$defs/Choices"},
    ]
    if known.numeric:
        ways.append({"$ref": "#/$defs/Range"})
    return {"description": f"{known.description} ({known.allowed})", "anyOf": ways}


def _value(knob: str) -> list[dict[str, Any]]:
    if knob == "method":
        return [{"type": "string", "examples": list(BUILT_IN_METHODS)}]
    for model in (Model, Recipe):
        if knob in model.model_fields:
            schema = model.model_json_schema()["properties"][knob]
            bounds = ("anyOf", "type", "enum", "minimum", "maximum")
            exclusive = ("exclusiveMinimum", "exclusiveMaximum")
            kept = {key: schema[key] for key in (*bounds, *exclusive) if key in schema}
            return list(kept.get("anyOf", [kept]))
    raise AssertionError(knob)
