import math
from dataclasses import replace

import polars as pl
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.store.frames import outcomes_frame

LRS = [1e-4, 1e-3, 1e-2, 1e-1]
# α₀ is 10 at width 64 (the study's) and this σ².
SIGMA2 = 1 / 6400


def shifted() -> Analysis:
    """Two methods of one bowl, but what lr is to one is a tenth of it to the other."""
    study = lr_study(space={"method": ["he", "wesar"], "lr": LRS}, training={"sigma2": SIGMA2})
    rows = []
    for trial, (method, lr) in enumerate((m, lr) for m in ("he", "wesar") for lr in LRS):
        for seed in study.seeds:
            cell = {"method": method, "lr": lr}
            one, _ = run_of(study, trial, seed, cell, status="completed", with_curve=False)
            effective = lr * (10 if method == "wesar" else 1)
            rows.append(replace(one, val_loss=1.3 + 0.2 * (math.log10(effective) + 2) ** 2))
    return Analysis(study, outcomes_frame(rows))


def test_a_shift_of_the_optimum_vanishes_along_the_effective_lr() -> None:
    found = shifted()
    assert found.shows_effective_lr
    curves = found.lr_curves
    log = pl.col("effective_lr").log10()
    bowl = curves.with_columns(truth=1.3 + 0.2 * (log + 2) ** 2)
    assert bowl["loss"].to_list() == pytest.approx(bowl["truth"].to_list())
    best = found.best_cells.sort("series")
    assert best["lr"].to_list() == [1e-2, 1e-3]
    assert best["effective_lr"].to_list() == pytest.approx([1e-2, 1e-2])
    points = found.seed_points.filter(pl.col("series") == "wesar")
    assert (points["effective_lr"] / points["lr"]).to_list() == pytest.approx([10.0] * 12)


def test_it_is_shown_only_where_lr_means_different_things() -> None:
    plain = lr_study(space={"method": ["he", "small"], "lr": LRS}, replicates=1)
    widths = lr_study(space={"method": "wesar", "width": [32, 64]}, replicates=1)
    for study, cells in (
        (plain, [{"method": "he", "lr": 1e-3}]),
        (widths, [{"method": "wesar", "width": 32}]),
    ):
        rows = [run_of(study, 0, 0, cells[0], with_curve=False)[0]]
        assert not Analysis(study, outcomes_frame(rows)).shows_effective_lr
    assert not Analysis(plain, outcomes_frame([])).shows_effective_lr


def test_every_cell_has_the_gate_of_its_own_shape() -> None:
    study = lr_study(
        space={"method": "wesar", "width": [16, 64], "lr": LRS[:2]}, training={"sigma2": SIGMA2}
    )
    cells = [{"method": "wesar", "width": width, "lr": 1e-3} for width in (16, 64)]
    rows = [run_of(study, trial, 0, cell)[0] for trial, cell in enumerate(cells)]
    found = Analysis(study, outcomes_frame(rows)).cells
    assert found["initial_gate"].to_list() == pytest.approx([20.0, 10.0])
