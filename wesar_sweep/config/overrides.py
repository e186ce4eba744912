"""Overrides of the command line: ``path=value``, the value as YAML 1.2."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from wesar_sweep.config import yaml12
from wesar_sweep.config.yaml12 import KeyPath, dotted
from wesar_sweep.errors import ConfigError, Problem


def apply_overrides(
    raw: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[KeyPath, str], list[Problem]]:
    """A copy of the values with the overrides in place, later ones over earlier ones.

    Returns:
        The values; for each path that was set the override as written; what cannot be applied.
    """
    result = copy.deepcopy(dict(raw))
    applied: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    for text in overrides:
        try:
            path, value = _split(text)
            _set(result, path, value, text)
        except ConfigError as error:
            problems += error.problems
            continue
        applied = {at: other for at, other in applied.items() if at[: len(path)] != path}
        applied[path] = text
    return result, applied, problems


def _split(text: str) -> tuple[KeyPath, Any]:
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            Problem(
                "an override is path=value",
                file=f"--set {text}",
                hint="such as --set training.steps=50 or --set space.lr=[1e-3,1e-2]",
            )
        )
    try:
        return tuple(keys), yaml12.parse(value).value
    except ConfigError as error:
        first = error.problems[0]
        raise ConfigError(
            Problem(
                f"the value is not YAML: {first.message}",
                path=dotted(tuple(keys)),
                value=value,
                hint=first.hint,
                file=f"--set {text}",
            )
        ) from None


def _set(target: dict[str, Any], path: KeyPath, value: Any, text: str) -> None:
    node = target
    for depth, key in enumerate(path[:-1], start=1):
        inner = node.get(str(key))
        if inner is None:
            inner = node[str(key)] = {}
        if not isinstance(inner, dict):
            here = dotted(path[:depth])
            message = f"{here} is a plain value or a list, so that nothing can be set inside it"
            hint = f"set it as a whole: --set {here}=..."
            raise ConfigError(Problem(message, path=dotted(path), hint=hint, file=f"--set {text}"))
        node = inner
    node[str(path[-1])] = value
