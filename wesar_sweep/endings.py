"""How a study ends before its end, and the record of who ran it and how that ended."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from wesar_sweep.config.sweep import Budget
from wesar_sweep.errors import StoreError
from wesar_sweep.launchers.processes import started_at
from wesar_sweep.store.drive import Drive, Ending, write_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.progress import Progress


class EndedEarly(Exception):
    """The study was stopped in good order before its end; all that was finished is on disk."""

    ending: Ending


class Interrupted(EndedEarly):
    """The user or the system asked this process to stop."""

    ending = "interrupted"

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class Cancelled(EndedEarly):
    """Somebody asked by the stop file, such as `wesar-sweep cancel`."""

    ending = "cancelled"

    def __init__(self) -> None:
        super().__init__("cancelled")


class BudgetSpent(EndedEarly):
    """A budget of the sweep is used up; the message says which."""

    ending = "budget"


@contextmanager
def recorded(
    directory: StudyDirectory, progress: Progress, *, budget: Budget, workers: int
) -> Iterator[Drive]:
    """Keep on disk who runs the study with which budget, and in the end how that ended."""
    drive = Drive(
        pid=os.getpid(),
        host=platform.node(),
        process_started=started_at(os.getpid()),
        started_at=time.time(),
        workers=workers,
        budget=budget,
    )
    write_drive(directory, drive=drive)

    def end(ending: Ending, message: str = "") -> None:
        ended = replace(drive, ended_at=time.time(), ending=ending, message=message)
        write_drive(directory, drive=ended)

    try:
        yield drive
    except BaseException as error:
        # What ended the study is the error to tell, not that the disk refuses to keep it.
        with suppress(StoreError):
            end(error.ending if isinstance(error, EndedEarly) else "error", str(error))
        raise
    summary = progress.read()
    end("failed" if summary.failed or not summary.complete else "complete")
