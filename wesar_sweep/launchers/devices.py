"""What this machine offers a worker: GPUs, processor cores, memory. Found out without torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil

_NVIDIA_SMI_TIMEOUT_S = 20
_CGROUP = Path("/sys/fs/cgroup")


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES would name them, one by one.

    Where that variable is set its entries are kept as they are, up to the first that does not
    exist, as CUDA does; otherwise they are the indices of the driver's list.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not chosen.strip():
        return ()
    present = _driver_gpus()
    if chosen is None:
        return tuple(index for index, _ in present)
    known = []
    for entry in (part.strip() for part in chosen.split(",")):
        exists = (
            any(uuid.startswith(entry) for _, uuid in present)
            if entry.startswith("GPU-")
            # The driver's list does not show the parts of a divided GPU.
            else entry.startswith("MIG-") or any(index == entry for index, _ in present)
        )
        if not exists or entry in known:
            break
        known.append(entry)
    return tuple(known)


def _driver_gpus() -> list[tuple[str, str]]:
    """(index, uuid) of every GPU of the NVIDIA driver; empty where there is no driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is not None and done.returncode == 0:
        rows = [line.split(",") for line in done.stdout.splitlines() if "," in line]
        return [(index.strip(), uuid.strip()) for index, uuid in rows]
    folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [(str(index), "") for index, _ in enumerate(folders)]


def cpu_cores() -> int:
    """Cores this process may use: the lesser of affinity and container quota, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """Cores' worth of time that the container grants; None where it sets no limit."""
    for folder in _cgroup_folders(cgroup):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
    quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us")
    period = _read(cgroup / "cpu" / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def free_memory_gb(cgroup: Path = _CGROUP) -> float:
    """Memory in GB (1e9 bytes) for new processes: the machine's, or less in a container."""
    limits = [psutil.virtual_memory().available]
    for folder in _cgroup_folders(cgroup):
        most, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if most.isdigit() and used.isdigit():
            limits.append(max(0, int(most) - int(used)))
    return float(min(limits)) / 1e9


def _cgroup_folders(cgroup: Path) -> list[Path]:
    """This process's control group and those above it, inside out."""
    own = ""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            own = line[3:].strip("/")
    folder = cgroup / own
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(cgroup))]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
