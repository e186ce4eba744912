import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import LRS, lr_study
from sized_studies import best_log_lr, parabola, sized_study, with_losses

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.basin import TOLERANCE, basins
from wesar_sweep.analysis.lr_curves import series_losses
from wesar_sweep.analysis.size_trend import _least_between

FINE = [float(f"{10 ** (-5 + place / 4):.6g}") for place in range(17)]
WIDE = [16, 64, 256]
START = math.log(256)


def fine_study(widths: list[int] = WIDE, **changes: Any) -> Any:
    space = {"width": widths, "method": ["he", "wesar"], "lr": FINE}
    return lr_study(**{"space": space, "replicates": 3, **changes})


def trend(analysis: Analysis, figure: str, **where: Any) -> dict[str, Any]:
    return analysis.size_trend.filter(figure=figure, **where).row(0, named=True)


def falls_out(knobs: dict[str, Any], seed: int) -> str:
    """Runs diverge a decade above each width's best lr."""
    limit = best_log_lr(knobs) + 1
    return "diverged" if math.log10(knobs["lr"]) > limit else "completed"


def test_a_slope_is_that_of_the_truth_as_finely_as_the_grid_resolves() -> None:
    analysis = with_losses(fine_study(), parabola, status=falls_out)
    truth = {"he": -1.0, "wesar": 0.0}
    for method, slope in truth.items():
        for figure in ("best_lr", "stable_lr"):
            row = trend(analysis, figure, method=method)
            if figure == "stable_lr":
                assert row["resolution"] == pytest.approx(0.25 / math.log10(16), rel=1e-4)
                assert abs(row["slope"] - slope) < row["resolution"]
            else:
                # Losses are parabolas here, so that between grid points the truth is found.
                assert row["resolution"] is None
                assert row["slope"] == pytest.approx(slope, abs=1e-4)
            # Seeds differ by a constant: it is in no slope.
            blur = row["resolution"] or 0
            assert row["slope_low"] == pytest.approx(row["slope"] - blur)
            assert row["slope_high"] == pytest.approx(row["slope"] + blur)
            assert (row["n_sizes"], row["smallest"], row["largest"]) == (3, 16, 256)
            assert (row["n_seeds"], row["against"], row["width"]) == (3, "width", None)
        basin = trend(analysis, "basin_width", method=method)
        assert abs(basin["slope"]) < 0.1 and basin["resolution"] is None


def vertex(log_lr: Any, losses: Any) -> float:
    """Where the parabola through the least of some losses and its neighbours is least."""
    best = int(np.argmin(losses))
    assert 0 < best < len(losses) - 1
    square, slope, _ = np.polyfit(log_lr[best - 1 : best + 2], losses[best - 1 : best + 2], 2)
    return float(-slope / (2 * square))


def test_the_least_between_points_is_that_of_numpys_parabola() -> None:
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 3, 9))
    curves = (x - rng.uniform(0.5, 2.5, 40)[:, None]) ** 2 + 0.02 * rng.random((40, 9))
    inside = [curve for curve in curves if 0 < curve.argmin() < 8]
    assert len(inside) > 20
    found = _least_between(x, np.array(inside))
    assert found == pytest.approx([vertex(x, curve) for curve in inside])
    # At an end, and where neighbours are equal to it, the point itself.
    flat = np.array([[0.0, 1, 2], [2, 1, 0], [1, 1, 1], [2, 1, 1]])
    assert _least_between(np.array([0.0, 1, 2]), flat) == pytest.approx([0, 2, 0, 1.5])
    assert _least_between(np.array([0.0, 1]), flat[:2, :2]).tolist() == [0, 1]


def test_the_effective_lr_adds_the_slope_of_the_gate() -> None:
    analysis = with_losses(fine_study(), parabola)
    found = {
        (method, figure): trend(analysis, figure, method=method)["slope"]
        for method in ("he", "wesar")
        for figure in ("best_lr", "best_effective_lr")
    }
    # He has no gate; WeSaR's is √(1/d)/σ, so that a constant lr is one that falls as 1/√d.
    assert found["he", "best_effective_lr"] == found["he", "best_lr"]
    assert found["wesar", "best_lr"] == pytest.approx(0.0)
    assert found["wesar", "best_effective_lr"] == pytest.approx(-0.5)
    row = trend(analysis, "best_effective_lr", method="wesar")
    assert (row["slope_low"], row["slope_high"]) == pytest.approx((-0.5, -0.5))


