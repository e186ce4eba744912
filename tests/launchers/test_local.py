"""What only worker processes of their own can get wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_launcher_contract import HERE, SIGKILLED, facts, path_with

from wesar_sweep.launchers.base import WorkerTask
from wesar_sweep.launchers.local import LocalLauncher, LocalWorkerJob
from wesar_sweep.launchers.processes import group_alive, started_at


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    made = LocalLauncher(tmp_path / "jobs")
    yield made
    made.close()


def start(
    launcher: LocalLauncher, tmp_path: Path, function: str, *, name: str = "w0", **changes: object
) -> LocalWorkerJob:
    task = WorkerTask(
        name=name,
        function=f"launched_functions:{function}",
        arguments={"path": str(tmp_path / f"{name}.facts")},
        environment={"PYTHONPATH": path_with(HERE)},
        timeout_min=5,
        log=tmp_path / f"{name}.log",
    )
    return launcher.submit(replace(task, **changes), index=0)  # type: ignore[arg-type]


def gone(pid: int, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if started_at(pid) is None:
            return True
        time.sleep(0.01)
    return False


def test_each_worker_sees_its_own_device_and_none_another(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    jobs = [
        start(
            launcher,
            tmp_path,
            "greet",
            name=f"w{index}",
            environment={
                "PYTHONPATH": path_with(HERE),
                "CUDA_VISIBLE_DEVICES": gpu,
                "GREETING": f"hi {index}",
            },
        )
        for index, gpu in enumerate(("0", "GPU-77", ""))
    ]
    assert [job.wait(timeout_s=30) for job in jobs] == ["finished"] * 3
    seen = [facts(tmp_path / f"w{index}.facts") for index in range(3)]
    assert [one["gpus"] for one in seen] == ["0", "GPU-77", ""]
    assert [one["at_import"] for one in seen] == ["hi 0", "hi 1", "hi 2"]
    # Of its own session, so that Ctrl-C in the terminal does not reach it.
    assert len({one["session"] for one in seen} | {os.getsid(0)}) == 4
    log = (tmp_path / "w1.log").read_text()
    assert "hello" in log
    assert "to standard error" in log
    assert list((tmp_path / "jobs").iterdir()) == [], "pickles of finished jobs were left"


def test_kill_leaves_nothing_behind(launcher: LocalLauncher, tmp_path: Path) -> None:
    job = start(launcher, tmp_path, "listen")
    worker = facts(tmp_path / "w0.facts")["pid"]
    assert group_alive(int(job.id))
    job.kill()
    assert gone(worker, within_s=2)
    assert job.wait(timeout_s=2) == "failed"
    assert not group_alive(int(job.id))


def test_a_worker_whose_controller_is_killed_stops_in_good_order(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    job = start(launcher, tmp_path, "listen")
    worker = facts(tmp_path / "w0.facts")["pid"]
    os.kill(int(job.id), signal.SIGKILL)
    assert gone(worker, within_s=2)
    assert "stopped in good order" in job.log_tail()
    assert job.wait(timeout_s=2) == "finished"


def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", SIGKILLED, "local", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path_with(HERE)},
    )
    seen = facts(tmp_path / "facts")
    controller = seen["session"]
    assert group_alive(controller)
    driver.kill()
    driver.wait()
    assert gone(seen["pid"], within_s=4)
    assert gone(controller, within_s=2)


def test_the_time_limit_asks_first(launcher: LocalLauncher, tmp_path: Path) -> None:
    job = start(launcher, tmp_path, "listen", timeout_min=4 / 60)
    assert job.wait(timeout_s=10) == "finished"
    assert "stopped in good order" in job.log_tail()
