"""The figure, the table and the words of a boundary search."""

from __future__ import annotations

import polars as pl
import pytest
from invented_study import searched_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import boundary as module
from wesar_sweep.reports import html, markdown
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


@pytest.fixture(scope="module")
def searched() -> Analysis:
    study, outcomes = searched_study({"he": -1.0, "small": -2.5, "xavier": 3.0})
    return Analysis(study, outcomes_frame(outcomes))


def test_the_figure_holds_every_value_that_was_tried(searched: Analysis) -> None:
    (figure,) = [one for one in figures(searched) if one.name == "boundary"]
    assert figure.section == "loss"
    spec = figure.chart.to_dict()
    bars, marks, _, arrows = (spec["datasets"][part["data"]["name"]] for part in spec["layer"])
    assert {row["series"] for row in bars} == {"he", "small"}
    assert [(row["series"], row["way"]) for row in arrows] == [("xavier", "triangle-right")]
    runs = sum(int(row["words"].partition("/")[2]) for row in marks)
    assert runs == searched.raw_outcomes.height
    lost = sum(int(row["words"].partition("/")[0]) for row in marks)
    assert lost == (searched.raw_outcomes["status"] == "diverged").sum()
    assert f"{runs} runs in all" in figure.caption
    assert "with 3 seeds of its own" in figure.caption and "rule v1" in figure.caption
    assert "he " in figure.alt and "above the largest value" in figure.alt


def test_the_table_says_what_was_saved(searched: Analysis) -> None:
    (table,) = [one for one in tables(searched) if one.name == "boundary"]
    assert table.section == "loss" and table.frame.equals(searched.boundary)
    by_series = {row[0]: row for row in table.table.rows}
    assert by_series["xavier"][1] == "above the largest value"
    assert by_series["he"][-1] == "narrow enough"
    runs = searched.raw_outcomes.height
    assert f"has 153 runs; the search trained {runs} and saved" in table.caption


def test_nothing_is_said_to_be_saved_where_the_resolution_was_not_reached() -> None:
    study, outcomes = searched_study({"he": -1.0, "small": -2.5})
    few = study.model_copy(update={"sampler": study.sampler.model_copy(update={"cells": 2})})
    none = Analysis(few, outcomes_frame([one for one in outcomes if one.seed < 6]))
    assert set(none.boundary["ended"]) == {"2 cells, the most allowed"}
    assert module.saving(none) == "No series reached the resolution, so no grid is compared."
    assert "2 boundaries; 2 of them did not reach the resolution" in none.verdict.stable


def test_failed_runs_are_in_no_denominator(searched: Analysis) -> None:
    raw = searched.raw_outcomes
    lost = raw.with_columns(
        status=pl.when(pl.col("seed") % 3 == 2).then(pl.lit("failed")).otherwise("status"),
        attempt=pl.when(pl.col("seed") % 3 == 2).then(9).otherwise("attempt"),
    )
    failed = Analysis(searched.study, lost)
    kept = lost.filter((pl.col("status") != "failed") & (pl.col("method") == "he"))
    (table,) = [one for one in tables(failed) if one.name == "boundary"]
    row = {row[0]: row for row in table.table.rows}["he"]
    assert row[4] == f"{(kept['status'] == 'diverged').sum()}/{kept.height}"
    assert row[2].endswith(": 0/2 (≤ 66 %)")


def test_one_boundary_is_one() -> None:
    study, outcomes = searched_study({"he": -1.0})
    assert "for 1 boundary (" in Analysis(study, outcomes_frame(outcomes)).verdict.stable


def test_the_page_says_what_the_search_looked_for(searched: Analysis) -> None:
    page = html.render(searched, provenance={}, bundle="0;")
    assert "looks where it found good cells" not in page and "as the sampler was told" not in page
    assert "was searched for its boundary, so no line is drawn" in page
    assert "the next ones for each further value" in page


def test_page_and_text_say_how_it_was_found(searched: Analysis) -> None:
    page = html.render(searched, provenance={}, bundle="0;")
    text = markdown.render(searched, provenance={})
    assert 'id="boundary"' in page and 'id="table-boundary"' in page
    for report in (page, text):
        assert "The next value is the one that is expected to tell most" in report
        assert "Each value has seeds of its own" in report
        assert "boundary along lr" in report
        assert "On invented truths" in report


def test_other_studies_have_neither(analysis: Analysis) -> None:
    assert "boundary" not in [figure.name for figure in figures(analysis)]
    assert "boundary" not in [table.name for table in tables(analysis)]
