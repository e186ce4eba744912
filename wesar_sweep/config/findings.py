"""From what is wrong to where it stands: findings, and the source that gives them file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wesar_sweep.config.yaml12 import Document, KeyPath, Place, dotted, show
from wesar_sweep.errors import Problem

_LONGEST_VALUE = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a value, by its path in the resolved study."""

    path: KeyPath
    message: str
    allowed: str | None = None
    hint: str | None = None
    involves: tuple[KeyPath, ...] = ()
    """What else the finding rests on: where one of these is wrong, it is dropped."""
    at_key: bool = False
    """Whether the key is wrong, not its value."""

    def rests_on(self, wrong: Sequence[KeyPath]) -> bool:
        """Whether the finding says nothing new, given paths that are known to be wrong."""
        mine = (self.path, *self.involves)
        return any(a[: len(b)] == b or b[: len(a)] == a for a in mine for b in wrong)


@dataclass(frozen=True, slots=True)
class Source:
    """What was asked, as plain values, with the file and the overrides that it came from."""

    raw: dict[str, Any]
    file: str | None = None
    document: Document = field(default_factory=lambda: Document(None))
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Path -> the override that set it, as it was written."""

    def written(self, path: KeyPath) -> KeyPath:
        """The path as the file spells it: a shorthand leaves out ``choices``."""
        node: Any = self.raw
        result: list[str | int] = []
        for part in path:
            inside = _step(node, part)
            implied = part == "choices" or isinstance(part, int)
            if implied and inside is _ABSENT and not isinstance(node, Mapping):
                continue
            result.append(part)
            node = inside
        return tuple(result)

    def value(self, path: KeyPath) -> Any:
        """The plain value at a path of the file; None where there is none."""
        node: Any = self.raw
        for part in path:
            node = _step(node, part)
        return None if node is _ABSENT else node

    def has(self, path: KeyPath) -> bool:
        """Whether the file or an override gives a value at a path."""
        return not path or (
            self.has(path[:-1]) and _step(self.value(path[:-1]), path[-1]) is not _ABSENT
        )

    def problem(self, finding: Finding) -> Problem:
        """A finding with its file, line and value, for people."""
        path = self.written(finding.path)
        override = self._override(path)
        place = None if override else self._place(path, at_key=finding.at_key)
        if override is None and path in self.document.values:
            # An empty value is null.
            text = (self.document.values[path].text or None) if path else None
            text = "null" if path and self.value(path) is None else text
        elif override and path in self.overrides:
            text = override.partition("=")[2]
        else:
            text = _short(self.value(path)) if path and self.has(path) else None
        return Problem(
            finding.message,
            path=dotted(path),
            value=text,
            allowed=finding.allowed,
            hint=finding.hint,
            file=f"--set {override}" if override else self.file,
            line=place.line if place else None,
            column=place.column if place else None,
        )

    def _override(self, path: KeyPath) -> str | None:
        above = [set_at for set_at in self.overrides if path[: len(set_at)] == set_at]
        if above:
            return self.overrides[max(above, key=len)]
        if path and not self._in_file(path):
            for set_at, text in self.overrides.items():
                if set_at[: len(path)] == path:
                    return text
        return None

    def _in_file(self, path: KeyPath) -> bool:
        return path in self.document.values

    def _place(self, path: KeyPath, *, at_key: bool) -> Place | None:
        if path in self.document.values:
            return self.document.keys.get(path) if at_key else self.document.values[path]
        while path:
            path = path[:-1]
            if path in self.document.keys:
                return self.document.keys[path]
        return None


class _Absent:
    """Stands for a value that is not there, since None is a value."""


_ABSENT = _Absent()


def _step(node: Any, part: str | int) -> Any:
    if isinstance(part, str):
        return node[part] if isinstance(node, Mapping) and part in node else _ABSENT
    return node[part] if isinstance(node, list | tuple) and part < len(node) else _ABSENT


def _short(value: Any) -> str | None:
    if isinstance(value, Mapping) and value:
        return None
    # From Python anything can come.
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple | Mapping)
    text = show(value) if plain else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
