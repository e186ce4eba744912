"""The cells that a study's file says by itself: those of a grid, or those written out."""

from __future__ import annotations

from wesar_sweep.config.space import Scalar, grid_cells
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
