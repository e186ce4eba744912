"""What the process that runs a study says of itself, and how it ended: one file, the newest call's.

Whether that process lives is told by the lock on `StudyDirectory.driver_lock_file`, not by this
file. A record without an ending whose lock is free is that of a process that was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from wesar_sweep.config.sweep import Budget
from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.layout import StudyDirectory

Ending = Literal["complete", "failed", "budget", "cancelled", "interrupted", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One call of `run` or `resume`."""

    pid: int
    host: str
    process_started: float | None
    """When the process started, in the kernel's ticks: with the number, a process for certain."""
    started_at: float
    """Seconds since the epoch."""
    workers: int = 0
    """Workers it starts with."""
    budget: Budget = field(default_factory=Budget)
    ended_at: float | None = None
    """Seconds since the epoch; None while it runs, and where it was killed."""
    ending: Ending | None = None
    message: str = ""
    """Why it ended, in words; empty where the study is complete."""

    @property
    def stop_at(self) -> float | None:
        """When its wall time is used up, in seconds since the epoch."""
        hours = self.budget.wall_hours
        return None if hours is None else self.started_at + 3600 * hours

    @property
    def ended(self) -> str:
        """How it ended, in words, for one that runs no more; empty where the study was done."""
        if self.ending is None:
            return "the process that ran it was killed"
        return {
            "complete": "",
            "failed": "runs failed",
            "budget": f"stopped by its budget: {self.message}",
            "cancelled": "cancelled",
            "interrupted": self.message,
            "error": f"ended by an error: {self.message}",
        }[self.ending]


def write_drive(directory: StudyDirectory, *, drive: Drive) -> None:
    """Replace the record, atomically.

    Raises:
        StoreError: The disk is full or refuses.
    """
    values = asdict(drive) | {"budget": drive.budget.model_dump()}
    write_json(directory.driver_file, values)


def read_drive(directory: StudyDirectory) -> Drive | None:
    """The record of the newest call; None where there is none. Unknown fields are ignored.

    Raises:
        StoreError: The file cannot be read; a budget could then be overdrawn.
    """
    known = {entry.name for entry in fields(Drive)}
    path = directory.driver_file
    try:
        values = json.loads(path.read_text())
        values = {key: value for key, value in values.items() if key in known}
        limits = values.pop("budget", {})
        limits = {key: limits[key] for key in Budget.model_fields if key in limits}
        return Drive(**values, budget=Budget(**limits))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} was damaged from outside ({error}); remove it: the next `wesar-sweep resume` "
            "writes it anew"
        ) from error
