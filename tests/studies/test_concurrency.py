"""Four real workers on one grid, one of them killed: every run once, none repeated, none lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from fabricated_runs import drain, rows, sixty_cells, trials_of
from optuna.trial import TrialState

from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.progress import summary
from wesar_sweep.studies.queue import CellQueue

SCRIPT = Path(__file__).with_name("fabricated_runs.py")


def start(
    directory: StudyDirectory, worker: str, seconds: str = "0.005"
) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(directory.root), worker, seconds])


def test_four_workers_one_killed(tmp_path: Path, each_database: str) -> None:
    study, directory = sixty_cells(), StudyDirectory(tmp_path / "s")
    directory.create()
    workers = {f"w{number}": start(directory, f"w{number}") for number in range(3)}
    # Slow, so that it is sure to have cells half-way when it is killed.
    victim = start(directory, "victim", "0.05")
    deadline = time.monotonic() + 60
    mine = directory.outcomes_file("victim")
    while not mine.exists() or mine.read_text().count("\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert [worker.wait(timeout=60) for worker in workers.values()] == [0, 0, 0]

    # What the victim held is taken up by whoever comes next, under the same numbers.
    with CellQueue(study, directory, "w9") as queue:
        drain(queue)
    found = rows(directory)
    assert sorted(found) == [(trial, seed) for trial in range(60) for seed in range(2)]
    assert all(directory.outcomes_file(worker).exists() for worker in (*workers, "victim"))
    trials = trials_of(study, directory)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 60
    assert [trial.user_attrs["cell"] for trial in trials] == list(range(60))
    assert summary(directory, study).complete
