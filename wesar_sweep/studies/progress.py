"""How far a study is: counts of cells and runs, for displays and for deciding whether it is done.

Counted from the outcomes on disk, which are the truth; Optuna is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.study import Study
from wesar_sweep.store.beat import living_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeReader
from wesar_sweep.store.rows import Outcome
from wesar_sweep.store.wanted import expected_cells
from wesar_sweep.studies.searching import Searching
from wesar_sweep.studies.wanting import wanted_by_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Counts of one moment."""

    cells: int
    """Cells the study will have when it is done, failed ones and their replacements included."""
    cells_done: int
    """Cells with nothing left to train."""
    cells_pruned: int
    """Of those done: ended early by the pruner."""
    cells_failed: int
    """Of those done: every replicate failed for good."""
    runs: int
    """Runs the study will have when it is done: those asked for so far where results decide."""
    runs_at_most: int
    """Runs it may come to have, by adaptive replicates or a boundary search."""
    completed: int
    diverged: int
    pruned: int
    """Runs ended early by the pruner, and runs of pruned cells that were never started."""
    failed: int
    """Runs that failed for good."""
    retrying: int
    """Runs that failed and have tries left, whether waiting or running again."""
    running: int
    """Runs in the slots of living workers, by their beats."""
    waiting: int
    tokens: int
    """Tokens trained on by the runs that ended."""
    workers: int
    """Workers alive."""

    @property
    def runs_done(self) -> int:
        """Runs with nothing left to train."""
        return self.completed + self.diverged + self.pruned + self.failed

    @property
    def complete(self) -> bool:
        """Whether the study is done."""
        return self.cells_done >= self.cells


class Progress:
    """Reads a study's state again and again; each outcome is parsed once."""

    def __init__(self, directory: StudyDirectory, study: Study) -> None:
        """Nothing is read yet."""
        self._directory = directory
        self._study = study
        self._reader = OutcomeReader(directory)
        self._searching = Searching.of(study)
        # Counted once: a grid may be large.
        self._listed = None if (cells := listed_cells(study)) is None else len(cells)

    @property
    def rows(self) -> Mapping[tuple[int, int], Outcome]:
        """(trial, seed) -> the row that stands for it, as of the last `read`. Not a copy."""
        return self._reader.rows

    def read(self) -> Summary:
        """The counts now.

        Raises:
            StoreError: The outcomes cannot be read.
        """
        self._reader.refresh()
        rows = self._reader.rows
        attempts = 1 + self._study.retries
        final: dict[int, dict[int, Outcome]] = {}
        retrying = 0
        for (trial, seed), row in rows.items():
            if row.status == "failed" and row.attempt < attempts:
                retrying += 1
            else:
                final.setdefault(trial, {})[seed] = row
        pruned = {
            trial
            for trial, seeds in final.items()
            if any(row.status == "pruned" for row in seeds.values())
        }
        keys, workers = self._in_training()
        running = {key for key in keys if key[1] not in final.get(key[0], {})}
        least = self._study.least_replicates
        failed_cells = sum(
            len(seeds) >= least and all(row.status == "failed" for row in seeds.values())
            for seeds in final.values()
        )
        if self._searching is not None:
            ended = (row for seeds in final.values() for row in seeds.values())
            cells = self._searching.cells(ended)
        else:
            cells = self._listed or expected_cells(self._study, failed=failed_cells)
        wanted = wanted_by_rows(
            (row for seeds in final.values() for row in seeds.values()),
            study=self._study,
            cells=cells,
        )
        done = {trial for trial, one in wanted.items() if not one.missing}
        runs = sum(one.seeds for one in wanted.values()) + least * max(0, cells - len(wanted))
        counts = _count(final)
        runs_done = sum(counts.values())
        most_cells = self._searching.most_cells if self._searching is not None else cells
        return Summary(
            cells=cells,
            cells_done=len(done),
            cells_pruned=len(pruned & done),
            cells_failed=failed_cells,
            runs=runs,
            runs_at_most=max(runs, most_cells * self._study.most_replicates),
            completed=counts["completed"],
            diverged=counts["diverged"],
            pruned=counts["pruned"],
            failed=counts["failed"],
            retrying=retrying,
            running=len(running),
            waiting=max(0, runs - runs_done - len(running)),
            tokens=sum(row.tokens for seeds in final.values() for row in seeds.values()),
            workers=workers,
        )

    def _in_training(self) -> tuple[set[tuple[int, int]], int]:
        """(trial, seed) in the slots of living workers, and how many workers live."""
        alive = living_beats(self._directory)
        return {(slot.trial, slot.seed) for beat in alive for slot in beat.slots}, len(alive)


def summary(directory: StudyDirectory, study: Study) -> Summary:
    """How far the study is, read once.

    Raises:
        StoreError: The outcomes cannot be read.
    """
    return Progress(directory, study).read()


def _count(final: Mapping[int, Mapping[int, Outcome]]) -> dict[str, int]:
    counts = dict.fromkeys(("completed", "diverged", "pruned", "failed"), 0)
    for seeds in final.values():
        for row in seeds.values():
            counts[row.status] += 1
    return counts
