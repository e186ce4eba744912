"""How much of a study has ended, by its outcomes, so that a report can say it is partial."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from wesar_sweep.config.space import grid_cells
from wesar_sweep.config.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """Counts of runs."""

    expected_cells: int
    expected_runs: int
    completed: int
    diverged: int
    pruned: int
    failed: int
    """Failed for good."""
    retrying: int
    """Failed, with tries left."""
    spared: int
    """Never started, because a pruner had ended their cell."""

    @property
    def ended(self) -> int:
        """Runs with nothing left to train."""
        return self.completed + self.diverged + self.pruned + self.failed + self.spared

    @property
    def partial(self) -> bool:
        """Whether runs are still to come."""
        return self.ended < self.expected_runs


def completeness(outcomes: pl.DataFrame, *, study: Study) -> Completeness:
    """Count what has ended.

    A cell that a pruner ended before any of its runs was pruned leaves no trace in the outcomes:
    its spared runs then read as still to come.

    Args:
        outcomes: One row a run.
        study: For the number of cells, replicates and retries.
    """
    status = dict(outcomes.group_by("status").len().rows())
    retrying = outcomes.filter(
        (pl.col("status") == "failed") & (pl.col("attempt") <= study.retries)
    ).height
    failed = status.get("failed", 0) - retrying
    by_cell = outcomes.group_by("trial").agg(
        runs=pl.len(),
        pruned=(pl.col("status") == "pruned").any(),
        lost=(pl.col("status") == "failed").all() & (pl.col("attempt") > study.retries).all(),
    )
    spared = int((study.replicates - by_cell.filter("pruned")["runs"]).clip(lower_bound=0).sum())
    if study.sampler.name == "grid":
        cells = len(grid_cells(study))
    else:
        # A sampler is asked for another cell in place of one whose every replicate failed.
        asked = study.sampler.cells or 0
        whole = by_cell.filter(pl.col("runs") == study.replicates)
        cells = min(asked + whole.filter("lost").height, 2 * asked)
    return Completeness(
        expected_cells=cells,
        expected_runs=cells * study.replicates,
        completed=status.get("completed", 0),
        diverged=status.get("diverged", 0),
        pruned=status.get("pruned", 0),
        failed=failed,
        retrying=retrying,
        spared=spared,
    )
