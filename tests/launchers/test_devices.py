"""What a machine offers: GPUs as its driver lists them, the rest as its container grants it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError
from wesar_sweep.launchers.devices import cpu_cores, cpu_quota, free_memory_gb, visible_gpus
from wesar_sweep.launchers.placement import plan_workers

DRIVER = """#!/bin/sh
echo '0, GPU-aaaa-1111'
echo '1, GPU-bbbb-2222'
echo '2, GPU-cccc-3333'
"""


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists three GPUs."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(DRIVER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("-1", ()),
        ("2,0", ("2", "0")),
        ("1,7,0", ("1",)),
        ("1,1,0", ("1",)),
        ("GPU-bbbb, GPU-aaaa-1111", ("GPU-bbbb", "GPU-aaaa-1111")),
        ("GPU-dddd", ()),
        ("MIG-12", ("MIG-12",)),
    ],
)
def test_the_users_choice_of_gpus_is_kept(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: tuple[str, ...]
) -> None:
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == expected


@pytest.mark.usefixtures("three_gpus")
def test_one_worker_a_gpu_and_never_two_on_one() -> None:
    placements = plan_workers(Sweep())
    assert [placement.gpu for placement in placements] == ["0", "1", "2"]
    assert [placement.name for placement in placements] == ["w0", "w1", "w2"]
    assert {placement.device for placement in placements} == {"cuda"}
    assert placements[1].environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert placements[1].environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert [placement.gpu for placement in plan_workers(Sweep(workers=2))] == ["0", "1"]
    with pytest.raises(ConfigError, match="4 workers for 3 visible GPUs"):
        plan_workers(Sweep(workers=4))


@pytest.mark.usefixtures("three_gpus")
def test_the_processor_where_it_is_asked_for() -> None:
    placements = plan_workers(Sweep(device="cpu", workers=5))
    assert len(placements) == 5
    for placement in placements:
        assert (placement.device, placement.gpu) == ("cpu", None)
        assert placement.environment["CUDA_VISIBLE_DEVICES"] == ""
        assert placement.environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.usefixtures("no_gpu")
def test_one_worker_a_core_by_default() -> None:
    assert len(plan_workers(Sweep())) == max(1, min(cpu_cores(), int(free_memory_gb())))


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_asked_for_in_vain() -> None:
    with pytest.raises(ConfigError, match="no GPU is visible"):
        plan_workers(Sweep(device="cuda"))


@pytest.mark.usefixtures("three_gpus")
def test_inline_is_one_worker() -> None:
    assert [placement.gpu for placement in plan_workers(Sweep(launcher="inline"))] == ["0"]
    with pytest.raises(ConfigError, match="the inline launcher is one worker"):
        plan_workers(Sweep(launcher="inline", workers=2))


def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_a_containers_quota(tmp_path: Path, text: str, expected: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == expected


def test_a_containers_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory_gb(tmp_path) == 0.002
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_gb(tmp_path) > 0.01


@pytest.mark.usefixtures("three_gpus")
def test_a_clusters_devices_are_slurms_to_give_out() -> None:
    """Nothing of this machine counts: neither its GPUs nor their number."""
    placements = plan_workers(Sweep(launcher="slurm", workers=5, gpus_per_worker=1))
    assert [placement.name for placement in placements] == ["w0", "w1", "w2", "w3", "w4"]
    assert {placement.device for placement in placements} == {"auto"}
    assert all(placement.on_gpu for placement in placements)
    assert "CUDA_VISIBLE_DEVICES" not in placements[0].environment
    assert len(plan_workers(Sweep(launcher="slurm"))) == 1


@pytest.mark.parametrize(
    ("keys", "device", "threads"),
    [
        ({}, "cpu", "1"),
        ({"cpus_per_worker": 4}, "cpu", "1"),
        ({"device": "cpu", "gpus_per_worker": 1}, "cpu", "1"),
        ({"device": "cuda"}, "cuda", "1"),
        ({"gpus_per_worker": 1, "cpus_per_worker": 4}, "auto", "4"),
        ({"slurm_additional_parameters": {"gres": "gpu:h100:1"}}, "auto", "1"),
        ({"slurm_additional_parameters": {"gpus-per-task": 1}}, "auto", "1"),
        ({"slurm_additional_parameters": {"exclude": "n7"}}, "cpu", "1"),
    ],
)
def test_a_job_without_a_gpu_has_one_thread(
    keys: dict[str, Any], device: str, threads: str
) -> None:
    (placement,) = plan_workers(Sweep(launcher="slurm", **keys))
    assert placement.device == device
    assert placement.environment["OMP_NUM_THREADS"] == threads
