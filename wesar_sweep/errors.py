"""What users get when something is theirs to mend.

Two kinds of failure exist (docs: README "When something is wrong"): the errors here, which are for
people, and `assert`, for what cannot happen. A diverged run is neither: it is a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file or an override: where, what, and what is allowed."""

    message: str
    """What is wrong, in one sentence."""
    path: str = ""
    """Dotted path of the value, such as ``space.lr.low``; empty for the file as a whole."""
    value: str | None = None
    """The value as the user wrote it (repr), if there is one."""
    allowed: str | None = None
    """What would have been accepted."""
    hint: str | None = None
    """What to do next, such as the nearest right spelling."""
    file: str | None = None
    """The file, or ``--set`` for an override on the command line."""
    line: int | None = None
    """Line in the file, from 1."""
    column: int | None = None
    """Column in the line, from 1."""

    def __str__(self) -> str:
        where = ":".join(
            str(part) for part in (self.file, self.line, self.column) if part is not None
        )
        head = ": ".join(part for part in (where, self.path, self.message) if part)
        tail = [
            f"    {label}: {text}"
            for label, text in (
                ("value", self.value),
                ("allowed", self.allowed),
                ("hint", self.hint),
            )
            if text is not None
        ]
        return "\n".join([head, *tail])


class WesarSweepError(Exception):
    """Base of every error that is meant for the user."""


class ConfigError(WesarSweepError):
    """A study, a sweep file or an override asks for what cannot be; holds every problem."""

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class LaunchError(WesarSweepError):
    """Workers could not be started or did not do their work; the message ends with what to do."""


class StoreError(WesarSweepError):
    """A results directory cannot be read or written as asked; nothing in it was changed."""
