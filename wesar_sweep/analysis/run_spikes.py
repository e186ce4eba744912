"""Every spike of every run: where, how high, how long; raw, and with hard batches taken out.

Runs with the same seed, batch and context saw the same tokens at the same step. What they all feel
there is the batch; what is left is the run's own (`wesar_sweep.stability.spikes`). The median over
the runs does not take all of it out: a run that trains badly feels a hard batch more. So a paired
spike at which `SHARED_BY` other runs of the same batches have one too, within `NEAR` steps, is
taken for the batch's, and only the others are *lone* spikes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.config.study import Study
from wesar_sweep.stability.spikes import MIN_PAIRED_RUNS, Spike, find_paired_spikes, find_spikes
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

SAME_BATCHES = ("seed", "batch", "context")
"""What decides which tokens a run sees at a step."""

NEAR = 2
"""Steps within which spikes of two runs are one moment."""

SHARED_BY = 2
"""Other runs that spike at the same moment, from which on it is the batch that is hard."""

SPIKES = pl.Schema(
    [
        ("trial", pl.Int64()),
        ("seed", pl.Int64()),
        ("spikes", pl.Int64()),
        ("paired_spikes", pl.Int64()),
        ("lone_spikes", pl.Int64()),
        ("group_runs", pl.Int64()),
        ("steps", pl.Int64()),
    ]
)
"""``paired_spikes``, and ``lone_spikes`` (those that fewer than `SHARED_BY` others share),
are null where fewer than `MIN_PAIRED_RUNS` runs saw the same batches; ``group_runs`` says how many
did."""

EVENTS = pl.Schema(
    [
        ("trial", pl.Int64()),
        ("seed", pl.Int64()),
        ("kind", pl.Enum(["raw", "paired"])),
        ("start", pl.Int64()),
        ("peak", pl.Int64()),
        ("height", pl.Float64()),
        ("steps_to_recover", pl.Int64()),
        ("shared_by", pl.Int64()),
    ]
)
"""A spike a row, as `wesar_sweep.stability.spikes.Spike`: the height of a raw one is nats above the
trailing median of the loss, of a paired one above that of the excess over the other runs.
``shared_by`` counts the other runs with a paired spike at the same moment; null for raw ones."""


@dataclass(frozen=True, slots=True)
class RunSpikes:
    """All spikes of a study, by the study's rule."""

    runs: pl.DataFrame
    """Every run with a curve and how many spikes it has, as `SPIKES` says; by (trial, seed)."""
    events: pl.DataFrame
    """Every spike, as `EVENTS` says; by (trial, seed, kind, start)."""

    @property
    def own(self) -> pl.DataFrame:
        """The events that are a run's own, as far as can be told.

        Of each run its paired spikes, from which hard batches are out, or its raw ones where it
        could not be paired.
        """
        judged = pl.col("paired_spikes").is_not_null()
        kind = pl.when(judged).then(pl.lit("paired")).otherwise(pl.lit("raw"))
        which = self.runs.select("trial", "seed", kind=kind.cast(EVENTS["kind"]))
        return self.events.join(which, on=["trial", "seed", "kind"])


def run_spikes(outcomes: pl.DataFrame, curves: Mapping[Key, Curve], *, study: Study) -> RunSpikes:
    """Find the raw and the paired spikes of every run that has a curve.

    Args:
        outcomes: One row a run; says which runs saw the same batches.
        curves: By (trial, seed).
        study: For its rule of a spike.
    """
    runs: list[tuple[object, ...]] = []
    events: list[tuple[object, ...]] = []
    for keys in same_batches(outcomes, curves):
        losses_RS = losses_together([curves[key] for key in keys])
        paired: Sequence[list[Spike] | None] = [None] * len(keys)
        if len(keys) >= MIN_PAIRED_RUNS:
            paired = find_paired_spikes(losses_RS, study.spikes)
        starts = [np.array([s.start for s in own or []], dtype=np.int64) for own in paired]
        for place, (key, own) in enumerate(zip(keys, paired, strict=True)):
            raw = find_spikes(curves[key].loss, study.spikes)
            others = starts[:place] + starts[place + 1 :]
            shared = [_shared_by(spike.start, others) for spike in own or []]
            counts = (None, None) if own is None else (len(own), _lone(shared))
            runs.append((*key, len(raw), *counts, len(keys), len(curves[key].loss)))
            events += [(*key, "raw", *_event(spike), None) for spike in raw]
            events += [
                (*key, "paired", *_event(spike), by)
                for spike, by in zip(own or [], shared, strict=True)
            ]
    return RunSpikes(
        pl.DataFrame(runs, schema=SPIKES, orient="row").sort("trial", "seed"),
        pl.DataFrame(events, schema=EVENTS, orient="row").sort("trial", "seed", "kind", "start"),
    )


def _event(spike: Spike) -> tuple[int, int, float, int | None]:
    return spike.start, spike.peak, spike.height, spike.steps_to_recover


def _shared_by(start: int, others: Sequence[NDArray[np.int64]]) -> int:
    """How many other runs have a spike that starts within `NEAR` steps."""
    return sum(bool((np.abs(one - start) <= NEAR).any()) for one in others)


def _lone(shared: Sequence[int]) -> int:
    return sum(by < SHARED_BY for by in shared)


def same_batches(outcomes: pl.DataFrame, curves: Mapping[Key, Curve]) -> Iterator[list[Key]]:
    """The runs that have a curve, in groups that saw the same batches."""
    for _, group in outcomes.group_by(SAME_BATCHES, maintain_order=True):
        yield [key for key in group.select("trial", "seed").rows() if key in curves]


def losses_together(curves: Sequence[Curve]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[runs, S] training losses; NaN after a run's end, inf where a loss inside it blew up."""
    longest = max((len(curve.loss) for curve in curves), default=0)
    losses_RS = np.full((len(curves), longest), np.nan)
    for row, curve in zip(losses_RS, curves, strict=True):
        row[: len(curve.loss)] = np.where(np.isfinite(curve.loss), curve.loss, np.inf)
    return losses_RS
