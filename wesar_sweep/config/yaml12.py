"""YAML as version 1.2 means it: the only reader and writer of YAML in the project.

PyYAML speaks YAML 1.1: it reads ``5e-4`` as text, ``no`` as false and ``1:30`` as 90, and it keeps
the last of two equal keys. Here PyYAML scans and parses; the meaning of a scalar is the core schema
of YAML 1.2, equal keys are refused, and the place of every key and value is kept for errors.
What the values mean does not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from wesar_sweep.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]
"""Keys of mappings and indices of lists from the root of a document down to a value."""

MAX_VALUES = 100_000
"""A document that holds more values than this, aliases expanded, is refused."""

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"
_SCALARS: dict[str, tuple[str, str]] = {
    # kind: (pattern, first characters); YAML 1.2.2, section 10.3.2
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN",
        "-+.0123456789",
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key or a value stands, and how it was written."""

    line: int
    """From 1."""
    column: int
    """From 1."""
    text: str | None = None
    """The value as it was written; None where it covers several lines."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where it says it."""

    value: Any
    """Plain dicts, lists and scalars; None for an empty file."""
    values: Mapping[KeyPath, Place] = field(default_factory=dict)
    """Path -> place of the value."""
    keys: Mapping[KeyPath, Place] = field(default_factory=dict)
    """Path -> place of the key that leads to the value; list items have none."""


class _Resolver(BaseResolver):
    """Scalars by the core schema of YAML 1.2."""


class _Composer(Reader, Scanner, Parser, Composer, _Resolver):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> ScalarNode:
        # PyYAML reads these as line breaks, and folds them, but where they are escaped.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar(_TAG + "str", data, style=style)


for _kind, (_pattern, _first) in _SCALARS.items():
    _regexp = re.compile(rf"^(?:{_pattern})$")
    for _class in (_Resolver, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _kind, _regexp, [*_first, *([""] if _kind == "null" else [])]
        )
_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(
    tuple, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True)
)


def read(path: Path) -> Document:
    """The document in a file.

    Raises:
        ConfigError: The file cannot be read, or is not one YAML 1.2 document.
    """
    name = str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(Problem("there is no such file", file=name)) from None
    except IsADirectoryError:
        raise ConfigError(Problem("this is a folder, not a file", file=name)) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(Problem(f"the file cannot be read: {reason}", file=name)) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        problem = _problem(
            name,
            place,
            "this is not UTF-8 text",
            value=f"byte 0x{raw[error.start]:02x}",
            hint="save the file as UTF-8",
        )
        raise ConfigError(problem) from None
    return parse(text, file=name)


def parse(text: str, *, file: str | None = None) -> Document:
    """The document in a text.

    Args:
        text: YAML 1.2.
        file: Name for error messages.

    Raises:
        ConfigError: Not one YAML 1.2 document.
    """
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        problem = _problem(
            file, place, f"the character U+{ord(text[error.position]):04X} is not allowed"
        )
        raise ConfigError(problem) from None
    except MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, text, file)) from None
    if node is None:
        return Document(None)
    builder = _Builder(text, file)
    value = builder.build(node, (), ())
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(value, builder.values, builder.keys)


def dumps(value: Any) -> str:
    """YAML that reads back as an equal value; tuples are written as ``[a, b]``."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=96,
    )
    return str(text)


def show(value: Any) -> str:
    """One value on one line, as it would be written in a file."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**6)
    return str(text).removesuffix("\n").removesuffix("\n...")


