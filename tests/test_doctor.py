"""`doctor`: what it says of this machine, and what it says when something is wrong."""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from typer.testing import CliRunner

from wesar_sweep import cli, doctor
from wesar_sweep.config import parse_study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.kernels.check import Check
from wesar_sweep.launchers.devices import cpu_cores

STUDY = """
space: {lr: [1e-3, 1e-2], width: [8, 16]}
model: {depth: 1, heads: 2, context: 16}
training: {steps: 40, batch: 2}
"""
CPU = Sweep(device="cpu")


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def run(*words, code=0, **variables):
    """The command as users have it: no interpreter of Triton's, a wide terminal."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "wesar_sweep", "doctor", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, "COLUMNS": "200", **variables},
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def quick(monkeypatch):
    """No measurements and no kernels: for tests of what is said."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(doctor, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(doctor, "matrix_rate", lambda device, *, width: 1e11)


def whats(facts):
    return " | ".join(problem["what"] for problem in facts["problems"])


def test_this_machine_in_words(study):
    done = run(study, "--device", "cpu")
    # Tables are filled up with blanks.
    printed = re.sub(" +$", "", done.stdout, flags=re.MULTILINE)
    assert printed.rstrip().endswith("This machine is fit to train.")
    for words in (
        rf"^CPU +\S.*, {cpu_cores()} cores?$",
        r"^disk +[\d.]+ GB free for .*results$",
        r"^versions +python 3\.\d+\.\d+, .*torch \d.*optuna 5\.",
        r"^memory copy +[\d.]+ GB/s \(read and written counted\)$",
        r"^float32 matrix product +[\d.]+ GFLOP/s \(1024 cubed\)$",
        r"^stacking +batched products (do not )?depend on the number of runs$",
        r"^kernels +not used: they are for GPUs",
        r"^tiny: slots of each of \d+ workers?, in fp32, from 80% of the free memory$",
        r"^ +16 +1 +16 +2 +4 +[\d.]+ +[\d.]+ +\d+ fit; one core trains more no faster$",
    ):
        assert re.search(words, printed, flags=re.MULTILINE), f"{words}\n{printed}"
    assert "choosing the slots" in done.stderr


def test_this_machine_as_json(study):
    facts = json.loads(run(study, "--device", "cpu", "--json").stdout)
    assert facts["fit"] is True and facts["device"] == "cpu"
    assert facts["machine"]["cores"] == cpu_cores() and facts["machine"]["memory_gb"] > 0.1
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["kernels"] == {"used": False, "why": facts["kernels"]["why"], "checks": []}
    copy, product = facts["speed"]
    # Between a tenth and a hundred times what a core of our day does.
    assert 0.5 < copy["value"] < 1000 and 1 < product["value"] < 10_000
    assert isinstance(facts["batched_products_independent"], bool)
    rows = facts["slots"]["rows"]
    assert [row["width"] for row in rows] == [8, 16]
    assert all(1 <= row["slots"] <= 4 for row in rows)
    assert facts["slots"]["precision"] == "fp32" and facts["slots"]["slots_set"] is None


def test_a_precision_that_this_device_has_not(study, quick):
    said = doctor.examine(
        parse_study({"space": {"lr": 0.1}, "training": {"precision": "bf16"}}), sweep=CPU
    )
    assert not said["fit"] and said["slots"] is None
    assert said["problems"][-1] == {
        "what": "precision bf16 needs a GPU, and the study would be trained on a CPU",
        "do": "use --set training.precision=fp32, or leave it out",
        "failed": True,
    }


