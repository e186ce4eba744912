"""The inline launcher: the worker is this process. For one device, for debuggers and for notebooks.

A job runs when it is waited for. There is no second process to limit or to kill: the time limit
does not apply, and a signal that ends the worker ends the driver with it.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from wesar_sweep.launchers.base import Ending, JobState, WorkerTask, call, ending_of, tail


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of a `with` block, then put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class InlineJob:
    """A task that runs in this process, in the thread that calls `wait`."""

    def __init__(self, task: WorkerTask, *, index: int) -> None:
        """Nothing runs yet."""
        self._task = task
        self._index = index
        self._state: JobState = "pending"
        self._failure: str | None = None
        self._asked_to_stop = False
        self._thread: int | None = None

    @property
    def id(self) -> str:
        """This process's number and the worker's."""
        return f"{os.getpid()}.{self._index}"

    def poll(self) -> JobState:
        """``pending`` until somebody waits."""
        return self._state

    def wait(self, timeout_s: float | None = None) -> JobState:
        """Run the task here, to its end: `timeout_s` cannot interrupt it and is ignored."""
        if self._state != "pending":
            return self._state
        self._state = "running"
        self._thread = threading.get_ident()
        try:
            with environment(self._task.environment):
                call(self._task)
        except KeyboardInterrupt:
            self._fail("stopped by an interrupt")
            if not self._asked_to_stop:
                raise
        except Exception as error:
            # The boundary between driver and worker: in another process this would be its death.
            self._fail(str(error), trace=traceback.format_exc())
        else:
            self._state = "finished"
        finally:
            self._thread = None
        return self._state

    def terminate(self) -> None:
        """Interrupt the worker as Ctrl-C would; before it started, cancel it."""
        self._asked_to_stop = True
        if self._state == "pending":
            self._fail("cancelled before it started")
        elif self._thread is not None:
            signal.pthread_kill(self._thread, signal.SIGINT)

    def kill(self) -> None:
        """As `terminate`: killing the worker would kill the caller."""
        self.terminate()

    def failure(self) -> str | None:
        """Why it failed."""
        return self._failure

    def ending(self) -> Ending | None:
        """``done`` or ``fault``."""
        return ending_of(self._state)

    def log_tail(self, lines: int = 20) -> str:
        """The end of the traceback: all else went to this process's own standard error."""
        return tail(self._task.log, lines=lines)

    def _fail(self, reason: str, *, trace: str = "") -> None:
        self._state = "failed"
        self._failure = trace or reason
        self._task.log.parent.mkdir(parents=True, exist_ok=True)
        with self._task.log.open("a") as log:
            log.write((trace or reason).rstrip() + "\n")


class InlineLauncher:
    """Runs tasks in this process, one after the other, each when it is waited for."""

    def __init__(self) -> None:
        """No job yet."""
        self._jobs: list[InlineJob] = []

    def submit(self, task: WorkerTask, *, index: int) -> InlineJob:
        """Make a job; it starts in `Job.wait`."""
        job = InlineJob(task, index=index)
        self._jobs.append(job)
        return job

    def submit_all(
        self, tasks: Sequence[WorkerTask], *, first_index: int = 0
    ) -> Sequence[InlineJob]:
        """Make jobs; each starts in its `Job.wait`."""
        return [self.submit(task, index=index) for index, task in enumerate(tasks, first_index)]

    def former(self) -> tuple[()]:
        """None: an earlier driver's worker was that driver."""
        return ()

    def close(self) -> None:
        """Cancel the jobs that nobody waited for."""
        for job in self._jobs:
            if job.poll() == "pending":
                job.terminate()
