"""Locks between processes of one host: `flock` on a file, let go when its holder dies.

A file that exists says nothing; only the lock on it does. So nothing is left to clean up after a
SIGKILL, and nobody needs a process number, which may belong to another by then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_POLL_S = 0.002
_LONG_WAIT_S = 0.05
_LONG_WAIT_POLL_S = 0.01
"""Who has waited so long is one of many, whose tries would cost more than they gain."""
_PROBE_TOLERANCE_S = 0.25


class HeldLock:
    """A lock in hand until `release`, the end of its `with` block, or the death of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Made by `try_hold` and `hold` alone."""
        self.path = path
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Whether it is still in hand."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let go; a second call does nothing. The file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> HeldLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise store_error(error, path=path, action="lock") from error


def _lock(descriptor: int, *, path: Path, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise store_error(error, path=path, action="lock") from error
    return True


def try_hold(path: Path, *, timeout_s: float = _PROBE_TOLERANCE_S) -> HeldLock | None:
    """Take the lock, or None where another holds it.

    Two holders exclude each other also inside one process.

    Args:
        path: The lock's file; made where it is missing.
        timeout_s: How long to try. The default outlasts the instant for which `is_held` looks.

    Raises:
        StoreError: The file cannot be made, or the file system knows no locks.
    """
    descriptor = _open(path)
    began = time.monotonic()
    try:
        while not _lock(descriptor, path=path, mode=fcntl.LOCK_EX):
            waited_s = time.monotonic() - began
            if waited_s >= timeout_s:
                os.close(descriptor)
                return None
            time.sleep(_POLL_S if waited_s < _LONG_WAIT_S else _LONG_WAIT_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    return HeldLock(path, descriptor)


@contextmanager
def hold(path: Path, *, timeout_s: float = 60.0, purpose: str = "") -> Iterator[HeldLock]:
    """Hold the lock for the length of a `with` block.

    Args:
        path: The lock's file; made where it is missing.
        timeout_s: How long to wait for another holder.
        purpose: What it is needed for, for the message.

    Raises:
        StoreError: Another process held it all the while.
    """
    lock = try_hold(path, timeout_s=timeout_s)
    if lock is None:
        why = f" to {purpose}" if purpose else ""
        raise StoreError(
            f"could not lock {path}{why}: another process has held it for {timeout_s:g} s; "
            f"see which one with: fuser -v '{path}'"
        )
    with lock:
        yield lock


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock; False where the file does not exist.

    Raises:
        StoreError: The file system knows no locks.
    """
    try:
        # For reading alone: a study may be looked at by those who may not write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    try:
        # Shared, so that two that look at the same time do not see each other.
        return not _lock(descriptor, path=path, mode=fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
