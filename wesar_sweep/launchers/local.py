"""The local launcher: worker processes on this machine, through submitit's local executor.

submitit pickles the task and starts a controller, which starts the worker and enforces the time
limit. What it lacks is added here: each worker has its own devices (submitit would put all on GPU
0); Ctrl-C in the terminal reaches the driver alone, which then stops the workers in good order; a
worker that was killed is noticed at once; and neither worker nor controller outlives the driver for
long.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from wesar_sweep.errors import LaunchError
from wesar_sweep.launchers.base import Ending, JobState, WorkerTask, call, ending_of, tail
from wesar_sweep.launchers.inline import environment
from wesar_sweep.launchers.mending import mend_process
from wesar_sweep.launchers.processes import end_with_parent, group_alive, started_at

_POLL_S = 0.05
_STOP_GRACE_S = 30
"""Seconds a worker gets to stop in good order, at its time limit or when its driver died."""
_WATCH_INTERVAL_S = 1.0


class LocalWorkerJob:
    """A worker process, its controller, and its files."""

    def __init__(
        self, job: LocalJob[None], *, process: subprocess.Popen[bytes], task: WorkerTask
    ) -> None:
        """Made by `LocalLauncher.submit`."""
        self._job = job
        self._process = process
        self._task = task
        self._ended: JobState | None = None
        self._failure: str | None = None

    @property
    def id(self) -> str:
        """Number of the controller's process, which is also that of the worker's process group."""
        return str(self._process.pid)

    def poll(self) -> JobState:
        """``running`` while the worker or its controller lives, then how it ended."""
        if self._ended is None:
            # Not submitit's state: it calls a killed worker finished and waits 16 s for a result.
            if self._process.poll() is None or group_alive(self._process.pid):
                return "running"
            self._ended = self._end()
        return self._ended

    def wait(self, timeout_s: float | None = None) -> JobState:
        """Wait for the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (state := self.poll()) == "running":
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
        return state

    def terminate(self) -> None:
        """SIGTERM to the worker; the controller passes it on and ends after it."""
        if self.poll() != "running":
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        else:
            self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to worker and controller."""
        if self.poll() == "running":
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def failure(self) -> str | None:
        """The worker's traceback, or that it was killed."""
        self.poll()
        return self._failure

    def ending(self) -> Ending | None:
        """``done`` or ``fault``."""
        return ending_of(self.poll())

    def log_tail(self, lines: int = 20) -> str:
        """The end of the worker's log, or of submitit's where the worker did not come so far."""
        return tail(self._task.log, lines=lines) or tail(self._job.paths.stderr, lines=lines)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end(self) -> JobState:
        path = self._job.paths.result_pickle
        try:
            # Written by our own worker on this machine a moment ago.
            outcome, result = pickle.loads(path.read_bytes())
        except FileNotFoundError:
            self._failure = (
                "the worker ended without a word: it was killed, by a signal or for want of "
                f"memory; its log is {self._task.log}"
            )
            return "failed"
        if outcome != "success":
            self._failure = str(result)
            return "failed"
        for leftover in (path, self._job.paths.submitted_pickle, self._job.paths.stdout):
            leftover.unlink(missing_ok=True)
        self._job.paths.stderr.unlink(missing_ok=True)
        return "finished"


class LocalLauncher:
    """Starts each task as a process of its own on this machine.

    Args:
        folder: Where submitit keeps its pickles; emptied of a job's when it finishes well.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is started yet."""
        self._folder = folder
        self._jobs: list[LocalWorkerJob] = []

    def submit(self, task: WorkerTask, *, index: int) -> LocalWorkerJob:
        """Start a worker process.

        Raises:
            LaunchError: The process could not be started.
        """
        task.log.parent.mkdir(parents=True, exist_ok=True)
        executor = _Executor(self._folder)
        # The worker is told so long before the limit; that must leave it time to begin.
        delay_s = max(1, min(_STOP_GRACE_S, int(task.timeout_min * 60 / 2)))
        executor.update_parameters(timeout_min=task.timeout_min, signal_delay_s=delay_s)
        driver = os.getpid()
        try:
            # At the start of the process: numpy reads the number of its threads when it is loaded.
            with environment(task.environment):
                started: Any = executor.submit(_work, task, driver, started_at(driver))
        except OSError as error:
            raise LaunchError(
                f"cannot start worker {task.name} (number {index}): {error}"
            ) from error
        job = LocalWorkerJob(started, process=started._process, task=task)
        self._jobs.append(job)
        return job

    def submit_all(
        self, tasks: Sequence[WorkerTask], *, first_index: int = 0
    ) -> Sequence[LocalWorkerJob]:
        """Start worker processes, one after the other.

        Raises:
            LaunchError: A process could not be started.
        """
        return [self.submit(task, index=index) for index, task in enumerate(tasks, first_index)]

    def former(self) -> tuple[()]:
        """None: no worker outlives its driver for long."""
        return ()

    def close(self) -> None:
        """Kill what still runs."""
        for job in self._jobs:
            job.kill()


class _Executor(LocalExecutor):
    """submitit's executor with a session of its own for each job.

    In the terminal's process group a Ctrl-C would reach the controller too, which gives its worker
    one second and then SIGKILL.
    """

    def _submit_command(self, command: str) -> LocalJob[Any]:
        parameters = self.parameters
        variables = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(max(1, round(60 * parameters["timeout_min"]))),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "submitit.local._local", str(self.folder)],
            env=variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process)

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(self.folder)])


def _work(task: WorkerTask, driver: int, driver_started: float | None) -> None:
    """What the worker process does: mend what submitit left, then call the task's function."""
    mend_process(task)
    # The time limit.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    end_with_parent(signal.SIGTERM)  # The controller.
    threading.Thread(
        target=_end_with_driver, args=(driver, driver_started), name="driver-watch", daemon=True
    ).start()
    call(task)


def _end_with_driver(driver: int, driver_started: float | None) -> None:
    """Stop this worker once the driver is gone: SIGTERM first, SIGKILL after the grace."""
    while started_at(driver) == driver_started:
        time.sleep(_WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
