"""The finished cells beside what their search knew, by invented numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_cut_short import SPACE, Invented, a_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.finished import Finished
from wesar_sweep.analysis.verdict import hidden_words
from wesar_sweep.config.study import Study
from wesar_sweep.store.finished_search import CutCell, FinishedSearch, WholeCell
from wesar_sweep.store.frames import outcomes_frame

LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BEST = WholeCell(
    trial=3,
    params={"method": "he", "lr": 0.5},
    loss=2.2,
    loss_low=1.7,
    loss_high=2.7,
    seeds=(0, 1, 2),
    losses=(2.0, 2.2, 2.4),
)


def search_of(count: int) -> FinishedSearch:
    """Cells that were ended at 100 steps, each a tenth of a nat worse than the one before."""
    cells = [
        CutCell(
            trial=10 + n,
            params={"method": "he", "lr": LRS[n]},
            step=100,
            loss=4.0 + n / 10,
            n=3,
        )
        for n in range(count)
    ]
    return FinishedSearch(
        study="search",
        study_hash="ab",
        pruned=20,
        seed=0,
        corpus_sha256=None,
        best=BEST,
        cells=tuple(cells),
    )


def finishing(count: int) -> Study:
    listed = [{"method": "he", "lr": lr} for lr in LRS[:count]]
    whose = {"study": "search", "hash": "ab", "pruned": 20, "drawn": count, "seed": 0}
    sampler = {"name": "listed", "listed": listed}
    return a_study(space=SPACE, sampler=sampler, pruner=None, finishes=whose)


def trained(ends: list[tuple[float, ...]]) -> Analysis:
    """One cell a tuple, its final losses by seed."""
    invented = Invented(finishing(len(ends)))
    for trial, losses in enumerate(ends):
        for seed, loss in enumerate(losses):
            invented.run(trial, seed, {300: loss}, lr=LRS[trial])
    return replace(invented.analysis, finished_search=search_of(len(ends)))


def found(analysis: Analysis) -> Finished:
    assert analysis.finished is not None
    return analysis.finished


def test_each_cell_is_compared_with_the_best_seed_by_seed() -> None:
    # The first is above the best by 0.1 on each seed, the second below it on the mean alone.
    one = found(trained([(2.1, 2.3, 2.5), (1.0, 2.6, 2.7), (1.8, 2.01, 2.2)]))
    rows = {row["trial"]: row for row in one.cells.iter_rows(named=True)}
    assert rows[0]["difference"] == pytest.approx(0.1)
    assert rows[0]["difference_low"] == pytest.approx(0.1), "the seeds' own spread cancels out"
    assert rows[1]["difference"] == pytest.approx(-0.1)
    assert rows[1]["difference_low"] < 0 < rows[1]["difference_high"]
    assert rows[2]["difference_high"] < 0
    assert [row["search_trial"] for row in rows.values()] == [12, 11, 10], "best first"
    assert (one.below, one.clearly_below) == (2, 1)
    assert one.share is not None
    assert (one.share.low, one.share.high) == pytest.approx((0.2077, 0.9385), abs=1e-4)


def test_a_cell_counts_when_all_its_seeds_have_ended() -> None:
    one = found(trained([(2.1, 2.3, 2.5), (1.0, 1.0)]))
    assert one.cells["trial"].to_list() == [0] and one.below == 0
    analysis = trained([(1.0, 1.0)])
    failed = Invented(analysis.study)
    failed.run(0, 2, {}, "failed", lr=LRS[0])
    rows = Invented(analysis.study)
    rows.run(0, 0, {300: 1.0}, lr=LRS[0])
    rows.run(0, 1, {300: 1.0}, lr=LRS[0])
    frame = outcomes_frame([*rows.rows, *failed.rows])
    one = found(replace(analysis, raw_outcomes=frame))
    assert one.cells["pairs"].to_list() == [2], "a failed seed is waited for no longer"


def test_the_losses_at_pruning_tell_the_final_ones_or_not() -> None:
    # Above the initial loss, at which they are capped, they would be ties.
    alike = found(trained([(3.0 + n / 9,) * 3 for n in range(7)])).correlation
    assert alike is not None and (alike.tau, alike.n) == (1.0, 7)
    unlike = found(trained([(3.0 - n / 9,) * 3 for n in range(7)])).correlation
    assert unlike is not None and unlike.tau == -1.0
    assert found(trained([(3.0 + n,) * 3 for n in range(5)])).correlation is None


def test_a_study_that_finishes_nothing_has_none() -> None:
    analysis = trained([(2.1, 2.3, 2.5)])
    assert replace(analysis, finished_search=None).finished is None
    plain = analysis.study.model_copy(update={"finishes": None})
    assert replace(analysis, study=plain).finished is None


def test_a_method_whose_best_was_pruned_is_named() -> None:
    analysis = trained([(2.1, 2.3, 2.5), (1.8, 2.01, 2.2)])
    small = replace(BEST, trial=4, params={"method": "small", "lr": 0.5}, loss=2.5)
    search = search_of(2)
    assert found(analysis).by_method == [], "an older record does not tell"
    one = found(replace(analysis, finished_search=replace(search, best_of=(BEST, small))))
    (he,) = one.by_method
    assert (he.method, he.kept, he.finished) == ("he", 2.2, pytest.approx(2.0033, abs=1e-4))
    assert he.differences == pytest.approx((-0.2, -0.19, -0.2))
    assert one.hidden_methods == ["he"]
    assert hidden_words(one).endswith("; the lowest mean of he, though, was among them")
    worse = found(replace(trained([(2.1, 2.3, 2.5)]), finished_search=replace(
        search_of(1), best_of=(BEST, small)
    )))  # fmt: skip
    assert worse.hidden_methods == [] and "though" not in hidden_words(worse)
