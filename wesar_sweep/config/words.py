"""JSON Schema in plain words: what is allowed, and what is wrong with a value.

Editors read the schema, people read these words; both come from the same models and so agree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
METHOD_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"

_PATTERNS = {
    NAME_PATTERN: "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    METHOD_PATTERN: "letters, digits and '_', beginning with a letter",
}
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def listed(names: Iterable[object]) -> str:
    """``a, b, c``."""
    return ", ".join(str(name) for name in names)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """``did you mean …?`` with the nearest right spelling, if one is near."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    plain = name.lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(plain, by_lower, n=1, cutoff=0.7)
    return f"did you mean {by_lower[near[0]]}?" if near else None


def branches(schema: Schema) -> list[Schema]:
    """The alternatives of a schema; itself where there is but one."""
    ways = schema.get("anyOf") or schema.get("oneOf") or [schema]
    if (
        {"type": "integer"} in ways
        and {"type": "number"} in ways
        and {"type": "string"} not in ways
    ):
        # A number may be whole.
        return [way for way in ways if way != {"type": "integer"}]
    return list(ways)


def allowed(schema: Schema) -> str:
    """What a schema accepts, such as ``a whole number, at least 1, or null (off)``."""
    kinds = branches(schema)
    words = [_one(branch) for branch in kinds if branch.get("type") not in ("null", *_any(kinds))]
    if _any(kinds):
        words.insert(0, "a single value")
    elif len(words) < len(kinds):
        words.append("null")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, or {words[-1]}"


def complaint(value: object, schema: Schema) -> str:
    """What is wrong with a value that a schema does not accept, in a few words."""
    kinds = branches(schema)
    enums = [member for branch in kinds for member in _enum(branch)]
    if enums and isinstance(value, str):
        return "this is not one of the allowed values"
    if isinstance(value, float) and not math.isfinite(value):
        return "the number must be finite"
    for branch in kinds:
        if _fits(value, branch.get("type")):
            return _out_of_bounds(value, branch)
    expected = [branch for branch in kinds if branch.get("type") != "null"] or kinds
    names = ["a single value"] if (plain := _any(kinds)) else []
    names += [_kind_name(branch) for branch in expected if branch.get("type") not in plain]
    wanted = " or ".join(dict.fromkeys(names))
    return f"expected {wanted}, found {found(value)}"


def found(value: object) -> str:
    """The kind of a value, in words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    for kinds, word in (
        (int, "a whole number"),
        (float, "a fraction"),
        (str, "text"),
        (Mapping, "a mapping"),
        (Sequence, "a list"),
    ):
        if isinstance(value, kinds):
            return word
    return f"a value of type {type(value).__name__}"


def advice(value: object, schema: Schema) -> str | None:
    """What to do about a value that a schema does not accept, where that can be guessed."""
    kinds = branches(schema)
    types = {branch.get("type") for branch in kinds}
    members = [member for branch in kinds for member in _enum(branch) if isinstance(member, str)]
    if value is None:
        return "give a value, or remove the key for its default"
    if isinstance(value, bool) and members:
        return None
    if "array" in types and isinstance(value, str | int | float):
        return f"write [{value}]"
    if not isinstance(value, str):
        if isinstance(value, float) and value.is_integer() and "integer" in types:
            return f"write {int(value)}"
        return None
    if members:
        return nearest(value, members)
    if types & {"integer", "number"}:
        bare = re.sub(r"(?<=\d)[_,](?=\d)", "", value.strip())
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", bare, re.IGNORECASE):
            return f"write {bare}, without quotes or separators"
    if "boolean" in types and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return "write true or false: in YAML 1.2 yes, no, on and off are text"
    if "object" in types and (match := re.match(r"([\w.-]+):(\S+)", value)):
        return f"write a space after the colon: {match[1]}: {match[2]}"
    return None


def _any(kinds: Sequence[Schema]) -> tuple[str, ...]:
    """The kinds of plain values, if the schema takes them all."""
    plain = ("boolean", "integer", "number", "string")
    takes_all = {str(branch.get("type")) for branch in kinds} >= set(plain)
    return plain if takes_all else ()


def _enum(schema: Schema) -> list[object]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _kind_name(schema: Schema) -> str:
    return _KINDS.get(str(schema.get("type")), "a value")


def _one(schema: Schema) -> str:
    if members := _enum(schema):
        return listed(members)
    kind = schema.get("type")
    if kind == "string":
        return _PATTERNS.get(str(schema.get("pattern")), "text")
    if kind == "array":
        items = schema.get("items", {})
        if _any(branches(items)):
            return "a list of values"
        return f"a list of {listed(_enum(items))}" if _enum(items) else "a list"
    if kind == "object" and "properties" in schema:
        return f"a mapping with the keys {listed(schema['properties'])}"
    bounds = [
        f"{word} {schema[key]:,}" if abs(schema[key]) >= 10_000 else f"{word} {schema[key]:g}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return f"{_kind_name(schema)}{', ' if bounds else ''}{' and '.join(bounds)}"


def _fits(value: object, kind: object) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == {True: "boolean", False: "null"}[isinstance(value, bool)]
    return (
        (kind == "integer" and isinstance(value, int))
        or (kind == "number" and isinstance(value, int | float))
        or (kind == "string" and isinstance(value, str))
        or (kind == "object" and isinstance(value, Mapping))
        or (kind == "array" and isinstance(value, list | tuple))
    )


def _out_of_bounds(value: object, schema: Schema) -> str:
    if isinstance(value, int | float):
        if value < schema.get("minimum", value) or value <= schema.get(
            "exclusiveMinimum", -math.inf
        ):
            return "the number is too small"
        return "the number is too large"
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)):
            return f"the text is longer than {schema['maxLength']} characters"
        return "this text is not allowed here" if value else "the text is empty"
    if isinstance(value, list | tuple) and len(value) < schema.get("minItems", 0):
        return "the list is empty" if not value else "the list is too short"
    return "this value is not allowed here"
