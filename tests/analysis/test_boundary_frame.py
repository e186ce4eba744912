"""The boundaries of a search as a frame: what was found, how sure, what it saved."""

from __future__ import annotations

import math

import pytest
from invented_study import invent, lr_study, searched_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.config.boundary import boundary_search
from wesar_sweep.stability.boundary import Tried, known, scale_of
from wesar_sweep.store.frames import outcomes_frame


@pytest.fixture(scope="module")
def searched() -> Analysis:
    study, outcomes = searched_study({"he": -1.0, "small": -2.5})
    return Analysis(study, outcomes_frame(outcomes))


def test_one_row_a_series_highest_first(searched: Analysis) -> None:
    found = searched.boundary
    assert found["series"].to_list() == ["he", "small"]
    for row, limit in zip(found.iter_rows(named=True), (-1.0, -2.5), strict=True):
        assert row["low"] < 10**limit < row["high"]
        assert row["low"] < row["boundary"] < row["high"]
        assert row["stable"] < 10**limit
        assert row["ended"] == "narrow enough"
        assert math.log10(row["high"] / row["low"]) <= 0.25
        assert row["runs"] == 3 * row["cells"] < row["grid_runs"] == 3 * 17
    counted = searched.raw_outcomes.filter(searched.raw_outcomes["status"] == "diverged").height
    assert found["diverged"].sum() == counted > 0
    assert not searched.completeness.partial


def test_it_is_the_posterior_of_all_that_was_tried(searched: Analysis) -> None:
    search = boundary_search(searched.study)
    assert search is not None
    cells = searched.cells.filter(searched.cells["series"] == "he").sort("trial")
    tried = [Tried(math.log10(lr), n, k) for lr, n, k in cells.select("lr", "n", "diverged").rows()]
    expected = known(tuple(tried), scale_of(search, seeds=3))
    row = searched.boundary.row(0, named=True)
    assert [row[name] for name in ("low", "boundary", "high")] == pytest.approx(
        [10**expected.low, 10**expected.median, 10**expected.high]
    )


def test_a_diverged_run_is_never_dropped(searched: Analysis) -> None:
    kept = searched.raw_outcomes
    without = Analysis(searched.study, kept.filter(kept["status"] != "diverged"))
    # Without them everything looks stable, and the boundary high.
    assert (without.boundary["boundary"] > searched.boundary["boundary"].max()).all()


def test_while_it_goes_on_it_says_so(searched: Analysis) -> None:
    early = Analysis(
        searched.study, searched.raw_outcomes.filter(searched.raw_outcomes["seed"] < 3)
    )
    assert early.boundary["ended"].to_list() == [None, None]
    assert early.completeness.partial
    assert early.completeness.expected_runs == 12
    nothing = Analysis(searched.study, outcomes_frame([]))
    assert nothing.boundary["boundary"].to_list() == [None, None]
    assert nothing.completeness.expected_runs == 6
    assert nothing.verdict.stable == "Boundary: no run counts yet."


def test_the_verdict_names_the_highest_and_the_lowest(searched: Analysis) -> None:
    words = searched.verdict.stable
    assert words.startswith("Highest lr at which half of the seeds diverge: he, ")
    assert "; lowest: small, " in words
    assert "Their 95 % intervals do not overlap" in words
    runs = searched.raw_outcomes.height
    assert f"{runs} runs for 2 boundaries (a grid of the same resolution: 102)" in words


def test_other_studies_have_no_boundary() -> None:
    study = lr_study()
    assert Analysis(study, outcomes_frame(invent(study, with_curves=False)[0])).boundary.is_empty()
