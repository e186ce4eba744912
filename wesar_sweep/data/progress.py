"""How long work on text tells of itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of the work while it is done; from one thread."""

    def __call__(self, what: str, *, done: int = 0, total: int | None = None) -> None:
        """`done` of `total` bytes of text; None: not known."""


def quiet(what: str, *, done: int = 0, total: int | None = None) -> None:
    """Tell nobody."""


_TELL_BYTES = 1 << 20


class Meter:
    """Adds up the bytes that are done, and tells of them a megabyte at a time.

    Args:
        progress: Who is told.
        what: Of which work.
        total: Bytes in all; no more than that is told.
    """

    def __init__(self, progress: Progress, what: str, *, total: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self.done = 0
        """Bytes so far."""
        self._told = 0

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self.done += count
        if self.done - self._told > _TELL_BYTES:
            self._progress(self._what, done=min(self.done, self._total), total=self._total)
            self._told = self.done
