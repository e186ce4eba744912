"""Which seeds a study wants of its cells, by the outcomes on disk: one answer for all who ask.

The queue trains by it, displays and reports count by it. It is a function of the outcomes alone,
whoever trained them in whatever order: `seeds_wanted` goes through the study again from the least
seeds on, and each decision sees the seeds that had been asked for by then and no others. So several
workers, a kill and a resume end with the same runs.

- *Width*: a cell whose interval of the divergence rate is too wide gets further seeds by itself.
- *Telling apart*, once all seeds asked for so far have ended: the best cell of each method that is
  tied with the best of all, and that one, get one more seed in common. Tied as in the report: no
  larger share of its runs diverged, and Student's 95 % interval of the paired difference contains
  0, or fewer than two seeds are in common.
- Pruned cells, and cells whose every run failed, get no further seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.replicates import wilson_halfwidth
from wesar_sweep.config.study import Study
from wesar_sweep.store.rows import Status


class Ended(NamedTuple):
    """A run that has ended for good."""

    trial: int
    seed: int
    method: str
    status: Status
    loss: float
    """Nats: min(loss, initial loss), not finite counted as the latter; of a failed run unused."""


@dataclass(slots=True)
class Wanted:
    """What one cell has and is to have."""

    seeds: int
    """How many seeds from the first on."""
    for_width: int = 0
    """Of those beyond the least: added for a narrower interval of the divergence rate."""
    for_telling: int = 0
    """Likewise: added because two methods were not told apart."""
    tied: bool = False
    """Not told apart from the best cell of another method with all the seeds allowed."""
    missing: int = 0
    """Seeds that have not ended."""
    halfwidth: float = 0.5
    """Half the width of the interval of the divergence rate, of the seeds that have ended."""


@dataclass(slots=True)
class _Cell:
    method: str
    runs: dict[int, Ended] = field(default_factory=dict)
    """By index of the seed, from 0."""

    def counted(self, seeds: int) -> dict[int, Ended]:
        return {i: run for i, run in self.runs.items() if i < seeds and run.status != "failed"}

    @property
    def closed(self) -> bool:
        """Whether it gets no further seeds."""
        statuses = {run.status for run in self.runs.values()}
        return "pruned" in statuses or statuses <= {"failed"}


def expected_cells(study: Study, *, failed: int) -> int:
    """The cells a study will have: of a sampler one more for each that failed, not without end.

    Not for a boundary search, whose cells follow from its results.
    """
    listed = listed_cells(study)
    if listed is not None:
        return len(listed)
    cells = study.sampler.cells
    assert cells is not None, "config.load refuses a sampler without cells"
    return min(cells + failed, 2 * cells)


def seeds_wanted(runs: Iterable[Ended], *, study: Study, cells: int) -> dict[int, Wanted]:
    """What every cell that has an ended run is to have, by trial; other cells want the least.

    Args:
        runs: At most one a (trial, seed).
        study: For its replicates.
        cells: `expected_cells`: before all have ended, no methods are told apart.
    """
    found: dict[int, _Cell] = {}
    is_search = study.sampler.name == "boundary"
    for run in runs:
        cell = found.setdefault(run.trial, _Cell(run.method))
        index = run.seed - study.first_seed
        # The cells of a boundary search have seeds of their own.
        cell.runs[index % study.least_replicates if is_search else index] = run
    wanted = {trial: Wanted(study.least_replicates) for trial in sorted(found)}
    adaptive = study.adaptive
    if adaptive is not None:
        open_cells = {trial for trial in wanted if not found[trial].closed}
        while True:
            for trial in open_cells:
                _widen(wanted[trial], found[trial], study=study)
            if not adaptive.until.told_apart or len(found) < cells:
                break
            if any(_missing(found[trial], wanted[trial].seeds) for trial in wanted):
                break
            tied = _tied({trial: found[trial] for trial in open_cells}, wanted)
            before = sum(one.seeds for one in wanted.values())
            for pair in tied:
                common = min(wanted[trial].seeds for trial in pair)
                for trial in pair:
                    more = min(common + 1, adaptive.max) - wanted[trial].seeds
                    if more > 0:
                        wanted[trial].seeds += more
                        wanted[trial].for_telling += more
            if before == sum(one.seeds for one in wanted.values()):
                for trial in {trial for pair in tied for trial in pair}:
                    wanted[trial].tied = True
                break
    for trial, one in wanted.items():
        one.missing = _missing(found[trial], one.seeds)
        one.halfwidth = _halfwidth(found[trial], one.seeds)
    return wanted


def _missing(cell: _Cell, seeds: int) -> int:
    return sum(index not in cell.runs for index in range(seeds))


def _widen(one: Wanted, cell: _Cell, *, study: Study) -> None:
    """Add the seeds that the divergence rate of a cell wants, as far as those before have ended."""
    assert study.adaptive is not None, "only adaptive replicates are added"
    while not _missing(cell, one.seeds):
        counted = cell.counted(one.seeds).values()
        diverged = sum(run.status == "diverged" for run in counted)
        more = study.adaptive.further(diverged, len(counted), asked=one.seeds)
        if not more:
            return
        one.seeds += more
        one.for_width += more


def _halfwidth(cell: _Cell, seeds: int) -> float:
    counted = cell.counted(seeds).values()
    return wilson_halfwidth(sum(run.status == "diverged" for run in counted), len(counted))


def _tied(cells: Mapping[int, _Cell], wanted: Mapping[int, Wanted]) -> list[tuple[int, int]]:
    """(best of all, best of another method) for each method that is tied with the best of all."""
    figures: dict[int, tuple[float, float]] = {}
    for trial, cell in cells.items():
        counted = cell.counted(wanted[trial].seeds).values()
        diverged = sum(run.status == "diverged" for run in counted)
        # Also where none counts.
        if diverged < len(counted):
            rate = diverged / len(counted)
            figures[trial] = (math.fsum(run.loss for run in counted) / len(counted), rate)
    order = sorted(figures, key=lambda trial: (*figures[trial], trial))
    best_of: dict[str, int] = {}
    for trial in order:
        best_of.setdefault(cells[trial].method, trial)
    found = []
    for rival in list(best_of.values())[1:]:
        best = order[0]
        mine, other = (cells[trial].counted(wanted[trial].seeds) for trial in (best, rival))
        differences = [other[index].loss - mine[index].loss for index in mine if index in other]
        if figures[rival][1] <= figures[best][1] and not _apart(differences):
            found.append((best, rival))
    return found


def _apart(differences: list[float]) -> bool:
    """Whether Student's 95 % interval of the mean leaves out 0."""
    # Imported late: a study without this rule does without.
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return False
    mean = math.fsum(differences) / n
    variance = math.fsum((one - mean) ** 2 for one in differences) / (n - 1)
    return abs(mean) > float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n)
