"""How a study's cells were chosen, by which every sentence about their choice goes."""

from __future__ import annotations

from typing import Literal

from wesar_sweep.config.study import Study

Choice = Literal["grid", "listed", "indifferent", "outcomes", "boundary"]
"""All cells; those written out; some, whatever came of others; by the objectives of others; where
runs diverge."""

_INDIFFERENT = ("random", "qmc")


def choice(study: Study) -> Choice:
    """How the cells of a study were chosen."""
    name = study.sampler.name
    if name == "grid" or name == "listed" or name == "boundary":
        return name
    return "indifferent" if name in _INDIFFERENT else "outcomes"


def fixed_beforehand(study: Study) -> bool:
    """Whether neither the cells nor their seeds depend on any outcome."""
    # What is finished was chosen by another study's outcomes, of the same seeds.
    chosen = choice(study) in ("outcomes", "boundary") or study.finishes is not None
    return not chosen and study.adaptive is None and study.pruner is None


def chosen_words(study: Study) -> str:
    """The choice as a sentence on what counts over all cells mean; empty for a grid."""
    if study.finishes is not None:
        return (
            f"Cells were drawn at random from those that the pruner of {study.finishes.study} "
            "ended, so counts over all cells say nothing of the space as a whole."
        )
    return {
        "grid": "",
        "listed": "Cells were written out one by one, so counts over all cells say nothing of the "
        "space as a whole.",
        "indifferent": "Cells were drawn whatever came of others.",
        "outcomes": "The sampler looks more often where it found good cells by "
        f"{' and '.join(study.objectives)}, so counts over all cells say nothing of the space as a "
        "whole.",
        "boundary": "The search looks where runs begin to diverge, so counts over all cells say "
        "nothing of the space as a whole.",
    }[choice(study)]


def placed_words(study: Study) -> str:
    """How the values of an axis that is no grid came about: ``was sampled``."""
    how = {"boundary": "was searched for its boundary", "listed": "was written out cell by cell"}
    return how.get(choice(study), "was sampled")
