"""What pruning hid: cells that a pruner had ended, trained to the end, against the search's best.

A cell of the sample counts once every replicate of it has ended. Its loss is that of
`wesar_sweep.analysis.cells`; the difference to the best cell that the search itself had trained to
the end is taken seed by seed, since both have the same seeds, with Student's interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from wesar_sweep.analysis.intervals import Interval, student_mean, wilson
from wesar_sweep.analysis.paired import MIN_MARKED_SEEDS
from wesar_sweep.analysis.rank_correlation import RankCorrelation, rank_correlation
from wesar_sweep.config.study import Study
from wesar_sweep.store.finished_search import FinishedSearch

FINISHED = pl.Schema(
    [
        ("search_trial", pl.Int64()),
        ("pruned_at", pl.Int64()),
        ("pruned_loss", pl.Float64()),
        ("pruned_n", pl.Int64()),
        ("difference", pl.Float64()),
        ("difference_low", pl.Float64()),
        ("difference_high", pl.Float64()),
        ("differences", pl.List(pl.Float64())),
        ("pairs", pl.Int64()),
    ]
)
"""What `Finished.cells` adds to a cell's row: its trial in the search, the step at which it was
ended, its mean loss there (nats a token) and of how many runs, then its loss minus that of the
search's best over ``pairs`` common seeds, seed by seed in ``differences``. There is no interval
under `MIN_MARKED_SEEDS`: two differences that happen to be alike would have one of no width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfMethod:
    """One method in a search and among its finished cells; mean losses in nats a token."""

    method: str
    kept: float
    """The least among the cells that the search had trained to the end."""
    finished: float
    """The least among those that it had ended and that were finished."""
    differences: tuple[float, ...]
    """The latter minus the former, seed by seed."""


@dataclass(frozen=True)
class Finished:
    """The sample as far as it has been trained."""

    search: FinishedSearch
    cells: pl.DataFrame
    """One row a cell with nothing left to train and a counted run, best first: as
    `Analysis.cells`, then `FINISHED`."""

    @property
    def below(self) -> int:
        """Cells whose mean loss is below that of the search's best."""
        return int((self.cells["loss"] < self.search.best.loss).sum())

    @property
    def clearly_below(self) -> int:
        """Those whose interval of the difference lies below 0."""
        return int((self.cells["difference_high"] < 0).sum())

    @property
    def share(self) -> Interval | None:
        """Wilson's interval of the share of pruned cells that would have ended below the best.

        None where every one of them was finished: then they are no sample.
        """
        return None if self.all else wilson(self.below, self.cells.height)

    @property
    def all(self) -> bool:
        """Whether every cell that the search had pruned has been finished."""
        return self.cells.height == self.search.pruned

    @property
    def hidden_methods(self) -> list[str]:
        """Methods of whose cells the best was among those that the pruner had ended."""
        return [one.method for one in self.by_method if one.finished < one.kept]

    @cached_property
    def by_method(self) -> list[OfMethod]:
        """Of each method the best cell that the search had kept and the best one finished.

        In the order of the search's best; empty where it had one method, and for older records.
        """
        finished = self.cells.unique("method", keep="first", maintain_order=True)
        rows = {row["method"]: row for row in finished.iter_rows(named=True)}
        found = []
        for kept in self.search.best_of if len(self.search.best_of) > 1 else ():
            method = str(kept.params["method"])
            if (row := rows.get(method)) is not None:
                losses = dict(zip(row["seeds"], row["losses"], strict=True))
                pairs = zip(kept.seeds, kept.losses, strict=True)
                found.append(
                    OfMethod(
                        method=method,
                        kept=kept.loss,
                        finished=row["loss"],
                        differences=tuple(losses[s] - x for s, x in pairs if s in losses),
                    )
                )
        return found

    @cached_property
    def correlation(self) -> RankCorrelation | None:
        """Of the loss at which a cell was ended and its final one; None for too few cells."""
        known = self.cells.filter(pl.col("pruned_loss").is_not_null())
        return rank_correlation(known["pruned_loss"].to_numpy(), known["loss"].to_numpy())

    @property
    def pruning_steps(self) -> tuple[int, ...]:
        """The steps at which its cells were ended, ascending."""
        return tuple(sorted(set(self.cells["pruned_at"])))


def finished(
    cells: pl.DataFrame, *, study: Study, search: FinishedSearch | None
) -> Finished | None:
    """The finished cells of a study beside what their search knew of them.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: A study of listed cells.
        search: What lies beside its results.

    Returns:
        None where the study finishes no search.
    """
    if search is None or study.finishes is None:
        return None
    ended = cells.filter(
        (pl.col("n") > 0) & (pl.col("n") + pl.col("failed") >= study.least_replicates)
    )
    best = dict(zip(search.best.seeds, search.best.losses, strict=True))
    rows = []
    # The cells of a list are the trials of its study, in its order.
    for trial, seeds, losses in ended.select("trial", "seeds", "losses").iter_rows():
        if trial >= len(search.cells):
            continue
        cut = search.cells[trial]
        pairs = [
            loss - best[seed] for seed, loss in zip(seeds, losses, strict=True) if seed in best
        ]
        spread = student_mean(np.array(pairs)) if len(pairs) >= MIN_MARKED_SEEDS else None
        rows.append(
            (
                trial,
                cut.trial,
                cut.step,
                cut.loss,
                cut.n,
                float(np.mean(pairs)) if pairs else None,
                spread.low if spread else None,
                spread.high if spread else None,
                pairs,
                len(pairs),
            )
        )
    schema = pl.Schema([("trial", pl.Int64()), *FINISHED.items()])
    added = pl.DataFrame(rows, schema=schema, orient="row")
    found = cells.join(added, on="trial", how="inner").sort("loss", "trial")
    return Finished(search, found)
