"""Intervals hold a known truth as often as is said; and no figure gains by a diverged run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.intervals import (
    bootstrap_coverage_bound,
    bootstrap_mean,
    student_mean,
)
from wesar_sweep.store.frames import outcomes_frame

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import interval_coverage as simulated

STUDIES = 500
ERROR = 3 * (0.95 * 0.05 / STUDIES) ** 0.5
"""Three standard errors of a share of 95 %."""


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_means_of_normal_losses(n: int) -> None:
    draw, truth = simulated.LOSSES["normal"]
    student = simulated.mean_coverage(student_mean, draw, truth, n=n, studies=STUDIES)
    assert student == pytest.approx(0.95, abs=ERROR)
    shares = simulated.mean_coverage(bootstrap_mean, draw, truth, n=n, studies=STUDIES)
    bound = bootstrap_coverage_bound(n)
    spread = 3 * (bound * (1 - bound) / STUDIES) ** 0.5
    assert bound - spread - 0.05 < shares < bound + spread


def test_a_rate_of_divergence_that_few_seeds_do_not_show_is_missed() -> None:
    draw, truth = simulated.LOSSES["1 in 10 diverges"]
    # An interval holds the truth only if a run diverged: 1 - 0.9^3 of studies, less those of all 3.
    found = simulated.mean_coverage(bootstrap_mean, draw, truth, n=3, studies=STUDIES)
    assert found == pytest.approx(1 - 0.9**3, abs=3 * (0.27 * 0.73 / STUDIES) ** 0.5)


def test_basins_of_eight_seeds() -> None:
    found = simulated.basin_coverage(n=8, noise=0.01, studies=200)
    assert 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5 - 0.02 < found <= 0.99


def test_wilson_holds_on_average_over_rates() -> None:
    for n in (3, 8):
        shares = [simulated.wilson_coverage(rate / 100, n) for rate in range(1, 100)]
        assert sum(shares) / len(shares) == pytest.approx(0.95, abs=0.02)


LRS = [1e-3, 3e-3, 1e-2, 3e-2]


def study_of(extra: int | None, *, status: str = "diverged") -> Analysis:
    """Three seeds at each lr, and at one of them a fourth seed that diverged."""
    study = lr_study(space={"method": "he", "lr": LRS}, replicates=4)
    rows = []
    for trial, loss in enumerate((1.5, 1.42, 1.4, 1.6)):
        for seed in range(4 if trial == extra else 3):
            fate = status if seed == 3 else "completed"
            one, _ = run_of(study, trial, seed, {"method": "he", "lr": LRS[trial]}, status=fate)
            rows.append(replace(one, val_loss=loss + 0.01 * seed if seed < 3 else None))
    return Analysis(study, outcomes_frame(rows))


@pytest.mark.parametrize("place", range(4))
def test_a_diverged_seed_betters_the_figures_of_no_cell(place: int) -> None:
    before, after = study_of(None), study_of(place)
    old, new = (one.cells.row(place, named=True) for one in (before, after))
    assert (new["n"], new["diverged"]) == (4, 1)
    for figure in ("rate", "loss", "loss_high", "ppl", "bpb", "rate_high"):
        assert new[figure] > old[figure], figure
    assert new["survivors_loss"] == old["survivors_loss"]
    curve = after.lr_curves.row(place, named=True)
    assert (curve["n"], curve["loss"]) == (4, new["loss"])
    assert after.seed_points.height == before.seed_points.height + 1
    stable = [one.largest_stable_lr()["lr"][0] or 0.0 for one in (before, after)]
    assert stable[1] < stable[0]
    if place != before.ties.best:
        assert after.lr_sensitivity()["sensitivity"][0] > before.lr_sensitivity()["sensitivity"][0]
        assert after.basin_width()["width"][0] <= before.basin_width()["width"][0]
        assert place not in after.ties.tied
    else:
        assert after.ties.best != place
