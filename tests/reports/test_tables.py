import io
import re
from typing import Any

import polars as pl
import pytest
from invented_study import invent, lr_study
from rich.console import Console

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import html, markdown
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import (
    best_cells_table,
    csv_frame,
    matrix,
    matrix_table,
    number,
    run_table,
    series_table,
)
from wesar_sweep.reports.terminal import print_summary
from wesar_sweep.store.frames import outcomes_frame


def partial(analysis: Analysis, runs: int) -> Analysis:
    return Analysis(analysis.study, analysis.raw_outcomes.head(runs))


def test_the_matrix_holds_every_cell_in_its_place(analysis: Analysis) -> None:
    found = matrix(analysis)
    assert found is not None
    assert found.columns == ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "3e-1")
    assert [label for label, _ in found.rows] == list(analysis.series)
    for label, cells in found.rows:
        for column, cell in zip(analysis.layout.axis_values, cells, strict=True):
            assert cell.figures is not None
            assert (cell.figures["series"], cell.figures["lr"]) == (label, column)
    marks = [cell.mark for _, cells in found.rows for cell in cells]
    assert marks.count("best") == 1
    assert marks.count("tied") == len(analysis.ties.marked)
    shades = [cell.shade for _, cells in found.rows for cell in cells]
    assert min(shades) == 0 and max(shades) > 0.9


def test_places_without_an_outcome_say_so(analysis: Analysis) -> None:
    found = matrix(partial(analysis, 50))
    assert found is not None
    last = found.rows[-1][1]
    assert [cell.remark for cell in last] == ["not run yet"] * 8
    assert all(cell.value("loss") == "–" for cell in last)


def test_places_that_a_list_leaves_out_are_not_waited_for() -> None:
    listed: list[dict[str, Any]] = [
        {"method": "small", "lr": 1e-3},
        {"method": "small", "lr": 1e-2},
        {"method": "he", "lr": 1e-3},
    ]
    study = lr_study(sampler={"name": "listed", "listed": listed})
    outcomes, _ = invent(study, listed, with_curves=False)
    whole = Analysis(study, outcomes_frame(outcomes))
    found = matrix(whole)
    assert found is not None and found.columns == ("1e-3", "1e-2")
    remarks = {label: [cell.remark for cell in cells] for label, cells in found.rows}
    assert remarks == {"small": ["", ""], "he": ["", "not asked for"]}
    part = matrix(partial(whole, 3))
    assert part is not None
    remarks = {label: [cell.remark for cell in cells] for label, cells in part.rows}
    assert remarks == {"small": ["", "not run yet"], "he": ["not run yet", "not asked for"]}


def test_words_of_a_cell(analysis: Analysis) -> None:
    table = matrix_table(matrix(analysis))  # type: ignore[arg-type]
    words = [word for row in table.rows for word in row[1:]]
    assert any(word.endswith("0/3 (0–56 %) best") for word in words)
    assert any("3/3 (44–100 %)" in word for word in words)


def test_numbers() -> None:
    assert number(1.23456) == "1.235"
    assert number(3.456, "ppl") == "3.46"
    assert number(25_300.4, "ppl") == "25,300"
    assert number(3e9, "ppl") == "3.0e9"
    assert number(None) == "–"


def test_csv_has_one_row_a_cell_with_full_precision(analysis: Analysis) -> None:
    back = pl.read_csv(io.StringIO(csv_frame(analysis).write_csv()))
    assert back.height == analysis.cells.height
    assert back["loss"].to_list() == analysis.cells["loss"].to_list()
    assert back["mark"].to_list().count("best") == 1


def test_series_table_and_ranking_are_rectangular(analysis: Analysis) -> None:
    for table in (
        series_table(analysis),
        best_cells_table(analysis),
        run_table(analysis, status="diverged"),
    ):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)} == {len(table.numeric)}
    assert best_cells_table(analysis).rows[0][-1] == "best"


def test_continuous_studies_are_ranked() -> None:
    study = lr_study(
        space={"method": ["he", "wesar"], "lr": {"low": 1e-4, "high": 1e-1, "log": True}},
        sampler={"name": "tpe", "cells": 4},
    )
    cells = [{"method": "he", "lr": lr} for lr in (1.234567e-3, 2.5e-3, 1e-2, 5e-2)]
    outcomes, _ = invent(study, cells, with_curves=False)
    found = Analysis(study, outcomes_frame(outcomes))
    assert matrix(found) is None
    losses = [float(row[3]) for row in best_cells_table(found).rows]
    assert losses == sorted(losses) and len(losses) == 4
    assert "not laid out as a grid" in found.verdict.basin
    # Cells have rates of their own: their sum is no binomial, so it has no interval.
    k, n = int(found.cells["diverged"].sum()), int(found.cells["n"].sum())
    assert found.verdict.stable == f"Divergence: {k} of {n} runs diverged over all cells."
    assert f"{k}/{n}" in [row[3] for row in series_table(found).rows]


