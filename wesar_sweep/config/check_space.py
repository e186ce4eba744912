"""Does the space make sense by itself: each parameter and each condition?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from wesar_sweep.config.findings import Finding
from wesar_sweep.config.knobs import WHOLE_STUDY, Knob, accepts, knob_table
from wesar_sweep.config.space import (
    MAX_VALUES,
    Choices,
    Parameter,
    Range,
    Scalar,
    active,
    combinations,
    fixed_knobs,
    holds,
    parents_first,
    steps_between,
    values,
)
from wesar_sweep.config.study import Study
from wesar_sweep.config.words import advice, listed, nearest
from wesar_sweep.config.yaml12 import KeyPath, show

MAX_SETTINGS = 500_000
"""No more combinations of knobs are gone through, a few seconds of work."""

_FEW = 64
"""An integer range of no more values is gone through whole; of a longer one a few stand for all."""


class TooManySettingsError(Exception):
    """The space holds more combinations of these knobs than can be checked."""

    def __init__(self, knobs: tuple[str, ...]) -> None:
        self.knobs = knobs
        super().__init__(f"too many combinations of {listed(knobs)} to check")


def parameter_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with each parameter, its condition aside."""
    for name, parameter in study.space.items():
        knob = knob_table().get(name)
        if knob is None:
            yield _no_knob(("space", name), name)
        elif isinstance(parameter, Choices):
            yield from _choices(study, knob, parameter)
        else:
            yield from _range(knob, parameter)


def twice_findings(study: Study) -> Iterator[Finding]:
    """Knobs that are both fixed and searched, where no condition says when which holds."""
    for name, parameter in study.space.items():
        knob = knob_table()[name]
        section = study if knob.section is None else getattr(study, knob.section)
        if parameter.when or name not in section.model_fields_set:
            continue
        path: KeyPath = (knob.section, name) if knob.section else (name,)
        message = (
            f"{name} is set in both {knob.section} and space"
            if knob.section
            else f"{name} is set both at the top level and in space"
        )
        hint = f"keep one of the two; an override of what is searched is --set space.{name}=..."
        yield Finding(path, message, hint=hint, at_key=True)


def condition_findings(study: Study) -> Iterator[Finding]:
    """Conditions that name what is not there, can never hold, or run in a circle."""
    fixed = fixed_knobs(study)
    for name, parameter in study.space.items():
        for other, options in parameter.when.items():
            path: KeyPath = ("space", name, "when", other)
            if other == name:
                yield Finding(path, f"{name} cannot depend on itself", at_key=True)
                continue
            knob = knob_table().get(other)
            if knob is None:
                yield _no_knob(path, other)
                continue
            searched = study.space.get(other)
            possible = (fixed[other],) if searched is None else values(searched, other)
            if possible is None:
                hint = f"give space.{other} choices, points or a step"
                message = f"{other} is drawn from a range, so that it never has an exact value"
                yield Finding(path, message, hint=hint, involves=(("space", other),), at_key=True)
                continue
            if searched is not None and searched.when:
                possible = (*possible, fixed[other])
            yield from _never(study, path, options, possible, other)
    order = parents_first(study.space)
    circle = [name for name in study.space if name not in order]
    if circle and not any(name in study.space[name].when for name in circle):
        involves = tuple(("space", name) for name in circle)
        yield Finding(
            ("space", circle[0], "when"),
            f"the conditions of {listed(circle)} depend on each other",
            involves=involves,
            hint="remove one of these conditions",
            at_key=True,
        )


def settings(study: Study, *names: str) -> Iterator[dict[str, Scalar]]:
    """Every setting of some knobs that the space can produce, fixed values filled in.

    Of long ranges a few values stand for all: enough to find a width that heads do not divide, and
    the least and the largest. Also in each setting: the knobs that conditions of these depend on.

    Raises:
        TooManySettingsError: There are more than `MAX_SETTINGS`.
    """
    wanted: list[str] = []
    waiting = [name for name in names if name in study.space]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.append(name)
            waiting += [other for other in study.space[name].when if other in study.space]
    lists = {name: _representatives(study.space[name], name) for name in wanted}
    fixed = fixed_knobs(study)
    for count, params in enumerate(combinations(study, lists)):
        if count >= MAX_SETTINGS:
            raise TooManySettingsError(tuple(wanted))
        yield {**fixed, **params}


def is_active(study: Study, name: str, setting: Mapping[str, Scalar]) -> bool:
    """Whether a searched knob exists under a setting from `settings`."""
    return name in study.space and active(setting, study.space[name].when)


def given(study: Study, *names: str) -> KeyPath:
    """Where the first of these knobs that the file mentions is set."""
    for name in names:
        if name in study.space:
            return ("space", name)
    for name in names:
        knob = knob_table()[name]
        section = study if knob.section is None else getattr(study, knob.section)
        if name in section.model_fields_set:
            return (knob.section, name) if knob.section else (name,)
    return tuple(knob_table()[names[0]].fixed_path.split("."))


def rests(*names: str) -> tuple[KeyPath, ...]:
    """The paths that can decide the value of these knobs."""
    paths: list[KeyPath] = []
    for name in names:
        paths += [("space", name), tuple(knob_table()[name].fixed_path.split("."))]
    return tuple(paths)


