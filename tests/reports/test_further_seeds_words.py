"""What the report says of adaptive replicates."""

from __future__ import annotations

import pytest
from invented_study import invent, lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import html, markdown, replicates
from wesar_sweep.reports.comparison import _adaptive_cautions
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame

RULE = {"min": 3, "max": 6, "until": {"divergence_halfwidth": 0.25, "told_apart": True}}


@pytest.fixture(scope="module")
def grown() -> Analysis:
    """Two cells: one stopped narrow, one is at the most; a third still lacks a seed."""
    study = lr_study(space={"method": ["he", "small"], "lr": [1e-3, 1e-2]}, replicates=RULE)
    fates = [("he", 1e-3, 0, 4), ("he", 1e-2, 2, 6), ("small", 1e-3, 0, 3), ("small", 1e-2, 4, 4)]
    rows = [
        run_of(
            study,
            trial,
            seed,
            {"method": method, "lr": lr},
            status="diverged" if seed < diverged else "completed",
        )[0]
        for trial, (method, lr, diverged, runs) in enumerate(fates)
        for seed in range(runs)
    ]
    return Analysis(study, outcomes_frame(rows))


def test_it_says_how_many_where_and_why(grown: Analysis) -> None:
    (table,) = [one for one in tables(grown) if one.name == "further-seeds"]
    assert table.section == "loss" and table.title
    assert table.caption == replicates.summary(grown)
    expected = int(grown.further_seeds["further"].sum())
    assert f"{expected} further seeds in 4 of 4 cells beyond the 3 of every cell" in table.caption
    assert "1 of them is still to come." in table.caption
    assert "1 cell reached the 6 seeds allowed" in table.caption
    shown = {row[0]: row for row in table.table.rows}
    assert shown["he at lr 1e-2"][3] == "2/6 (10–70 %)"
    assert shown["small at lr 1e-3"][-1] == "1 still to come"
    assert table.frame["further"].to_list() == grown.further_seeds["further"].to_list()


def test_the_rule_and_its_cost_stand_in_every_report(grown: Analysis) -> None:
    page = html.render(grown, provenance={}, bundle="0;")
    text = markdown.render(grown, provenance={})
    for report in (page, text):
        assert "up to 6 a cell, until half the width of Wilson" in report
        assert "holds 9" in report and "(computed, not simulated)" in report
        assert "(simulated), not in 5 %" in report
    assert "Where further seeds went" in page
    assert grown.completeness.expected in page


def test_a_stop_by_telling_apart_is_cautioned_of() -> None:
    rule = {"min": 3, "max": 12, "until": {"told_apart": True}}
    study = lr_study(space={"method": ["he", "small"], "lr": [1e-3]}, replicates=rule)
    one = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    ((_, words),) = replicates.method(one)
    for said in ("28, 43 and 58 %", "one diverged run", "82 %", "93.4 %"):
        assert said in words
    (caution,) = _adaptive_cautions("A", one)
    assert "chose its numbers of seeds by outcomes" in caution and "82 %" in caution


def test_a_fixed_number_says_nothing_of_it(analysis: Analysis) -> None:
    assert "further-seeds" not in [table.name for table in tables(analysis)]
    assert "Adaptive replicates" not in markdown.render(analysis, provenance={})