class _Builder:
    """Turns nodes into values and notes every place; gathers problems instead of raising them."""

    def __init__(self, text: str, file: str | None) -> None:
        self.text = text
        self.file = file
        self.values: dict[KeyPath, Place] = {}
        self.keys: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def build(self, node: Node, path: KeyPath, above: tuple[Node, ...]) -> Any:
        self.count += 1
        place = self.values[path] = self._place(node)
        if any(node is other for other in above):
            return self._refuse(place, "this alias contains itself")
        if self.count > MAX_VALUES:
            if self.count == MAX_VALUES + 1:
                self._refuse(place, f"the file holds more than {MAX_VALUES:,} values")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            return self._refuse_tag(node, place)
        if isinstance(node, SequenceNode):
            return [
                self.build(item, (*path, index), (*above, node))
                for index, item in enumerate(node.value)
            ]
        assert isinstance(node, MappingNode), node
        return self._mapping(node, path, above)

    def _mapping(self, node: MappingNode, path: KeyPath, above: tuple[Node, ...]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, ScalarNode) or key_node.tag != _TAG + "str":
                self._refuse(place, "a key must be text", hint="put the key in quotes")
                continue
            key = str(key_node.value)
            if key == _MERGE and key_node.style is None:
                hint = "write out the keys that it stands for"
                self._refuse(place, "merge keys (<<) are not part of YAML 1.2", hint=hint)
                continue
            if key in mapping:
                first = self.keys[(*path, key)]
                self.problems.append(
                    _problem(
                        self.file,
                        place,
                        f"the key is given twice, first in line {first.line}",
                        path=dotted((*path, key)),
                        hint="keep one of the two",
                    )
                )
                continue
            self.keys[(*path, key)] = place
            mapping[key] = self.build(value_node, (*path, key), (*above, node))
        return mapping

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind == "str":
            return text
        if kind not in _SCALARS:
            return self._refuse_tag(node, place)
        if not re.fullmatch(_SCALARS[kind][0], text):
            return self._refuse(place, f"this is not what its tag !!{kind} says")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if len(text) > 400:
            return self._refuse(place, "the number is too long")
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))

    def _place(self, node: Node) -> Place:
        start, end = node.start_mark, node.end_mark
        text = self.text[start.index : end.index] if start.line == end.line else None
        if text is not None and len(text) > 80:
            text = text[:79] + "…"
        return Place(start.line + 1, start.column + 1, text)

    def _refuse(self, place: Place, message: str, *, hint: str | None = None) -> None:
        self.problems.append(_problem(self.file, place, message, value=place.text, hint=hint))

    def _refuse_tag(self, node: Node, place: Place) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._refuse(place, f"the tag {tag} is not allowed", hint="remove the tag")


def dotted(path: KeyPath) -> str:
    """A path as users write it: ``space.lr.low``, ``objectives[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _problem(
    file: str | None,
    place: Place,
    message: str,
    *,
    path: str = "",
    value: str | None = None,
    hint: str | None = None,
) -> Problem:
    return Problem(
        message, path=path, value=value, hint=hint, file=file, line=place.line, column=place.column
    )


def _syntax_problem(error: MarkedYAMLError, text: str, file: str | None) -> Problem:
    what, context = str(error.problem or ""), str(error.context or "")
    mark: Mark | None = error.problem_mark or error.context_mark
    assert mark is not None, "PyYAML marks every syntax error"
    lines = text.split("\n")
    message, hint = _plain(what, context, lines[mark.line][: mark.column + 1])
    opened = "flow" in context or "quoted" in context or "find expected ':'" in what
    if opened and error.context_mark is not None:
        # PyYAML gives up where the text makes no sense any more; to be mended is where it began.
        mark = error.context_mark
    above = mark.line - 1
    if "mapping values" in what and above >= 0 and re.match(r"\s*[\w.-]+:[^\s/]", lines[above]):
        # `lr:1e-3` is text that goes on in the next line, where its colon is then a surprise.
        message, hint = "there is no space after the colon", "write `key: value`"
        return _problem(
            file,
            Place(mark.line, len(lines[above]) - len(lines[above].lstrip()) + 1),
            message,
            value=lines[above].strip(),
            hint=hint,
        )
    place = Place(mark.line + 1, mark.column + 1)
    return _problem(file, place, message, value=lines[mark.line].strip() or None, hint=hint)


def _plain(what: str, context: str, before: str) -> tuple[str, str | None]:
    """PyYAML's words for a syntax error in plain ones, and what to do."""
    if "\\t" in what or "\t" in before:
        return "a tab is not allowed here", "use spaces"
    if "mapping values are not allowed" in what:
        return (
            "a colon does not fit here",
            "check the indentation here and the line above, or quote the text",
        )
    if "could not find expected ':'" in what:
        return "this key has no colon", "write `key: value`"
    if "undefined alias" in what:
        return (
            "this alias has no anchor",
            "write the value itself, or quote text that begins with *",
        )
    if "duplicate anchor" in what:
        return "this anchor is given twice", "rename one of the two"
    if "expected a single document" in context:
        return "the file holds more than one document", "remove the line `---`"
    if "flow sequence" in context:
        return "this list is not closed", "separate values by commas and end with ]"
    if "flow mapping" in context:
        return "this mapping is not closed", "separate entries by commas and end with }"
    if "end of stream" in what:
        return "this quoted text is not closed", "end it with the quote that it begins with"
    if "unknown escape character" in what:
        return "this backslash means nothing here", "use single quotes, or write two backslashes"
    if "sequence entries are not allowed" in what:
        return "a list cannot begin here", "begin it in the next line, or write [a, b]"
    if "block mapping" in context or "block collection" in context or "document start" in what:
        return (
            "this does not fit the lines above",
            "give the keys of one mapping the same indentation",
        )
    if "cannot start any token" in what:
        return "text cannot begin with this character", "put the text in quotes"
    return f"this is not YAML: {what or context}", None
