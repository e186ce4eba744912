import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import vl_convert
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import search_charts
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame

RANGE = {"low": 1e-4, "high": 1.0, "log": True}


def sampled(cells: int, *objectives: str) -> Analysis:
    """A random search of `cells` cells, in which high lr diverge and three cells were cut short."""
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "lr": RANGE,
            "sigma2": {**RANGE, "when": {"method": "wesar"}},
        },
        sampler={"name": "random", "cells": cells},
        objectives=list(objectives or ("val_loss",)),
        replicates=2,
    )
    found = [
        {"method": "wesar", "lr": 10 ** (-4 * n / cells), "sigma2": 1e-4 * (1 + n)}
        if n % 2
        else {"method": "he", "lr": 10 ** (-4 * n / cells)}
        for n in range(cells)
    ]
    rows, _ = invent(study, found, with_curves=False)
    if not objectives:
        rows = [replace(row, status="pruned") if row.trial in (4, 5, 6) else row for row in rows]
    return Analysis(study, outcomes_frame(rows))


def test_words_of_told_and_capped_are_only_where_they_are_true() -> None:
    def words(analysis: Analysis) -> str:
        (history,) = (one for one in figures(analysis) if one.name == "search-history")
        return history.caption

    assert "as the sampler was told" not in words(sampled(12))
    assert "counted at min(final, initial) loss" in words(sampled(12))
    assert "initial" not in words(sampled(12, "divergence_rate"))


def search_names(analysis: Analysis) -> list[str]:
    return [figure.name for figure in figures(analysis) if figure.section == "search"]


def test_a_search_has_its_section_and_a_grid_only_importance(analysis: Analysis) -> None:
    assert search_names(sampled(30)) == ["search-history", "parallel-coordinates", "importance"]
    assert "pareto-front" in search_names(sampled(12, "val_loss", "divergence_rate", "spikes"))
    assert search_names(analysis) == ["importance"]
    (table,) = (one for one in tables(analysis) if one.section == "search")
    assert table.name == "importance" and "On a grid" in table.caption
    assert search_names(Analysis(analysis.study, outcomes_frame([]))) == []


@pytest.mark.parametrize("objectives", [(), ("val_loss", "divergence_rate", "spikes")])
def test_every_chart_draws_every_cell_and_says_how_many_runs(objectives: tuple[str, ...]) -> None:
    found = sampled(30, *objectives)
    for figure in figures(found):
        if figure.section != "search":
            continue
        svg = vl_convert.vegalite_to_svg(figure.chart.to_dict())
        assert figure.alt and figure.title
        if figure.name == "search-history":
            assert svg.count('aria-roledescription="point"') == 30
            assert "n = 2 runs a cell" in figure.caption
        if figure.name == "parallel-coordinates":
            assert svg.count('aria-roledescription="line mark"') == 30
            assert ">none<" in svg, "the place of cells without σ²"
        if figure.name == "pareto-front":
            assert svg.count('aria-roledescription="point"') == 60
        assert json.dumps(figure.chart.to_dict(), allow_nan=False)


def test_many_cells_are_thinned_and_the_best_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_charts, "MAX_POINTS", 20)
    monkeypatch.setattr(search_charts, "MAX_LINES", 20)
    found = sampled(60)
    history = max(search_charts.history(found).to_dict()["datasets"].values(), key=len)
    drawn = {row["trial"] for row in history}
    improved = found.search_history.filter(found.search_history["best"].diff() < 0)
    assert set(improved["trial"]) <= drawn and 20 <= len(drawn) < 45
    chart = search_charts.parallel_coordinates(found).to_dict()
    lines = next(rows for rows in chart["datasets"].values() if "strength" in rows[0])
    assert len(lines) == 20
    best = found.search_history.filter(found.search_history["pruned"] == 0).sort("val_loss")
    assert set(best["trial"][:10]) <= {row["trial"] for row in lines}


def test_the_importance_of_a_report_loads_no_torch(tmp_path: Path) -> None:
    lines = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]",
        "from test_search_figures import sampled, search_names",
        "assert 'importance' in search_names(sampled(12))",
        "assert 'optuna' in sys.modules and 'torch' not in sys.modules",
    )
    here = Path(__file__).parent
    words = [sys.executable, "-c", "\n".join(lines), str(here), str(here.parent / "analysis")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "Optuna stays silent"
