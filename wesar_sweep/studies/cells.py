"""What a cell's replicates come to: finite objectives, whatever blew up.

SCIENCE: the validation loss of a cell is the mean over its seeds of min(loss, initial loss), where
a loss that is not finite or missing counts as the initial loss. So a diverged run is a bad value,
never a lost one: samplers ignore failed trials and would go on asking for cells that diverge.

The constraint ``divergence`` is the divergence rate minus `ALLOWED_DIVERGENCE_RATE`; Optuna calls a
trial feasible where it is at most 0. It is graded, so that of two infeasible cells a sampler
prefers the one that diverges less often. It is not set where ``divergence_rate`` is an objective:
the trade-off is then the question, and the constraint would answer it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wesar_sweep.config.study import Objective, Study
from wesar_sweep.store.rows import Outcome

ALLOWED_DIVERGENCE_RATE = 0.0
"""A cell is feasible only where no replicate diverged; with few seeds even that says little."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """The figures of one cell. All are finite."""

    n: int
    """Replicates that count: all but the failed ones."""
    diverged: int
    failed: int
    val_loss: float
    """Nats a token; mean over n of min(loss, initial loss)."""
    divergence_rate: float
    """diverged / n."""
    spikes: float
    """Mean raw spikes a run."""

    def objectives(self, names: Sequence[Objective]) -> list[float]:
        """The values to tell, in the order of the study's objectives; all are minimised."""
        figures: Mapping[str, float] = {
            "val_loss": self.val_loss,
            "divergence_rate": self.divergence_rate,
            "spikes": self.spikes,
        }
        return [figures[name] for name in names]

    @property
    def constraint(self) -> float:
        """At most 0 where the cell is feasible."""
        return self.divergence_rate - ALLOWED_DIVERGENCE_RATE


def chance_loss(study: Study) -> float:
    """Nats a token of a guess without a model; stands in where a run has no finite initial loss."""
    return math.log(study.data.vocabulary)


def start_loss(outcome: Outcome, *, chance: float) -> float:
    """The initial loss, or chance where it is missing or not finite."""
    loss = outcome.init_loss
    return loss if loss is not None and math.isfinite(loss) else chance


def capped_loss(outcome: Outcome, *, chance: float) -> float:
    """min(validation loss, initial loss); what is not finite or missing counts as the latter."""
    start = start_loss(outcome, chance=chance)
    loss = outcome.val_loss
    # Not min(loss, start) alone: Python's min(nan, x) is nan.
    return min(loss, start) if loss is not None and math.isfinite(loss) else start


def aggregate(outcomes: Sequence[Outcome], *, chance: float) -> CellResult | None:
    """The figures of a cell from its replicates' final outcomes.

    Args:
        outcomes: One a seed. Failed ones are counted and otherwise left out.
        chance: `chance_loss` of the study.

    Returns:
        None where every replicate failed: nothing is known of the cell.
    """
    counted = [outcome for outcome in outcomes if outcome.status != "failed"]
    if not counted:
        return None
    n = len(counted)
    diverged = sum(outcome.status == "diverged" for outcome in counted)
    return CellResult(
        n=n,
        diverged=diverged,
        failed=len(outcomes) - n,
        val_loss=math.fsum(capped_loss(outcome, chance=chance) for outcome in counted) / n,
        divergence_rate=diverged / n,
        spikes=sum(outcome.spikes for outcome in counted) / n,
    )
