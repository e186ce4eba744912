"""How long a step of each method took, relative to a reference, where that can be told.

Runs that share a stack share its steps, whatever their methods: the seconds of such a run are its
neighbours' too. So there is a step time only where every worker trained one run at a time. It is
wall time with evaluations, on whatever else the machine had to do. The first run of each worker is
left out: it paid for the loading of kernels (a quarter more, seen on a GPU in runs of 300 steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from wesar_sweep.analysis.intervals import Interval, student_mean
from wesar_sweep.errors import StoreError
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.spent import read_spent, total

OVERRUN = 1.02
"""Runs one at a time take no longer together than their workers lived, but for rounding."""


def trained_one_at_a_time(directory: StudyDirectory, outcomes: pl.DataFrame) -> bool:
    """Whether no run shared its steps, by all that is known: one slot, and time for each run.

    Workers tell only their last number of slots; runs of an earlier call that did share them are
    found out by taking longer together than their workers lived.
    """
    beats = read_beats(directory)
    try:
        lived = total(read_spent(directory).values()).device_seconds
    except StoreError:
        return False
    alone = bool(beats) and all(beat.slot_count == 1 for beat in beats)
    return alone and float(outcomes["seconds"].sum()) <= OVERRUN * lived


def relative_step_time(
    outcomes: pl.DataFrame, trials: Sequence[int], reference: Sequence[int]
) -> tuple[float, Interval | None] | None:
    """Seconds a step of some cells over those of others, seed by seed; with Student's interval.

    Args:
        outcomes: One row a run; of those that completed, and were not the first of their worker,
            the median over cells is taken.
        trials: The cells.
        reference: The cells that they are compared with, of the same shape.

    Returns:
        The mean ratio over the seeds that both have, and its interval; None without one.
    """
    # Runs are handed out by trial and seed, so that a worker's first is its least.
    first = pl.int_range(pl.len()).over("worker") == 0
    ended = (
        outcomes.sort("trial", "seed")
        .filter(~first)
        .filter((pl.col("status") == "completed") & (pl.col("steps_trained") > 0))
    )

    def by_seed(cells: Sequence[int]) -> dict[int, float]:
        own = ended.filter(pl.col("trial").is_in(list(cells)))
        per_step = own.group_by("seed").agg(
            (pl.col("seconds") / pl.col("steps_trained")).median().alias("per_step")
        )
        return dict(per_step.sort("seed").rows())

    own, other = by_seed(trials), by_seed(reference)
    ratios = np.array([own[seed] / other[seed] for seed in own if other.get(seed)])
    if not len(ratios):
        return None
    return float(ratios.mean()), student_mean(ratios, least=0.0)
