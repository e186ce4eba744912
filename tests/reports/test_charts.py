import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import charts, probe_charts
from wesar_sweep.reports.figures import figure_names, figures
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


@pytest.mark.parametrize("name", list(figure_names()))
def test_every_chart_is_valid_vega_lite_and_small(analysis: Analysis, name: str) -> None:
    spec = figure_names()[name](analysis).to_dict()
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


def test_loss_curves_hold_every_run_thinned(analysis: Analysis) -> None:
    rows = next(data_sets(charts.loss_curves(analysis).to_dict()))
    assert len(rows) == len(analysis.curves)
    assert all(len(row["step"]) == len(row["loss"]) <= 240 for row in rows)
    ends = [row for row in rows if row["status"] == "diverged"]
    assert all(row["end_loss"] is not None for row in ends)
    # The planted bump of one step survives the thinning.
    assert all(140 in row["step"] for row in rows if row["step"][-1] > 150)


def test_a_study_of_many_runs_stays_within_its_points(many_runs: Analysis) -> None:
    assert len(many_runs.curves) == 512
    rows = next(data_sets(charts.loss_curves(many_runs).to_dict(validate=False)))
    assert len(rows) <= charts.MAX_CURVES
    assert sum(len(row["loss"]) for row in rows) <= 1.1 * charts.POINTS


def test_norms_show_both_weights_and_ratios_every_layer(analysis: Analysis) -> None:
    norms = next(data_sets(probe_charts.norms(analysis).to_dict()))
    assert {row["kind"] for row in norms} == {"‖W‖", "‖W̄‖"}
    ratios = next(data_sets(probe_charts.update_ratios(analysis).to_dict()))
    assert {row["label"] for row in ratios} == {
        f"layers.{n}.{role}" for n in range(2) for role in "uw"
    }
    assert len({row["panel"] for row in ratios}) == len(analysis.series)


def test_figures_are_those_the_study_has_data_for(analysis: Analysis) -> None:
    assert [figure.name for figure in figures(analysis)] == list(figure_names())
    study = lr_study(space={"method": ["he", "small"]})
    outcomes, _ = invent(study, with_curves=False)
    assert figures(Analysis(study, outcomes_frame(outcomes))) == []
    assert figures(Analysis(study, outcomes_frame([]))) == []


def test_every_caption_states_n_and_every_loss_figure_its_rule(analysis: Analysis) -> None:
    for figure in figures(analysis):
        assert figure.alt and figure.caption
        if figure.name in ("loss-against-axis", "divergence-map"):
            assert "n = 3 seeds" in figure.caption
            assert "rule v1 (window 20 steps" in figure.caption
