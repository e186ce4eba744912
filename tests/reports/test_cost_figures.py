import re
from dataclasses import replace

import vl_convert
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cost import Accounts
from wesar_sweep.reports.cost_figures import cost_figures, cost_tables, duration
from wesar_sweep.store.drive import Drive
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.spent import Spent

SPENT = Spent(
    device_seconds=3600,
    tokens=200_000_000,
    training_seconds=2700,
    evaluation_seconds=360,
    slot_steps=40_000,
)
DRIVE = Drive(pid=1, host="h", process_started=None, started_at=0.0, ended_at=4000.0)


def with_accounts(analysis: Analysis, accounts: Accounts) -> Analysis:
    return Analysis(analysis.study, analysis.raw_outcomes, accounts=accounts)


def test_words_and_rows_say_what_was_recorded(analysis: Analysis) -> None:
    found = with_accounts(analysis, Accounts({"w0": SPENT}, DRIVE, 2))
    by_status, by_worker = cost_tables(found)
    rows = {row[0]: row for row in by_status.table.rows}
    lost = analysis.outcomes.filter(analysis.outcomes["status"] == "diverged")
    assert rows["diverged"][1] == str(lost.height)
    assert rows["diverged"][4] == f"{lost['tokens'].sum():,}"
    assert rows["all"][1:4] == ("96", "1", "100.0%")
    assert by_worker.table.rows[0][2:6] == ("1", "75.0%", "10.0%", "15.0%")
    steps = analysis.outcomes["steps_trained"].sum()
    assert f"Slots were {steps / 40_000:.1%} full" in by_status.caption
    assert "Wall time 67 min (of the newest of 2 calls alone)." in by_status.caption
    assert "Diverged runs took" in by_status.caption and "Pruning" not in by_status.caption


def test_what_was_not_recorded_is_said(analysis: Analysis) -> None:
    (table,) = cost_tables(analysis)
    assert "Device time was not recorded." in table.caption
    assert "Wall time was not recorded." in table.caption
    assert {row[2] for row in table.table.rows} == {"not recorded"}
    old = replace(SPENT, training_seconds=None, evaluation_seconds=None, slot_steps=None)
    words, workers = cost_tables(with_accounts(analysis, Accounts({"w0": old})))
    assert "How full the slots were was not recorded" in words.caption
    assert workers.table.rows[0][3:6] == ("–", "–", "–") and "A dash" in workers.caption
    killed = with_accounts(analysis, Accounts({}, replace(DRIVE, ended_at=None), 1))
    assert "has not ended, or was killed" in cost_tables(killed)[0].caption


def test_a_failed_run_did_not_train_to_its_end() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-4]})
    rows, _ = invent(study, with_curves=False)
    rows[0] = replace(rows[0], status="failed", attempt=9)
    (table, *_) = cost_tables(Analysis(study, outcomes_frame(rows)))
    assert "All runs here but the 1 that failed trained to their end." in table.caption


def test_bars_hold_every_token_that_was_asked_for(analysis: Analysis) -> None:
    (figure,) = cost_figures(analysis)
    spec = figure.chart.to_dict()
    (rows,) = spec["datasets"].values()
    sums = {
        kind: sum(row["tokens"] for row in rows if row["kind"] == kind)
        for kind in ("completed", "diverged", "not trained")
    }
    # The invented runs took 300 steps of 8 times 64 tokens where nothing ended them.
    assert sum(sums.values()) == 96 * 300 * 8 * 64
    assert sums["diverged"] == analysis.cost.by_status["tokens"][1]
    svg = vl_convert.vegalite_to_svg(spec)
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"completed", "diverged", "not trained", "1e-4", "3e-1"} <= set(shown)


def test_a_search_has_a_bar_a_method_and_pruning_is_counted() -> None:
    study = lr_study(
        space={"method": ["he", "small"], "lr": {"low": 1e-4, "high": 1.0, "log": True}},
        sampler={"name": "random", "cells": 4},
    )
    cells = [{"method": m, "lr": lr} for m in ("he", "small") for lr in (1.1e-3, 2.3e-3)]
    rows, _ = invent(study, cells, with_curves=False)
    cut = [
        replace(row, status="pruned", steps=100, tokens=100 * 8 * 64) if row.trial == 3 else row
        for row in rows
        if (row.trial, row.seed) != (3, 2)
    ]
    found = Analysis(study, outcomes_frame(cut))
    (figure,) = cost_figures(found)
    assert {row["at"] for row in next(iter(figure.chart.to_dict()["datasets"].values()))} == {
        "he",
        "small",
    }
    left = (2 * 200 + 300) * 8 * 64
    assert f"Pruning (2 pruned and 1 never started) left {left / 1e3:.3g} k tokens" in figure.alt
    assert cost_figures(Analysis(study, outcomes_frame([]))) == []


def test_durations() -> None:
    found = [duration(seconds) for seconds in (0.44, 45, 720, 12_240)]
    assert found == ["0.4 s", "45 s", "12 min", "3.4 h"]
