"""Which worker gets which device: one a GPU, or one a processor core with one thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError, Problem
from wesar_sweep.launchers.devices import cpu_cores, free_memory_gb, visible_gpus

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_CPU_WORKER_GB = 1.0
"""Memory reckoned for a worker on the processor, torch and its libraries included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlacement:
    """One worker and its device."""

    index: int
    name: str
    """``w0``, ``w1``, …"""
    device: Literal["cpu", "cuda", "auto"]
    """``auto``: whatever the node has."""
    gpu: str | None
    """The GPU, or one a rank, as CUDA_VISIBLE_DEVICES names them; None on the processor."""
    environment: dict[str, str]
    """Variables that keep the worker to its device and threads."""

    @property
    def on_gpu(self) -> bool:
        """Whether the worker trains on a GPU, as far as can be told here."""
        return self.device != "cpu"


def plan_workers(sweep: Sweep) -> list[WorkerPlacement]:
    """The workers of a sweep, on this machine or as jobs of a Slurm cluster.

    On GPUs one a GPU and never two on the same: processes that share one take turns and gain
    nothing. On the processor one a core, with one thread each: faster than one worker with all the
    threads, and the same bits on any machine.

    Raises:
        ConfigError: More workers than the devices or the launcher can hold, or GPUs are asked for
            and none is visible.
    """
    if sweep.launcher == "slurm":
        return [_on_cluster(index, sweep=sweep) for index in range(sweep.workers or 1)]
    gpus = visible_gpus() if sweep.device != "cpu" else ()
    if sweep.device == "cuda" and not gpus:
        raise ConfigError(
            Problem(
                "no GPU is visible",
                path="device",
                value="cuda",
                allowed="auto, cpu",
                hint="check nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
        )
    if sweep.launcher == "inline" and sweep.workers not in (None, 1):
        raise ConfigError(
            Problem(
                "the inline launcher is one worker, this process",
                path="workers",
                value=repr(sweep.workers),
                allowed="1",
                hint="use launcher: local for more",
            )
        )
    ranks = sweep.ranks_per_worker
    if gpus:
        most = len(gpus) // ranks
        if not most:
            raise ConfigError(
                Problem(
                    f"{ranks} ranks a worker for {len(gpus)} visible GPUs; each needs its own",
                    path="ranks_per_worker",
                    value=repr(ranks),
                    allowed=f"1 to {len(gpus)}",
                )
            )
        count = 1 if sweep.launcher == "inline" else sweep.workers or most
        if count > most:
            each = "one" if ranks == 1 else str(ranks)
            raise ConfigError(
                Problem(
                    f"{count} workers for {len(gpus)} visible GPUs; each needs {each} of its own",
                    path="workers",
                    value=repr(count),
                    allowed=f"1 to {most}",
                    hint="raise slots instead: one worker fills a GPU with many runs",
                )
            )
        threads = max(1, cpu_cores() // (count * ranks))
        return [
            _on_gpu(index, gpu=",".join(gpus[index * ranks : (index + 1) * ranks]), threads=threads)
            for index in range(count)
        ]
    count = 1 if sweep.launcher == "inline" else sweep.workers or _default_cpu_workers(ranks)
    return [_on_cpu(index) for index in range(count)]


def _default_cpu_workers(ranks: int) -> int:
    return max(1, min(cpu_cores(), int(free_memory_gb() / _CPU_WORKER_GB)) // ranks)


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(_THREAD_VARIABLES, str(count))


def _on_gpu(index: int, *, gpu: str, threads: int) -> WorkerPlacement:
    variables = {**_threads(threads), "CUDA_VISIBLE_DEVICES": gpu}
    if gpu.replace(",", "").isdigit():
        # The driver's list is in the order of the bus; CUDA's own order is the fastest first.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return WorkerPlacement(
        index=index, name=f"w{index}", device="cuda", gpu=gpu, environment=variables
    )


def _on_cpu(index: int) -> WorkerPlacement:
    return WorkerPlacement(
        index=index,
        name=f"w{index}",
        device="cpu",
        gpu=None,
        environment={**_threads(1), "CUDA_VISIBLE_DEVICES": ""},
    )


def _on_cluster(index: int, *, sweep: Sweep) -> WorkerPlacement:
    """On a GPU if the job asks for one in any way; CUDA_VISIBLE_DEVICES is Slurm's to set."""
    wants_gpu = bool(sweep.gpus_per_worker) or any(
        "gpu" in f"{name}={value}" or "gres" in name
        for name, value in sweep.slurm_additional_parameters.items()
    )
    on_cpu = sweep.device == "cpu" or (sweep.device == "auto" and not wants_gpu)
    # Without a GPU one thread, as on this machine: the same bits everywhere.
    return WorkerPlacement(
        index=index,
        name=f"w{index}",
        device="cpu" if on_cpu else sweep.device,
        gpu=None,
        environment=_threads(
            1 if on_cpu else (sweep.cpus_per_worker or 1) // sweep.ranks_per_worker or 1
        ),
    )
