"""The search space: which knobs vary, over which values, and under which condition.

Here are the words of ``space:`` and the cells they stand for. Samplers, which choose among
continuous values, live in `wesar_sweep.studies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice, pairwise
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, Discriminator, Field, Tag

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.knobs import Model, Training, canonical, knob_table
from wesar_sweep.config.knobs import Scalar as Scalar

When = dict[str, Scalar | Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]]
"""A condition: knob name -> the value, or the values, under which the parameter exists."""

MAX_VALUES = 10_000
"""A range with points or steps holds no more values than this."""

MAX_CELLS = 100_000
"""A grid holds no more cells than this."""


class Choices(Frozen):
    """A list of values. In YAML also plainly ``[a, b]``, or one value for a fixed knob."""

    choices: Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)] = Field(
        description="The values."
    )
    when: When = Field(
        default_factory=dict, description="Knob -> value or values under which this one exists."
    )


class Range(Frozen):
    """An interval, both ends included; ``points`` makes it a list of evenly (log-)spaced values."""

    low: int | float = Field(description="Least value, included.")
    high: int | float = Field(description="Largest value, included.")
    log: bool = Field(default=False, description="Spaced, or drawn, evenly in the logarithm.")
    step: int | float | None = Field(
        default=None, description="Distance of neighbouring values; not with log."
    )
    points: Annotated[int, Field(ge=2, le=MAX_VALUES)] | None = Field(
        default=None,
        description="Number of evenly spaced values (in the logarithm where log is true).",
    )
    when: When = Field(
        default_factory=dict, description="Knob -> value or values under which this one exists."
    )


Parameter = Choices | Range


def _expand(raw: object) -> object:
    """The shorthands ``1e-3`` and ``[1e-3, 1e-2]`` as what they are short for."""
    if isinstance(raw, Mapping | Choices | Range):
        return raw
    return {"choices": raw if isinstance(raw, list | tuple) else [raw]}


def _kind(raw: Any) -> str:
    # Tags are no words of the language, so that an error's location cannot mistake one for a key.
    listed = "choices" in raw if isinstance(raw, Mapping) else isinstance(raw, Choices)
    return "<choices>" if listed else "<range>"


ParameterField = Annotated[
    Annotated[Choices, Tag("<choices>")] | Annotated[Range, Tag("<range>")],
    Discriminator(_kind),
    BeforeValidator(_expand),
]
"""A `Parameter` as study files write it, shorthands included."""


def canonical_parameter(knob: str, parameter: Parameter) -> Parameter:
    """The parameter with its numbers in the knob's own type (``[1]`` for lr becomes ``[1.0]``)."""
    if isinstance(parameter, Choices):
        choices = tuple(canonical(knob, value) for value in parameter.choices)
        return parameter.model_copy(update={"choices": choices})
    numbers = {"low": parameter.low, "high": parameter.high, "step": parameter.step}
    return parameter.model_copy(
        update={name: canonical(knob, value) for name, value in numbers.items()}
    )


class HasSpace(Protocol):
    """The part of a `Study` that says what varies and what the rest is fixed to."""

    @property
    def space(self) -> dict[str, Choices | Range]:
        """Knob -> what it varies over."""
        ...

    @property
    def method(self) -> str:
        """The method where `space` does not vary it."""
        ...

    @property
    def model(self) -> Model:
        """The shape where `space` does not vary it."""
        ...

    @property
    def training(self) -> Training:
        """The recipe where `space` does not vary it."""
        ...


def fixed_knobs(study: HasSpace) -> dict[str, Scalar]:
    """Every knob's value outside `space`: what holds where a parameter is absent or inactive."""
    outside = {"method": study.method, **dict(study.model), **dict(study.training)}
    return {name: outside[name] for name in knob_table()}


def values(parameter: Parameter, knob: str) -> tuple[Scalar, ...] | None:
    """The values of a parameter in their order, or None for a continuous range.

    An integer knob's range without step or points holds every integer; log-spaced fractions are
    rounded to 4 significant digits, ends exact; log-spaced integers to integers.
    """
    if isinstance(parameter, Choices):
        return tuple(canonical(knob, value) for value in parameter.choices)
    integer = knob_table()[knob].kind == "integer"
    if parameter.points is not None:
        return _points(parameter, parameter.points, integer=integer)
    if parameter.step is None and not integer:
        return None
    low, step = _decimal(parameter.low), _decimal(parameter.step or 1)
    number = int if integer else float
    count = int(steps_between(parameter)) + 1
    return tuple(number(low + index * step) for index in range(count))


def steps_between(parameter: Range) -> Decimal:
    """How many steps (of 1 where there is none) lie between the ends of a range."""
    step = _decimal(parameter.step or 1)
    return (_decimal(parameter.high) - _decimal(parameter.low)) / step


def holds(value: Scalar, options: Scalar | tuple[Scalar, ...]) -> bool:
    """Whether a value is the one, or among those, that a condition names."""
    among = options if isinstance(options, tuple) else (options,)
    # Python takes True for 1.
    return any(value == o and isinstance(value, bool) == isinstance(o, bool) for o in among)