def planted(error):
    """A check whose kernels are off by so much; or break."""

    def worst_error(device, dtype):
        if isinstance(error, Exception):
            raise error
        return error

    return Check("planted", worst_error, {torch.float32: 1e-4})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (1e-6, 0, r"planted +float32 +1\.0e-06 +1e-04 +ok"),
        (0.5, 1, r"planted +float32 +5\.0e-01 +1e-04 +FAILED"),
        (float("inf"), 1, r"planted +float32 +– +1e-04 +FAILED *\n  not finite"),
        (RuntimeError("no such device\nmore"), 1, r"FAILED *\n  RuntimeError: no such device *\n"),
    ],
)
def test_a_kernel_that_does_not_equal_its_reference(error, code, said, quick, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(doctor.check, "checks", lambda: [planted(1e-9), planted(error)])
    done = CliRunner().invoke(cli.app, ["doctor", "--device", "cpu"])
    assert done.exit_code == code, done.output
    assert re.search(said, done.stdout), done.stdout
    assert ("This machine is not fit." in done.stdout) == (code == 1)
    assert ("do not equal their references here: planted" in done.stdout) == (code == 1)
    as_json = CliRunner().invoke(cli.app, ["doctor", "--device", "cpu", "--json"])
    assert as_json.exit_code == code
    facts = json.loads(as_json.stdout)
    assert [row["ok"] for row in facts["kernels"]["checks"]] == [True, code == 0]


def test_no_slots_are_chosen_on_broken_kernels(quick, monkeypatch):
    """A training step on them can only fail in some other way."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    study = parse_study({"space": {"lr": 0.1}})
    for error, chosen in ((0.5, False), (1e-9, True)):
        monkeypatch.setattr(doctor.check, "checks", lambda error=error: [planted(error)])
        assert (doctor.examine(study, sweep=CPU)["slots"] is not None) == chosen


def test_a_torch_without_cuda_beside_a_gpu(quick, monkeypatch):
    monkeypatch.setattr(doctor, "visible_gpus", lambda: ("0",))
    monkeypatch.setattr(torch.version, "cuda", None)
    facts = doctor.examine(sweep=Sweep())
    assert not facts["fit"] and facts["device"] is None
    (problem,) = facts["problems"]
    assert "a build without CUDA" in problem["what"]
    assert problem["do"].startswith("pip uninstall -y torch && pip install torch")
    # The control: asked for the CPU, the machine is as good as any.
    assert doctor.examine(sweep=CPU)["fit"]


def test_a_gpu_that_torch_cannot_use(quick, monkeypatch):
    monkeypatch.setattr(doctor, "visible_gpus", lambda: ("0",))
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def refuse(*args, **options):
        raise RuntimeError("The NVIDIA driver on your system is too old\nsee elsewhere")

    monkeypatch.setattr(doctor.torch, "zeros", refuse)
    facts = doctor.examine(sweep=Sweep())
    assert not facts["fit"] and whats(facts).endswith("driver on your system is too old")
    assert "update the NVIDIA driver" in facts["problems"][0]["do"]


def test_cuda_is_asked_for_and_there_is_no_gpu():
    done = run("--device", "cuda", code=1, CUDA_VISIBLE_DEVICES="")
    assert "no GPU is visible" in done.stdout and "--device cpu" in done.stdout


def test_little_room_for_results(quick, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(3e8))
    facts = doctor.examine(sweep=CPU)
    assert not facts["fit"] and "0.30 GB are free" in whats(facts)
    assert "--out" in facts["problems"][0]["do"]


@pytest.mark.parametrize(
    ("bandwidth", "rate", "slow"),
    [(4.28e12, 7.85e14, ""), (2e12, 7.85e14, "device copy"), (4.28e12, 4e14, "matrix product")],
)
def test_a_slower_gpu_than_others_of_its_kind(bandwidth, rate, slow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(doctor, "copy_bandwidth", lambda device: bandwidth)
    monkeypatch.setattr(doctor, "matrix_rate", lambda device, *, width: rate)
    found = doctor.Findings()
    copy, product = doctor.measure(torch.device("cuda", 0), found)
    assert (copy["unit"], copy["known"]) == ("TB/s", (4.3, 4.3))
    assert (product["unit"], product["known"]) == ("TFLOP/s", (770.0, 800.0))
    assert [slow in trouble.what for trouble in found.troubles] == ([True] if slow else [])
    # Slow is not wrong.
    assert not any(trouble.failed for trouble in found.troubles)


def test_measurements_are_of_the_size_they_claim():
    """Twice the work takes longer: what is timed is what is counted."""
    device = torch.device("cpu")
    assert doctor.matrix_rate(device, width=128) > 0
    seconds = [2 * width**3 / doctor.matrix_rate(device, width=width) for width in (64, 512)]
    assert seconds[1] > 4 * seconds[0]


def test_architectures_of_a_study_that_searches():
    study = parse_study(
        {
            "space": {
                "lr": {"low": 1e-4, "high": 1.0, "log": True},
                "width": [8, 16],
                "depth": {"low": 1, "high": 500},
            },
            "sampler": {"name": "tpe", "cells": 4},
        }
    )
    found = doctor.architectures(study)
    assert {a.width for a in found} == {8, 16}
    assert {1, 500} <= {a.depth for a in found}


def test_many_architectures_are_thinned_out_with_both_ends():
    study = parse_study({"space": {"depth": {"low": 1, "high": 40}}})
    rows = doctor.slots_report(study, torch.device("cpu"), memory_fraction=0.8, workers=1)
    assert len(rows) == doctor.MOST_ARCHITECTURES
    assert (rows[0]["depth"], rows[-1]["depth"]) == (1, 40)


@pytest.mark.parametrize(
    ("fit", "why"),
    [
        ((4, 1, 10, 0, 1000), "100 fit; one core trains more no faster"),
        ((3, 1, 10, 5, 38), "as many as fit"),
        ((3, 2, 10, 5, 38), "as many as fit, a step in 2 parts"),
        ((1, 1, 10, 0, 8), "the least, though it may not fit"),
        ((0, 8, 0, 0, 0), "not even one run fits, a sequence at a time"),
    ],
)
def test_why_so_many_slots(fit, why):
    assert doctor._why(doctor.memory.Fit(*fit), on_cpu=True) == why


def test_overrides_need_a_study():
    assert "there is no study to change" in run("--set", "training.steps=5", code=2).stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_this_gpu(study):
    facts = json.loads(run(study, "--json").stdout)
    assert facts["fit"] and facts["device"] == "cuda"
    assert facts["kernels"]["used"] and all(row["ok"] for row in facts["kernels"]["checks"])
    assert {row["dtype"] for row in facts["kernels"]["checks"]} == {"bfloat16", "float32", "int32"}
    assert all(row["slots"] >= 1 for row in facts["slots"]["rows"])
