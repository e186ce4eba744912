"""What pydantic refuses, said in the words of the file: one finding a cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from wesar_sweep.config.findings import Finding, Source
from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.schema import FileKind, json_schema
from wesar_sweep.config.words import Schema, advice, allowed, branches, complaint, listed, nearest
from wesar_sweep.config.yaml12 import KeyPath

_PARAMETER = "a value, a list of values, {choices: [...]}, or {low: ..., high: ...}"


def findings_of(error: ValidationError, source: Source, kind: FileKind) -> list[Finding]:
    """One finding for every cause among pydantic's errors."""
    root = json_schema(kind)
    unknown: dict[KeyPath, None] = {}
    missing: dict[KeyPath, list[str]] = {}
    wrong: dict[KeyPath, None] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail, source)
        if detail["type"] == "extra_forbidden":
            unknown[path] = None
        elif detail["type"] == "missing":
            missing.setdefault(path[:-1], []).append(str(path[-1]))
        elif detail["type"] == "union_tag_not_found":
            missing.setdefault(path, []).append(_tag_of(detail))
        elif detail["type"] == "union_tag_invalid":
            wrong[(*path, _tag_of(detail))] = None
        else:
            wrong[path] = None
    findings = [_unknown(path, source, root) for path in unknown]
    for path, names in missing.items():
        meant = {nearest(str(key[-1]), names) for key in unknown if key[:-1] == path}
        left = [name for name in names if f"did you mean {name}?" not in meant]
        if left:
            findings.append(_missing(path, left, source, root))
    # An error in a list or a mapping can repeat one in its items.
    outer = {path for path in wrong if any(p[: len(path)] == path for p in wrong if p != path)}
    findings += [_wrong(path, source, root) for path in wrong if path not in outer]
    return findings


def _tag_of(detail: ErrorDetails) -> str:
    """The key that says which of several kinds of mapping is meant, such as ``source``."""
    return str(detail["ctx"]["discriminator"]).strip("'")


def _path(detail: ErrorDetails, source: Source) -> KeyPath:
    """The error's place in the file: pydantic puts names of union branches between the keys."""
    result: list[str | int] = []
    loc = detail["loc"]
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if source.has((*result, part)) or (last and detail["type"] == "missing"):
            result.append(part)
    return tuple(result)


def _unknown(path: KeyPath, source: Source, root: Schema) -> Finding:
    *above, key = path
    keys = list(_mapping(tuple(above), source, root).get("properties", {}))
    name = str(key)
    if above and above[0] == "space":
        if len(above) == 1:
            return Finding(
                path,
                "there is no such knob",
                allowed=listed(keys),
                hint=nearest(name, keys),
                at_key=True,
            )
        other = "low, high, log, step, points" if "choices" in keys else "choices"
        if name in other.split(", "):
            beside = "choices" if "choices" in keys else "low and high"
            message = f"{name} does not go with {beside}"
            return Finding(path, message, allowed=listed(keys), at_key=True)
    hint = _elsewhere(name, root, tuple(above)) or nearest(name, keys)
    return Finding(path, "unknown key", allowed=listed(keys), hint=hint, at_key=True)


def _elsewhere(name: str, root: Schema, above: KeyPath) -> str | None:
    """Where a key belongs that stands in the wrong section, if that is one place only."""
    properties = root.get("properties", {})
    if above and name in properties:
        return f"{name} belongs at the top level"
    knob = knob_table().get(name)
    if knob is not None and knob.section and "space" in properties:
        return f"{name} belongs under {knob.section}, or under space to vary it"
    sections = [
        section
        for section, schema in properties.items()
        if "$ref" in schema and name in _resolve(schema, root).get("properties", {})
    ]
    return f"{name} belongs under {sections[0]}" if len(sections) == 1 else None


