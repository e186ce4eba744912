"""The boundary search that a study asks for: along which knob, over which values, how finely.

Here are the words; how a search goes on is `wesar_sweep.stability.boundary`, what was tried
`wesar_sweep.store.searched`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from wesar_sweep.config.space import Parameter, Range, Scalar, grid_cells, values
from wesar_sweep.config.study import Study

DEFAULT_MOST = 12
"""Cells of a series at most, where a study does not say."""

FINEST = 100
"""No more resolutions than this between the ends of the range."""

_DEFAULT_RESOLUTIONS = 20
_VALUES_A_RESOLUTION = 4


@dataclass(frozen=True, slots=True)
class BoundarySearch:
    """What is searched, once for each series."""

    along: str
    """The knob whose boundary is searched."""
    values: tuple[float, ...]
    """Those that may be tried, ascending."""
    log: bool
    """Whether distances along it are measured in decades."""
    resolution: float
    """Width of the interval at which a series ends: in decades, or in the knob's own unit."""
    most: int
    """Cells of a series at most."""
    series: tuple[dict[str, Scalar], ...]
    """The settings of the other knobs, each a search of its own."""
    grid_values: int
    """How many values a grid of the same resolution has."""

    def place(self, value: float) -> float:
        """The coordinate of a value: its logarithm to base 10 where the axis is logarithmic."""
        return math.log10(value) if self.log else float(value)

    def value(self, place: float) -> float:
        """The value at a coordinate."""
        return 10**place if self.log else place


def boundary_search(study: Study) -> BoundarySearch | None:
    """The search of a valid study; None where its sampler is another."""
    along = study.sampler.along
    if study.sampler.name != "boundary" or along is None:
        return None
    parameter = study.space[along]
    log = is_log(parameter)
    listed = candidates(parameter, along, resolution=asked_resolution(study))
    ends = [math.log10(v) if log else v for v in (listed[0], listed[-1])]
    gaps = [
        math.log10(after / before) if log else after - before for before, after in pairwise(listed)
    ]
    given = values(parameter, along)
    resolution = asked_resolution(study)
    if resolution is None:
        resolution = max(gaps) if given else (ends[1] - ends[0]) / _DEFAULT_RESOLUTIONS
    # Rounded, for 4.000000001 resolutions are 4.
    even = 1 + math.ceil(round((ends[1] - ends[0]) / resolution, 6))
    others = {knob: other for knob, other in study.space.items() if knob != along}
    return BoundarySearch(
        along=along,
        values=listed,
        log=log,
        resolution=resolution,
        most=study.sampler.cells or DEFAULT_MOST,
        series=tuple(grid_cells(study.model_copy(update={"space": others}))),
        grid_values=min(even, len(listed)) if given else even,
    )


def asked_resolution(study: Study) -> float | None:
    """``resolution`` among the sampler's options, where it is a number."""
    found = study.sampler.options.get("resolution")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def is_log(parameter: Parameter) -> bool:
    """Whether distances are in decades: as a range says, and of a list that varies threefold."""
    if isinstance(parameter, Range):
        return parameter.log
    numbers = [v for v in parameter.choices if isinstance(v, int | float)]
    return bool(numbers) and min(numbers) > 0 and max(numbers) >= 3 * min(numbers)


def candidates(parameter: Parameter, knob: str, *, resolution: float | None) -> tuple[float, ...]:
    """The values that may be tried: those of a list, else a quarter of the resolution apart."""
    listed = values(parameter, knob)
    if listed is None:
        assert isinstance(parameter, Range), "choices are a list"
        low, high = float(parameter.low), float(parameter.high)
        distance = math.log10(high / low) if parameter.log else high - low
        fine = (resolution or distance / _DEFAULT_RESOLUTIONS) / _VALUES_A_RESOLUTION
        points = 1 + math.ceil(round(distance / fine, 6))
        listed = values(parameter.model_copy(update={"points": points}), knob)
    numbers = {v for v in listed or () if isinstance(v, int | float)}
    return tuple(sorted(numbers))
