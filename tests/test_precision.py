"""A precision that the device has not is refused before anything is trained: exit code 2."""

import subprocess
import sys

import pytest

from wesar_sweep import run
from wesar_sweep.config import parse_study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError

STUDY = "space: {lr: 1e-3}\ntraining: {precision: tf32, steps: 30}\n"


@pytest.mark.parametrize("command", [["run"], ["plan", "--no-probe"]])
def test_from_the_command_line(command, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-m", "wesar_sweep", *command, "study.yaml", "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "training.precision: precision tf32 needs a GPU" in done.stderr
    assert "--set training.precision=fp32" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_from_python(tmp_path):
    study = parse_study({"space": {"lr": 1e-3}, "training": {"precision": "bf16"}})
    with pytest.raises(ConfigError, match="precision bf16 needs a GPU"):
        run(study, on=Sweep(device="cpu"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
