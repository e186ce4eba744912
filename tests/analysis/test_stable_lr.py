import polars as pl
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.store.frames import outcomes_frame

LRS = [1e-3, 3e-3, 1e-2, 3e-2]


def ladder(*diverged: int, n: int = 3) -> Analysis:
    """One series with so many diverged runs at each lr."""
    study = lr_study(space={"method": "he", "lr": LRS}, replicates=n)
    outcomes = [
        run_of(
            study,
            trial,
            seed,
            {"method": "he", "lr": LRS[trial]},
            status="diverged" if seed < lost else "completed",
            with_curve=False,
        )[0]
        for trial, lost in enumerate(diverged)
        for seed in range(n)
    ]
    return Analysis(study, outcomes_frame(outcomes))


def test_the_last_lr_before_runs_diverge() -> None:
    row = ladder(0, 0, 1, 3).largest_stable_lr().row(0, named=True)
    assert (row["lr"], row["n"], row["diverged"]) == (3e-3, 3, 0)
    assert row["rate_high"] == pytest.approx(0.5615, abs=1e-4)
    assert (row["next_lr"], row["next_diverged"], row["at_edge"]) == (1e-2, 1, False)


def test_a_lucky_cell_above_an_unstable_one_does_not_count() -> None:
    assert ladder(0, 1, 0, 0).largest_stable_lr()["lr"].to_list() == [1e-3]


def test_a_bound_allows_some_divergence() -> None:
    found = ladder(0, 1, 2, 3)
    assert found.largest_stable_lr(bound=0.34)["lr"].to_list() == [3e-3]


def test_edges_of_the_grid() -> None:
    top = ladder(0, 0, 0, 0).largest_stable_lr().row(0, named=True)
    assert (top["lr"], top["at_edge"], top["next_lr"]) == (3e-2, True, None)
    bottom = ladder(1, 3, 3, 3).largest_stable_lr().row(0, named=True)
    assert (bottom["lr"], bottom["rate_high"], bottom["next_lr"]) == (None, None, 1e-3)


def test_verdict_says_what_n_leaves_open() -> None:
    words = ladder(0, 0, 1, 3).verdict.stable
    assert "3e-3" in words and "0 of 3 runs there" in words and "56 %" in words
    assert "28 %" in ladder(0, 0, 1, 3, n=10).verdict.stable
    assert "No higher lr was tried" in ladder(0, 0, 0, 0).verdict.stable
    assert "none" in ladder(1, 1, 1, 1).verdict.stable


def test_verdict_of_a_whole_study(analysis: Analysis) -> None:
    best = analysis.ranked.row(0, named=True)
    words = analysis.verdict
    assert f"{best['series']} at lr" in words.best
    assert f"{best['loss']:.3f}" in words.best and "3 seeds" in words.best
    widest = analysis.basin_width().row(0, named=True)
    assert widest["series"] in words.basin and f"{widest['width']:.2f} decades" in words.basin
    highest = analysis.largest_stable_lr().row(0, named=True)
    assert highest["series"] in words.stable


def test_completeness_counts_what_is_to_come(analysis: Analysis) -> None:
    whole = analysis.completeness
    assert (whole.expected_runs, whole.ended, whole.partial) == (96, 96, False)
    part = Analysis(analysis.study, analysis.raw_outcomes.head(50)).completeness
    assert (part.ended, part.partial) == (50, True)


def test_completeness_tells_failed_from_retrying_and_spared() -> None:
    study = lr_study(space={"method": "he", "lr": LRS}, pruner={"name": "median"}, retries=2)
    kinds = ["completed", "pruned", "failed", "failed"]
    outcomes = [
        run_of(study, trial, 0, {"method": "he", "lr": LRS[trial]}, status=kind, with_curve=False)[
            0
        ]
        for trial, kind in enumerate(kinds)
    ]
    frame = outcomes_frame(outcomes).with_columns(
        attempt=pl.when(pl.col("trial") == 3).then(1).otherwise(pl.col("attempt"))
    )
    found = Analysis(study, frame).completeness
    assert (found.failed, found.retrying, found.pruned, found.spared) == (1, 1, 1, 2)
    assert found.partial
