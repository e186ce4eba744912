"""Perplexities on every set: Table 9's layout for each, and their columns in Tables 5 and 6."""

import math
from dataclasses import replace

import pytest
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import latex, markdown
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame

SETS = {
    "wiki": {"kind": "wikitext", "paths": ["a"]},
    "last": {"kind": "lambada", "paths": ["b"]},
}
SPACE = {"width": [16, 32], "method": ["he", "weight_norm"], "lr": [1e-3, 3e-3]}


def figures(loss: float) -> dict[str, dict[str, float]]:
    wiki = {"loss": loss, "word_ppl": math.exp(5 * loss), "bpb": loss, "chance": 5.5}
    return {"wiki": wiki, "last": {"loss": 6 * loss, "accuracy": 0.0, "chance": 33.0}}


@pytest.fixture(scope="module")
def found() -> dict[str, NamedTable]:
    """Losses by setting; trial 0 has diverged once, and trial 3 failed."""
    study = lr_study(space=SPACE, evaluation={"sets": SETS})
    rows = []
    for row in invent(study, with_curves=False)[0]:
        loss = 2.0 + 0.1 * row.trial
        row = replace(row, status="completed", val_loss=loss, evaluations=figures(loss))
        if row.trial == 0 and row.seed == 1:
            row = replace(row, status="diverged", val_loss=math.nan, evaluations={})
        if row.trial == 3:
            row = replace(row, status="failed", val_loss=None, evaluations={}, attempt=9)
        rows.append(row)
    return {table.name: table for table in tables(Analysis(study, outcomes_frame(rows)))}


def test_each_set_has_a_table_in_the_layout_of_table_9(found):
    paper, wiki, last = found["paper"].table, found["paper-wiki"], found["paper-last"]
    assert wiki.table.columns == last.table.columns == paper.columns
    assert [row[:1] for row in wiki.table.rows] == [row[:1] for row in paper.rows]
    assert wiki.table.over == paper.over
    assert "perplexity a token on the evaluation set wiki" in wiki.caption
    assert last.title == "Perplexity a word on last" and last.section == "loss"
    by_trial = {2: ("he", 0), 1: ("he", 1)}
    words = [word for row in wiki.table.rows for word in row]
    for trial in by_trial:
        assert f"{math.exp(2.0 + 0.1 * trial):.2f}" in words
    # Trial 0 counts its diverged run at chance, which makes it the worst.
    mean = (2 * 2.0 + 5.5) / 3
    assert f"{math.exp(mean):.2f}" in words and "1/3" in words
    assert "3 failed" in words
    ((y, x),) = wiki.table.strong
    assert wiki.table.rows[y][x] == f"{math.exp(2.1):.2f}"
    text = latex.table(wiki.table, name="paper-wiki", caption=wiki.caption)
    assert rf"\textbf{{{math.exp(2.1):.2f}}}" in text and "tab:paper-wiki" in text
    assert f"**{math.exp(2.1):.2f}**" in markdown.table(wiki.table)
    assert wiki.frame.height == 8
    assert {"ppl", "ppl_low", "word_ppl", "loss_high", "n", "diverged"} <= set(wiki.frame.columns)
    assert last.frame["word_ppl"].null_count() == 8


def test_tables_5_and_6_have_each_set_with_its_unit(found):
    columns = found["table-5"].table.columns
    assert [head.rpartition(": ")[2] for head in columns[1:5]] == [
        "validation, a token", "wiki, a token", "wiki, a word", "last, a word"
    ]  # fmt: skip
    assert found["table-5"].table.over == ("perplexity", 1)
    six = found["table-6"]
    assert [head for head in six.table.columns if "perplexity" in head] == [
        "perplexity a token, validation", "perplexity a token, wiki", "perplexity a word, wiki",
        "perplexity a word, last",
    ]  # fmt: skip
    assert "or a word where the header says so" in six.caption
    assert "at most at the loss of a uniform guess" in six.caption
    row = six.frame.row(0, named=True)
    assert row["word_ppl_wiki"] == pytest.approx(row["ppl_wiki"] ** 5)
    assert row["ppl_last"] == pytest.approx(row["ppl_wiki"] ** 6)


def test_a_set_that_some_runs_were_not_judged_on_is_a_dash():
    study = lr_study(space=SPACE, evaluation={"sets": SETS})
    rows = [
        replace(row, status="completed", evaluations=figures(2.0) if row.trial else {})
        for row in invent(study, with_curves=False)[0]
    ]
    found = {table.name: table for table in tables(Analysis(study, outcomes_frame(rows)))}
    words = [word for row in found["paper-wiki"].table.rows for word in row]
    assert words.count("–") == 1
    none = [replace(row, evaluations={}) for row in rows]
    assert not [
        table.name
        for table in tables(Analysis(study, outcomes_frame(none)))
        if table.name.startswith("paper-")
    ]


def test_one_size_has_a_table_5_where_it_was_judged_on_several_sets():
    study = lr_study(evaluation={"sets": SETS})
    rows = [
        replace(row, evaluations=figures(2.0 + row.trial))
        for row in invent(study, with_curves=False)[0]
    ]
    five = {one.name: one for one in tables(Analysis(study, outcomes_frame(rows)))}["table-5"]
    assert five.table.columns[1:] == (
        "validation, a token", "wiki, a token", "wiki, a word", "last, a word"
    )  # fmt: skip
    assert five.section == "loss" and "behind a size" not in five.caption
    assert five.caption.endswith(" parameters.")
