import dataclasses
import math

import numpy as np
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.basin import basin_width, basins
from wesar_sweep.analysis.intervals import Vector, percentile_interval
from wesar_sweep.analysis.lr_curves import SeriesLosses
from wesar_sweep.analysis.lr_sensitivity import lr_sensitivity
from wesar_sweep.store.frames import outcomes_frame


def series(lr: list[float], loss_Ln: list[list[float]], start: float = 5.0) -> SeriesLosses:
    seeds = tuple(range(len(loss_Ln[0])))
    return SeriesLosses("he", "he", np.array(lr), seeds, np.array(loss_Ln), start)


def test_a_basin_worked_by_hand() -> None:
    # Best 1.0 at 1e-2. To the left 1.2 at 1e-3: 0.05 above lies a quarter decade out. To the right
    # 1.04 at 1e-1 is inside, then 1.14 at 1: 0.01 of 0.1 further.
    row = basin_width([series([1e-3, 1e-2, 1e-1, 1.0], [[1.2], [1.0], [1.04], [1.14]])]).row(
        0, named=True
    )
    assert row["width"] == pytest.approx(0.25 + 1 + 0.1)
    assert row["lr_low"] == pytest.approx(10**-2.25)
    assert row["lr_high"] == pytest.approx(10**-0.9)
    assert (row["touches_low"], row["touches_high"]) == (False, False)
    assert (row["width_low"], row["note"]) == (None, "one seed: no interval")


def test_a_basin_that_reaches_the_edge_is_a_lower_bound() -> None:
    row = basin_width([series([1e-3, 1e-2, 1e-1], [[1.0], [1.01], [2.0]])]).row(0, named=True)
    assert (row["touches_low"], row["touches_high"]) == (True, False)
    assert row["lr_low"] == pytest.approx(1e-3)


def test_a_second_valley_beyond_a_ridge_does_not_count() -> None:
    row = basin_width([series([1e-3, 1e-2, 1e-1, 1.0], [[1.0], [2.0], [1.01], [1.01]])])
    assert row["width"][0] == pytest.approx(0.05)


def test_width_does_not_move_with_lr_but_sensitivity_does() -> None:
    rng = np.random.default_rng(0)
    loss_Ln = (1 + 0.3 * np.linspace(-1.5, 2, 8)[:, None] ** 2 + 0.01 * rng.random((8, 4))).tolist()
    grid = np.logspace(-4, -0.5, 8)
    first, moved = (
        basin_width([series(list(grid * factor), loss_Ln)]).row(0, named=True)
        for factor in (1.0, 14.0)
    )
    for figure in ("width", "width_low", "width_high"):
        assert moved[figure] == pytest.approx(first[figure], abs=1e-9)
    assert moved["best_lr"] == pytest.approx(14 * first["best_lr"])

    # On a fixed grid the same rescaling moves the curve along the axis, and LR sensitivity with it.
    def bowl(best: float) -> SeriesLosses:
        return series(list(grid), [[1 + 0.3 * (math.log10(lr) - best) ** 2] * 2 for lr in grid])

    near, far = bowl(-2.25), bowl(-2.25 - math.log10(14))
    widths = basin_width([near, far])["width"]
    assert widths[0] == pytest.approx(widths[1], abs=0.12)
    sensitive = lr_sensitivity([near, far])["sensitivity"]
    assert sensitive[1] > 1.5 * sensitive[0]


def test_interval_resamples_the_same_seeds_at_every_lr() -> None:
    # Seeds differ by a constant: every resample has the same shape, so the width has no spread.
    shape = np.array([1.3, 1.0, 1.2])
    loss_Ln = (shape[:, None] + np.array([0.0, 0.5, 1.0])).tolist()
    row = basin_width([series([1e-3, 1e-2, 1e-1], loss_Ln)]).row(0, named=True)
    assert row["width_low"] == pytest.approx(row["width"])
    assert row["width_high"] == pytest.approx(row["width"])


def test_untrained_series_have_no_basin() -> None:
    flat = series([1e-3, 1e-2], [[5.0, 5.0], [5.0, 5.0]])
    row = basin_width([flat]).row(0, named=True)
    assert (row["width"], row["note"]) == (None, "no cell got below its initial loss")
    assert basin_width([series([1e-3], [[1.0, 1.1]])])["note"][0] == "only one lr was tried"


def test_diverged_cells_end_the_basin() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3, 3e-3, 1e-2]})
    fates = {1e-3: None, 3e-3: None, 1e-2: "diverged"}
    outcomes = [
        run_of(study, trial, seed, {"method": "he", "lr": lr}, status=fate or "completed")[0]
        for trial, (lr, fate) in enumerate(fates.items())
        for seed in study.seeds
    ]
    row = Analysis(study, outcomes_frame(outcomes)).basin_width().row(0, named=True)
    assert not row["touches_high"] and row["lr_high"] < 1e-2
    kept = [outcome for outcome in outcomes if outcome.status != "diverged"]
    control = Analysis(study, outcomes_frame(kept)).basin_width().row(0, named=True)
    assert control["touches_high"]


