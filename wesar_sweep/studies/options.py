"""Options of Optuna's samplers and pruners: what YAML may say, checked against their signatures."""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from optuna.exceptions import ExperimentalWarning

from wesar_sweep.config.space import Scalar
from wesar_sweep.errors import Problem

_PLAIN = {"int", "float", "bool", "str", "None"}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "None": "null",
}
# Set by this project from the study, or deprecated by Optuna 5.
_WITHHELD = re.compile(
    r"seed|warn_.*|consider_prior|prior_weight|consider_magic_clip|consider_endpoints|sigma0"
    r"|restart_strategy|inc_popsize"
)


def offered(kind: type) -> dict[str, frozenset[str]]:
    """Option -> the plain types it takes, for those of a class that a YAML file can say.

    Callables, samplers in samplers and what Optuna has deprecated are not among them.
    """
    options = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        annotation = parameter.annotation
        # Optuna writes some annotations as words and some as types.
        words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        types = frozenset(part.strip() for part in words.split("|"))
        if types <= _PLAIN and not _WITHHELD.fullmatch(name):
            options[name] = types
    return options


def required(kind: type) -> list[str]:
    """Options without a default."""
    parameters = inspect.signature(kind).parameters.values()
    return [entry.name for entry in parameters if entry.default is inspect.Parameter.empty]


def option_problems(kind: type, *, options: Mapping[str, Scalar], path: str) -> list[Problem]:
    """All that is wrong with the options of one class.

    Args:
        kind: Optuna's class.
        options: As in the study file.
        path: Where they stand there, such as ``sampler.options``.
    """
    allowed = offered(kind)
    names = ", ".join(sorted(allowed)) or "none"
    problems = []
    for name, value in options.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            problems.append(
                Problem(
                    f"{kind.__name__} has no option {name!r} that can be set here",
                    path=f"{path}.{name}",
                    value=repr(value),
                    allowed=names,
                    hint=f"did you mean {near[0]}?" if near else None,
                )
            )
        elif not _fits(value, allowed[name]):
            words = " or ".join(
                _WORDS[word] for word in sorted(allowed[name], key=list(_WORDS).index)
            )
            problems.append(
                Problem("wrong type", path=f"{path}.{name}", value=repr(value), allowed=words)
            )
    problems += [
        Problem(f"{kind.__name__} needs this option", path=f"{path}.{name}")
        for name in required(kind)
        if name not in options
    ]
    return problems


def _fits(value: Scalar, types: frozenset[str]) -> bool:
    if value is None:
        return "None" in types
    if isinstance(value, bool):
        return "bool" in types
    if isinstance(value, int):
        return "int" in types or "float" in types
    return type(value).__name__ in types


def build(kind: type, *, options: Mapping[str, Any]) -> Any:
    """An instance, without Optuna's remarks that a class or an option is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return kind(**options)
