import math
from typing import Any

import polars as pl
import pytest
from invented_study import lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.config.study import Study
from wesar_sweep.errors import ConfigError
from wesar_sweep.store.frames import outcomes_frame

LRS = [1e-3, 1e-2, 1e-1, 1.0, 10.0]


def told(study: Study, fates: list[tuple[dict[str, Any], str]]) -> Analysis:
    """One cell each; its seeds end as the letters say: d, c, p or f."""
    words = {"d": "diverged", "c": "completed", "p": "pruned", "f": "failed"}
    rows = [
        run_of(study, trial, seed, cell, status=words[letter], with_curve=False)[0]
        for trial, (cell, letters) in enumerate(fates)
        for seed, letter in enumerate(letters)
    ]
    return Analysis(study, outcomes_frame(rows))


def sigma2_by_lr() -> Analysis:
    """he diverges from 10 on, wesar from 1 on with one σ² and from 1e-1 on with the other."""
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
            "lr": LRS,
        }
    )
    limits = {("he", None): 10.0, ("wesar", 4e-5): 0.1, ("wesar", 1e-3): 1.0}
    fates = []
    for (method, sigma2), limit in limits.items():
        for lr in LRS:
            own = {} if sigma2 is None else {"sigma2": sigma2}
            cell = {"method": method, **own, "lr": lr}
            fates.append((cell, "ddd" if lr >= limit else "ccc"))
    return told(study, fates)


def test_every_row_of_a_grid_has_its_boundary() -> None:
    found = sigma2_by_lr().stability_boundary(across="sigma2")
    assert found.select("panel", "row", "lr_below", "lr_above").rows() == [
        ("he", "–", 1.0, 10.0),
        ("wesar", "1e-3", 0.1, 1.0),
        ("wesar", "4e-5", 0.01, 0.1),
    ]
    # With 3 seeds one lr further; above 10 nothing was tried.
    assert found.select("lr_low", "lr_high").rows() == [(0.1, None), (0.01, 10.0), (1e-3, 1.0)]
    assert found["across_low"].to_list() == [None, 1e-3, 4e-5]
    assert found.select("n", "n_fewest", "diverged").rows() == [(15, 3, 3), (15, 3, 6), (15, 3, 9)]


def test_without_a_second_axis_the_rows_are_the_series() -> None:
    one = sigma2_by_lr()
    by_series = one.stability_boundary()
    assert by_series["row"].to_list() == ["he", "wesar σ²=4e-5", "wesar σ²=1e-3"]
    ends = ["lr_below", "lr_above", "lr_low", "lr_high"]
    assert sorted(by_series.select(ends).rows(), key=str) == sorted(
        one.stability_boundary(across="sigma2").select(ends).rows(), key=str
    )


def test_pruned_and_failed_runs_count_nowhere_and_diverged_ones_everywhere() -> None:
    study = lr_study(space={"method": "he", "lr": LRS[:4]}, replicates=3)
    fates = ["ccc", "ccp", "ffp", "ddd"]
    found = told(study, [({"lr": lr}, f) for lr, f in zip(LRS, fates, strict=False)])
    row = found.stability_boundary().row(0, named=True)
    assert (row["n"], row["n_lr"], row["n_fewest"], row["diverged"]) == (8, 3, 2, 3)
    assert (row["lr_below"], row["lr_above"]) == (1e-2, 1.0)
    more = told(
        study, [({"lr": lr}, f) for lr, f in zip(LRS, ["ccc", "ddd", "f", "ddd"], strict=False)]
    )
    assert more.stability_boundary()["lr_above"].to_list() == [1e-2]


