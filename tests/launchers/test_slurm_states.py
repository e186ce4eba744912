"""What Slurm says and what it does not say. The clients are scripts here: a controller that does
not answer, or has forgotten a job, cannot be had from a real one in a test's time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from wesar_sweep.launchers.slurm_states import (
    LOST,
    SlurmStates,
    cluster_limits,
    job_details,
    job_state,
    preempted,
)

KEEPS_ACCOUNTS = "AccountingStorageType   = accounting_storage/slurmdbd\n"


class Clients:
    """squeue, sacct and scontrol on PATH, each printing a file; no file: it fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("squeue", "sacct", "scontrol"):
            script = folder / name
            script.write_text(
                f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n'
                f"exec cat {folder}/{name}.says 2>/dev/null\n"
            )
            script.chmod(0o755)
        self.say("scontrol", "AccountingStorageType   = accounting_storage/none\n")

    def say(self, name: str, text: str | None) -> None:
        file = self.folder / f"{name}.says"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)

    def calls(self, name: str) -> int:
        file = self.folder / f"{name}.calls"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Clients(tmp_path)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("PENDING", "pending"),
        ("REQUEUED", "pending"),
        ("REQUEUE_HOLD", "pending"),
        ("CONFIGURING", "pending"),
        ("COMPLETING", "running"),
        ("SUSPENDED", "running"),
        ("COMPLETED", "finished"),
        ("NODE_FAIL", "failed"),
        ("PREEMPTED", "failed"),
        (LOST, "failed"),
        ("REVOKED", None),
        ("SOMETHING_NEW", None),
        ("", None),
    ],
)
def test_words(word: str, state: str | None) -> None:
    assert job_state(word) == state


def test_one_call_for_all_jobs_and_not_too_often(clients: Clients) -> None:
    states = SlurmStates(interval_s=60)
    states.watch(["7_0", "7_1", "8"])
    assert not clients.calls("squeue"), "a job that was just submitted is pending without a call"
    clients.say("squeue", "7_0|RUNNING|n1|None\n7_1|PENDING||Priority\n8|COMPLETED|n2|None\n")
    assert [states.seen(job).word for job in ("7_0", "7_1", "8")] == [
        "RUNNING",
        "PENDING",
        "COMPLETED",
    ]
    assert (states.seen("7_0").node, states.seen("7_1").reason) == ("n1", "Priority")
    clients.say("squeue", "7_0|COMPLETED|n1|None\n")
    assert states.seen("7_0").word == "RUNNING"
    assert clients.calls("squeue") == 1
    assert states.look(now=True)
    assert states.seen("7_0").word == "COMPLETED"


def test_no_answer_is_no_death(clients: Clients) -> None:
    states = SlurmStates(interval_s=0, lost_after_s=0)
    states.watch(["7"])
    clients.say("squeue", "7|RUNNING|n1|None\n")
    assert states.seen("7").word == "RUNNING"
    clients.say("squeue", None)
    for _ in range(3):
        assert not states.look(now=True)
        assert states.seen("7").word == "RUNNING"
    assert not states.absent("7")
    # The control: a controller that answers and does not know it.
    clients.say("squeue", "")
    assert states.look(now=True)
    assert states.seen("7").word == LOST


