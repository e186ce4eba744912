"""One contract, every launcher; real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.launchers.base import Job, Launcher, WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher
from wesar_sweep.launchers.local import LocalLauncher
from wesar_sweep.launchers.slurm import SlurmLauncher

HERE = Path(__file__).parent
Make = Callable[..., WorkerTask]


KINDS = ["inline", "local", pytest.param("slurm", marks=pytest.mark.slurm)]


@pytest.fixture(params=KINDS)
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    made: Launcher
    match request.param:
        case "inline":
            made = InlineLauncher()
        case "local":
            made = LocalLauncher(tmp_path / "jobs")
        case _:
            request.getfixturevalue("slurm")
            sweep = Sweep(launcher="slurm", timeout_min=5)
            made = SlurmLauncher(tmp_path / "jobs", sweep, poll_interval_s=0.3)
    # A worker's own handlers must not outlast the test where the worker is this process.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A process that was started in the background may have inherited that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield made
    made.close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def task(tmp_path: Path) -> Make:
    def make(
        function: str, *, environment: dict[str, str] | None = None, **arguments: Any
    ) -> WorkerTask:
        return WorkerTask(
            name="w0",
            function=function if ":" in function else f"launched_functions:{function}",
            arguments=arguments,
            environment={"PYTHONPATH": path_with(HERE), **(environment or {})},
            timeout_min=5,
            log=tmp_path / "workers" / "w0.log",
        )

    return make


def path_with(folder: Path) -> str:
    return os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH", "")) if part)


def facts(path: Path, *, timeout_s: float = 20) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, "the worker did not start"
        time.sleep(0.01)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def wait_with(job: Job, *, meanwhile: Callable[[], None]) -> str:
    """Wait for a job while another thread does something to it."""
    thread = threading.Thread(target=meanwhile)
    thread.start()
    state = job.wait(timeout_s=20)
    thread.join()
    return state


def test_tasks_that_start_together(launcher: Launcher, task: Make, tmp_path: Path) -> None:
    """Each its own job, in order; none left of an earlier driver."""
    assert not launcher.former()
    tasks = [task("greet", path=str(tmp_path / f"facts{index}")) for index in range(2)]
    jobs = launcher.submit_all([*tasks, task("explode", message="bang")])
    assert len({job.id for job in jobs}) == 3
    assert {job.ending() for job in jobs} == {None}
    assert [job.wait(timeout_s=20) for job in jobs] == ["finished", "finished", "failed"]
    assert [job.ending() for job in jobs] == ["done", "done", "fault"]
    assert (tmp_path / "facts1").exists()


def test_success(launcher: Launcher, task: Make, tmp_path: Path) -> None:
    job = launcher.submit(
        task(
            "greet",
            path=str(tmp_path / "facts"),
            environment={"GREETING": "hi", "OMP_NUM_THREADS": "1"},
        ),
        index=0,
    )
    assert job.id
    assert job.poll() in ("pending", "running")
    assert job.wait(timeout_s=20) == "finished"
    assert job.poll() == job.wait() == "finished"
    assert job.failure() is None
    seen = facts(tmp_path / "facts")
    assert seen["threads"] == "1"
    assert "GREETING" not in os.environ
    job.terminate()
    job.kill()
    assert job.poll() == "finished"


def test_exception(launcher: Launcher, task: Make) -> None:
    job = launcher.submit(task("explode", message="bang"), index=0)
    assert job.wait(timeout_s=20) == "failed"
    assert "ValueError: bang" in (job.failure() or "")
    assert "ValueError: bang" in job.log_tail()
    assert "Traceback" in job.log_tail(lines=100)
    assert len(job.log_tail(lines=2).splitlines()) == 2


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("leave", {"status": 3}, "ended with exit status 3"),
        ("launched_functions:nothing", {}, "cannot import launched_functions:nothing"),
        ("no_such_module:main", {}, "No module named 'no_such_module'"),
    ],
)
def test_other_failures(
    launcher: Launcher, task: Make, function: str, arguments: dict[str, Any], said: str
) -> None:
    job = launcher.submit(task(function, **arguments), index=0)
    assert job.wait(timeout_s=20) == "failed"
    assert said in (job.failure() or "")
    assert said in job.log_tail()


def test_leaving_with_zero_is_success(launcher: Launcher, task: Make) -> None:
    assert launcher.submit(task("leave", status=0), index=0).wait(timeout_s=20) == "finished"


def test_a_worker_that_listens_stops_in_good_order(
    launcher: Launcher, task: Make, tmp_path: Path
) -> None:
    job = launcher.submit(task("listen", path=str(tmp_path / "facts")), index=0)

    def stop() -> None:
        facts(tmp_path / "facts")
        job.terminate()

    assert wait_with(job, meanwhile=stop) == "finished"


def test_a_worker_that_does_not_listen_ends_too(
    launcher: Launcher, task: Make, tmp_path: Path
) -> None:
    job = launcher.submit(task("sleep", path=str(tmp_path / "facts")), index=0)

    def stop() -> None:
        facts(tmp_path / "facts")
        job.terminate()

    assert wait_with(job, meanwhile=stop) == "failed"
    assert job.failure()


SIGKILLED = """
import sys, time
from pathlib import Path
from wesar_sweep.launchers.base import WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher
from wesar_sweep.launchers.local import LocalLauncher
kind, folder = sys.argv[1], Path(sys.argv[2])
launcher = InlineLauncher() if kind == "inline" else LocalLauncher(folder)
task = WorkerTask(name="w0", function="launched_functions:sleep",
                  arguments={"path": str(folder / "facts")}, timeout_min=5, log=folder / "w0.log")
job = launcher.submit(task, index=0)
job.wait()
print(job.poll(), job.failure())
"""


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_killed_worker_is_noticed_within_two_seconds(tmp_path: Path, kind: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", SIGKILLED, kind, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path_with(HERE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = facts(tmp_path / "facts")["pid"]
    assert (worker == driver.pid) == (kind == "inline")
    os.kill(worker, signal.SIGKILL)
    start = time.monotonic()
    said, _ = driver.communicate(timeout=20)
    # On this contract inline has nobody left to notice: the driver was the worker.
    assert driver.returncode == (-signal.SIGKILL if kind == "inline" else 0)
    assert time.monotonic() - start < 2.0
    if kind == "local":
        assert said.startswith("failed the worker ended without a word: it was killed")
