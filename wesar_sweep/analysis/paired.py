"""What runs that saw the same batches have to say of each other.

Runs with the same seed, batch and context saw the same tokens at the same step. Two figures use it:
paired spikes, from which hard batches are taken out, and the paired difference of two series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.balanced import balanced, by_seed
from wesar_sweep.analysis.cells import one_cell_a_place, ranked
from wesar_sweep.analysis.intervals import bootstrap_mean, sign_test, student_mean
from wesar_sweep.analysis.run_spikes import run_spikes
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

MIN_BOOTSTRAP_SEEDS = 6
"""With fewer seeds a bootstrap says little: the pairs themselves and a sign test are shown."""

_ORDER = ("batch", "context")
"""With the seed, what decides which tokens a run sees at a step."""

MIN_MARKED_SEEDS = 3
"""With fewer common seeds no cell is marked as tied: the t interval over 2 has one degree of
freedom and contains 0 for almost any two cells."""

DIFFERENCE = pl.Schema(
    [
        ("place", pl.Int64()),
        ("seed", pl.Int64()),
        ("loss_a", pl.Float64()),
        ("loss_b", pl.Float64()),
        ("difference", pl.Float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Loss of series b minus loss of series a, in nats; above 0 where a is better.

    The pairs of one seed share its batches and its initial draw, so they are no independent
    evidence: each seed counts once, with the mean over its pairs.
    """

    a: str
    b: str
    pairs: pl.DataFrame
    """As `DIFFERENCE` says; ``place`` is the index along the axis. Only of seeds that have a pair
    at every place where any has one: others would weigh the places that were given more seeds."""
    refused: int
    """Pairs with a common seed and place that saw other batches, and so are not compared."""
    mean: float | None
    """Mean over seeds of each seed's mean difference."""
    low: float | None
    high: float | None
    """Bootstrap over seeds, each with all its pairs; None under `MIN_BOOTSTRAP_SEEDS`."""
    sign_test_p: float | None
    """Two-sided exact sign test with one sign a seed; None without a pair."""

    @property
    def n(self) -> int:
        """Number of seeds, which are what is independent."""
        return self.pairs["seed"].n_unique()

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.pairs.height

    @property
    def n_words(self) -> str:
        """``3 seeds, 24 pairs``."""
        seeds, pairs = self.n, self.n_pairs
        return f"{seeds} seed{'' if seeds == 1 else 's'}, {pairs} pair{'' if pairs == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Ties:
    """What the seeds say of every other cell beside the best one."""

    best: int | None
    """Trial of the cell with the least loss; None among cells whose runs all diverged."""
    compared: Mapping[int, int]
    """Trial -> seeds in common with the best, of each cell that was compared (2 or more)."""
    tied: frozenset[int]
    """Those of `compared` that cannot be told apart from the best."""
    uncompared: frozenset[int]
    """Cells with fewer than 2 seeds in common with the best: nothing can be said of them."""
    cut_short: frozenset[int]
    """Cells that the pruner ended early: ranked behind the others and not compared."""

    @property
    def marked(self) -> frozenset[int]:
        """The tied cells of which enough seeds speak for the word to mean something."""
        return frozenset(t for t in self.tied if self.compared[t] >= MIN_MARKED_SEEDS)

    def mark(self, trial: int) -> Literal["best", "tied", ""]:
        """What tables write beside a cell."""
        return "best" if trial == self.best else "tied" if trial in self.marked else ""


def paired_spikes(
    outcomes: pl.DataFrame, curves: Mapping[Key, Curve], *, study: Study
) -> pl.DataFrame:
    """Raw and paired spikes of every run that has a curve, counted: `run_spikes(…).runs`."""
    return run_spikes(outcomes, curves, study=study).runs


def with_paired_spikes(outcomes: pl.DataFrame, spikes: pl.DataFrame) -> pl.DataFrame:
    """The outcomes with their column ``paired_spikes`` filled in, where they could be judged."""
    found = spikes.select("trial", "seed", "paired_spikes")
    joined = outcomes.drop("paired_spikes").join(found, on=["trial", "seed"], how="left")
    return joined.select(outcomes.columns)


