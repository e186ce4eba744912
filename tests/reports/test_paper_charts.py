"""Figures 1, 2 and 9 of the paper, by the data that they draw."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import paper_charts, probe_charts
from wesar_sweep.reports.chosen_runs import AT_BEST, settings
from wesar_sweep.reports.figures import figures
from wesar_sweep.store.frames import outcomes_frame

Rows = list[dict[str, Any]]


def records(spec: Any) -> Rows:
    """Every record of every data set in a specification."""
    if isinstance(spec, list):
        return [row for part in spec for row in records(part)]
    if not isinstance(spec, dict):
        return []
    own = spec.get("data", {}).get("values", []) if isinstance(spec.get("data"), dict) else []
    sets = [row for rows in spec.get("datasets", {}).values() for row in rows]
    parts = [value for key, value in spec.items() if key not in ("data", "datasets")]
    return [*own, *sets, *records(parts)]


def chosen(chart: Any, name: str) -> dict[str, Any]:
    (param,) = (param for param in chart.to_dict()["params"] if param["name"] == name)
    return param  # type: ignore[no-any-return]


def test_each_series_is_shown_at_its_best_first_and_then_at_every_lr(analysis: Analysis) -> None:
    options = settings(analysis)
    assert [option.name for option in options[:2]] == [AT_BEST, "lr 1e-4"]
    assert len(options) == 1 + len(analysis.layout.axis_values)
    best = analysis.best_cells
    assert {s: c["trial"] for s, c in options[0].cells.items()} == dict(
        best.select("series", "trial").rows()
    )
    for value, option in zip(analysis.layout.axis_values, options[1:], strict=True):
        assert list(option.cells) == list(analysis.series)
        assert all(cell["lr"] == value for cell in option.cells.values())
    param = chosen(paper_charts.loss_and_update_ratios(analysis), "setting")
    assert param["value"] == AT_BEST
    assert param["bind"]["options"] == [option.name for option in options]


def test_every_spike_of_a_drawn_run_is_marked_at_its_peak(analysis: Analysis) -> None:
    rows = records(paper_charts.loss_and_update_ratios(analysis).to_dict())
    marks = [row for row in rows if "mark" in row]
    events, wanted = analysis.run_spikes.events, 0
    for option in settings(analysis):
        for series, cell in option.cells.items():
            (line,) = (
                row
                for row in rows
                if (row["setting"], row["series"]) == (option.name, series)
                and isinstance(row.get("loss"), list)
            )
            own = events.filter(
                (pl.col("trial") == cell["trial"]) & (pl.col("seed") == line["seed"])
            )
            found = {
                (row["mark"], row["step"])
                for row in marks
                if (row["setting"], row["series"]) == (option.name, series)
            }
            assert found == {(f"{r['kind']} spike", r["peak"]) for r in own.iter_rows(named=True)}
            wanted += len(found)
    assert len(marks) == wanted > 0
    # The bump that all runs have in common is a raw spike, and no paired one.
    steps = {
        kind: [row["step"] for row in marks if row["mark"] == kind]
        for kind in ("raw spike", "paired spike")
    }
    assert 140 in steps["raw spike"] and 140 not in steps["paired spike"]


def test_ratios_are_those_of_the_last_layer_or_a_chosen_one(analysis: Analysis) -> None:
    trial = int(analysis.best_cells["trial"][0])
    for layer, wanted in ((None, 1), (0, 0)):
        chart = paper_charts.loss_and_update_ratios(analysis, layer=layer, trials=[trial])
        rows = [row for row in records(chart.to_dict()) if "ratio" in row]
        assert {row["matrix"] for row in rows} == {"up projection (u)", "down projection (w)"}
        curve = analysis.curves[trial, rows[0]["seed"]]
        column = curve.probe_axes["update_ratio"].index(f"layers.{wanted}.u")
        (up,) = (row for row in rows if row["matrix"].startswith("up"))
        assert up["step"] == curve.probe_step.tolist()
        assert up["ratio"] == pytest.approx(
            curve.probes["update_ratio"][:, column].tolist(), rel=5e-4
        )


def lost(analysis: Analysis, trial: int, ends: dict[int, int]) -> Analysis:
    """The same study where some seeds of a cell ended early."""
    curves = dict(analysis.curves)
    for seed, end in ends.items():
        curve = curves[trial, seed]
        curves[trial, seed] = replace(curve, loss=curve.loss[:end], grad_norm=curve.grad_norm[:end])
    return Analysis(analysis.study, analysis.raw_outcomes, curves)


def test_a_median_ends_where_half_of_the_runs_have_ended() -> None:
    study = lr_study(space={"method": ["he", "small"], "lr": [1e-3, 3e-3]}, replicates=3)
    outcomes, curves = invent(study)
    rows = [replace(row, status="completed") for row in outcomes]
    whole = Analysis(study, outcomes_frame(rows), curves)
    trial = int(whole.best_cells["trial"][0])
    series = whole.best_cells["series"][0]

    def median(analysis: Analysis) -> dict[str, Any]:
        (found,) = (
            row
            for row in records(paper_charts.loss_together(analysis).to_dict())
            if (row["setting"], row["series"], row["seed"]) == (AT_BEST, series, "median")
        )
        return found

    everything = median(whole)
    steps = len(curves[trial, 0].loss)
    assert len(everything["loss"]) == len(everything["step"]) and None not in everything["loss"]
    # The last stretch against a computation of its own.
    loss_nS = np.array([curves[trial, seed].loss for seed in range(3)], dtype=np.float64)
    edges = np.unique(np.geomspace(1, steps + 1, paper_charts.STRETCHES + 1).astype(int) - 1)
    last = np.sort(loss_nS, axis=0)[1, edges[-2] :].mean()
    assert everything["loss"][-1] == pytest.approx(last, rel=5e-4)
    one, two = median(lost(whole, trial, {0: 60})), median(lost(whole, trial, {0: 60, 1: 60}))
    assert None not in one["loss"], "two of three runs go on"
    over = [loss is None for loss in two["loss"]]
    assert over == [end > 60 for end in edges[1:]], "from there on most runs are lost"
    worse = [a >= b for a, b in zip(one["loss"], everything["loss"], strict=True)]
    assert all(worse), "a lost run is the worst of its cell, not left out"


def test_thin_lines_are_seeds_to_the_step_where_they_end(analysis: Analysis) -> None:
    rows = records(paper_charts.loss_together(analysis).to_dict())
    for row in rows:
        if row["seed"] == "median":
            continue
        cell = settings_cell(analysis, row)
        curve = analysis.curves[cell["trial"], int(row["seed"])]
        assert row["step"][0] == 1 and row["step"][-1] == len(curve.loss)
        first = row["loss"][0]
        assert first == pytest.approx(min(float(curve.loss[0]), first), rel=5e-4)
        if not math.isfinite(curve.loss[-1]):
            assert row["loss"][-1] is None
    assert {row["setting"] for row in rows} == {option.name for option in settings(analysis)}


def settings_cell(analysis: Analysis, row: dict[str, Any]) -> dict[str, Any]:
    (option,) = (one for one in settings(analysis) if one.name == row["setting"])
    return dict(option.cells[row["series"]])


def test_a_layer_can_be_chosen_and_the_middle_one_is_first(analysis: Analysis) -> None:
    chart = probe_charts.update_ratios_of_a_layer(analysis)
    assert chosen(chart, "layer")["value"] == "1"
    assert chosen(chart, "layer")["bind"]["options"] == ["0", "1"]
    assert chosen(probe_charts.update_ratios_of_a_layer(analysis, layer=0), "layer")["value"] == "0"
    with pytest.raises(ValueError, match="0, 1, not 7"):
        probe_charts.update_ratios_of_a_layer(analysis, layer=7)


def test_what_is_not_there_cannot_be_chosen(analysis: Analysis) -> None:
    assert (
        chosen(paper_charts.loss_together(analysis, at="lr 1e-3"), "setting")["value"] == "lr 1e-3"
    )
    with pytest.raises(ValueError, match=r"lr 1e-4, .*, not lr 7"):
        paper_charts.loss_together(analysis, at="lr 7")
    with pytest.raises(ValueError, match=r"\[999\] have no counted run"):
        paper_charts.loss_and_update_ratios(analysis, trials=[0, 999])


def test_a_study_without_probes_has_losses_alone() -> None:
    study = lr_study(space={"method": ["he"], "lr": [1e-3, 3e-3]}, probes={"every": None})
    outcomes, curves = invent(study)
    bare = {key: replace(curve, probes={}, probe_axes={}) for key, curve in curves.items()}
    names = [figure.name for figure in figures(Analysis(study, outcomes_frame(outcomes), bare))]
    assert "loss-together" in names
    assert not {"loss-and-update-ratios", "update-ratios-of-a-layer", "norms"} & set(names)


def test_a_sampled_study_is_shown_at_its_best_alone() -> None:
    study = lr_study(
        space={"method": ["he", "wesar"], "lr": {"low": 1e-4, "high": 1e-1, "log": True}},
        sampler={"name": "tpe", "cells": 6},
    )
    cells = [{"method": m, "lr": lr} for m in ("he", "wesar") for lr in (1.2e-3, 2.5e-3, 1.1e-2)]
    outcomes, curves = invent(study, cells)
    found = Analysis(study, outcomes_frame(outcomes), curves)
    assert [option.name for option in settings(found)] == [AT_BEST]
    assert "bind" not in chosen(paper_charts.loss_together(found), "setting")
    names = {figure.name for figure in figures(found)}
    assert {"loss-and-update-ratios", "loss-together", "update-ratios-of-a-layer"} <= names
