"""A sweep: the machines a study runs on. Nothing here may change what a run computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen

Count = Annotated[int, Field(ge=1)]


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
