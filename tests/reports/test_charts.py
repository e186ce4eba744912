import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import vl_convert
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import format_value
from wesar_sweep.reports import charts, curve_charts, probe_charts
from wesar_sweep.reports.figures import figures
from wesar_sweep.store.frames import outcomes_frame


def data_sets(spec: Any) -> Iterator[list[dict[str, Any]]]:
    """Every list of records in a specification."""
    if isinstance(spec, dict):
        values = spec.get("values")
        if isinstance(values, list) and values and isinstance(values[0], dict):
            yield values
        for value in spec.get("datasets", {}).values():
            yield value
        for key, value in spec.items():
            if key != "datasets":
                yield from data_sets(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from data_sets(value)


NAMES = [
    "loss-against-axis",
    "loss-near-best",
    "loss-against-effective-lr",
    "loss-near-best-effective-lr",
    "stability-map",
    "loss-curves",
    "loss-and-update-ratios",
    "loss-together",
    "update-ratios-of-a-layer",
    "norms",
    "worst-spikes",
    "importance",
    "tokens-spent",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_is_valid_vega_lite_and_small(analysis: Analysis, name: str) -> None:
    (figure,) = (figure for figure in figures(analysis) if figure.name == name)
    spec = figure.chart.to_dict()
    found = list(data_sets(spec))
    assert found
    assert all(0 < len(rows) <= 5_000 for rows in found)
    text = json.dumps(spec, allow_nan=False)
    assert len(text) < 600_000


def test_diverged_seeds_are_drawn_at_their_capped_loss(analysis: Analysis) -> None:
    spec = charts.loss_against_axis(analysis).to_dict()
    seeds = next(rows for rows in data_sets(spec) if "capped_loss" in rows[0])
    diverged = [row for row in seeds if row["status"] == "diverged"]
    assert len(diverged) == int(analysis.cells["diverged"].sum()) > 0
    assert all(row["capped_loss"] is not None for row in seeds)
    assert len(seeds) == int(analysis.cells["n"].sum())


def test_seeds_are_moved_aside_and_keep_their_true_lr(analysis: Analysis) -> None:
    seeds = next(
        rows
        for rows in data_sets(charts.loss_against_axis(analysis).to_dict())
        if "capped_loss" in rows[0]
    )
    assert {row["lr"] for row in seeds} == set(analysis.layout.axis_values)
    assert all(abs(math.log10(row["at"] / row["lr"])) < 0.06 for row in seeds)


def test_against_effective_lr_each_series_is_moved_by_its_gate(analysis: Analysis) -> None:
    chart = charts.loss_against_axis(analysis, effective=True)
    lines = next(rows for rows in data_sets(chart.to_dict()) if "loss_low" in rows[0])
    # The square root of 1/64 over that of σ²; five digits are written.
    gates = {"wesar σ²=4e-5": math.sqrt(1 / 64 / 4e-5), "wesar σ²=1e-3": math.sqrt(1 / 64 / 1e-3)}
    for row in lines:
        moved = row["lr"] * gates.get(row["series"], 1.0)
        assert row["at"] == pytest.approx(moved, rel=1e-4) == row["effective_lr"]
    plain = charts.loss_against_axis(analysis).to_dict()
    assert all(
        row["at"] == row["lr"]
        for row in next(rows for rows in data_sets(plain) if "loss_low" in rows[0])
    )
    (figure,) = (one for one in figures(analysis) if one.name == "loss-against-effective-lr")
    assert "α₀ is 1 for small and he, 19.8 for wesar σ²=4e-5" in figure.caption
    assert "n = 3 seeds" in figure.caption and "weight decay acts on W" in figure.caption


def test_loss_curves_hold_every_run_thinned(analysis: Analysis) -> None:
    rows = next(data_sets(curve_charts.loss_curves(analysis).to_dict()))
    assert len(rows) == len(analysis.curves)
    assert all(len(row["step"]) == len(row["loss"]) <= 240 for row in rows)
    ends = [row for row in rows if row["status"] == "diverged"]
    assert all(row["end_loss"] is not None for row in ends)
    # The planted bump of one step survives the thinning.
    assert all(140 in row["step"] for row in rows if row["step"][-1] > 150)


def test_a_study_of_many_runs_stays_within_its_points(many_runs: Analysis) -> None:
    assert len(many_runs.curves) == 512
    rows = next(data_sets(curve_charts.loss_curves(many_runs).to_dict(validate=False)))
    assert len(rows) <= curve_charts.MAX_CURVES
    assert sum(len(row["loss"]) for row in rows) <= 1.1 * curve_charts.POINTS


def test_norms_show_both_weights_and_ratios_every_layer(analysis: Analysis) -> None:
    norms = next(data_sets(probe_charts.norms(analysis).to_dict()))
    assert {row["kind"] for row in norms} == {"‖W‖", "‖W̄‖"}
    ratios = next(data_sets(probe_charts.update_ratios_of_a_layer(analysis).to_dict()))
    assert {row["layer"] for row in ratios} == {"0", "1"}
    assert all(set("qkvouw") <= set(row) for row in ratios)
    assert len({row["panel"] for row in ratios}) == len(analysis.series)


def test_figures_are_those_the_study_has_data_for(analysis: Analysis) -> None:
    assert [figure.name for figure in figures(analysis)] == NAMES
    study = lr_study(space={"method": ["he", "small"]})
    outcomes, _ = invent(study, with_curves=False)
    found = figures(Analysis(study, outcomes_frame(outcomes)))
    assert [figure.name for figure in found] == ["tokens-spent"]
    assert figures(Analysis(study, outcomes_frame([]))) == []


def test_every_caption_states_n_and_every_loss_figure_its_rule(analysis: Analysis) -> None:
    for figure in figures(analysis):
        assert figure.alt and figure.caption
        if figure.name in ("loss-against-axis", "stability-map"):
            assert "n = 3 seeds" in figure.caption
            assert "rule v1 (window 20 steps" in figure.caption


def words_in(chart: Any) -> list[str]:
    """Every text that a reader of the drawn chart sees."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", vl_convert.vegalite_to_svg(chart.to_dict()))


def test_an_axis_writes_every_lr_as_the_tables_do() -> None:
    lrs = [1e-4, 3e-3, 0.1, 1.0, 3.0, 10.0, 100.0]
    study = lr_study(space={"method": "he", "lr": lrs}, replicates=1)
    outcomes, _ = invent(study, with_curves=False)
    shown = words_in(charts.loss_against_axis(Analysis(study, outcomes_frame(outcomes))))
    assert {format_value(lr, knob="lr") for lr in lrs} <= set(shown)
    assert not {"3e+0", "1e+1", "1e+2"} & set(shown)


def lost_at_once(steps: int) -> Analysis:
    """Two lr of six seeds and two methods; at the higher one every run blows up in a few steps."""
    study = lr_study(space={"method": ["he", "small"], "lr": [1e-3, 10.0]}, replicates=6)
    outcomes, curves = invent(study)
    rows = []
    for row in outcomes:
        lost = row.hyperparameters["lr"] == 10.0
        rows.append(replace(row, status="diverged" if lost else "completed"))
        if lost:
            loss = np.array([5.5, *np.full(steps - 1, 1e4)], dtype=np.float32)
            curve = curves[row.trial, row.seed]
            curves[row.trial, row.seed] = replace(curve, loss=loss, grad_norm=np.ones_like(loss))
    return Analysis(study, outcomes_frame(rows), curves)


def end_marks(svg: str) -> list[tuple[float, float]]:
    """Where the crosses of diverged runs stand, in pixels of their panel."""
    marks = re.findall(
        r'<path aria-label="[^"]*status: diverged[^>]*aria-role[^>]*"point"[^>]*>', svg
    )
    found = [re.search(r"translate\(([^)]*)\)", mark)[1] for mark in marks]  # type: ignore[index]
    places = [tuple(float(x) for x in one.split(",")) for one in found]
    return [(x, y) for x, y in places]


def test_marks_of_diverged_runs_are_whole_and_apart() -> None:
    found = lost_at_once(3)
    spec = curve_charts.loss_curves(found).to_dict()
    # The layer that only makes panels of one width is seen by nobody.
    spec["spec"]["layer"] = [
        layer for layer in spec["spec"]["layer"] if layer["mark"].get("opacity") != 0
    ]
    marks = end_marks(vl_convert.vegalite_to_svg(spec))
    assert len(marks) == 12
    half = 0.5 * math.sqrt(45)
    assert all(half <= y <= curve_charts.PANEL_HEIGHT - half for _, y in marks)
    gaps = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in combinations(marks, 2)]
    assert min(gaps) > 2 * half


def test_a_panel_of_runs_lost_at_once_has_a_step_axis_of_its_own() -> None:
    chart = curve_charts.loss_curves(lost_at_once(3))
    assert {"lr 1e-3", "lr 10, first 3 steps"} <= set(words_in(chart))
    rows = next(data_sets(chart.to_dict()))
    lost = [row for row in rows if row["status"] == "diverged"]
    # What is above the scale runs in the lane of its series, in sight below the panel's edge.
    edge = next(
        layer["encoding"]["y"]["scale"]["domain"][1]
        for layer in chart.to_dict()["spec"]["layer"]
        if layer["mark"]["type"] == "line"
    )
    assert all(len(row["loss"]) == 3 and max(row["loss"]) < 0.99 * edge for row in lost)
    assert len({(row["series"], row["loss"][1]) for row in lost}) == 2


def test_no_run_is_drawn_in_the_panel_of_another(analysis: Analysis) -> None:
    svg = vl_convert.vegalite_to_svg(curve_charts.loss_curves(analysis).to_dict())
    assert svg.count('aria-roledescription="line mark"') == len(analysis.curves)
