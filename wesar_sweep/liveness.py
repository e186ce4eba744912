"""Who of a study lives, by locks and by processes of this host, and how the others ended."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from wesar_sweep.launchers.processes import started_at
from wesar_sweep.store.beat import Beat, is_alive, read_beats
from wesar_sweep.store.drive import read_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held

DRIVER = "driver"
"""The name under which the process that runs the study is listed."""


@dataclass(frozen=True, slots=True)
class Living:
    """A process of a study that lives."""

    name: str
    pid: int | None = None
    """None where it has not said yet."""
    host: str = ""
    process_started: float | None = None

    @property
    def here(self) -> bool:
        """Whether it is certainly a process of this host: of that number and that start."""
        return (
            self.pid is not None
            # 0 where there is no /proc: then the number alone would be trusted.
            and bool(self.process_started)
            and self.host == platform.node()
            and started_at(self.pid) == self.process_started
        )

    def __str__(self) -> str:
        number = "" if self.pid is None else f" (process {self.pid} on {self.host})"
        return self.name + number

    def kill(self) -> bool:
        """SIGKILL, if it is of this host; whether it was sent."""
        if not self.here or self.pid is None:
            return False
        try:
            # A handle of the process: its number may be another's a moment after the look.
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.here:
                return False
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            os.close(handle)
        return True


def worker_lives(directory: StudyDirectory, beat: Beat) -> bool:
    """Whether a worker lives: it holds its lock, or beats on another host, or is about to."""
    if is_alive(directory, beat):
        return True
    # Between its first beat and its lock a worker imports its libraries.
    return beat.state == "starting" and _of(beat).here


def living_workers(directory: StudyDirectory) -> list[Living]:
    """The workers that live, by name; those without a beat too."""
    found = {b.worker: _of(b) for b in read_beats(directory) if worker_lives(directory, b)}
    for path in directory.workers_folder.glob(directory.worker_lock_file("*").name):
        # The driver settles the study's end under a worker's lock of its own.
        if path.stem not in found and path.stem != DRIVER and is_held(path):
            found[path.stem] = Living(path.stem)
    return [found[name] for name in sorted(found)]


def living_driver(directory: StudyDirectory) -> Living | None:
    """The process that runs the study; None where there is none."""
    if not is_held(directory.driver_lock_file):
        return None
    drive = read_drive(directory)
    if drive is None or drive.ended_at is not None:
        # It has just begun, and the record is of the call before.
        return Living(DRIVER)
    return Living(DRIVER, drive.pid, drive.host, drive.process_started)


def living(directory: StudyDirectory) -> Iterator[Living]:
    """The workers that live, then the driver."""
    yield from living_workers(directory)
    driver = living_driver(directory)
    if driver is not None:
        yield driver


def worker_end(beat: Beat, *, alive: bool) -> str:
    """How a worker ended, in words; empty while it lives."""
    if alive:
        return ""
    if beat.state == "finished":
        return "finished: nothing was left to take"
    if beat.state == "stopping":
        return f"stopped in good order: {beat.message or 'it was asked to'}"
    if beat.state == "failed":
        return f"failed: {beat.message}"
    return "died without a word: killed, out of memory, or its machine went down"


def _of(beat: Beat) -> Living:
    return Living(beat.worker, beat.pid, beat.host, beat.process_started)
