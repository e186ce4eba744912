"""How often runs see their training text: above 1 a run sees sequences again."""

from __future__ import annotations

from wesar_sweep.config.check_space import settings
from wesar_sweep.config.study import Study


def sequences_per_epoch(tokens: int, context: int) -> int:
    """Sequences of one pass over the tokens: what `kernels.data_order` shuffles."""
    return (tokens - context) // context


def epochs(*, steps: int, batch: int, context: int, train_tokens: int) -> float:
    """Passes over the training text in so many steps.

    Args:
        steps: Steps trained.
        batch: Sequences a step.
        context: Tokens a sequence.
        train_tokens: Training tokens of the corpus.
    """
    return steps * batch / max(1, sequences_per_epoch(train_tokens, context))


def epochs_of_runs(study: Study, *, train_tokens: int) -> tuple[float, float]:
    """Fewest and most passes over the training text that a run of the study makes."""
    found = [
        epochs(
            **{name: int(str(setting[name])) for name in ("steps", "batch", "context")},
            train_tokens=train_tokens,
        )
        for setting in settings(study, "steps", "batch", "context")
    ]
    return min(found), max(found)
