"""Every spike of every run: where, how high, how long; raw, and with hard batches taken out.

Runs with the same seed, batch and context saw the same tokens at the same step. What they all feel
there is the batch; what is left is the run's own (`wesar_sweep.stability.spikes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from wesar_sweep.config.study import Study
from wesar_sweep.stability.spikes import MIN_PAIRED_RUNS, Spike, find_paired_spikes, find_spikes
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

SAME_BATCHES = ("seed", "batch", "context")
"""What decides which tokens a run sees at a step."""

SPIKES = pl.Schema(
    [
        ("trial", pl.Int64()),
        ("seed", pl.Int64()),
        ("spikes", pl.Int64()),
        ("paired_spikes", pl.Int64()),
        ("group_runs", pl.Int64()),
        ("steps", pl.Int64()),
    ]
)
"""``paired_spikes`` is null where fewer than `MIN_PAIRED_RUNS` runs saw the same batches;
``group_runs`` says how many did."""

EVENTS = pl.Schema(
    [
        ("trial", pl.Int64()),
        ("seed", pl.Int64()),
        ("kind", pl.Enum(["raw", "paired"])),
        ("start", pl.Int64()),
        ("peak", pl.Int64()),
        ("height", pl.Float64()),
        ("steps_to_recover", pl.Int64()),
    ]
)
"""A spike a row, as `wesar_sweep.stability.spikes.Spike`: the height of a raw one is nats above the
trailing median of the loss, of a paired one above that of the excess over the other runs."""


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
        for key, own in zip(keys, paired, strict=True):
            raw = find_spikes(curves[key].loss, study.spikes)
            count = None if own is None else len(own)
            runs.append((*key, len(raw), count, len(keys), len(curves[key].loss)))
            events += [
                (*key, kind, spike.start, spike.peak, spike.height, spike.steps_to_recover)
                for kind, spikes in (("raw", raw), ("paired", own or []))
                for spike in spikes
            ]
    return RunSpikes(
        pl.DataFrame(runs, schema=SPIKES, orient="row").sort("trial", "seed"),
        pl.DataFrame(events, schema=EVENTS, orient="row").sort("trial", "seed", "kind", "start"),
    )


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