def within(value: Scalar, parameter: Parameter, knob: str) -> bool:
    """Whether a parameter, its condition aside, can take this value."""
    known = values(parameter, knob)
    if known is not None:
        return holds(value, known)
    assert isinstance(parameter, Range), "choices are a list"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and parameter.low <= value <= parameter.high  # type: ignore[operator]


def active(params: Mapping[str, Scalar], when: When) -> bool:
    """Whether a parameter with this condition exists for these knob values.

    Args:
        params: Knob -> value; knobs that `space` does not vary as `fixed_knobs` has them.
        when: The parameter's condition; an empty one always holds.
    """
    return all(knob in params and holds(params[knob], options) for knob, options in when.items())


def parents_first(space: Mapping[str, Parameter]) -> tuple[str, ...]:
    """The searched knobs, each after those that its `when` names; else in the order of the file.

    Where conditions run in a circle, the knobs of the circle are left out.
    """
    order: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [
            knob
            for knob in waiting
            if all(parent in order for parent in space[knob].when if parent in space)
        ]
        if not ready:
            break
        order.append(ready[0])
        waiting.remove(ready[0])
    return tuple(order)


def combinations(
    study: HasSpace, lists: Mapping[str, tuple[Scalar, ...]]
) -> Iterator[dict[str, Scalar]]:
    """Every setting of some searched knobs, conditions kept: a knob is absent where it is inactive.

    Args:
        study: What varies, and what the rest is fixed to.
        lists: Knob -> the values to go through. A knob that a `when` of these names and that is
            searched must be here too.
    """
    order = [knob for knob in parents_first(study.space) if knob in lists]
    fixed = fixed_knobs(study)

    def extend(params: dict[str, Scalar], depth: int) -> Iterator[dict[str, Scalar]]:
        if depth == len(order):
            yield params
            return
        knob = order[depth]
        if not active({**fixed, **params}, study.space[knob].when):
            yield from extend(params, depth + 1)
            return
        for value in lists[knob]:
            yield from extend({**params, knob: value}, depth + 1)

    return extend({}, 0)


def grid_cells(study: HasSpace) -> list[dict[str, Scalar]]:
    """Every cell of the grid, knobs in the order of the file, later knobs varying fastest.

    A parameter whose condition does not hold is absent. At most `MAX_CELLS` + 1 cells are made; a
    study with more is refused when it is read.

    Raises:
        ValueError: A parameter is a continuous range, which has no grid.
    """
    lists: dict[str, tuple[Scalar, ...]] = {}
    for knob, parameter in study.space.items():
        listed = values(parameter, knob)
        if listed is None:
            raise ValueError(f"space.{knob} is a continuous range, which has no grid")
        lists[knob] = listed
    place = {knob: {value: i for i, value in enumerate(listed)} for knob, listed in lists.items()}
    cells = [
        {knob: cell[knob] for knob in lists if knob in cell}
        for cell in islice(combinations(study, lists), MAX_CELLS + 1)
    ]
    cells.sort(key=lambda cell: [place[k][cell[k]] if k in cell else -1 for k in lists])
    return cells


def possible_values(study: HasSpace, knob: str) -> tuple[Scalar, ...]:
    """Every value a knob can take in any run, the fixed one among them where it can hold.

    Raises:
        ValueError: The knob varies over a continuous range.
    """
    parameter = study.space.get(knob)
    if parameter is None:
        return (fixed_knobs(study)[knob],)
    listed = values(parameter, knob)
    if listed is None:
        raise ValueError(f"space.{knob} is a continuous range")
    fixed = fixed_knobs(study)[knob]
    return (*listed, fixed) if parameter.when and fixed not in listed else listed


def longest_context(study: HasSpace) -> int:
    """The longest context of any run, in tokens: what the data must suffice for."""
    return max(int(str(context)) for context in possible_values(study, "context"))


def shortest_context(study: HasSpace) -> int:
    """The shortest context of any run, in tokens: what evaluation sets must fit into."""
    return min(int(str(context)) for context in possible_values(study, "context"))


def _points(parameter: Range, points: int, *, integer: bool) -> tuple[Scalar, ...]:
    low, high = parameter.low, parameter.high
    shares = [index / (points - 1) for index in range(1, points - 1)]
    if parameter.log:
        inner = [math.exp(math.log(low) * (1 - s) + math.log(high) * s) for s in shares]
        rounded = [float(f"{value:.4g}") for value in inner]
    else:
        inner = [low * (1 - s) + high * s for s in shares]
        rounded = [float(f"{value:.12g}") for value in inner]
    if integer:
        return tuple(dict.fromkeys((int(low), *(round(value) for value in inner), int(high))))
    spaced = (float(low), *rounded, float(high))
    if all(before < after for before, after in pairwise(spaced)):
        return spaced
    # Rounding would merge neighbours of a very narrow range.
    return (float(low), *inner, float(high))


def _decimal(number: int | float) -> Decimal:
    # Through repr, so that 0.1 is a tenth and three steps of it are 0.3.
    return Decimal(repr(number))
