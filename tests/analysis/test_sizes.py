import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import LRS, lr_study
from sized_studies import WIDTHS, best_log_lr, parabola, sized_study, with_losses


def test_the_best_lr_of_every_size_is_where_the_loss_is_least() -> None:
    found = with_losses(sized_study(), parabola).sizes
    assert found.columns[:5] == ["line", "series", "method", "width", "depth"]
    assert found.height == 12 and found["line"].unique().sort().to_list() == ["he", "wesar"]
    for row in found.iter_rows(named=True):
        nearest = min(LRS, key=lambda lr: abs(math.log10(lr) - best_log_lr(row)))
        assert row["best_lr"] == nearest
        # Seeds differ by a constant: whichever are drawn, the same lr is best.
        assert (row["best_lr_low"], row["best_lr_high"]) == (nearest, nearest)
        assert row["n_seeds"] == 3 and row["n_lr"] == 8
    wide = found.filter(width=64, depth=3, method="he").row(0, named=True)
    assert wide["parameters"] == 2 * 256 * 64 + 3 * (4 * 64**2 + 2 * 4 * 64**2) + 7 * 64


def test_basin_width_is_that_of_the_series() -> None:
    analysis = with_losses(sized_study(), parabola)
    basins = {row["series"]: row for row in analysis.basin_width().iter_rows(named=True)}
    for row in analysis.sizes.iter_rows(named=True):
        assert row["basin_width"] == basins[row["series"]]["width"]
        assert row["basin_width_high"] == basins[row["series"]]["width_high"]


def test_the_largest_stable_lr_is_that_of_the_series() -> None:
    limits = {16: 1.0, 32: 3e-2, 64: 0.0}

    def fate(knobs: dict[str, Any], seed: int) -> str:
        return "completed" if knobs["lr"] < limits[knobs["width"]] else "diverged"

    analysis = with_losses(sized_study(), parabola, status=fate)
    limit = {row["series"]: row for row in analysis.largest_stable_lr().iter_rows(named=True)}
    found = {16: (LRS[-1], True, None), 32: (1e-2, False, 3e-2), 64: (None, None, LRS[0])}
    for row in analysis.sizes.iter_rows(named=True):
        names = ("stable_lr", "stable_lr_is_lower_bound", "stable_lr_next")
        assert tuple(row[name] for name in names) == found[row["width"]]
        assert row["stable_lr"] == limit[row["series"]]["lr"]
        assert row["stable_lr_rate_high"] == limit[row["series"]]["rate_high"]


def test_a_best_lr_at_an_edge_is_marked() -> None:
    def slope(knobs: dict[str, Any], seed: int) -> float:
        sign = 1 if knobs["method"] == "he" else -1
        return float(3 + 0.1 * sign * math.log10(knobs["lr"]) + 0.001 * seed)

    found = with_losses(sized_study(), slope).sizes
    low, high = found.filter(method="he"), found.filter(method="wesar")
    assert low["at_low_edge"].all() and not low["at_high_edge"].any()
    assert high["at_high_edge"].all() and not high["at_low_edge"].any()
    assert set(low["best_lr"]) == {LRS[0]} and set(high["best_lr"]) == {LRS[-1]}


def test_the_interval_is_of_all_resamples_of_the_seeds() -> None:
    study = sized_study(space={"width": WIDTHS, "lr": LRS[:4]}, replicates=4)
    rng = np.random.default_rng(3)
    losses = {
        (w, lr, s): 2 + 0.3 * rng.random() for w in WIDTHS for lr in LRS[:4] for s in range(4)
    }
    found = with_losses(study, lambda knobs, seed: losses[knobs["width"], knobs["lr"], seed]).sizes
    for row in found.iter_rows(named=True):
        table = np.array([[losses[row["width"], lr, s] for lr in LRS[:4]] for s in range(4)])
        best = [
            LRS[int(table[list(draw)].mean(axis=0).argmin())]
            for draw in itertools.product(range(4), repeat=4)
        ]
        assert {row["best_lr_low"], row["best_lr_high"]} <= set(best)
        # At 4 seeds the tail is below the chance of any one resample: the range of them all.
        assert (row["best_lr_low"], row["best_lr_high"]) == (min(best), max(best))
    assert (found["best_lr_low"] < found["best_lr_high"]).any()


def test_the_interval_holds_the_best_lr_of_the_grid_as_often_as_it_says() -> None:
    study = sized_study(space={"width": WIDTHS, "lr": LRS}, replicates=8)
    held = tried = 0
    for draw in range(40):
        rng = np.random.default_rng(draw)

        def noisy(knobs: dict[str, Any], seed: int, rng: Any = rng) -> float:
            # The bottom is flat beside the noise, so that the best lr is often missed.
            return parabola({**knobs, "method": "he"}, 0) + 0.03 * float(rng.standard_normal())

        for row in with_losses(study, noisy).sizes.iter_rows(named=True):
            truth = min(
                LRS, key=lambda lr: abs(math.log10(lr) - best_log_lr({**row, "method": "he"}))
            )
            held += row["best_lr_low"] <= truth <= row["best_lr_high"]
            tried += 1
    # 120 intervals: of a choice among few values they hold the truth at least as often as 95 %.
    assert held / tried >= 0.93, f"{held} of {tried}"


def test_a_diverged_run_counts_at_its_initial_loss() -> None:
    def one_lost(knobs: dict[str, Any], seed: int) -> str:
        return "diverged" if knobs["lr"] == 3e-3 and knobs["width"] == 16 else "completed"

    whole = with_losses(sized_study(), parabola)
    lost = with_losses(sized_study(), parabola, status=one_lost)
    here = pl.col("width") == 16
    assert set(whole.sizes.filter(here & (pl.col("depth") == 1))["best_lr"]) == {3e-3}
    assert 3e-3 not in set(lost.sizes.filter(here)["best_lr"])
    assert whole.sizes.filter(~here).equals(lost.sizes.filter(~here))


def test_nothing_learnt_has_no_best_lr() -> None:
    found = with_losses(sized_study(), parabola, status=lambda knobs, seed: "diverged").sizes
    assert found["best_lr"].null_count() == found.height
    assert set(found["note"]) == {"no cell got below its initial loss"}


@pytest.mark.parametrize(
    "space",
    [
        {"method": ["he", "wesar"], "lr": LRS},
        {"width": WIDTHS, "method": ["he", "wesar"]},
    ],
)
def test_without_a_size_beside_lr_there_is_no_row(space: dict[str, Any]) -> None:
    assert with_losses(lr_study(space=space), parabola).sizes.is_empty()
