"""What a study cost: device time, tokens and steps, by how runs ended.

Tokens and steps are counted. Device time is recorded a worker, not a run, since many runs share a
device: a worker's device time, loading and evaluating included, is divided among its runs in
proportion to the time that each held a slot. So runs of a large model bear more of it; a run that
went on from a checkpoint of another worker is charged to the one that ended it. A failed try leaves
no time of its own, and lies in that of the others.

What a run would have trained and did not, because it diverged or was pruned, is *left*: its steps
to go. That ending it early saved so much holds where it would have been trained to its end else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.drive import Drive, read_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import read_provenance
from wesar_sweep.store.spent import Spent, read_spent, total

STATUSES = ("completed", "diverged", "pruned", "failed", "never started")
"""How runs ended; the last are those that a pruner spared when it ended their cell."""

BY_STATUS = pl.Schema(
    [
        ("status", pl.String()),
        ("runs", pl.Int64()),
        ("steps", pl.Int64()),
        ("tokens", pl.Int64()),
        ("device_seconds", pl.Float64()),
        ("steps_left", pl.Int64()),
        ("tokens_left", pl.Int64()),
    ]
)
"""``device_seconds`` is null where it was not recorded; ``left`` counts what the runs of the status
would still have trained."""

BY_WORKER = pl.Schema(
    [
        ("worker", pl.String()),
        ("runs", pl.Int64()),
        ("device_seconds", pl.Float64()),
        ("training_seconds", pl.Float64()),
        ("evaluation_seconds", pl.Float64()),
        ("other_seconds", pl.Float64()),
        ("tokens", pl.Int64()),
        ("tokens_per_second", pl.Float64()),
    ]
)
"""``tokens`` counts also what was trained in vain; ``tokens_per_second`` is of the device time.
``other_seconds``: loading, compiling, the database, waiting. Null: not recorded."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """What was written down of a study's cost beside its outcomes; empty where nothing was."""

    spent: Mapping[str, Spent] = field(default_factory=dict)
    """By worker."""
    drive: Drive | None = None
    """The newest call of `run` or `resume`."""
    calls: int = 0
    """How often the study was run or resumed."""
    problem: str = ""
    """Why a part could not be read."""

    @classmethod
    def read(cls, directory: StudyDirectory) -> Accounts:
        """Read what there is; what is damaged is said, and costs these figures alone."""
        try:
            facts = read_provenance(directory)
            calls = 1 + len(facts.get("resumed", {})) if facts else 0
            return cls(read_spent(directory), read_drive(directory), calls)
        except StoreError as error:
            return cls(problem=str(error))


