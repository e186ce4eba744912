"""The contract of every launcher: a task goes in, a job comes out, wherever it runs.

Launchers start workers and watch them. They know nothing of studies, stores or training: what a
worker does is a function by its name, with plain values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from wesar_sweep.errors import LaunchError

PlainValue = bool | int | float | str | None | tuple[str, ...]

JobState = Literal["pending", "running", "finished", "failed"]
"""``finished``: the function returned None or 0. ``failed``: anything else that ended."""

Ending = Literal["done", "fault", "gave_way", "cancelled"]
"""``done``: finished. ``fault``: failed, through its own fault or a machine's. ``gave_way``: its
place was taken back (preemption, the time limit) and the job does not come back by itself: another
may take its place at nobody's cost. ``cancelled``: somebody wanted it to end."""

LIFE_VARIABLE = "WESAR_SWEEP_LIFE"
"""Variable that holds how often the worker's job was begun again, where a launcher's jobs are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """What one worker is to do; plain and picklable, so that it may travel to another machine."""

    name: str
    """The worker's name, such as ``w0``."""
    function: str
    """``package.module:function``; imported where it runs, after the environment is set."""
    arguments: Mapping[str, PlainValue] = field(default_factory=dict)
    """Keyword arguments of the function."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set, beside those of the launching process."""
    timeout_min: float
    """A worker still running after so many minutes is asked to stop, then killed."""
    log: Path
    """The file that the worker's standard output and error are appended to."""


class Job(Protocol):
    """One submitted task."""

    @property
    def id(self) -> str:
        """Unique on this machine or cluster while the job lives, such as a process number."""
        ...

    def poll(self) -> JobState:
        """The state now; never blocks for long.

        A killed worker reads failed within two seconds on this machine, and on a cluster after the
        launcher's next look at it.
        """
        ...

    def wait(self, timeout_s: float | None = None) -> JobState:
        """The state when the job has ended or the time is over, whichever comes first."""
        ...

    def terminate(self) -> None:
        """Ask the worker to stop (SIGTERM) in good order. Does nothing once it ended."""
        ...

    def kill(self) -> None:
        """End the worker and all that was started for it, now. Does nothing once it ended."""
        ...

    def failure(self) -> str | None:
        """Why the job failed, in words or a traceback; None where it has not."""
        ...

    def ending(self) -> Ending | None:
        """What kind of end it came to; None while it has not."""
        ...

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the worker wrote; empty where it wrote none."""
        ...


class Launcher(Protocol):
    """Starts tasks."""

    def submit(self, task: WorkerTask, *, index: int) -> Job:
        """Start a task.

        Args:
            task: What to do.
            index: Number of the worker, from 0; for names and messages.

        Raises:
            LaunchError: It could not be started; the message says what to do.
        """
        ...

    def submit_all(self, tasks: Sequence[WorkerTask], *, first_index: int = 0) -> Sequence[Job]:
        """Start tasks that belong together, as one array where there are arrays.

        Raises:
            LaunchError: One could not be started.
        """
        ...

    def former(self) -> Sequence[tuple[WorkerTask, Job]]:
        """Jobs that an earlier driver submitted and that have not ended; now they are ours.

        Empty where jobs end with their driver.

        Raises:
            LaunchError: It cannot be found out.
        """
        ...

    def close(self) -> None:
        """End every job that still runs, and leave no process behind."""
        ...


def ending_of(state: JobState) -> Ending | None:
    """What kind of end a state is, where none takes a place back and nobody cancels."""
    return {"finished": "done", "failed": "fault"}.get(state)  # type: ignore[return-value]


def resolve(function: str) -> Callable[..., object]:
    """The function that a task names.

    Raises:
        LaunchError: There is no such module or function.
    """
    module, separator, name = function.partition(":")
    if not separator:
        raise LaunchError(f"{function!r} is not of the form package.module:function")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LaunchError(f"cannot import {function}: {error}") from error
    if not callable(found):
        raise LaunchError(f"{function} is not a function")
    return found  # type: ignore[no-any-return]


def call(task: WorkerTask) -> None:
    """Run a task's function here, and read its answer as a shell reads an exit status.

    Raises:
        LaunchError: The function returned a number other than 0, or called `sys.exit` with
        something
            other than 0 or None.
    """
    try:
        status = resolve(task.function)(**task.arguments)
    except SystemExit as ending:
        status = ending.code
    if status is not None and status != 0:
        raise LaunchError(f"{task.function} ended with exit status {status}")


def tail(path: Path, *, lines: int) -> str:
    """The last lines of a text file, read from its end; empty where there is no such file."""
    size_limit = 4096 * max(1, lines)
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - size_limit))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
