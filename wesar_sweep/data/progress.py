"""How long work on text tells of itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of the work while it is done; from one thread."""

    def __call__(self, what: str, *, done: int = 0, total: int | None = None) -> None:
        """`done` of `total` bytes of text; None: not known."""


def quiet(what: str, *, done: int = 0, total: int | None = None) -> None:
    """Tell nobody."""