def test_one_cell_is_a_binomial_and_keeps_its_interval() -> None:
    study = lr_study(space={"method": ["he", "small"]}, replicates=3)
    outcomes, _ = invent(study, [{"method": "he"}], with_curves=False)
    assert "95 % interval 0 % to" in Analysis(study, outcomes_frame(outcomes)).verdict.stable


def test_markdown_is_escaped_and_whole(analysis: Analysis) -> None:
    text = markdown.render(analysis, provenance={})
    assert "<script>" not in text
    assert r"\<script\>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(
        line.count(" | ") == rows[0].count(" | ") for line in rows[: 2 + len(analysis.series)]
    )
    named = [one for one in tables(analysis) if one.section is not None]
    assert len(named) > 3
    for one in named:
        assert f"### {markdown.escape(one.title)}" in text and markdown.table(one.table) in text
    assert "not finished" not in text
    assert "not finished" in markdown.render(partial(analysis, 50), provenance={})


def test_terminal_shows_verdict_and_every_cell_at_any_width(analysis: Analysis) -> None:
    for width in (60, 200):
        stream = io.StringIO()
        print_summary(analysis, console=Console(file=stream, width=width, color_system=None))
        text = stream.getvalue()
        assert "Lowest loss" in text and "*" in text
        assert all(len(line) <= width for line in text.splitlines())
        best = analysis.ranked["loss"][0]
        assert f"{best:.3f}" in text


NULL_CLIP = {"space": {"clip": [None, 0.5, 1.0]}}
NULL_SIGMA2 = {
    "space": {"method": ["he", "wesar"], "sigma2": [4e-5, 1e-3]},
    "sampler": {"name": "tpe", "cells": 4},
}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        (NULL_CLIP, ["wesar clip=off", "wesar clip=0.5", "wesar clip=1"]),
        (NULL_SIGMA2, ["he", "wesar σ²=4e-5", "wesar σ²=1e-3"]),
    ],
)
def test_a_value_that_is_off_reaches_every_report(
    changes: dict[str, Any], labels: list[str]
) -> None:
    study = lr_study(**changes)
    asked = [{"method": method, "sigma2": s} for method in ("he", "wesar") for s in (4e-5, 1e-3)]
    outcomes, curves = invent(study, asked if "sampler" in changes else None)
    found = Analysis(study, outcomes_frame(outcomes), curves)
    grid = matrix(found)
    assert grid is not None
    assert [label for label, _ in grid.rows] == labels
    assert all(cells[0].n == 3 for _, cells in grid.rows)
    assert len(series_table(found).rows) == 3
    assert csv_frame(found).height == len(outcomes) // 3
    stream = io.StringIO()
    print_summary(found, console=Console(file=stream, width=120, color_system=None))
    page = html.render(found, provenance={}, bundle="")
    for text in (markdown.render(found, provenance={}), page, stream.getvalue()):
        assert all(label in text for label in labels)


def test_no_table_and_no_verdict_loses_a_diverged_run(analysis: Analysis) -> None:
    raw = analysis.raw_outcomes
    every, lost = raw.height, raw.filter(pl.col("status") == "diverged").height
    assert lost > 5
    found = {table.name: table for table in tables(analysis)}
    for name in ("paper", "cells"):
        frame = found[name].frame
        assert (frame["n"].sum(), frame["diverged"].sum()) == (every, lost), name
    for name in ("matrix", "paper", "cells", "series"):
        words = re.findall(r"(\d+)/(\d+)", str(found[name].table.rows))
        counts = sum(int(k) for k, _ in words), sum(int(n) for _, n in words)
        assert counts == (lost, every), name
    runs = found["runs"]
    assert runs.frame.height == len(runs.table.rows) == every
    assert str(runs.table.rows).count("'diverged'") == lost
    # The control: without them everything looks better.
    kept = Analysis(analysis.study, raw.filter(pl.col("status") != "diverged"))
    assert kept.cells["loss"].max() < analysis.cells["loss"].max()
    assert kept.largest_stable_lr()["lr"].max() > analysis.largest_stable_lr()["lr"].max()
