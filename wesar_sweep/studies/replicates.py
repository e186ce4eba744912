"""One cell in a worker's hands: which replicates are to do, in training, or ended.

Also where a pruner gets its one value a step from several replicates. The value of a cell at a step
is the mean over the replicates started so far, and it is settled when the last of those in training
has reached the step. So with enough slots it is the mean over all seeds; with fewer slots than
replicates it is the mean over the first ones. A diverged replicate counts as its initial loss from
there on, a failed one does not count. A value once told is not told again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from optuna.trial import Trial

from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.cells import start_loss


@dataclass(slots=True)
class Cell:
    """A claimed trial and its replicates."""

    trial: Trial
    runs: Sequence[Run]
    chance: float
    """`chance_loss` of the study."""
    todo: deque[Run] = field(default_factory=deque)
    training: set[int] = field(default_factory=set)
    """Seeds handed out and not finished."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Seed -> final outcome."""
    tries: dict[int, int] = field(default_factory=dict)
    """Seed -> tries that failed so far."""
    pruned: bool = False
    adopted: bool = False
    """Whether a former worker had it."""
    told: set[int] = field(default_factory=set)
    """Steps whose value Optuna has."""
    losses: dict[int, dict[int, float]] = field(default_factory=dict)
    """Seed -> step -> validation loss."""
    unsettled: set[int] = field(default_factory=set)
    """Steps that some replicate has reached and whose value is not known yet."""

    @property
    def architecture(self) -> Architecture:
        """The shape that all replicates share."""
        return self.runs[0].architecture

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train: all seeds ended, or it is pruned and none trains."""
        return not self.training and (self.pruned or not self.todo)

    @property
    def results(self) -> list[Outcome]:
        """The final outcomes so far, by seed."""
        return [self.outcomes[seed] for seed in sorted(self.outcomes)]

    def copy(self) -> Cell:
        """One that changes by itself: what to go back to where a transaction did not take place."""
        return replace(
            self,
            todo=deque(self.todo),
            training=set(self.training),
            outcomes=dict(self.outcomes),
            tries=dict(self.tries),
            told=set(self.told),
            losses={seed: dict(known) for seed, known in self.losses.items()},
            unsettled=set(self.unsettled),
        )

    def start(self) -> Run | None:
        """The next replicate to train; None where none is left or the cell is pruned."""
        if self.pruned or not self.todo:
            return None
        run = self.todo.popleft()
        self.training.add(run.seed)
        return run

    def end(self, outcome: Outcome) -> None:
        """A replicate ended for good."""
        self.training.discard(outcome.seed)
        self.outcomes[outcome.seed] = outcome
        if outcome.status == "failed":
            self.losses.pop(outcome.seed, None)

    def try_again(self, outcome: Outcome) -> None:
        """A replicate failed and has tries left: it goes to the back of the line."""
        self.training.discard(outcome.seed)
        self.losses.pop(outcome.seed, None)
        self.tries[outcome.seed] = outcome.attempt
        self.todo.append(next(run for run in self.runs if run.seed == outcome.seed))

    def reached(self, seed: int, *, step: int, val_loss: float) -> None:
        """A replicate in training has a validation loss at a step."""
        if math.isfinite(val_loss):
            self.losses.setdefault(seed, {})[step] = val_loss
            self.unsettled.add(step)

    def settled(self) -> list[tuple[int, float]]:
        """(step, mean validation loss) of the steps that are known now, in order, each once."""
        found = []
        for step in sorted(self.unsettled):
            if any(step not in self.losses.get(seed, {}) for seed in self.training):
                # A replicate that has not come so far cannot have reached a later step either.
                break
            values = [self._loss_at(seed, step) for seed in (*self.training, *self.outcomes)]
            known = [value for value in values if value is not None]
            self.unsettled.discard(step)
            if known:
                found.append((step, math.fsum(known) / len(known)))
        return found

    def _loss_at(self, seed: int, step: int) -> float | None:
        known = self.losses.get(seed, {}).get(step)
        outcome = self.outcomes.get(seed)
        if known is None and outcome is not None and outcome.status == "diverged":
            return start_loss(outcome, chance=self.chance)
        return known