def paired_difference(cells: pl.DataFrame, a: str, b: str, *, layout: Axes) -> PairedDifference:
    """Compare two series run by run, paired by (seed, place along the axis).

    Only runs of one batch and context are paired, because others saw other tokens. Equal lr is not
    equal treatment where a method changes the meaning of lr; `best_difference` compares each at its
    own best. Nothing is paired where the axis was sampled and not laid out as a grid.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        a: Label of the one series.
        b: Label of the other.
        layout: `axes(study)`.
    """
    placed = one_cell_a_place(cells.filter(pl.col("n") > 0), layout=layout)
    long = placed.select("series", "place", *_ORDER, seed="seeds", loss="losses")
    long = long.explode("seed", "loss")
    if not layout.gridded:
        # Sampled values have no place in common.
        long = long.clear()
    return _difference(
        a, b, *(long.filter(pl.col("series") == name).drop("series") for name in (a, b))
    )


def best_difference(cells: pl.DataFrame, a: int, b: int) -> PairedDifference:
    """Compare two cells seed by seed: say each series' best.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        a: Trial of the one cell.
        b: Trial of the other.
    """
    picked = [cells.filter(pl.col("trial") == trial) for trial in (a, b)]
    names = [str(one["series"][0]) for one in picked]
    long = [
        one.select(*_ORDER, place=pl.lit(0, dtype=pl.Int64), seed="seeds", loss="losses").explode(
            "seed", "loss"
        )
        for one in picked
    ]
    return _difference(names[0], names[1], *long)


def tied_with_best(cells: pl.DataFrame) -> Ties:
    """The trial with the least loss, and the trials that cannot be told apart from it.

    A cell is tied where no larger share of its runs diverged, and Student's t interval of the
    paired difference to the best contains 0; it takes two seeds in common to be compared at all.
    Student's t and not the bootstrap, because with the usual 3 seeds a bootstrap cannot be wide
    enough; and the first condition, because one diverged run makes that interval so wide that it
    tells nothing. No correction is made for the number of cells compared. A cell that the pruner
    ended early is the best only where there is no other, and never tied: the seeds it has finished
    are not a fair part of those it lacks.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
    """
    rows = ranked(cells).select("trial", "rate", "pruned", "seeds", "losses").rows()
    cut_short = frozenset(trial for trial, _, pruned, _, _ in rows if pruned)
    trained = [row for row in rows if row[1] < 1]
    if not trained:
        return Ties(None, {}, frozenset(), frozenset(), cut_short)
    best_trial, best_rate, _, seeds, losses = trained[0]
    best = dict(zip(seeds, losses, strict=True))
    compared: dict[int, int] = {}
    tied, uncompared = set(), set()
    for trial, rate, pruned, seeds, losses in rows:
        if trial == best_trial or pruned:
            continue
        other = dict(zip(seeds, losses, strict=True))
        common = [seed for seed in best if seed in other]
        spread = student_mean(np.array([other[seed] - best[seed] for seed in common]))
        if spread is None:
            uncompared.add(trial)
            continue
        compared[trial] = len(common)
        if rate <= best_rate and spread.low <= 0 <= spread.high:
            tied.add(trial)
    return Ties(best_trial, compared, frozenset(tied), frozenset(uncompared), cut_short)


def _difference(a: str, b: str, of_a: pl.DataFrame, of_b: pl.DataFrame) -> PairedDifference:
    of_a, of_b = of_a.rename({"loss": "loss_a"}), of_b.rename({"loss": "loss_b"})
    met = of_a.join(of_b, on=["place", "seed"]).height
    pairs = (
        of_a.join(of_b, on=["place", "seed", *_ORDER])
        .with_columns(difference=pl.col("loss_b") - pl.col("loss_a"))
        .sort("place", "seed")
        .select(DIFFERENCE.names())
    )
    refused = met - pairs.height
    pairs = balanced(pairs, cell="place")
    differences = by_seed(pairs, "difference", cell="place")
    n = len(differences)
    spread = bootstrap_mean(differences) if n >= MIN_BOOTSTRAP_SEEDS else None
    return PairedDifference(
        a=a,
        b=b,
        pairs=pairs,
        refused=refused,
        mean=float(differences.mean()) if n else None,
        low=spread.low if spread else None,
        high=spread.high if spread else None,
        sign_test_p=sign_test(differences) if n else None,
    )
