"""Does the sweep make sense as a whole: do its keys go with its launcher?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wesar_sweep.config.findings import Finding
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.config.words import listed
from wesar_sweep.config.yaml12 import KeyPath

SLURM_KEYS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "nodes",
    "gpus_per_worker",
    "cpus_per_worker",
    "memory_gb_per_worker",
    "array_parallelism",
    "signal_lead_s",
    "setup",
    "python",
    "slurm_additional_parameters",
)
"""Keys that say something to the slurm launcher alone."""

_OURS = {
    "array": "workers",
    "time": "timeout_min",
    "signal": "signal_lead_s",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_worker",
    "mem": "memory_gb_per_worker",
    "output": None,
    "error": None,
    "open-mode": None,
    "requeue": None,
    "no-requeue": None,
    "nodes": "nodes",
    "ntasks": "ranks_per_worker",
    "ntasks-per-node": "ranks_per_worker",
}
"""Option of sbatch -> the key that sets it; None where a worker depends on the launcher's."""


def sweep_findings(sweep: Sweep, *, wrong: Sequence[KeyPath] = ()) -> list[Finding]:
    """Everything that contradicts itself in a sweep whose single values are valid.

    Args:
        sweep: The sweep, with defaults in place of what is wrong already.
        wrong: Paths of what was wrong and was replaced; findings that rest on them are left out.
    """
    checks = (_foreign, _lead, _checkpoints, _ranks, _options)
    found = [finding for check in checks for finding in check(sweep)]
    return [finding for finding in found if not finding.rests_on(wrong)]


def _foreign(sweep: Sweep) -> Iterator[Finding]:
    if sweep.launcher == "slurm":
        return
    for key in SLURM_KEYS:
        if getattr(sweep, key) != Sweep.model_fields[key].get_default(call_default_factory=True):
            yield Finding(
                (key,),
                f"{key} belongs to launcher slurm, and this sweep has launcher {sweep.launcher}",
                hint="remove the key, or set launcher: slurm",
                involves=(("launcher",),),
                at_key=True,
            )


def _lead(sweep: Sweep) -> Iterator[Finding]:
    if sweep.signal_lead_s is not None and sweep.signal_lead_s >= sweep.timeout_min * 60:
        yield Finding(
            ("signal_lead_s",),
            f"signal_lead_s {sweep.signal_lead_s} leaves nothing of timeout_min "
            f"{sweep.timeout_min}",
            allowed=f"a whole number, below {sweep.timeout_min * 60}",
            involves=(("timeout_min",),),
        )


def _checkpoints(sweep: Sweep) -> Iterator[Finding]:
    if sweep.launcher == "slurm" and sweep.checkpoint_min is None:
        yield Finding(
            ("checkpoint_min",),
            "without checkpoints a run longer than timeout_min begins anew in every job, "
            "without end",
            allowed="a number of minutes",
            hint="with a large one, one is made only when the job is told to stop",
            involves=(("launcher",),),
        )


def _ranks(sweep: Sweep) -> Iterator[Finding]:
    gpus, ranks = sweep.gpus_per_worker, sweep.ranks_per_worker
    if gpus and sweep.device != "cpu" and gpus < ranks:
        yield Finding(
            ("gpus_per_worker",),
            f"{gpus} GPUs for {ranks} ranks of a worker; each needs one of its own",
            allowed=f"a whole number, at least {ranks}",
            involves=(("ranks_per_worker",), ("device",)),
        )
    # Each node, and each task, gets the same.
    for key, parts_key in (
        ("ranks_per_worker", "nodes"),
        ("gpus_per_worker", "nodes"),
        ("cpus_per_worker", "ranks_per_worker"),
    ):
        whole, parts = getattr(sweep, key), getattr(sweep, parts_key)
        if whole and whole % parts:
            yield Finding(
                (key,),
                f"{key} {whole} cannot be spread evenly over {parts_key} {parts}",
                allowed=f"a multiple of {parts}",
                involves=((parts_key,),),
            )


def _options(sweep: Sweep) -> Iterator[Finding]:
    for name in sweep.slurm_additional_parameters:
        option = name.lstrip("-").replace("_", "-")
        if option not in _OURS:
            continue
        key = _OURS[option]
        yield Finding(
            ("slurm_additional_parameters", name),
            f"--{option} is set by the launcher",
            allowed=f"any option of sbatch but {listed(_OURS)}",
            hint=f"use {key}" if key else "remove it",
            at_key=True,
        )
