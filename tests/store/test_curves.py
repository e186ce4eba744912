"""Curves on disk: bit for bit, whole or absent, no pickle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.curves import read_curve, write_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Curve

CURVE = Curve(
    loss=np.array([5.5, np.nan, np.inf], dtype=np.float32),
    grad_norm=np.array([1.0, 2.0, 3e38], dtype=np.float32),
    eval_step=np.array([0, 3]),
    eval_loss=np.array([5.5, np.nan], dtype=np.float32),
    probe_step=np.array([0]),
    probes={
        "gate": np.array([[1.0, 2.0]], dtype=np.float32),
        "residual_rms": np.ones((1, 1), "f4"),
    },
    probe_axes={"gate": ("layers.0.q", "layers.0.k"), "residual_rms": ("layers.0",)},
    set_step={"wiki": np.array([2, 3])},
    set_figures={"wiki.loss": np.array([5.0, np.nan], "f4"), "wiki.bpb": np.ones(2, "f4")},
)


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "study")


def test_a_curve_comes_back_bit_for_bit(directory: StudyDirectory) -> None:
    path = write_curve(directory, 4, 2, CURVE)
    assert path == directory.curve_file(4, 2)
    back = read_curve(directory, 4, 2)
    for name in ("loss", "grad_norm", "eval_step", "eval_loss", "probe_step"):
        before, after = getattr(CURVE, name), getattr(back, name)
        assert after.dtype == before.dtype
        assert after.tobytes() == before.tobytes()
    assert back.probe_axes == CURVE.probe_axes
    assert back.probes.keys() == CURVE.probes.keys()
    np.testing.assert_array_equal(back.probes["gate"], CURVE.probes["gate"])
    np.testing.assert_array_equal(back.set_step["wiki"], [2, 3], strict=True)
    assert back.set_figures.keys() == CURVE.set_figures.keys()
    for name, figures in CURVE.set_figures.items():
        np.testing.assert_array_equal(back.set_figures[name], figures, strict=True)


def test_a_curve_from_before_there_were_sets_reads(directory: StudyDirectory) -> None:
    write_curve(directory, 0, 0, replace(CURVE, set_step={}, set_figures={}))
    back = read_curve(directory, 0, 0)
    assert back.set_step == back.set_figures == {}


def test_only_the_curve_is_left_in_the_folder(directory: StudyDirectory) -> None:
    write_curve(directory, 0, 0, CURVE)
    assert [path.name for path in directory.curves_folder.iterdir()] == ["t00000-s000.npz"]


def test_a_missing_curve_is_an_error_with_its_name(directory: StudyDirectory) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*t00001-s002\.npz: No such file"):
        read_curve(directory, 1, 2)


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_half_a_file_is_an_error_not_half_a_curve(directory: StudyDirectory, keep: int) -> None:
    path = write_curve(directory, 0, 0, CURVE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="not a whole curve file"):
        read_curve(directory, 0, 0)


def test_a_pickle_is_not_opened(directory: StudyDirectory) -> None:
    path = directory.curve_file(0, 0)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        np.savez(file, loss=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StoreError, match="not a whole curve file"):
        read_curve(directory, 0, 0)
