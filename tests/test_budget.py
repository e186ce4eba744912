"""Budgets: counted on disk by each worker, enforced over all of them, and never spent twice."""

import json
import time
from pathlib import Path

import pytest
from test_end_to_end import STUDY, assert_same_runs, run

from wesar_sweep import budget as budget_module
from wesar_sweep.budget import Meter, used_up
from wesar_sweep.config.sweep import Budget
from wesar_sweep.errors import StoreError
from wesar_sweep.store.drive import Drive, read_drive, write_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.store.spent import Spent, read_spent, total, write_spent

BUDGET_SPENT = 3
TOKENS_A_STEP = 4 * 16
BLOCK_STEPS = 20


@pytest.fixture
def directory(tmp_path) -> StudyDirectory:
    made = StudyDirectory(tmp_path / "out")
    made.create()
    return made


def drive(**limits) -> Drive:
    return Drive(
        pid=1, host="h", process_started=1.0, started_at=time.time(), budget=Budget(**limits)
    )


def meter(directory: StudyDirectory, worker: str, trained: list[int], **limits) -> Meter:
    """The meter of a worker that has trained as many tokens as the list's last item."""
    return Meter(
        directory,
        worker=worker,
        drive=drive(**limits),
        figures=lambda: Spent(tokens=trained[-1], cells=len(trained)),
    )


@pytest.mark.parametrize(
    ("limits", "spent", "said"),
    [
        ({"gpu_hours": 2}, Spent(device_seconds=7200), "budget.gpu_hours"),
        ({"gpu_hours": 2}, Spent(device_seconds=7199), None),
        ({"tokens": 10}, Spent(tokens=10), "budget.tokens"),
        ({"tokens": 10}, Spent(tokens=9), None),
        ({"wall_hours": 1e-9}, Spent(), "budget.wall_hours"),
        ({"wall_hours": 1}, Spent(device_seconds=1e9, tokens=10**12), None),
        ({"trials": 1}, Spent(cells=5), None),  # The queue's: what was started is finished.
        ({}, Spent(device_seconds=1e9, tokens=10**12), None),
    ],
)
def test_each_budget_ends_at_its_limit(limits, spent, said):
    now = drive(**limits)
    if "wall_hours" in limits:
        time.sleep(0.001)
    found = used_up(now.budget, spent, stop_at=now.stop_at)
    assert (found is None) if said is None else (said in found)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(budget_module, "LOOK_EVERY_S", 0.02)


def test_a_worker_counts_its_own_at_once_and_the_others_soon(directory, often):
    mine, theirs = [0], [0]
    with (
        meter(directory, "w0", mine, tokens=100) as a,
        meter(directory, "w1", theirs, tokens=100) as b,
    ):
        mine.append(60)
        theirs.append(39)
        assert a.used_up() is None
        theirs.append(100)
        assert "budget.tokens" in b.used_up()
        wait_until(a.used_up)
    assert total(read_spent(directory).values()) == Spent(
        device_seconds=pytest.approx(0, abs=20), tokens=160, cells=5
    )


def test_time_counts_while_the_worker_is_busy_elsewhere(directory, often):
    """Compiling, say: no block ends, and a kill in the midst of it loses next to nothing."""
    with meter(directory, "w0", [0], gpu_hours=0.2 / 3600) as busy:
        assert busy.used_up() is None
        wait_until(lambda: read_spent(directory)["w0"].device_seconds > 0.2)
        assert "budget.gpu_hours" in busy.used_up()


def test_what_was_spent_before_counts(directory, often):
    """Earlier workers and earlier lives of the same name; the control: each at its own expense."""
    write_spent(directory, worker="w0", spent=Spent(device_seconds=30, tokens=40, cells=2))
    write_spent(directory, worker="w7", spent=Spent(device_seconds=30, tokens=50, cells=2))
    with meter(directory, "w0", [9], tokens=100) as again:
        assert again.used_up() is None
    with meter(directory, "w1", [1], tokens=100) as later:
        assert "100 trained" in later.used_up()
    spent = read_spent(directory)
    assert (spent["w0"].tokens, spent["w7"].tokens, spent["w1"].tokens) == (49, 50, 1)
    assert 30 <= spent["w0"].device_seconds < 40


def test_a_full_disk_ends_the_worker_and_not_its_thread_alone(directory, often, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="the disk is full"), meter(directory, "w0", [0]) as full:
        monkeypatch.setattr(budget_module, "write_spent", refuse)
        wait_until(lambda: full.used_up() is not None)


@pytest.mark.parametrize("text", ['{"tokens": ', "[1]", '{"tokens": 3} x'])
def test_a_damaged_account_is_said_and_not_left_out(directory, text):
    directory.spent_file("w3").write_text(text)
    with pytest.raises(StoreError, match=r"w3\.spent was damaged"):
        read_spent(directory)
    directory.driver_file.write_text(text)
    with pytest.raises(StoreError, match=r"driver\.json was damaged"):
        read_drive(directory)


def test_the_record_of_a_call_reads_back(directory):
    assert read_drive(directory) is None
    record = drive(gpu_hours=2, trials=3)
    write_drive(directory, drive=record)
    assert read_drive(directory) == record
    text = directory.driver_file.read_text()
    directory.driver_file.write_text(text.replace('"pid"', '"watts": 300, "pid"'))
    assert read_drive(directory) == record, "a newer version's field is left out"


# What follows trains.


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY.replace("steps: 40", "steps: 200").replace("every: 16", "every: 50"))
    return path


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory) -> StudyDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "inline.yaml").write_text("launcher: inline\n")
    run("run", study, "--on", folder / "inline.yaml", "--slots", 18, "--out", folder / "out")
    return StudyDirectory(folder / "out")