@dataclass(frozen=True)
class Cost:
    """Every figure of cost.

    Args:
        outcomes: One row a run.
        study: For its replicates.
        accounts: What was recorded beside.
    """

    outcomes: pl.DataFrame
    study: Study
    accounts: Accounts

    @property
    def total(self) -> Spent:
        """By all workers together."""
        return total(self.accounts.spent.values())

    @cached_property
    def runs(self) -> pl.DataFrame:
        """One row a run, spared ones included: trial, seed, status, tokens, device time, left."""
        per_step = pl.col("batch") * pl.col("context")
        ended = self.outcomes.select(
            "trial",
            "seed",
            status=pl.when((pl.col("status") == "pruned") & (pl.col("steps_trained") == 0))
            .then(pl.lit(STATUSES[-1]))
            .otherwise(pl.col("status")),
            method="method",
            worker="worker",
            steps=pl.col("steps_trained"),
            tokens=pl.col("tokens"),
            seconds=pl.col("seconds"),
            steps_left=pl.when(pl.col("status").is_in(["diverged", "pruned"]))
            .then(pl.col("steps") - pl.col("steps_trained"))
            .otherwise(0),
            per_step=per_step,
        )
        held = pl.col("seconds") / pl.col("seconds").sum().over("worker")
        times = {name: spent.device_seconds for name, spent in self.accounts.spent.items()}
        device = pl.DataFrame(
            {"worker": list(times), "held": list(times.values())},
            schema={"worker": pl.String(), "held": pl.Float64()},
        )
        charged = (
            ended.join(device, on="worker", how="left")
            .with_columns(
                # A worker of which no run held a slot has nothing to divide by.
                device_seconds=pl.when(pl.col("seconds").sum().over("worker") > 0)
                .then(pl.col("held") * held)
                .otherwise(pl.col("held") * 0)
            )
            .drop("held", "worker", "seconds")
        )
        found = pl.concat([charged, self._spared(charged)], how="vertical")
        return found.with_columns(tokens_left=pl.col("steps_left") * pl.col("per_step"))

    def _spared(self, charged: pl.DataFrame) -> pl.DataFrame:
        """The runs that were never started because a pruner had ended their cell."""
        cells = self.outcomes.group_by("trial").agg(
            pl.col("method", "steps").first(),
            missing=self.study.least_replicates - pl.len().cast(pl.Int64),
            pruned=(pl.col("status") == "pruned").any(),
            per_step=(pl.col("batch") * pl.col("context")).first(),
        )
        found = cells.filter(pl.col("pruned") & (pl.col("missing") > 0)).sort("trial")
        rows = found.select(pl.all().repeat_by("missing").explode())
        return rows.select(
            "trial",
            pl.lit(None, dtype=pl.Int64).alias("seed"),
            pl.lit(STATUSES[-1]).alias("status"),
            "method",
            pl.lit(0, dtype=pl.Int64).alias("steps"),
            pl.lit(0, dtype=pl.Int64).alias("tokens"),
            pl.col("steps").alias("steps_left"),
            "per_step",
            pl.lit(0.0).alias("device_seconds"),
        ).select(charged.columns)

    @cached_property
    def by_status(self) -> pl.DataFrame:
        """One row a status that any run has, in the order of `STATUSES`."""
        order = {status: place for place, status in enumerate(STATUSES)}
        known = pl.col("device_seconds").null_count() == 0
        found = self.runs.group_by("status").agg(
            pl.len().cast(pl.Int64).alias("runs"),
            pl.col("steps", "tokens").sum(),
            pl.when(known).then(pl.col("device_seconds").sum()).alias("device_seconds"),
            pl.col("steps_left", "tokens_left").sum(),
        )
        return found.sort(pl.col("status").replace_strict(order)).select(*BY_STATUS)

    @cached_property
    def by_worker(self) -> pl.DataFrame:
        """One row a worker whose time was recorded."""
        runs = dict(self.outcomes.group_by("worker").len().rows())
        rows = []
        for name, spent in self.accounts.spent.items():
            seconds, training = spent.device_seconds, spent.training_seconds
            evaluation = spent.evaluation_seconds
            other = None
            if training is not None and evaluation is not None:
                other = max(0.0, seconds - training - evaluation)
            rate = spent.tokens / seconds if seconds else None
            row = (seconds, training, evaluation, other, spent.tokens, rate)
            rows.append((name, runs.get(name, 0), *row))
        return pl.DataFrame(rows, schema=BY_WORKER, orient="row")

    @property
    def occupancy(self) -> float | None:
        """Steps that stand in an outcome a slot-step: how full the slots were with what counts.

        The rest are empty slots, steps after a divergence that the host had not read yet, steps
        that were lost with a worker, and those of runs that still train. None where slot-steps were
        not recorded, or not for all of the study.
        """
        slot_steps = self.total.slot_steps
        kept = int(self.outcomes["steps_trained"].sum())
        return kept / slot_steps if slot_steps and kept <= slot_steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second of device time, loading and all else included; None: not recorded."""
        spent = self.total
        return spent.tokens / spent.device_seconds if spent.device_seconds else None

    @property
    def tokens_in_vain(self) -> int | None:
        """Tokens trained that stand in no outcome; None where they were not recorded."""
        counted = int(self.outcomes["tokens"].sum())
        spent = self.total.tokens
        return spent - counted if spent >= counted and self.accounts.spent else None

    @property
    def wall_seconds(self) -> float | None:
        """From start to end of the newest call; None while it runs, or where it was killed."""
        drive = self.accounts.drive
        return (
            None if drive is None or drive.ended_at is None else drive.ended_at - drive.started_at
        )
