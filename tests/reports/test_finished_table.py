"""What is said of finished cells: the counts, their intervals, and what they cannot say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console
from test_finished import BEST, found, search_of, trained

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.terminal import print_summary

LOSSES = [(2.1, 2.3, 2.5), (1.0, 2.6, 2.7), (1.8, 2.01, 2.2)]


def table(analysis: Analysis) -> NamedTable:
    (one,) = (one for one in tables(analysis) if one.name == "finished")
    return one


def test_one_row_a_cell_best_first() -> None:
    one = table(trained(LOSSES))
    assert one.section == "search" and one.title == "What pruning hid"
    assert one.table.rows[0] == (
        "he at lr 1e-3",
        "100",
        "4.200",
        "3",
        "2.003",
        "1.506 to 2.500",
        "3",
        "-0.197",
        "-0.211 to -0.182",
        "3",
    )
    assert len(one.table.rows) == one.frame.height == 3
    assert len(one.table.columns) == len(one.table.numeric) == len(one.table.rows[0])


def test_the_caption_counts_and_says_where_they_come_from() -> None:
    words = table(trained(LOSSES)).caption
    assert "2 of 3 pruned settings, drawn at random and trained to the end, came below" in words
    assert "the search's best (2.200): 67 %, Wilson's 95 % interval 21 % to 94 %" in words
    assert "of 1 the whole interval of the difference is below 0" in words
    assert "the 3 drawn at random (seed 0) from the 20 settings" in words
    assert "he at lr 5e-1 with a loss of 2.200 (95 % interval 1.700 to 2.700, n = 3)" in words
    assert "No rank correlation" in words and "at least 6 cells" in words
    assert "least of many noisy means" in words and "All of them were finished" not in words


def test_while_some_still_train_it_says_how_many_are_done() -> None:
    words = table(trained([*LOSSES[:2], (1.0,)])).caption
    assert "1 of 2 pruned settings, drawn" in words and "2 of the 3 drawn at random" in words
    assert not [one for one in tables(trained([(1.0,)])) if one.name == "finished"]


def test_all_of_them_are_no_sample() -> None:
    analysis = trained(LOSSES)
    whole = replace(analysis, finished_search=replace(search_of(3), pruned=3))
    words = table(whole).caption
    assert "They are the 3 settings that the pruner" in words and "at random" not in words
    assert "All of them were finished" in words
    assert words.startswith("2 of all 3 pruned settings, trained to the end, came below")
    assert "Wilson" not in words and whole.finished is not None and whole.finished.share is None


def test_two_seeds_are_listed_and_have_no_interval() -> None:
    # Of two equal differences Student's interval has no width.
    analysis = trained([(2.1, 2.3)])
    study = analysis.study.model_copy(update={"replicates": 2})
    one = table(replace(analysis, study=study))
    assert one.table.rows[0][7:] == ("+0.100", "+0.100, +0.100", "2")
    assert one.frame["difference_high"].to_list() == [None] and "whole interval" not in one.caption


def test_a_correlation_says_what_it_mixes() -> None:
    ends = [(3.0 + n / 9,) * 3 for n in range(7)]
    words = table(trained(ends)).caption
    assert "Kendall's tau-b" in words and "+1.00" in words and "n = 7" in words
    assert "different steps" not in words and "fewer runs" not in words
    search = search_of(7)
    later = replace(search.cells[0], step=200, n=1)
    search = replace(search, cells=(later, *search.cells[1:]))
    words = table(replace(trained(ends), finished_search=search)).caption
    assert "ended at 2 different steps, from 100 to 200" in words and "of fewer runs" in words


def test_one_seed_has_no_interval() -> None:
    best = replace(BEST, seeds=(0,), losses=(2.0,), loss=2.0, loss_low=None, loss_high=None)
    analysis = trained([(2.1,)])
    study = analysis.study.model_copy(update={"replicates": 1})
    search = replace(search_of(1), best=best)
    one = table(replace(analysis, study=study, finished_search=search))
    assert one.table.rows[0][5:] == ("–", "1", "+0.100", "+0.100", "1")
    assert "(no interval, n = 1)" in one.caption


def test_each_method_is_told_with_its_seeds() -> None:
    small = replace(BEST, params={"method": "small", "lr": 0.5})
    search = replace(search_of(3), best_of=(BEST, small))
    words = table(replace(trained(LOSSES), finished_search=search)).caption
    assert "seed by seed): he 2.200 and 2.003 (-0.200, -0.190, -0.200). Where" in words
    assert "The best cell of each method" not in table(trained(LOSSES)).caption


@pytest.mark.parametrize("finishes", [True, False])
def test_the_terminal_gives_the_answer(finishes: bool) -> None:
    analysis = trained(LOSSES)
    if not finishes:
        analysis = replace(analysis, finished_search=None)
    else:
        assert found(analysis).below == 2
    console = Console(record=True, width=200)
    print_summary(analysis, console=console)
    said = "What pruning hid: 2 of 3 pruned settings, drawn" in (text := console.export_text())
    assert said == finishes and ("Basin width" in text) == (not finishes)