def test_seeds_are_resampled_together_at_every_size() -> None:
    def shifted(knobs: dict[str, Any], seed: int) -> float:
        return float(2 + 0.3 * (math.log10(knobs["lr"]) + 3 - 0.5 * (seed - 1.5)) ** 2)

    analysis = with_losses(fine_study(replicates=4), shifted)
    row = trend(analysis, "best_lr", method="he")
    assert (row["slope"], row["slope_low"], row["slope_high"]) == pytest.approx((0, 0, 0))
    basin = trend(analysis, "basin_width", method="he")
    assert (basin["slope_low"], basin["slope_high"]) == pytest.approx((0, 0))
    # The control: seeds drawn for each size by itself give a slope that varies.
    small, _, large = (
        np.log10(one.axis_L[one.resampled().argmin(axis=1)])
        for one in series_losses(analysis.cells, layout=analysis.layout)
        if one.method == "he"
    )
    alone = (large - small[::-1]) / math.log10(16)
    assert alone.max() - alone.min() > 0.5


def test_the_interval_is_of_all_resamples_of_the_seeds() -> None:
    grid, n = FINE[3:14], 4
    rng = np.random.default_rng(5)
    losses = {
        (w, lr, s): parabola({"width": w, "lr": lr, "method": "wesar"}, 0) + 0.04 * rng.random()
        for w, lr, s in itertools.product(WIDE, grid, range(n))
    }
    limits = {(w, s): grid[int(rng.integers(7, 10))] for w in WIDE for s in range(n)}

    def fate(knobs: dict[str, Any], seed: int) -> str:
        return "diverged" if knobs["lr"] >= limits[knobs["width"], seed] else "completed"

    study = lr_study(space={"method": "he", "width": WIDE, "lr": grid}, replicates=n)
    analysis = with_losses(study, lambda k, s: losses[k["width"], k["lr"], s], status=fate)
    analysis = Analysis(study, analysis.raw_outcomes.with_columns(init_loss=pl.lit(START)))
    table_WLn = np.array(
        [
            [[START if lr >= limits[w, s] else losses[w, lr, s] for s in range(n)] for lr in grid]
            for w in WIDE
        ]
    )
    place_Wn = np.array([[grid.index(limits[w, s]) - 1 for s in range(n)] for w in WIDE])
    x, log_lr = np.log10(WIDE), np.log10(grid)
    slopes: dict[str, list[float]] = {"best_lr": [], "basin_width": [], "stable_lr": []}
    for draw in itertools.product(range(n), repeat=n):
        mean_WL = table_WLn[:, :, list(draw)].mean(axis=2)
        values = {
            "best_lr": [vertex(log_lr, mean_L) for mean_L in mean_WL],
            "basin_width": basins(log_lr, mean_WL, tolerance=TOLERANCE).width,
            "stable_lr": log_lr[place_Wn[:, list(draw)].min(axis=1)],
        }
        for figure, value in values.items():
            slopes[figure].append(float(np.polyfit(x, value, 1)[0]))
    own = {
        "best_lr": [vertex(log_lr, mean_L) for mean_L in table_WLn.mean(axis=2)],
        "basin_width": basins(log_lr, table_WLn.mean(axis=2)).width,
        "stable_lr": log_lr[place_Wn.min(axis=1)],
    }
    for figure, all_slopes in slopes.items():
        row = trend(analysis, figure)
        assert row["n_bounded"] == row["n_missing"] == 0
        assert row["slope"] == pytest.approx(np.polyfit(x, own[figure], 1)[0])
        # At 4 seeds the tail is below the chance of any one resample: the range of them all.
        # The grid blurs what is one of its values.
        blur = row["resolution"] or 0
        assert row["slope_low"] == pytest.approx(min(all_slopes) - blur, abs=1e-9)
        assert row["slope_high"] == pytest.approx(max(all_slopes) + blur, abs=1e-9)
        assert row["slope_high"] - row["slope_low"] > 0.05