def sweep(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def spent_by(directory: StudyDirectory) -> Spent:
    return total(read_spent(directory).values())


def test_two_workers_stop_at_a_token_budget_and_go_on_with_a_larger_one(
    study, undisturbed, tmp_path
):
    directory = StudyDirectory(tmp_path / "out")
    limit = 40_000
    on = sweep(tmp_path, f"workers: 2\nslots: 1\nbudget: {{tokens: {limit}}}\n")
    done = run("run", study, "--on", on, "--out", directory.root, code=BUDGET_SPENT)
    assert "the budget of 40,000 tokens (budget.tokens) is used up" in done.stderr
    assert "runs are left to train" in done.stderr and "wesar-sweep resume" in done.stderr
    assert "Traceback" not in done.stderr
    # Each is stopped by its own count at the latest, whatever it knows of the other.
    spent = spent_by(directory)
    assert limit <= spent.tokens <= 2 * (limit + BLOCK_STEPS * TOKENS_A_STEP)
    assert len(read_outcomes(directory)) < 18
    trained = sum(row.tokens for row in read_outcomes(directory))
    assert spent.tokens >= trained, "unfinished runs count"

    page = directory.report_file.read_text()
    assert "Stopped by its budget: the budget of 40,000 tokens" in page
    known = json.loads(run("status", directory.root, "--json").stdout)
    assert known["budget"]["tokens"] == {"limit": limit, "used": spent.tokens, "left": 0}
    assert known["driver"]["ending"] == "budget"
    assert "stopped by its budget" in run("status", directory.root).stdout

    # With the same budget nothing more is trained: what was spent is on disk.
    run("resume", directory.root, "--on", on, code=BUDGET_SPENT)
    assert spent_by(directory) == spent and len(read_spent(directory)) == 2

    on = sweep(tmp_path, "workers: 2\nbudget: {tokens: 100000000, gpu_hours: 100}\n")
    assert "this one has none" not in run("resume", directory.root, "--on", on).stderr
    assert_same_runs(undisturbed, directory)
    assert "this one has none" in run("resume", directory.root).stderr
    assert json.loads(directory.driver_file.read_text())["ending"] == "complete"
    assert spent_by(directory).tokens > spent.tokens


def test_one_worker_overshoots_by_one_block_at_most(study, tmp_path):
    directory = StudyDirectory(tmp_path / "out")
    on = sweep(tmp_path, "launcher: inline\nslots: 3\nbudget: {tokens: 20000}\n")
    run("run", study, "--on", on, "--out", directory.root, code=BUDGET_SPENT)
    over = spent_by(directory).tokens - 20_000
    assert 0 <= over <= 3 * BLOCK_STEPS * TOKENS_A_STEP


@pytest.mark.parametrize("launcher", ["inline", "local"])
def test_a_budget_of_trials_finishes_what_was_started(study, undisturbed, tmp_path, launcher):
    directory = StudyDirectory(tmp_path / "out")
    on = sweep(tmp_path, f"launcher: {launcher}\nworkers: 1\nbudget: {{trials: 4}}\n")
    done = run("run", study, "--on", on, "--out", directory.root, code=BUDGET_SPENT)
    assert "budget of 4 trials" in done.stderr and "10 of 18 runs are left" in done.stderr
    rows = read_outcomes(directory)
    assert len(rows) == 8 and len({row.trial for row in rows}) == 4
    assert len(list(directory.workers_folder.glob("w*.json"))) == 1, "nobody was started in vain"
    run("resume", directory.root, "--on", on, code=BUDGET_SPENT)
    assert len(read_outcomes(directory)) == 8
    known = json.loads(run("status", directory.root, "--json").stdout)
    assert known["budget"]["trials"] == {"limit": 4, "used": 4, "left": 0}
    if launcher == "inline":
        whole = sweep(tmp_path, "launcher: inline\nslots: 18\nbudget: {trials: 9}\n")
        run("resume", directory.root, "--on", whole)
        assert_same_runs(undisturbed, directory)


@pytest.mark.parametrize("limits", ["gpu_hours: 5e-4", "wall_hours: 5e-4"])
def test_time_budgets_end_a_study(study, tmp_path, limits):
    """1.8 seconds: one that counts over the study, and one that counts anew with each call."""
    directory = StudyDirectory(tmp_path / "out")
    on = sweep(tmp_path, f"launcher: inline\nslots: 1\nbudget: {{{limits}}}\n")
    began = time.monotonic()
    done = run("run", study, "--on", on, "--out", directory.root, code=BUDGET_SPENT)
    assert limits.partition(":")[0] in done.stderr
    assert len(read_outcomes(directory)) < 18
    assert spent_by(directory).device_seconds < time.monotonic() - began
    run("resume", directory.root, "--on", on, code=BUDGET_SPENT)
    # Nothing is left of the one; the other trained for a while once more.
    assert len(read_spent(directory)) == (1 if "gpu" in limits else 2)


def test_seconds_count_for_every_device_and_old_files_have_none(directory, often):
    """A file of an older version says nothing of slots: unknown, and so is every sum with it."""
    own = Spent(tokens=5, cells=1, training_seconds=3.0, evaluation_seconds=0.5, slot_steps=7)
    with Meter(directory, worker="w0", drive=None, devices=4, figures=lambda: own):
        pass
    found = read_spent(directory)["w0"]
    assert (found.training_seconds, found.evaluation_seconds, found.slot_steps) == (12, 2, 7)
    old = {"device_seconds": 1.0, "tokens": 2, "cells": 1}
    directory.spent_file("w1").write_text(json.dumps(old))
    assert read_spent(directory)["w1"].slot_steps is None
    both = total(read_spent(directory).values())
    assert (both.tokens, both.slot_steps, both.training_seconds) == (7, None, None)
