"""From the words of a search space to Optuna's distributions, asked for in one fixed order.

A knob under a condition is asked for after the knobs it depends on, and only where the condition
holds; so a cell's parameters are those that mean something for it, as in `config.space.grid_cells`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from wesar_sweep.config.run import Architecture
from wesar_sweep.config.space import (
    Choices,
    Range,
    Scalar,
    active,
    fixed_knobs,
    parents_first,
    values,
)
from wesar_sweep.config.study import Study

_SHAPE_KNOBS = frozenset(Architecture.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched knob: Optuna's distribution, and the exact values where they are a list."""

    knob: str
    distribution: BaseDistribution
    values: tuple[Scalar, ...] | None
    """The only values allowed; None for a continuous range."""


def axes(study: Study) -> dict[str, Axis]:
    """Knob -> axis, parents before the knobs whose `when` names them."""
    return {knob: _axis(study, knob) for knob in parents_first(study.space)}


def suggest(study: Study, trial: Trial) -> dict[str, Scalar]:
    """The cell's parameters: what Optuna chooses for each knob that is active.

    Asking again for a trial that has some or all of its parameters keeps those: a trial whose
    worker was killed half-way through the asking gets the same cell.
    """
    fixed = fixed_knobs(study)
    params: dict[str, Scalar] = {}
    for knob, axis in axes(study).items():
        if active({**fixed, **params}, study.space[knob].when):
            params[knob] = _exact(axis, _ask(trial, axis))
    return params


def _ask(trial: Trial, axis: Axis) -> Scalar:
    kind = axis.distribution
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(axis.knob, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(axis.knob, kind.low, kind.high, step=kind.step, log=kind.log)
    assert isinstance(kind, FloatDistribution), axis
    return trial.suggest_float(axis.knob, kind.low, kind.high, step=kind.step, log=kind.log)


def varies_architecture(study: Study) -> bool:
    """Whether cells may differ in the shape of a tensor, so that they need different stacks."""
    return not _SHAPE_KNOBS.isdisjoint(study.space)


def has_conditions(study: Study) -> bool:
    """Whether any knob exists only under a condition."""
    return any(parameter.when for parameter in study.space.values())


def _axis(study: Study, knob: str) -> Axis:
    parameter = study.space[knob]
    listed = values(parameter, knob)
    if isinstance(parameter, Choices):
        assert listed is not None, "choices are a list"
        return Axis(knob, CategoricalDistribution(list(listed)), listed)
    if listed is None:
        return Axis(knob, FloatDistribution(parameter.low, parameter.high, log=parameter.log), None)
    if not study.sampler.draws:
        return Axis(knob, _span(parameter, listed), listed)
    return Axis(knob, _listed(parameter, listed), listed)


def _is_int(listed: Sequence[Scalar]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in listed)


def _span(parameter: Range, listed: tuple[Scalar, ...]) -> BaseDistribution:
    """The interval around a grid's values, for plots: they are given, never drawn."""
    low, high = listed[0], listed[-1]
    if _is_int(listed):
        return IntDistribution(low, high, log=parameter.log)  # type: ignore[arg-type]
    return FloatDistribution(low, high, log=parameter.log)  # type: ignore[arg-type]


def _listed(parameter: Range, listed: tuple[Scalar, ...]) -> BaseDistribution:
    """A distribution that draws only the listed values and keeps their order where Optuna can.

    Optuna steps evenly or logarithmically, not both: log-spaced points become a plain choice.
    """
    if len(listed) == 1:
        return CategoricalDistribution(list(listed))
    low, high = listed[0], listed[-1]
    if _is_int(listed):
        gaps = {after - before for before, after in pairwise(listed)}  # type: ignore[operator]
        if gaps == {1}:
            return IntDistribution(low, high, log=parameter.log)  # type: ignore[arg-type]
        if len(gaps) == 1 and not parameter.log:
            return IntDistribution(low, high, step=gaps.pop())  # type: ignore[arg-type]
    elif not parameter.log:
        step = parameter.step or (high - low) / (len(listed) - 1)  # type: ignore[operator]
        return FloatDistribution(low, high, step=step)  # type: ignore[arg-type]
    return CategoricalDistribution(list(listed))


def _exact(axis: Axis, value: Scalar) -> Scalar:
    """The listed value nearest to what Optuna says: its steps are off by a rounding error."""
    if axis.values is None or value in axis.values:
        return value
    assert isinstance(value, int | float), axis.knob
    numbers = [listed for listed in axis.values if isinstance(listed, int | float)]
    return min(numbers, key=lambda listed: abs(listed - value))
