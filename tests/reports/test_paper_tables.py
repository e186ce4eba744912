from dataclasses import replace

import pytest
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import latex, markdown
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


def sized(*, evaluated: bool = True, one_at_a_time: bool = False) -> dict[str, NamedTable]:
    space = {"width": [16, 32, 64], "method": ["he", "weight_norm"], "lr": [1e-3, 3e-3, 1e-2]}
    study = lr_study(space=space)
    rows = [
        replace(
            row,
            status="completed",
            evaluations={"novels": {"loss": (row.val_loss or 3.0) + 0.3, "chance": 5.5}}
            if evaluated
            else {},
            seconds=2.0 if row.hyperparameters["method"] == "he" else 3.0,
        )
        for row in invent(study, with_curves=False)[0]
    ]
    found = Analysis(study, outcomes_frame(rows), one_at_a_time=one_at_a_time)
    return {table.name: table for table in tables(found)}


def test_table_5_has_methods_down_sizes_and_sets_across_and_counts_behind() -> None:
    named = sized()["table-5"]
    table = named.table
    assert table.over == ("perplexity", 1)
    assert [head.partition(" (")[0] for head in table.columns[1:]] == [
        f"width {width}" for width in (16, 16, 32, 32, 64, 64)
    ]
    assert [head.rpartition(": ")[2] for head in table.columns[1:3]] == [
        "validation, a token",
        "novels, a token",
    ]
    assert [row[0] for row in table.rows] == ["he", "weight_norm"]
    assert all(word.endswith("), 0/3") for row in table.rows for word in row[1:])
    for column in range(1, 7):
        means = [float(row[column].partition(" ")[0]) for row in table.rows]
        (best,) = [y for y, x in table.strong if x == column]
        assert means[best] == min(means)
    assert named.frame.height == 2 * 3 * 2
    assert "n = 3 seeds a cell" in named.caption and "rule v1" in named.caption
    text = latex.table(table, name="table-5", caption=named.caption)
    assert r"\multicolumn{6}{c}{perplexity}" in text and text.count(r"\textbf{") == 6
    assert markdown.table(table).count("**") == 12


def test_with_one_set_its_name_is_not_repeated() -> None:
    heads = sized(evaluated=False)["table-5"].table.columns
    assert len(heads) == 4 and not any(":" in head for head in heads)


def test_table_6_has_every_metric_and_a_step_time_where_there_is_one() -> None:
    stacked, alone = sized()["table-6"], sized(one_at_a_time=True)["table-6"]
    assert "no step time" in stacked.caption
    assert stacked.table.columns[-1] == "parameters trained"
    assert stacked.frame["relative_step_time"].null_count() == 6
    assert alone.table.columns[-1] == "relative step time"
    assert "over that of he" in alone.caption
    last = {(row[0], row[1]): row[-1] for row in alone.table.rows}
    assert {last["he", width] for width in ("16", "32", "64")} == {"1"}
    assert last["weight_norm", "64"] == "1.500 (1.500–1.500)"
    trained = {(row[0], row[1]): row[-2] for row in alone.table.rows}
    # A gain for each output row: of 6 matrices a layer, and of the prediction.
    gains = 2 * (4 * 16 + 4 * 16 + 16) + 256
    assert int(trained["weight_norm", "16"].replace(",", "")) - int(
        trained["he", "16"].replace(",", "")
    ) == pytest.approx(gains)


def test_a_study_of_one_method_has_no_table_6_and_of_one_size_no_table_5(
    analysis: Analysis,
) -> None:
    assert "table-5" not in (names := [table.name for table in tables(analysis)])
    assert "table-6" in names
    study = lr_study(space={"method": ["he"], "lr": [1e-3, 3e-3]})
    one = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    assert not {"table-5", "table-6"} & {table.name for table in tables(one)}
    assert not {"table-5", "table-6"} & {
        table.name for table in tables(Analysis(study, outcomes_frame([])))
    }