def test_a_rate_that_falls_is_told() -> None:
    study = lr_study(space={"method": "he", "lr": LRS}, replicates=3)
    fates = ["ccc", "cdc", "ccc", "ddd", "ddd"]
    row = told(study, [({"lr": lr}, f) for lr, f in zip(LRS, fates, strict=True)])
    found = row.stability_boundary().row(0, named=True)
    assert (found["fall_from_lr"], found["fall_to_lr"]) == (1e-2, 1e-1)
    assert found["note"].startswith("the rate falls: 1/3 at 1e-2, 0/3 at 1e-1; chance may")
    upside = told(study, [({"lr": lr}, "ccc" if lr > 0.01 else "ddd") for lr in LRS])
    assert (
        "suggests that there is no one boundary (uncorrected p"
        in upside.stability_boundary()["note"][0]
    )


def test_a_third_knob_makes_panels() -> None:
    study = lr_study(space={"width": [16, 64], "depth": [1, 2], "lr": LRS})
    cells = [{"width": w, "depth": d, "lr": lr} for w in (16, 64) for d in (1, 2) for lr in LRS]
    found = told(study, [(cell, "ddd" if cell["lr"] > 1 else "ccc") for cell in cells])
    for across, other in (("width", "depth"), ("depth", "width")):
        rows = found.stability_boundary(across=across)
        values = sorted({str(cell[across]) for cell in cells}, key=int, reverse=True)
        panels = [f"wesar {other}={v}" for v in sorted({cell[other] for cell in cells})]
        assert rows.select("panel", "row").rows() == [(p, v) for p in panels for v in values]
        assert rows["lr_above"].to_list() == [10.0] * 4
    with pytest.raises(ConfigError, match=r"'lr'(.|\n)*allowed: width, depth"):
        found.stability_boundary(across="lr")


def test_sampled_values_are_cut_into_ranges() -> None:
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "lr": {"low": 1e-3, "high": 10.0, "log": True},
            "sigma2": {"low": 1e-5, "high": 1e-1, "log": True, "when": {"method": "wesar"}},
        },
        sampler={"name": "qmc", "cells": 80},
        replicates=1,
    )
    fates = []
    for index in range(80):
        # Two irrational strides spread the cells evenly; the boundary is lr = 100 σ².
        lr = 10 ** (-3 + 4 * ((index * 0.618) % 1))
        sigma2 = 10 ** (-5 + 4 * ((index * 0.755) % 1))
        wesar = index % 2 == 0
        cell = {"method": "wesar" if wesar else "he", "lr": lr}
        cell |= {"sigma2": sigma2} if wesar else {}
        lost = lr > (100 * sigma2 if wesar else 0.1)
        fates.append((cell, "d" if lost else "c"))
    one = told(study, fates)
    found = one.stability_boundary(across="sigma2")
    wesar = found.filter(pl.col("panel") == "wesar")
    assert wesar["n"].to_list() == [10] * 4
    assert all(word.count(" to ") == 1 for word in wesar["row"])
    middles = (wesar["lr_below"] * wesar["lr_above"]).sqrt().to_list()
    assert middles == sorted(middles, reverse=True)
    he = found.filter(pl.col("panel") == "he").row(0, named=True)
    assert (he["row"], he["n"], he["n_lr"]) == ("–", 40, 40)
    assert he["lr_below"] < 0.1 < he["lr_above"] < 0.3
    assert he["lr_low"] < 0.1 < he["lr_high"]
    assert math.log10(he["lr_high"] / he["lr_low"]) < 2


def test_of_another_axis_than_lr_no_boundary_is_told() -> None:
    study = lr_study(space={"method": ["he", "small"], "width": [16, 64]}, replicates=1)
    cells = [{"method": m, "width": w} for m in ("he", "small") for w in (16, 64)]
    one = told(study, [(cell, "d") for cell in cells])
    assert one.stability_cells().height == 4
    assert one.stability_boundary().is_empty()
    assert Analysis(study, outcomes_frame([])).stability_boundary().is_empty()
    by_lr = lr_study(space={"width": [16, 64], "lr": LRS})
    assert Analysis(by_lr, outcomes_frame([])).stability_boundary(across="width").is_empty()