def test_a_client_that_hangs_is_given_up(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wesar_sweep.launchers.slurm_states.CLIENT_TIMEOUT_S", 0.2)
    (clients.folder / "squeue").write_text("#!/bin/sh\nexec sleep 30\n")
    states = SlurmStates(interval_s=0)
    states.watch(["7"])
    start = time.monotonic()
    assert states.seen("7").word == "PENDING"
    assert time.monotonic() - start < 5


def test_a_word_that_nobody_knows_changes_nothing(clients: Clients) -> None:
    states = SlurmStates(interval_s=0)
    states.watch(["7"])
    clients.say("squeue", "7|RUNNING|n1|None\n")
    assert states.seen("7").word == "RUNNING"
    clients.say("squeue", "7|HOVERING|n1|None\n")
    assert states.look(now=True)
    assert states.seen("7").word == "RUNNING"


def test_a_reason_that_needs_somebody_is_told_once(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    states = SlurmStates(interval_s=0)
    states.watch(["7_0", "7_1", "8"])
    rows = ("7_0|PENDING||JobHeldUser", "7_1|PENDING||JobHeldUser", "8|PENDING||Priority")
    clients.say("squeue", "\n".join(rows))
    for _ in range(2):
        states.look(now=True)
    assert [record.getMessage() for record in caplog.records] == [
        "job 7_0 waits, Slurm says why: JobHeldUser"
    ]


def test_lost_only_after_the_whole_grace(clients: Clients) -> None:
    states = SlurmStates(interval_s=0.1, lost_after_s=0.5)
    states.watch(["7"])
    clients.say("squeue", "8|RUNNING|n1|None\n")
    start = time.monotonic()
    while states.seen("7").word != LOST:
        assert time.monotonic() - start < 10
        time.sleep(0.02)
    assert time.monotonic() - start >= 0.5
    assert not clients.calls("sacct"), "this cluster keeps no accounts"


def test_a_job_that_is_seen_again_was_never_gone(clients: Clients) -> None:
    states = SlurmStates(interval_s=0, lost_after_s=60)
    states.watch(["7"])
    clients.say("squeue", "")
    states.look(now=True)
    assert states.absent("7")
    clients.say("squeue", "7|PENDING||BeginTime\n")
    states.look(now=True)
    assert not states.absent("7")


def test_accounts_know_what_the_queue_has_forgotten(clients: Clients) -> None:
    clients.say("scontrol", KEEPS_ACCOUNTS)
    clients.say("squeue", "9|RUNNING|n1|None\n")
    clients.say("sacct", "7_1|CANCELLED by 1000|n2|None\n8|PREEMPTED|n1|None\n")
    states = SlurmStates(interval_s=0, lost_after_s=0)
    states.watch(["7_1", "8", "9"])
    assert [states.seen(job).word for job in ("7_1", "8", "9")] == [
        "CANCELLED",
        "PREEMPTED",
        "RUNNING",
    ]
    assert "--jobs 7,8\n" in (clients.folder / "sacct.calls").read_text()


def test_accounts_that_do_not_answer_are_left_alone_for_a_minute(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients.say("scontrol", KEEPS_ACCOUNTS)
    clients.say("squeue", "")
    states = SlurmStates(interval_s=0)
    states.watch(["7"])
    for _ in range(3):
        assert states.look(now=True)
        assert states.absent("7")
    assert clients.calls("sacct") == 1
    monkeypatch.setattr("wesar_sweep.launchers.slurm_states._LONGEST_INTERVAL_S", 0)
    clients.say("sacct", "7|COMPLETED|n1|None\n")
    assert states.seen("7").word == "COMPLETED"


def test_a_task_that_began_is_not_taken_for_cancelled(clients: Clients) -> None:
    """Its own row may be late."""
    clients.say("scontrol", KEEPS_ACCOUNTS)
    states = SlurmStates(interval_s=0)
    states.watch(["7_0", "7_1"])
    clients.say("squeue", "7_0|RUNNING|n1|None\n7_1|PENDING||Priority\n")
    states.look(now=True)
    clients.say("squeue", "")
    clients.say("sacct", "7_[0-1]|PENDING|None assigned|Priority\n")
    states.look(now=True)
    assert states.absent("7_0")
    assert not states.absent("7_1")
    assert states.seen("7_1").word == "CANCELLED"


@pytest.mark.parametrize("accounts", ["accounting_storage/none", "(null)"])
def test_no_accounts_are_not_asked(clients: Clients, accounts: str) -> None:
    clients.say("scontrol", f"AccountingStorageType   = {accounts}\n")
    clients.say("squeue", "")
    states = SlurmStates(interval_s=0)
    states.watch(["7"])
    assert states.look(now=True)
    assert not clients.calls("sacct")


def test_limits_and_details(clients: Clients) -> None:
    clients.say("scontrol", "MaxArraySize            = 20\nAccountingStorageType   = (null)\n")
    assert cluster_limits().max_array_size == 20
    clients.say("scontrol", None)
    assert cluster_limits().max_array_size == 1001
    assert job_details("7") == {}
    clients.say("scontrol", "JobId=7 ExitCode=0:9 PreemptTime=2026-01-31T12:00:05 StartTime=")
    assert job_details("7")["ExitCode"] == "0:9"


@pytest.mark.parametrize(
    ("preempt_time", "expected"),
    [("2026-01-31T12:00:05", True), ("2026-01-31T11:59:00", False), ("None", False), ("", False)],
)
def test_preempted_since_its_last_start(preempt_time: str, expected: bool) -> None:
    details = {"PreemptTime": preempt_time, "StartTime": "2026-01-31T12:00:00"}
    assert preempted(details) == expected
    assert not preempted({})
