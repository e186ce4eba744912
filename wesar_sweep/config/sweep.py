"""A sweep: the machines a study runs on. Nothing here may change what a run computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
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

    launcher: Literal["inline", "local", "slurm"] = Field(
        default="local",
        description="inline: in this process; local: worker processes on this machine; slurm: "
        "jobs of a Slurm cluster.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Count | None = Field(
        default=None, description="Default: one a GPU, else one a CPU core; slurm: 1."
    )
    slots: Count | None = Field(
        default=None, description="Runs a worker trains at once; default: from memory."
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Share of the free memory of the device that the slots may fill."
    )
    timeout_min: Annotated[int, Field(ge=1)] = Field(
        default=7 * 24 * 60,
        description="A worker still running after so many minutes is stopped; slurm: the job's "
        "time limit, after which it comes back.",
    )
    checkpoint_min: Annotated[float, Field(gt=0)] | None = Field(
        default=5.0,
        description="Minutes between two checkpoints of a worker's unfinished runs; one is also "
        "made when it is asked to stop. null: none, and an interrupted run begins anew (not "
        "with slurm).",
    )
    ranks_per_worker: Count = Field(
        default=1,
        description="Processes, each with a device of its own, that train each run together, data "
        "parallel: for runs too large for one device. training.batch must be a multiple of it. "
        "slurm: the tasks of a worker's job.",
    )
    worker_restarts: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Dead workers that are replaced, all together; default: the study's retries.",
    )
    budget: Budget = Field(
        default_factory=Budget, description="What may be spent before the study is stopped."
    )
    partition: Text | None = Field(
        default=None, description="slurm: partition or partitions; default: the cluster's."
    )
    account: Text | None = Field(default=None, description="slurm: account that is charged.")
    qos: Text | None = Field(default=None, description="slurm: quality of service.")
    constraint: Text | None = Field(
        default=None, description="slurm: features a node must have, such as h100."
    )
    nodes: Count = Field(
        default=1,
        description="slurm: nodes of a worker's job; its ranks, GPUs and memory are spread over "
        "them evenly.",
    )
    gpus_per_worker: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="slurm: GPUs of a worker's job, as --gres=gpu:N; default: none."
    )
    cpus_per_worker: Count | None = Field(
        default=None, description="slurm: cores of a worker's job; default: one a rank."
    )
    memory_gb_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="slurm: memory of a worker's job; default: the cluster's."
    )
    array_parallelism: Count | None = Field(
        default=None, description="slurm: jobs of one array that run at once; default: all."
    )
    signal_lead_s: Count | None = Field(
        default=None,
        description="slurm: seconds before the time limit at which a worker is told to stop; "
        "default: 120, at most half the time limit.",
    )
    setup: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="slurm: shell lines before the worker, such as module load cuda.",
    )
    python: Text | None = Field(
        default=None,
        description="slurm: command that starts Python on a node, such as apptainer exec x.sif "
        "python; default: this interpreter.",
    )
    slurm_additional_parameters: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="slurm: any further option of sbatch by its name, such as {exclude: node7}.",
    )
    storage: str | None = Field(
        default=None,
        repr=False,
        description="Where the study's database is: null for SQLite in the results directory (one "
        "host), or postgresql://user@host:port/database (any number of hosts). With null, the "
        "environment variable WESAR_STORAGE may say it.",
    )
    heartbeat_grace_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0,
        description="With PostgreSQL: a worker that was not heard of for so many seconds counts as "
        "dead, and others go on with its runs.",
    )
