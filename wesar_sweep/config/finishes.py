"""Where the cells of a study come from that finishes the pruned cells of another.

Only words: what was measured of those cells lies beside the results (`store.finished_search`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.knobs import Count


class Finishes(Frozen):
    """A random sample of the cells that a pruner ended in a finished search."""

    study: str = Field(description="Name of the search.")
    hash: str = Field(description="Its hash, by which its results are known.")
    pruned: Count = Field(description="Settings that its pruner ended.")
    drawn: Count = Field(description="How many of them were drawn, without replacement.")
    seed: Annotated[int, Field(ge=0)] = Field(description="Seed of the draw.")
