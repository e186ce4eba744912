"""A sweep: the machines a study runs on. Nothing here may change what a run computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen

Count = Annotated[int, Field(ge=1)]
Hours = Annotated[float, Field(gt=0)]


class Budget(Frozen):
    """What a study may spend, all workers together; null means without limit."""

    gpu_hours: Hours | None = Field(
        default=None,
        description="Device hours of all workers of the study, of earlier calls too; a worker on "
        "the processor counts as one device.",
    )
    wall_hours: Hours | None = Field(default=None, description="Hours of this call by the clock.")
    trials: Count | None = Field(
        default=None, description="Cells that may be started over the whole study."
    )
    tokens: Count | None = Field(
        default=None,
        description="Tokens trained by all workers of the study, those of unfinished runs too.",
    )


class Sweep(Frozen):
    """Where a study runs: launcher, devices, slots and limits."""

    launcher: Literal["inline", "local"] = Field(
        default="local",
        description="inline: in this process; local: worker processes on this machine.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Count | None = Field(
        default=None, description="Default: one a GPU, else one a CPU core."
    )
    slots: Count | None = Field(
        default=None, description="Runs a worker trains at once; default: from memory."
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Share of the free memory of the device that the slots may fill."
    )
    timeout_min: Annotated[int, Field(ge=1)] = Field(
        default=7 * 24 * 60, description="A worker still running after so many minutes is stopped."
    )
    checkpoint_min: Annotated[float, Field(gt=0)] | None = Field(
        default=5.0,
        description="Minutes between two checkpoints of a worker's unfinished runs; one is also "
        "made when it is asked to stop. null: none, and an interrupted run begins anew.",
    )
    ranks_per_worker: Count = Field(
        default=1,
        description="Processes, each with a device of its own, that train each run together, data "
        "parallel: for runs too large for one device. training.batch must be a multiple of it.",
    )
    worker_restarts: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Dead workers that are replaced, all together; default: the study's retries.",
    )
    budget: Budget = Field(
        default_factory=Budget, description="What may be spent before the study is stopped."
    )
