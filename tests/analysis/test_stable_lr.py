import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.stable_lr import last_stable_place
from wesar_sweep.analysis.verdict import Verdict
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


def test_the_last_stable_place_of_rates_is_that_of_the_cells() -> None:
    rng = np.random.default_rng(2)
    ladders = rng.integers(0, 4, size=(30, len(LRS))) * (rng.random((30, len(LRS))) < 0.4)
    for bound in (0.0, 0.34):
        places = last_stable_place(ladders / 3, bound=bound)
        for diverged, place in zip(ladders.tolist(), places.tolist(), strict=True):
            found = ladder(*diverged).largest_stable_lr(bound=bound)["lr"].to_list()
            assert found == [LRS[place] if place >= 0 else None]
    assert last_stable_place(np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [1, -1]


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


def fates(*kinds: str, n: int = 2) -> Analysis:
    """One series, all runs of each lr with one fate; ``-`` for a cell that has not run."""
    study = lr_study(space={"method": "he", "lr": LRS[: len(kinds)]}, replicates=n)
    outcomes = [
        run_of(study, trial, seed, {"method": "he", "lr": LRS[trial]}, status=kind)[0]
        for trial, kind in enumerate(kinds)
        if kind != "-"
        for seed in range(n)
    ]
    return Analysis(study, outcomes_frame(outcomes))


def test_a_higher_lr_whose_runs_were_pruned_was_tried() -> None:
    found = fates("completed", "completed", "pruned", "failed")
    row = found.largest_stable_lr().row(0, named=True)
    assert (row["lr"], row["at_edge"], row["lost_above"]) == (3e-3, False, 2)
    assert (row["next_lr"], row["next_n"], row["next_diverged"]) == (1e-2, 0, 0)
    assert row["note"] == "higher lr were tried, but pruned or failed (2 cells)"
    assert "Higher lr were tried, but pruned or failed (2 cells)." in found.verdict.stable
    assert "No higher lr" not in found.verdict.stable


def test_an_lr_without_a_counted_run_is_passed_over_and_named() -> None:
    row = fates("pruned", "completed", "failed", "diverged").largest_stable_lr().row(0, named=True)
    assert (row["lr"], row["next_lr"], row["next_n"], row["lost_above"]) == (3e-3, 1e-2, 0, 1)
    assert "lower lr were tried, but pruned (1 cell)" in row["note"]
    lucky = fates("diverged", "pruned", "completed", "completed").largest_stable_lr()
    assert lucky["lr"].to_list() == [None]


def test_a_series_without_any_counted_run_keeps_its_row() -> None:
    found = fates("pruned", "pruned")
    for frame in (found.largest_stable_lr(), found.basin_width(), found.lr_sensitivity()):
        assert frame.height == 1 and "pruned (2 cells)" in frame["note"][0]
    assert "pruned (2 cells)" in found.verdict.basin
    assert "pruned (2 cells)" in found.verdict.stable


def test_the_lowest_lr_is_spoken_of_only_where_it_ran() -> None:
    whole = fates("diverged", "diverged", "completed")
    assert "none; every series diverged at its lowest lr." in whole.verdict.stable
    part = fates("-", "diverged", "diverged", "completed")
    words = part.verdict.stable
    assert "its lowest lr" not in words and "so far" in words
    assert "the lowest lr at which it has a counted run" in words
    lost = fates("pruned", "diverged", "completed").verdict.stable
    assert "its lowest lr" not in lost and "so far" not in lost


def test_verdict_on_a_part_of_the_study_is_not_final() -> None:
    words = fates("diverged", "-").verdict
    assert words.best == "Every run so far diverged (2 of 2); others are still to come."
    words = fates("completed", "-", "-").verdict
    assert words.best.startswith("Lowest loss so far:") and "only cell so far" in words.best
    assert "No higher lr was tried so far." in words.stable
    assert fates("completed", "completed").verdict.best.startswith("Lowest loss: ")


def test_with_few_seeds_no_bootstrap_is_called_an_interval() -> None:
    def words(n: int) -> Verdict:
        # Series that lie far apart, so that many seeds do tell them apart.
        methods = {"small": 0.0, "he": 3.0}
        study = lr_study(space={"method": list(methods), "lr": LRS}, replicates=n)
        outcomes = []
        for trial, (method, lr) in enumerate((m, lr) for m in methods for lr in LRS):
            for seed in range(n):
                cell = {"method": method, "lr": lr}
                one, _ = run_of(study, trial, seed, cell, status="completed", with_curve=False)
                steep = 0.03 if method == "small" else 1.0
                loss = 1 + steep * math.log10(lr / 6e-3) ** 2 + 1e-4 * seed
                outcomes.append(dataclasses.replace(one, val_loss=loss))
        return Analysis(study, outcomes_frame(outcomes)).verdict

    few = words(2)
    assert "95 % interval" not in few.basin and "95 % interval" in few.best
    assert "range of the resampled seeds" in few.basin
    assert "with 2 seeds it covers at most 50 %" in few.basin
    assert "With 2 seeds a series the others are not told apart from it." in few.basin
    assert "by more than" not in few.basin
    many = words(6)
    assert "95 % interval" in many.best and "95 % interval" in many.basin
    assert "wider than every other by more than the intervals" in many.basin


def test_series_that_were_tried_less_far_are_not_called_less_stable() -> None:
    listed = [
        {"method": "small", "lr": 1e-3},
        {"method": "small", "lr": 1e-2},
        {"method": "he", "lr": 1e-3},
        {"method": "he", "lr": 1e-2},
        {"method": "wesar", "sigma2": 4e-5, "lr": 1e-3},
    ]
    study = lr_study(sampler={"name": "listed", "listed": listed}, replicates=2)
    rows = [
        run_of(study, trial, seed, dict(cell), status="completed", with_curve=False)[0]
        for trial, cell in enumerate(listed)
        for seed in range(4 if trial == 1 else 2)
    ]
    words = Analysis(study, outcomes_frame(rows)).verdict
    assert "1e-2 (he and small; 0 of 2 to 4 runs each" in words.stable
    assert words.stable.endswith("1 of 3 series were not tried above 1e-3.")
    assert "end inside the basin of another series, which may be wider." in words.basin