def _missing(path: KeyPath, names: list[str], source: Source, root: Schema) -> Finding:
    verb = "is" if len(names) == 1 else "are"
    message = f"{' and '.join(names)} {verb} missing"
    words = None
    if len(path) == 2 and path[0] == "space":
        words = _PARAMETER
    elif len(names) == 1:
        words = allowed(_leaf((*path, names[0]), source, root))
        if names == ["space"]:
            words = "knobs and what they vary over, such as `space: {lr: [1e-3, 1e-2]}`"
    return Finding(path, message, allowed=words, at_key=True)


def _wrong(path: KeyPath, source: Source, root: Schema) -> Finding:
    value = source.value(path)
    schema = _leaf(path, source, root)
    words = _PARAMETER if len(path) == 2 and path[0] == "space" else allowed(schema)
    hint = advice(value, schema)
    for way in branches(schema):
        for key, inner in way.get("properties", {}).items():
            if isinstance(value, str) and value in inner.get("enum", ()):
                hint = f"write {{{key}: {value}}}"
    return Finding(path, complaint(value, schema), allowed=words, hint=hint)


def _leaf(path: KeyPath, source: Source, root: Schema) -> dict[str, Any]:
    """The schema of the value at a path, its references resolved, alternatives kept."""
    if not path:
        return dict(root)
    *above, part = path
    parent = _mapping(tuple(above), source, root)
    if isinstance(part, int):
        found = parent.get("items", {})
    else:
        found = parent.get("properties", {}).get(part) or parent.get("additionalProperties") or {}
    found = _resolve(found, root)
    for key in ("anyOf", "oneOf"):
        if key in found:
            if isinstance(source.value(path), Mapping) and "discriminator" in found:
                return _mapping(path, source, root)
            return {key: _tags(key, found, root)}
    return found


def _tags(key: str, schema: Schema, root: Schema) -> list[dict[str, Any]]:
    resolved = [_resolve(branch, root) for branch in schema[key]]
    return [_any_tag(resolved)] if "discriminator" in schema else resolved


def _tag_key(ways: Sequence[Schema]) -> str | None:
    """The key by whose value kinds of mappings are told apart; None where there is none."""
    fixed = [
        {key for key, inner in way.get("properties", {}).items() if "const" in inner}
        for way in ways
    ]
    return min(set.intersection(*fixed), default=None)


def _any_tag(ways: Sequence[Schema]) -> dict[str, Any]:
    """A mapping of which nothing is known but that it must say which kind it is."""
    key = _tag_key(ways)
    assert key is not None, "a union with a discriminator"
    tags = [way["properties"][key]["const"] for way in ways]
    return {"type": "object", "properties": {key: {"enum": tags}}}


def _mapping(path: KeyPath, source: Source, root: Schema) -> dict[str, Any]:
    """The schema of the mapping or list at a path: of the alternatives the one that was meant."""
    return _resolve(_branch(path, source, root), root)


def _branch(path: KeyPath, source: Source, root: Schema) -> Schema:
    if not path:
        return root
    *above, part = path
    parent = _mapping(tuple(above), source, root)
    if isinstance(part, int):
        schema = parent.get("items", {})
    else:
        schema = parent.get("properties", {}).get(part) or parent.get("additionalProperties") or {}
    value = source.value(path)
    ways = [_resolve(way, root) for way in branches(_resolve(schema, root))]
    wanted = "array" if isinstance(value, list | tuple) else "object"
    fitting = [way for way in ways if way.get("type") == wanted] or ways
    if len(fitting) > 1 and isinstance(value, Mapping):
        return _meant(value, fitting)
    return fitting[0]


def _meant(value: Mapping[str, Any], ways: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tag = _tag_key(ways)
    for way in ways:
        properties = way.get("properties", {})
        if tag is not None and properties[tag]["const"] == value.get(tag):
            return way
        if "choices" in properties and "choices" in value:
            return way
    return _any_tag(ways) if tag is not None else ways[-1]


def _resolve(schema: Schema, root: Schema) -> dict[str, Any]:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return dict(schema)
