"""How much of a study has ended, by its outcomes, so that a report can say it is partial."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from wesar_sweep.analysis.boundary import pending_cells
from wesar_sweep.analysis.replicates import wanted
from wesar_sweep.config.boundary import boundary_search
from wesar_sweep.config.study import Study
from wesar_sweep.store.wanted import expected_cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """Counts of runs."""

    expected_cells: int
    expected_runs: int
    """Those asked for so far, where results decide on further ones."""
    expected_at_most: int
    """More than `expected_runs` while adaptive replicates or a boundary search may ask for more."""
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
    def expected(self) -> str:
        """``132``, or ``150 to 528`` while results may still bring more."""
        if self.expected_at_most == self.expected_runs:
            return str(self.expected_runs)
        return f"{self.expected_runs} to {self.expected_at_most}"

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
        runs=pl.len().cast(pl.Int64),
        pruned=(pl.col("status") == "pruned").any(),
        lost=(pl.col("status") == "failed").all() & (pl.col("attempt") > study.retries).all(),
    )
    least = study.least_replicates
    spared = int((least - by_cell.filter("pruned")["runs"]).clip(lower_bound=0).sum())
    # A sampler is asked for another cell in place of one whose every replicate failed.
    lost = by_cell.filter(pl.col("lost") & (pl.col("runs") >= least)).height
    search = boundary_search(study)
    if search is None:
        cells = most_cells = expected_cells(study, failed=lost)
    else:
        cells = pending_cells(outcomes, study=study, search=search)
        most_cells = len(search.series) * search.most
    seeds = [one.seeds for one in wanted(outcomes, study=study, cells=cells).values()]
    expected = sum(seeds) + least * max(0, cells - len(seeds))
    more = retrying or sum(seeds) > outcomes.height + spared or len(seeds) < cells
    return Completeness(
        expected_cells=cells,
        expected_runs=expected,
        expected_at_most=max(expected, most_cells * study.most_replicates) if more else expected,
        completed=status.get("completed", 0),
        diverged=status.get("diverged", 0),
        pruned=status.get("pruned", 0),
        failed=failed,
        retrying=retrying,
        spared=spared,
    )
