"""What a boundary search has tried so far, by the outcomes on disk.

A series is one setting of all knobs but the one that is searched along. It tries one value after
another; each is a cell, and has seeds of its own, so that no two values share their luck: step i
has the seeds from first_seed + i · replicates on. The same step of every series has the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wesar_sweep.config.boundary import BoundarySearch
from wesar_sweep.config.run import make_run
from wesar_sweep.config.space import Scalar
from wesar_sweep.config.study import Study
from wesar_sweep.store.rows import Status


class SearchedRun(NamedTuple):
    """A run that has ended for good."""

    trial: int
    seed: int
    status: Status
    knobs: Mapping[str, Scalar]


@dataclass(slots=True)
class Step:
    """One value of a series."""

    trial: int
    value: float
    ended: int = 0
    """Runs that have ended."""
    n: int = 0
    """Of those, the ones that count: all but the failed ones."""
    diverged: int = 0


def step_seeds(study: Study, step: int) -> range:
    """The seeds of a step of any series."""
    first = study.first_seed + step * study.least_replicates
    return range(first, first + study.least_replicates)


def steps_by_series(
    runs: Iterable[SearchedRun], *, study: Study, search: BoundarySearch
) -> list[list[Step]]:
    """The steps of every series of `search.series`, in their order, as far as runs have ended.

    Args:
        runs: At most one a (trial, seed).
        study: The study.
        search: Its search.
    """
    others = [knob for knob in study.space if knob != search.along]
    place = {key: index for index, key in enumerate(_keys(study, search, others))}
    found: list[dict[int, Step]] = [{} for _ in search.series]
    for run in runs:
        series = place.get(tuple(run.knobs.get(knob) for knob in others))
        if series is None:
            # Of a trial that somebody put into the queue by hand: it is no step.
            continue
        value = run.knobs[search.along]
        assert isinstance(value, int | float), "a search is along a number"
        index = (run.seed - study.first_seed) // study.least_replicates
        step = found[series].setdefault(index, Step(run.trial, value))
        step.ended += 1
        step.n += run.status != "failed"
        step.diverged += run.status == "diverged"
    return [[steps[index] for index in sorted(steps)] for steps in found]


def _keys(study: Study, search: BoundarySearch, others: list[str]) -> list[tuple[Scalar, ...]]:
    """What the outcomes of each series have as their knobs: null where one does not apply."""
    columns = [
        make_run(study, 0, 0, {**series, search.along: search.values[0]}).columns()
        for series in search.series
    ]
    return [tuple(found.get(knob) for knob in others) for found in columns]
