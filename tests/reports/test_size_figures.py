import json
from typing import Any

import pytest
from invented_study import LRS, invent, lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.config import grid_cells
from wesar_sweep.reports import size_charts
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.latex import escape
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
    assert [panel["title"] for panel in spec["concat"]] == ["depth 1", "depth 3"] * 3
    drawn = [
        {(row["line"], row["size"], row["value"], row["low"], row["high"]) for row in rows}
        for rows in panel_rows(spec)
    ]
    for depth, panel in zip((1, 3), drawn[:2], strict=True):
        wanted = sized.sizes.filter(depth=depth)
        assert panel == set(
            wanted.select("line", "width", "best_lr", "best_lr_low", "best_lr_high").rows()
        )
    assert len(drawn[2]) == 6
    for depth, panel in zip((1, 3), drawn[4:], strict=True):
        wanted = sized.sizes.filter(depth=depth).select("line", "width", "stable_lr")
        assert panel == {(*row, None, None) for row in wanted.rows()}
    json.dumps(spec, allow_nan=False)


def panel_rows(spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The data of every panel, in their order."""
    first = [{**panel, **panel["layer"][0]} for panel in spec["concat"]]
    return [spec["datasets"][panel["data"]["name"]] for panel in first]


def test_a_stable_lr_that_the_grid_bounds_is_open_and_one_below_it_has_no_mark() -> None:
    limits = {16: 1.0, 32: 1e-2, 64: 0.0}
    study = lr_study(space={"width": [*limits], "lr": LRS})
    rows = [
        run_of(
            study,
            trial,
            seed,
            cell,
            status="completed" if cell["lr"] < limits[cell["width"]] else "diverged",
            with_curve=False,
        )[0]
        for trial, cell in enumerate(grid_cells(study))
        for seed in study.seeds
    ]
    analysis = Analysis(study, outcomes_frame(rows))
    spec = size_charts.size(analysis).to_dict()
    stable = panel_rows(spec)[2]
    assert {(row["size"], row["value"], row["bound"]) for row in stable} == {
        (16, LRS[-1], True),
        (32, 3e-3, False),
    }
    assert [(row["n"], row["diverged"], row["rate_high"], row["next"]) for row in stable] == [
        (3, 0, 0.56150, None),
        (3, 0, 0.56150, 1e-2),
    ]
    marks = spec["concat"][2]["layer"][2]["encoding"]["fillOpacity"]
    assert marks["condition"] == {"test": "datum.bound", "value": 0} and marks["value"] == 1
    (table,) = (one.table for one in tables(analysis) if one.name == "size")
    place = table.columns.index("largest stable lr")
    assert [row[place] for row in table.rows] == [
        "≥ 3e-1 (0/3, rate ≤ 56 %)",
        "3e-3 (0/3, rate ≤ 56 %)",
        "none",
    ]
    assert "the lowest lr is not stable" in table.rows[2][-1]


def test_words_say_n_interval_rule_and_that_nothing_is_extrapolated(sized: Analysis) -> None:
    (figure,) = (one for one in figures(sized) if one.section == "size")
    (table,) = (one for one in tables(sized) if one.name == "size")
    for words in (figure.caption, table.caption):
        assert "n = 3 seeds a cell, with which it covers at most 75 %" in words
        assert "nothing is extrapolated" in words and "rule v1" in words
        assert "no finer than the grid" in words
    assert table.table.columns[:4] == ("series", "width", "depth", "parameters")
    assert len(table.table.rows) == 12 and len({len(row) for row in table.table.rows}) == 1


def test_the_table_of_slopes_says_how_they_move_and_what_it_cannot_say(sized: Analysis) -> None:
    (found,) = (one for one in tables(sized) if one.name == "size-trend")
    assert (found.section, found.title) == ("size", "How they move with size")
    columns = found.table.columns
    assert columns[:4] == ("series", "against", "at", "figure")
    assert len(found.table.rows) == found.frame.height == 2 * 2 * 4
    for words, row in zip(found.table.rows, found.frame.iter_rows(named=True), strict=True):
        assert len(words) == len(columns)
        shown = dict(zip(columns, words, strict=True))
        assert (shown["against"], shown["at"]) == ("width", f"depth {row['depth']}")
        slope = shown["slope (decades a decade)"]
        if row["slope"] is None:
            assert slope == "–" and "fewer than 3 sizes left" in shown["remark"]
        else:
            value, low, high = (
                f"{row[name] + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")
                for name in ("slope", "slope_low", "slope_high")
            )
            assert slope == f"{value} ({low} to {high})"
            assert shown["sizes"] == "3 (16–64)"
        assert shown["seeds"] == "3"
        resolved = row["resolution"]
        assert shown["resolved to"] == ("–" if resolved is None else f"{resolved:.2f}")
    assert found.frame["slope"].count() >= 4
    for words_ in (
        "0 is what transfers, −1 what falls as 1/size",
        "n = 3 seeds a cell, with which it covers at most 75 %",
        "cannot show a slope finer than its spacing over the range of sizes",
        "nothing is extrapolated",
        "rule v1",
    ):
        assert words_ in found.caption
    # Of a letter that LaTeX lacks it would show the code point.
    assert "U+" not in escape(found.caption)


def test_two_sizes_have_no_table_of_slopes() -> None:
    study = lr_study(space={"width": [16, 32], "method": "he", "lr": LRS})
    two = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    names = {one.name for one in tables(two)}
    assert "size" in names and "size-trend" not in names


def test_a_study_of_one_size_has_no_such_section(analysis: Analysis) -> None:
    assert not [one for one in [*figures(analysis), *tables(analysis)] if one.section == "size"]
