"""What the driver does with its workers' jobs as they are found to have ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from wesar_sweep.config import make_run, parse_study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.crew import Crew
from wesar_sweep.launchers.base import Ending, JobState, WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher
from wesar_sweep.store.drive import Drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.progress import Progress


class Ended:
    """A job as a cluster tells of it: in a state, and cancelled once it is killed."""

    def __init__(self, state: JobState) -> None:
        self.id, self._state = "1", state

    def poll(self) -> JobState:
        return self._state

    def wait(self, timeout_s: float | None = None) -> JobState:
        return self._state

    def kill(self) -> None:
        self._state = "failed"

    def terminate(self) -> None:
        self.kill()

    def failure(self) -> str | None:
        return None

    def ending(self) -> Ending | None:
        return {"finished": "done", "failed": "cancelled"}.get(self._state)  # type: ignore[return-value]

    def log_tail(self, lines: int = 20) -> str:
        return ""


def test_a_job_that_is_dismissed_is_not_ended_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that ends with the study is looked at before the job that waits behind it."""
    task: dict[str, Any] = {"function": "os:getpid", "timeout_min": 1.0, "log": tmp_path / "log"}
    jobs = {name: Ended(state) for name, state in (("w0", "finished"), ("w1", "pending"))}
    found = [(WorkerTask(name=name, **task), job) for name, job in jobs.items()]
    monkeypatch.setattr(InlineLauncher, "former", lambda self: found)
    study = parse_study({"space": {"lr": [1e-3]}, "replicates": 1})
    directory = StudyDirectory(tmp_path / "study")
    directory.create()
    run = make_run(study, 0, 0, {"lr": 1e-3})
    ended = Outcome.untrained(run, status="completed", reason="", worker="w0")
    OutcomeWriter(directory, "w0").append(ended)
    drive = Drive(pid=1, host="", process_started=None, started_at=time.time())
    crew = Crew(study, Sweep(launcher="inline"), directory, [], drive)
    crew.work(Progress(directory, study), [])
    assert crew.names == set() and jobs["w1"].poll() == "failed"