def test_what_the_grid_only_bounds_is_in_no_slope() -> None:
    # Nothing diverges: the largest stable lr is the top of the grid at every size, which is no 0.
    whole = with_losses(fine_study(), parabola)
    row = trend(whole, "stable_lr", method="he")
    assert row["slope"] is None and row["slope_low"] is None and row["n_sizes"] == 0
    assert row["note"] == "fewer than 3 sizes left; left out, only bounded by the grid: 16, 64, 256"
    # He's best lr leaves the grid below at width 1024 and beyond, where it would seem to stay.
    wide = [16, 64, 256, 16 * 4**5, 16 * 4**6]
    falling = with_losses(fine_study(wide), parabola)
    row = trend(falling, "best_lr", method="he")
    inside = trend(with_losses(fine_study(wide[:3]), parabola), "best_lr", method="he")
    assert row["slope"] == pytest.approx(inside["slope"]) and row["n_bounded"] == 2
    assert row["note"] == "left out, only bounded by the grid: 16384, 65536"
    best = falling.sizes.filter(method="he")
    through_all = np.polyfit(np.log10(wide), np.log10(best["best_lr"]), 1)[0]
    assert through_all > row["slope"] + 0.2


def test_a_size_without_the_figure_is_left_out_and_named() -> None:
    def fate(knobs: dict[str, Any], seed: int) -> str:
        return "diverged" if knobs["width"] == 32 else falls_out(knobs, seed)

    analysis = with_losses(fine_study([16, 32, 64, 256]), parabola, status=fate)
    for figure in ("best_lr", "best_effective_lr", "basin_width", "stable_lr"):
        row = trend(analysis, figure, method="wesar")
        assert (row["n_sizes"], row["n_missing"], row["n_bounded"]) == (3, 1, 0)
        assert row["note"] == "left out, without the figure: 32"
        assert row["slope"] is not None


def test_an_interval_of_resamples_at_the_edge_says_so() -> None:
    def fate(knobs: dict[str, Any], seed: int) -> str:
        # Above the limit of width 16 only seed 0 diverges: without it all of the grid is stable.
        lost = falls_out(knobs, seed) == "diverged" and (knobs["width"] > 16 or seed == 0)
        return "diverged" if lost else "completed"

    row = trend(with_losses(fine_study(), parabola, status=fate), "stable_lr", method="he")
    assert row["note"] == "resamples reach the grid's edge: the interval may be too narrow"
    blur = row["resolution"]
    assert row["slope_low"] + blur < row["slope"] == pytest.approx(row["slope_high"] - blur)
    every = trend(with_losses(fine_study(), parabola, status=falls_out), "stable_lr", method="he")
    assert every["note"] == "" and every["slope"] == pytest.approx(row["slope"])


def test_a_lost_lr_above_the_stable_range_is_an_edge_too() -> None:
    def fate(knobs: dict[str, Any], seed: int) -> str:
        limit = best_log_lr(knobs) + 1
        above = math.log10(knobs["lr"]) - limit
        return "completed" if above <= 0 else "pruned" if above <= 0.25 else "diverged"

    row = trend(with_losses(fine_study(), parabola, status=fate), "stable_lr", method="he")
    assert row["slope"] is None and row["n_bounded"] == 3


def test_a_resample_that_ends_below_a_lost_lr_is_at_an_edge_too() -> None:
    limit = FINE.index(1e-3)

    def fate(knobs: dict[str, Any], seed: int) -> str:
        above = FINE.index(knobs["lr"]) - limit
        if knobs["width"] > 16:
            return "diverged" if above > 0 else "completed"
        # Without seed 0 the next lr is stable, and of the one above it nothing is known.
        fates = ["diverged" if seed == 0 else "completed", "pruned"]
        return "completed" if above <= 0 else fates[above - 1] if above < 3 else "diverged"

    found = with_losses(fine_study(), parabola, status=fate)
    row = trend(found, "stable_lr", method="wesar")
    assert row["n_bounded"] == 0 and row["slope"] == pytest.approx(0.0)
    assert row["note"] == "resamples reach the grid's edge: the interval may be too narrow"


