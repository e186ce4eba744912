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

    def take(self, count: int, *, architecture: Architecture | None = None) -> Sequence[Run]:
        """At most `count` runs, taken for good; empty when there is nothing to train now.

        Args:
            count: Free slots, at least 1.
            architecture: The stack in hand: only runs of this shape. None: any one shape, all runs
                of one answer alike.
        """
        ...

    def report(self, run: Run, *, step: int, val_loss: float) -> bool:
        """Tell an intermediate validation loss, finite and capped; True asks to end the run."""
        ...

    def finish(self, outcome: Outcome, curve: Curve | None) -> None:
        """Keep the result for good, then tell the study. `curve` is None only for a failed run."""
        ...
