import math
from dataclasses import replace

import polars as pl
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame

LRS = [1e-4, 1e-3, 1e-2, 1e-1]
# α₀ is 10 at width 64 (the study's) and this σ².
SIGMA2 = 1 / 6400


def named(found: Analysis):
    return {table.name: table for table in tables(found)}


def shifted(lrs: list[float] = LRS) -> Analysis:
    """Two methods of one bowl, but what lr is to one is a tenth of it to the other."""
    study = lr_study(space={"method": ["he", "wesar"], "lr": lrs}, training={"sigma2": SIGMA2})
    rows = []
    for trial, (method, lr) in enumerate((m, lr) for m in ("he", "wesar") for lr in lrs):
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


def test_sensitivity_at_equal_effective_lr_leaves_a_shift_alone() -> None:
    """One bowl in effective lr: LR sensitivity differs, and not over the range that both cover."""
    found = shifted(LRS[1:])
    by_lr = dict(found.lr_sensitivity().select("series", "sensitivity").rows())
    assert by_lr == {"he": pytest.approx(0.4 / 3), "wesar": pytest.approx(1.0 / 3)}
    rows = {row["series"]: row for row in found.effective_lr_sensitivity().iter_rows(named=True)}
    assert rows["he"]["sensitivity"] == pytest.approx(rows["wesar"]["sensitivity"])
    ends = [(row["effective_lr_min"], row["effective_lr_max"]) for row in rows.values()]
    assert ends == [pytest.approx((1e-2, 1e-1))] * 2
    # By hand: from 1.3 to 1.5 over one decade.
    assert rows["he"]["sensitivity"] == pytest.approx(0.1)
    assert rows["he"]["sensitivity_low"] == pytest.approx(0.1)
    assert rows["he"]["n_seeds"] == 3 and rows["he"]["note"] == ""
    text = named(found)["series"]
    assert "LR sensitivity at equal effective lr" in text.table.columns
    assert "1e-2 to 1e-1" in text.caption


def test_sensitivity_at_equal_effective_lr_tells_a_wider_bowl() -> None:
    found = shifted()
    flat = pl.when(pl.col("method") == "wesar").then(1.3 + (pl.col("val_loss") - 1.3) / 4)
    wide = found.raw_outcomes.with_columns(val_loss=flat.otherwise(pl.col("val_loss")))
    rows = Analysis(found.study, wide).effective_lr_sensitivity()
    assert rows["series"].to_list() == ["wesar", "he"]
    assert rows["sensitivity"].to_list() == pytest.approx([0.025, 0.1])


def test_sensitivity_at_equal_effective_lr_says_why_there_is_none() -> None:
    found = shifted()
    # lr so low that the two ranges do not meet: he ends where wesar begins.
    part = found.raw_outcomes.filter((pl.col("method") == "he") == (pl.col("lr") < 5e-4))
    rows = Analysis(found.study, part).effective_lr_sensitivity()
    assert rows["sensitivity"].null_count() == 2 and all(rows["note"])


def test_a_series_that_is_not_complete_does_not_cut_the_range_of_the_others() -> None:
    found = shifted()
    part = found.raw_outcomes.filter((pl.col("method") == "he") | (pl.col("lr") < 5e-4))
    rows = Analysis(found.study, part).effective_lr_sensitivity().sort("series")
    assert rows["sensitivity"].is_null().to_list() == [False, True]
    assert (rows["effective_lr_min"][0], rows["effective_lr_max"][0]) == pytest.approx((1e-4, 1e-1))