def test_the_tail_is_that_of_the_fewest_seeds_of_any_lr_and_size() -> None:
    rng = np.random.default_rng(9)
    noise = 0.02 * rng.standard_normal((6, len(WIDE), len(FINE)))

    def noisy(knobs: dict[str, Any], seed: int) -> float:
        place = WIDE.index(knobs["width"]), FINE.index(knobs["lr"])
        return parabola(knobs, 0) + float(noise[(seed, *place)])

    def fate(knobs: dict[str, Any], seed: int) -> str:
        # Far from the best, so that only the count of seeds changes.
        few = knobs["width"] == 64 and knobs["lr"] == FINE[0] and seed > 1
        return "failed" if few else "completed"

    whole = trend(with_losses(fine_study(replicates=6), noisy), "basin_width", method="wesar")
    few_seeds = with_losses(fine_study(replicates=6), noisy, status=fate)
    few = trend(few_seeds, "basin_width", method="wesar")
    assert (whole["n_seeds"], few["n_seeds"]) == (6, 2) and few["slope"] == whole["slope"]
    assert few["slope_low"] < whole["slope_low"] and whole["slope_high"] < few["slope_high"]


def test_a_seed_that_one_size_lacks_is_drawn_for_the_others() -> None:
    def fate(knobs: dict[str, Any], seed: int) -> str:
        return "failed" if knobs["width"] == 64 and seed == 2 else falls_out(knobs, seed)

    found = with_losses(fine_study(), parabola, status=fate)
    for figure in ("best_lr", "basin_width", "stable_lr"):
        row = trend(found, figure, method="he")
        assert row["n_seeds"] == 2 and row["n_sizes"] == 3
        assert row["slope_low"] <= row["slope"] <= row["slope_high"]


def test_one_seed_has_a_slope_without_an_interval() -> None:
    row = trend(with_losses(fine_study(replicates=1), parabola), "best_lr", method="he")
    assert row["slope"] is not None and row["slope_low"] is None and row["slope_high"] is None
    assert row["n_seeds"] == 1 and row["note"] == "one seed at some lr and size: no interval"


def test_there_are_slopes_along_each_knob_of_three_values_with_the_others_held() -> None:
    found = with_losses(sized_study(), parabola).size_trend
    assert set(found["against"]) == {"width"} and found["width"].null_count() == found.height
    assert found.select("line", "depth").unique().height == 4
    assert found.height == 4 * 4
    both = sized_study(space={"width": [16, 32], "depth": [1, 2], "method": "he", "lr": LRS})
    assert with_losses(both, parabola).size_trend.is_empty()
    assert with_losses(lr_study(), parabola).size_trend.is_empty()


def test_the_interval_holds_the_slope_as_often_as_it_says() -> None:
    study = lr_study(space={"width": WIDE, "method": "he", "lr": FINE}, replicates=5)
    still = with_losses(study, lambda knobs, seed: parabola(knobs, 0))
    truth = {figure: trend(still, figure)["slope"] for figure in ("best_lr", "basin_width")}
    # That of the limits themselves, which no grid rounds.
    truth["stable_lr"] = -1.0
    held = dict.fromkeys(truth, 0)
    for draw in range(40):
        rng = np.random.default_rng(draw)
        limit = {(width, seed): rng.normal(1, 0.2) for width in WIDE for seed in range(5)}

        def noisy(knobs: dict[str, Any], seed: int, rng: Any = rng) -> float:
            return parabola(knobs, 0) + 0.01 * float(rng.standard_normal())

        def fate(knobs: dict[str, Any], seed: int, limit: Any = limit) -> str:
            above = math.log10(knobs["lr"]) - best_log_lr(knobs)
            return "diverged" if above > limit[knobs["width"], seed] else "completed"

        analysis = with_losses(study, noisy, status=fate)
        for figure, slope in truth.items():
            row = trend(analysis, figure)
            held[figure] += row["slope_low"] - 1e-9 <= slope <= row["slope_high"] + 1e-9
    # With 5 seeds a bootstrap covers at most 94 %; of 40 intervals 34 are 2 deviations fewer.
    assert min(held.values()) >= 34, held
