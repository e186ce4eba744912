"""Is a process, or anything of a process group, still there? Read from /proc where there is one.

Not psutil's `create_time`: it is reckoned from the clock, so two processes may read it differently.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1


def _stat(pid: int | str) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None where the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None
    # The name in brackets may hold spaces and brackets.
    return text.rpartition(")")[2].split()


def started_at(pid: int) -> float | None:
    """When a living process started, in the kernel's ticks; None where it is gone or a zombie.

    A process number is used again after a while; number and start together are not. Where there is
    no /proc, a living process reads 0.
    """
    if not _PROC.is_dir():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return 0.0
        return 0.0
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else float(fields[19])


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def group_members(group: int) -> Iterator[int]:
    """Living processes of a process group; zombies do not count."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(entry.name)
            if fields is not None and fields[0] not in "ZX" and int(fields[2]) == group:
                yield int(entry.name)


def group_alive(group: int) -> bool:
    """Whether any living process is in the group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie that nobody waits for, as in a container without an init, still answers the signal.
    return next(group_members(group), None) is not None if _PROC.is_dir() else True