def test_many_curves_at_once_agree_with_one_at_a_time() -> None:
    rng = np.random.default_rng(3)
    x, loss_BL = np.sort(rng.random(7)), rng.random((50, 7))
    together = basins(x, loss_BL, tolerance=0.2).width
    alone = [float(basins(x, row[None], tolerance=0.2).width[0]) for row in loss_BL]
    assert together.tolist() == alone


def test_sensitivity_worked_by_hand_and_capped_first() -> None:
    row = lr_sensitivity([series([1e-3, 1e-2, 1e-1], [[1.5], [1.0], [5.0]])]).row(0, named=True)
    assert row["sensitivity"] == pytest.approx((0.5 + 0 + 4.0) / 3)
    assert row["even"]
    assert not lr_sensitivity([series([1e-3, 2e-3, 1e-1], [[1.0]] * 3)])["even"][0]
    assert lr_sensitivity([series([1e-3], [[1.0]])])["sensitivity"][0] is None


def lost_at(*lost: float) -> Analysis:
    """One flat series over four lr; every run at some of them pruned."""
    lrs = [1e-3, 3e-3, 1e-2, 3e-2]
    study = lr_study(space={"method": "he", "lr": lrs}, replicates=2)
    outcomes = []
    for trial, lr in enumerate(lrs):
        for seed in range(2):
            status = "pruned" if lr in lost else "completed"
            one, _ = run_of(study, trial, seed, {"method": "he", "lr": lr}, status=status)
            outcomes.append(dataclasses.replace(one, val_loss=1.0 + 1e-3 * seed))
    return Analysis(study, outcomes_frame(outcomes))


def test_pruned_cells_are_no_end_of_the_grid() -> None:
    found = lost_at(1e-2, 3e-2)
    row = found.basin_width().row(0, named=True)
    assert (row["touches_low"], row["touches_high"]) == (True, False)
    assert (row["lost_low"], row["lost_high"], row["lost"]) == (0, 2, "pruned (2 cells)")
    words = found.verdict.basin
    assert "at least" in words and "at the low end" in words and "high end" not in words
    assert "Higher lr were tried, but pruned (2 cells)." in words
    control = lost_at().basin_width().row(0, named=True)
    assert (control["touches_high"], control["lost_high"], control["lost"]) == (True, 0, "")


def test_a_hole_inside_the_basin_is_named() -> None:
    found = lost_at(3e-3)
    row = found.basin_width().row(0, named=True)
    assert (row["touches_high"], row["lost_low"], row["lost_high"]) == (True, 0, 0)
    assert "pruned (1 cell)" in row["note"]
    assert "Some of its lr have no counted run: pruned (1 cell)." in found.verdict.basin


def test_sensitivity_is_not_given_over_a_part_of_the_grid() -> None:
    row = lost_at(3e-2).lr_sensitivity().row(0, named=True)
    assert (row["sensitivity"], row["incomplete"]) == (None, True)
    assert "pruned (1 cell)" in row["note"]
    whole = lost_at()
    row = whole.lr_sensitivity().row(0, named=True)
    assert (row["sensitivity"], row["incomplete"]) == (pytest.approx(0.0), False)
    part = Analysis(whole.study, whole.raw_outcomes.head(6)).lr_sensitivity().row(0, named=True)
    assert part["sensitivity"] is None and "not run (1 cell)" in part["note"]


def test_an_interval_rests_on_the_fewest_seeds_of_any_lr() -> None:
    # Adaptive replicates: 12 seeds at the upper edge, 3 at every other lr.
    rng = np.random.default_rng(3)
    grid = list(np.logspace(-4, -0.5, 8))
    loss_Ln = 1 + 0.3 * np.linspace(-1.5, 2, 8)[:, None] ** 2 + 0.1 * rng.random((8, 12))
    loss_Ln[:-1, 3:] = np.nan
    uneven = series(grid, loss_Ln.tolist())
    assert (uneven.n, len(uneven.seeds)) == (3, 12)
    for frame, name in (
        (basin_width([uneven]), "width"),
        (lr_sensitivity([uneven]), "sensitivity"),
    ):
        row = frame.row(0, named=True)
        assert row["n_seeds"] == 3
        as_if_12 = percentile_interval(_resampled(uneven, name), n=12)
        assert as_if_12 is not None
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        assert low <= as_if_12.low and high >= as_if_12.high
        # The extremes of a width are common to many resamples.
        assert name == "width" or high - low > as_if_12.high - as_if_12.low
    # The control: with as many seeds at every lr nothing changes.
    even = series(grid, loss_Ln[:, :3].tolist())
    plain = percentile_interval(_resampled(even, "width"), n=3)
    row = basin_width([even]).row(0, named=True)
    assert plain is not None and (row["width_low"], row["width_high"]) == (plain.low, plain.high)


def test_an_lr_with_one_seed_leaves_no_interval() -> None:
    one = series([1e-3, 1e-2, 1e-1], [[1.2, 1.21], [1.0, 1.01], [1.3, math.nan]])
    row = basin_width([one]).row(0, named=True)
    assert (row["n_seeds"], row["width_low"]) == (1, None)
    assert row["note"] == "one seed at some lr: no interval"


def _resampled(one: SeriesLosses, name: str) -> Vector:
    sample_BL = one.resampled()
    if name == "width":
        return basins(np.log10(one.axis_L), sample_BL).width
    return np.asarray(sample_BL.mean(axis=1) - sample_BL.min(axis=1))
