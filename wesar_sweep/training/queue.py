"""What the engine needs of whoever decides: runs to train, and a word on each intermediate result.

`wesar_sweep.studies` provides it; the two rooms never import each other. `wesar_sweep.worker` joins
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.store.rows import Curve, Outcome


class RunQueue(Protocol):
    """Hands out runs and takes what became of them. Used by one thread."""

    @property
    def learns(self) -> bool:
        """Whether what `take` answers depends on the results handed in before."""
        ...

    def take(self, count: int, *, architecture: Architecture | None = None) -> Sequence[Run]:
        """At most `count` runs, taken for good; empty when there is nothing to train now.

        Args:
            count: Free slots, at least 1.
            architecture: The stack in hand: only runs of this shape. None: any one shape, all runs
                of one answer alike.
        """
        ...

    def report(self, losses: Sequence[tuple[Run, int, float]]) -> list[bool]:
        """Tell intermediate validation losses, finite and capped: (run, step, loss), in order.

        Returns:
            For each, in the same order, whether the run is to be ended.
        """
        ...

    def finish(self, results: Sequence[tuple[Outcome, Curve | None]]) -> None:
        """Keep results for good, then tell the study. A curve is None only for a failed run."""
        ...
