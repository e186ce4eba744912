import json

import pytest
from invented_study import LRS, invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import size_charts
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


@pytest.fixture(scope="module")
def sized() -> Analysis:
    space = {"depth": [1, 3], "width": [16, 32, 64], "method": ["he", "wesar"], "lr": LRS}
    study = lr_study(space=space, training={"steps": 300, "warmup": 20, "sigma2": 1e-3})
    return Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))


def test_lines_run_along_the_knob_of_most_values_with_a_column_for_the_others(
    sized: Analysis,
) -> None:
    assert size_charts.across(sized) == ("width", ("depth",))
    spec = size_charts.size(sized).to_dict()
    assert spec["columns"] == 2
    assert [panel["title"] for panel in spec["concat"]] == ["depth 1", "depth 3"] * 2
    drawn = [
        {(row["line"], row["size"], row["value"], row["low"], row["high"]) for row in rows}
        for rows in (
            spec["datasets"][panel["layer"][0]["data"]["name"]]
            if "data" in panel["layer"][0]
            else spec["datasets"][panel["data"]["name"]]
            for panel in spec["concat"]
        )
    ]
    for depth, panel in zip((1, 3), drawn[:2], strict=True):
        wanted = sized.sizes.filter(depth=depth)
        assert panel == set(
            wanted.select("line", "width", "best_lr", "best_lr_low", "best_lr_high").rows()
        )
    assert len(drawn[2]) == 6
    json.dumps(spec, allow_nan=False)


def test_words_say_n_interval_rule_and_that_nothing_is_extrapolated(sized: Analysis) -> None:
    (figure,) = (one for one in figures(sized) if one.section == "size")
    (table,) = (one for one in tables(sized) if one.name == "size")
    for words in (figure.caption, table.caption):
        assert "n = 3 seeds a cell, with which it covers at most 75 %" in words
        assert "nothing is extrapolated" in words and "rule v1" in words
        assert "no finer than the grid" in words
    assert table.table.columns[:4] == ("series", "width", "depth", "parameters")
    assert len(table.table.rows) == 12 and len({len(row) for row in table.table.rows}) == 1


def test_a_study_of_one_size_has_no_such_section(analysis: Analysis) -> None:
    assert not [one for one in [*figures(analysis), *tables(analysis)] if one.section == "size"]
