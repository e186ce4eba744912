from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from invented_study import invent, lr_study, write_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cost import Accounts, Cost
from wesar_sweep.config.study import Study
from wesar_sweep.store.drive import Drive, write_drive
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.provenance import merge_provenance
from wesar_sweep.store.rows import Outcome
from wesar_sweep.store.spent import Spent, write_spent


def study() -> Study:
    return lr_study(
        space={"method": "he", "lr": [1e-3, 3e-3, 1e-2]}, training={"steps": 100, "warmup": 20}
    )


def rows() -> list[Outcome]:
    """Two workers: w0 completed three runs and lost one, w1 pruned one of the cell it had begun."""
    found, _ = invent(study(), with_curves=False)
    completed = [
        replace(row, status="completed", steps=100, tokens=100 * 8 * 64, seconds=10.0)
        for row in found
        if row.trial == 0
    ]
    by_key = {(row.trial, row.seed): row for row in found}
    diverged = replace(
        by_key[1, 0], status="diverged", steps=40, tokens=40 * 8 * 64, seconds=30.0, worker="w0"
    )
    failed = replace(by_key[1, 1], status="failed", steps=0, tokens=0, seconds=0.0, worker="w1")
    pruned = replace(
        by_key[2, 0], status="pruned", steps=25, tokens=25 * 8 * 64, seconds=5.0, worker="w1"
    )
    return [*completed, diverged, failed, pruned]


SPENT = {
    "w0": Spent(
        device_seconds=120,
        tokens=350 * 8 * 64,
        cells=2,
        training_seconds=80,
        evaluation_seconds=10,
        slot_steps=400,
    ),
    "w1": Spent(
        device_seconds=30,
        tokens=25 * 8 * 64,
        cells=1,
        training_seconds=20,
        evaluation_seconds=5,
        slot_steps=50,
    ),
}


def cost(accounts: Accounts) -> Cost:
    return Cost(outcomes_frame(rows()), study(), accounts)


def test_by_status_against_a_case_worked_by_hand() -> None:
    found = {row["status"]: row for row in cost(Accounts(SPENT)).by_status.iter_rows(named=True)}
    assert list(found) == ["completed", "diverged", "pruned", "failed", "never started"]
    # Slots were held for 3 · 10 + 30 s of w0's 120 s, and for 5 s of w1's 30 s by one run.
    times = {name: row["device_seconds"] for name, row in found.items()}
    assert times == pytest.approx(
        {"completed": 60, "diverged": 60, "pruned": 30, "failed": 0, "never started": 0}
    )
    left = {name: row["steps_left"] for name, row in found.items()}
    # The pruner ended a cell of three seeds with the first: the two others never began.
    assert left == {
        "completed": 0,
        "diverged": 60,
        "pruned": 75,
        "failed": 0,
        "never started": 200,
    }
    assert found["never started"]["runs"] == 2
    assert all(row["tokens_left"] == row["steps_left"] * 8 * 64 for row in found.values())
    assert sum(row["tokens"] for row in found.values()) == 365 * 8 * 64


def test_the_parts_add_up_to_what_the_workers_recorded() -> None:
    found = cost(Accounts(SPENT))
    assert found.by_status["device_seconds"].sum() == pytest.approx(150)
    assert found.by_worker["other_seconds"].to_list() == [30, 5]
    assert found.by_worker["runs"].to_list() == [4, 2]
    assert found.occupancy == pytest.approx(365 / 450)
    assert found.tokens_in_vain == 10 * 8 * 64
    assert found.tokens_per_second == pytest.approx(375 * 8 * 64 / 150)


def test_what_was_not_recorded_is_null_and_not_nothing() -> None:
    nothing = cost(Accounts())
    assert nothing.by_status["device_seconds"].null_count() == 5 - 1  # None of the spared ran.
    assert nothing.by_worker.is_empty()
    assert (nothing.occupancy, nothing.tokens_per_second, nothing.tokens_in_vain) == (None,) * 3
    assert nothing.wall_seconds is None
    # Tokens are of the outcomes, whatever else is known.
    assert nothing.by_status["tokens"].sum() == 365 * 8 * 64
    one = cost(Accounts({"w0": SPENT["w0"]}))
    lost = dict(one.by_status.select("status", "device_seconds").rows())
    assert lost["completed"] == pytest.approx(60) and lost["pruned"] is None
    assert lost["failed"] is None
    # Slot-steps of a part would make the slots look too full.
    older = cost(Accounts({"w0": SPENT["w0"], "w1": replace(SPENT["w1"], slot_steps=None)}))
    assert older.occupancy is None


def test_it_is_read_from_disk_and_a_damaged_account_costs_no_more_than_itself(
    tmp_path: Path,
) -> None:
    directory = write_study(tmp_path, study(), rows(), {})
    for name, spent in SPENT.items():
        write_spent(directory, worker=name, spent=spent)
    drive = Drive(pid=1, host="h", process_started=None, started_at=100.0, ended_at=160.0)
    write_drive(directory, drive=drive)
    merge_provenance(directory, facts={"resumed": {"2026-11-23": ["resume"]}})
    found = Analysis.read(directory).cost
    assert found.accounts.spent == SPENT
    assert (found.wall_seconds, found.accounts.calls) == (60, 2)
    directory.spent_file("w1").write_text("{")
    found = Analysis.read(directory).cost
    assert "w1.spent was damaged" in found.accounts.problem
    assert found.by_status["tokens"].sum() == 365 * 8 * 64


def test_an_empty_study_costs_nothing() -> None:
    found = Cost(outcomes_frame([]), study(), Accounts())
    assert found.by_status.is_empty() and found.by_worker.is_empty()
    assert found.by_status.schema["device_seconds"] == pl.Float64


def test_runs_that_a_pruner_spared_are_not_among_the_pruned() -> None:
    spared = replace(rows()[-1], seed=1, steps=0, tokens=0, val_loss=None)
    found = Cost(outcomes_frame([*rows(), spared]), study(), Accounts())
    counts = dict(found.by_status.select("status", "runs").rows())
    assert (counts["pruned"], counts["never started"]) == (1, 2)
