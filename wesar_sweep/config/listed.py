"""The cells that a study's file says by itself: those of a grid, or those written out."""

from __future__ import annotations

from collections.abc import Mapping

from wesar_sweep.config.run import make_run
from wesar_sweep.config.space import (
    Choices,
    Parameter,
    Scalar,
    active,
    fixed_knobs,
    grid_cells,
    parents_first,
    values,
    within,
)
from wesar_sweep.config.study import Study


def listed_cells(study: Study) -> list[dict[str, Scalar]] | None:
    """Every cell of a valid study in the order of its trials, knobs in the order of `space`.

    Returns:
        None where a sampler draws the cells or a boundary search asks for them.
    """
    if study.sampler.name == "grid":
        return grid_cells(study)
    if study.sampler.name == "listed":
        return [
            {knob: cell[knob] for knob in study.space if knob in cell}
            for cell in study.sampler.listed or ()
        ]
    return None


def cell_of(study: Study, columns: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The cell of `space` whose runs have these knobs in the outcomes; knobs in its order.

    The outcomes have no σ² where the method uses none, and a width where the file says null: for
    such a knob any value of `space` that gives the same run stands.

    Args:
        study: What the run belongs to.
        columns: Every knob by its YAML name (`Run.columns`).

    Raises:
        ValueError: No cell of the space gives such a run.
    """
    fixed = fixed_knobs(study)
    cell: dict[str, Scalar] = {}
    for knob in parents_first(study.space):
        if active({**fixed, **cell}, study.space[knob].when):
            cell[knob] = _value(study.space[knob], knob, columns[knob])
    found = {knob: cell[knob] for knob in study.space if knob in cell}
    made = make_run(study, 0, study.first_seed, found).columns()
    wrong = [knob for knob in study.space if made[knob] != columns[knob]]
    if wrong:
        told = ", ".join(f"{knob} {columns[knob]}" for knob in wrong)
        raise ValueError(f"no cell of the space has {told}")
    return found


def _value(parameter: Parameter, knob: str, column: Scalar) -> Scalar:
    if within(column, parameter, knob):
        return column
    known = values(parameter, knob)
    if known is None:
        assert not isinstance(parameter, Choices), "choices are a list"
        return float(parameter.low)
    return None if None in known else known[0]