def _representatives(parameter: Parameter, name: str) -> tuple[Scalar, ...]:
    if isinstance(parameter, Choices) or parameter.points is not None:
        found = values(parameter, name)
    elif knob_table()[name].kind == "integer" and steps_between(parameter) > _FEW:
        assert isinstance(parameter.low, int) and isinstance(parameter.high, int)
        assert parameter.step is None or isinstance(parameter.step, int)
        step = parameter.step or 1
        found = (parameter.low, parameter.low + step, parameter.high)
    elif knob_table()[name].kind == "integer":
        found = values(parameter, name)
    else:
        found = (parameter.low, parameter.high)
    assert found is not None
    return found


def _no_knob(path: KeyPath, name: str) -> Finding:
    """A name in `space` that cannot vary."""
    if name in WHOLE_STUDY:
        return Finding(
            path,
            f"{name} is no knob: one value holds for the whole study",
            hint=f"set training.{name}; to compare two values, run two studies",
            at_key=True,
        )
    return Finding(
        path,
        "there is no such knob",
        allowed=listed(knob_table()),
        hint=nearest(name, knob_table()),
        at_key=True,
    )


def _choices(study: Study, knob: Knob, parameter: Choices) -> Iterator[Finding]:
    seen: list[Scalar] = []
    for index, value in enumerate(parameter.choices):
        path: KeyPath = ("space", knob.name, "choices", index)
        if not accepts(knob.name, value):
            message = f"{knob.name} cannot have this value"
            hint = nearest(value, knob.allowed.split(", ")) if isinstance(value, str) else None
            if knob.numeric:
                hint = advice(value, {"type": knob.kind})
            yield Finding(path, message, allowed=knob.allowed, hint=hint)
        elif knob.name == "method" and value not in study.method_names:
            yield unknown_method(study, path, str(value))
        elif holds(value, tuple(seen)):
            yield Finding(path, "this choice is given twice", hint="remove one of the two")
        seen.append(value)


def unknown_method(study: Study, path: KeyPath, name: str) -> Finding:
    """A method's name that the study does not know."""
    return Finding(
        path,
        "there is no such method",
        allowed=listed(study.method_names),
        hint=nearest(name, study.method_names) or "define it under methods",
        involves=(("methods", name),),
    )


def _range(knob: Knob, parameter: Range) -> Iterator[Finding]:
    path: KeyPath = ("space", knob.name)
    if not knob.numeric:
        message = f"{knob.name} has no range"
        hint = f"list the values: {knob.name}: [...]"
        yield Finding(path, message, allowed=f"a list of: {knob.allowed}", hint=hint, at_key=True)
        return
    wrong = [key for key in ("low", "high") if not accepts(knob.name, getattr(parameter, key))]
    for key in wrong:
        yield Finding(
            (*path, key),
            f"{knob.name} cannot have this value",
            allowed=knob.allowed.removesuffix(", or null"),
        )
    if parameter.low >= parameter.high:
        message = "low must be below high"
        hint = f"for one value write {knob.name}: {show(parameter.low)}"
        yield Finding(
            (*path, "low"), message, hint=hint if parameter.low == parameter.high else None
        )
        return
    if parameter.log and parameter.low <= 0:
        if "low" not in wrong:
            hint = "raise low, or remove log"
            yield Finding((*path, "low"), "a logarithmic range begins above 0", hint=hint)
        return
    if not wrong:
        yield from _spacing(knob, parameter, path)


def _spacing(knob: Knob, parameter: Range, path: KeyPath) -> Iterator[Finding]:
    step, points = parameter.step, parameter.points
    integer = knob.kind == "integer"
    if step is not None:
        path_step = (*path, "step")
        if parameter.log:
            hint = "use points for evenly spaced values in the logarithm"
            yield Finding(path_step, "step does not go with log", hint=hint)
            return
        if points is not None:
            yield Finding(path_step, "step does not go with points", hint="keep one of the two")
            return
        if step <= 0 or (integer and not isinstance(step, int)):
            words = "a whole number, at least 1" if integer else "a number above 0"
            yield Finding(path_step, "the step cannot have this value", allowed=words)
            return
    if step is not None or (integer and points is None and not parameter.log):
        count = steps_between(parameter)
        if count >= MAX_VALUES:
            message = f"the range holds {int(count) + 1:,} values, more than {MAX_VALUES:,}"
            yield Finding(path, message, hint="use a larger step, or points", at_key=True)
        elif count != int(count):
            reached = Decimal(repr(parameter.low)) + int(count) * Decimal(repr(step))
            yield Finding(
                (*path, "high"),
                "steps from low do not reach high",
                hint=f"the last value that they reach is {reached.normalize():f}",
            )
    elif integer and points is not None:
        found = values(parameter, knob.name) or ()
        if len(found) < points:
            message = f"only {len(found)} whole numbers are left of these points"
            yield Finding((*path, "points"), message, hint=f"use at most {len(found)} points")


def _never(
    study: Study,
    path: KeyPath,
    options: Scalar | tuple[Scalar, ...],
    possible: tuple[Scalar, ...],
    other: str,
) -> Iterator[Finding]:
    named = options if isinstance(options, tuple) else (options,)
    for index, value in enumerate(named):
        at = (*path, index) if isinstance(options, tuple) else path
        if other == "method" and value not in study.method_names:
            yield unknown_method(study, at, str(value))
        elif not holds(value, possible):
            searched = other in study.space
            words = (
                listed(show(v) for v in dict.fromkeys(possible)) if len(possible) <= _FEW else None
            )
            yield Finding(
                at,
                f"{other} never has this value here",
                allowed=words,
                hint=None if searched else f"put {other} in space, or remove this condition",
                involves=rests(other),
            )
