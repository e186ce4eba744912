"""How many seeds a cell is trained with: a number, or from a least to a most until enough is known.

Here are the words and the arithmetic of one cell; what a whole study is still to train by them is
`wesar_sweep.store.wanted`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.knobs import Count

_Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


class Until(Frozen):
    """When a cell has seeds enough. Of several conditions all must be met."""

    divergence_halfwidth: Annotated[float, Field(gt=0, lt=0.5)] | None = Field(
        default=None,
        description="Half the width of Wilson's 95 % interval of the divergence rate, at most.",
    )
    told_apart: bool = Field(
        default=False,
        description="Whether the best cell of every other method is to be told apart from the best "
        "cell of all, by the rule that marks ties in the report.",
    )


class AdaptiveReplicates(Frozen):
    """Each cell gets ``min`` seeds, then further ones where ``until`` is not met, up to ``max``."""

    min: Count = Field(description="Seeds of every cell.")
    max: Count = Field(description="Seeds that no cell goes beyond.")
    until: Until = Field(description="When a cell needs no further seed.")

    def further(self, diverged: int, n: int, *, asked: int) -> int:
        """How many further seeds the divergence rate of one cell needs for certain.

        The rule is sequential: a seed at a time until the interval is narrow enough. Those that it
        would ask for whatever becomes of them are asked for at once, which gives the same seeds.

        Args:
            diverged: Counted runs that diverged.
            n: Counted runs: all that ended but the failed ones.
            asked: Seeds asked for so far, failed ones included.

        Returns:
            0 where the interval is narrow enough, nothing counts, or `max` is reached.
        """
        bound, left = self.until.divergence_halfwidth, self.max - asked
        if bound is None or n == 0 or left <= 0 or wilson_halfwidth(diverged, n) <= bound:
            return 0
        # The narrowest intervals are those of seeds that all diverge, or none.
        return next(
            (
                more
                for more in range(1, left)
                if min(
                    wilson_halfwidth(diverged, n + more),
                    wilson_halfwidth(diverged + more, n + more),
                )
                <= bound
            ),
            left,
        )


def wilson_halfwidth(diverged: int, n: int) -> float:
    """Half the width of Wilson's 95 % interval of a rate of which `diverged` of n were seen.

    Wilson (1927): z / (1 + z²/n) · √(p(1 − p)/n + z²/(4n²)). A half where n is 0.
    """
    if n == 0:
        return 0.5
    rate, z2 = diverged / n, _Z**2
    return _Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))


def _kind(raw: object) -> str:
    # Tags are no words of the language; see `wesar_sweep.config.space`.
    return "<adaptive>" if isinstance(raw, Mapping | AdaptiveReplicates) else "<number>"


Replicates = Annotated[
    Annotated[Count, Tag("<number>")] | Annotated[AdaptiveReplicates, Tag("<adaptive>")],
    Discriminator(_kind),
]
"""Seeds a cell, as study files write them."""
