"""The tables of a published study: what comes back, how exactly, and what is said of damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.frames import outcomes_frame, read_curves, read_outcomes_frame
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.published import (
    LOSS_BITS,
    OTHER_BITS,
    read_published_curves,
    read_published_outcomes,
    rounded_to_bits,
    write_published,
)
from wesar_sweep.store.rows import Curve


def curve(seed: int = 0, *, steps: int = 200) -> Curve:
    rng = np.random.default_rng(seed)
    loss = (3 + rng.standard_normal(steps)).astype(np.float32)
    loss[-1] = math.inf
    probed = np.arange(0, steps, 50)
    ratios = np.exp(rng.standard_normal((len(probed), 3))).astype(np.float32)
    ratios[-1, 1] = math.nan
    return Curve(
        loss=loss,
        grad_norm=np.exp(rng.standard_normal(steps)).astype(np.float32),
        eval_step=np.array([0, steps]),
        eval_loss=np.array([5.5, math.nan], dtype=np.float32),
        probe_step=probed,
        # Not in the order of the alphabet, which nothing may rely on.
        probes={"update_ratio": ratios, "gate": ratios[:, :1]},
        probe_axes={"update_ratio": ("layers.0.w", "layers.0.q", "e"), "gate": ("layers.0.w",)},
        set_step={"wiki": np.array([100, 200]), "lambada": np.array([200])},
        set_figures={
            "wiki.loss": np.array([4.0, 3.9], dtype=np.float32),
            "lambada.loss": np.array([7.0], dtype=np.float32),
            "lambada.accuracy": np.array([0.1], dtype=np.float32),
        },
    )


EMPTY = Curve(
    loss=np.array([], dtype=np.float32),
    grad_norm=np.array([], dtype=np.float32),
    eval_step=np.array([], dtype=np.int64),
    eval_loss=np.array([], dtype=np.float32),
    probe_step=np.array([], dtype=np.int64),
)


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    curves = {(2, 0): curve(2), (0, 1): curve(1), (1, 0): EMPTY}
    write_published(StudyDirectory(tmp_path), outcomes=outcomes_frame([]), curves=curves)
    return StudyDirectory(tmp_path)


def test_a_curve_comes_back_rounded_and_otherwise_as_it_was(directory: StudyDirectory) -> None:
    found = read_published_curves(directory)
    assert list(found) == [(0, 1), (1, 0), (2, 0)]
    before, after = curve(2), found[2, 0]
    np.testing.assert_allclose(after.loss, before.loss, rtol=2.0**-LOSS_BITS)
    np.testing.assert_allclose(after.grad_norm, before.grad_norm, rtol=2.0**-OTHER_BITS)
    # Control: something was rounded.
    assert (after.loss != before.loss).any() and (after.grad_norm != before.grad_norm).any()
    for name in ("eval_step", "eval_loss", "probe_step"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert after.probe_axes == before.probe_axes
    for name, values in before.probes.items():
        np.testing.assert_allclose(after.probes[name], values, rtol=2.0**-OTHER_BITS)
    assert list(after.set_figures) == list(before.set_figures)
    for name, values in before.set_figures.items():
        np.testing.assert_array_equal(after.set_figures[name], values)
    for name, steps in before.set_step.items():
        np.testing.assert_array_equal(after.set_step[name], steps)
    assert {v.dtype for v in (after.loss, after.grad_norm, after.eval_loss)} == {np.dtype("f4")}


def test_a_run_that_trained_nothing_has_an_empty_curve(directory: StudyDirectory) -> None:
    after = read_published_curves(directory)[1, 0]
    assert len(after.loss) == len(after.probe_step) == len(after.eval_step) == 0
    assert after.probes == {} and after.set_figures == {}


def test_the_readers_of_a_results_directory_read_it(directory: StudyDirectory) -> None:
    assert directory.published
    curves, unreadable = read_curves(directory, [(0, 1), (5, 5)])
    assert list(curves) == [(0, 1)] and unreadable == []
    assert read_outcomes_frame(directory).is_empty()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_table(directory: StudyDirectory, damage: str) -> None:
    path = directory.probes_table
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"probes\.parquet"):
        read_published_curves(directory)
    # What does not need it is read all the same, and the report says what is missing.
    curves, (problem,) = read_curves(directory, [(0, 1)])
    assert curves == {} and "probes.parquet" in problem
    assert read_outcomes_frame(directory).columns


def test_outcomes_come_back_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, math.nan, math.inf, None]
    frame = pl.DataFrame({"trial": [0, 1, 2, 3], "val_loss": values, "reason": ["", "a", "ü", ""]})
    write_published(StudyDirectory(tmp_path), outcomes=frame, curves={})
    again = read_published_outcomes(StudyDirectory(tmp_path))
    # Null and NaN are two things here: frames are compared with both.
    assert again.equals(frame, null_equal=True)
    assert again["val_loss"].is_null().to_list() == [False, False, False, True]


def test_rounding_is_to_the_nearest_and_to_even() -> None:
    # Three bits: 1, 1.25, 1.5, 1.75, 2, 2.5 …
    assert rounded_to_bits([1.1, 1.2, 1.125, 1.375, 1.9, -1.2], bits=3).tolist() == [
        1.0, 1.25, 1.0, 1.5, 2.0, -1.25,
    ]  # fmt: skip
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan]
    kept = rounded_to_bits(odd, bits=9)
    np.testing.assert_array_equal(kept, np.array(odd, dtype=np.float32))
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    for bits in (5, 9, 13):
        exact = np.abs(rounded_to_bits(values, bits=bits) / values - 1).max()
        assert 2.0 ** -(bits + 1) < exact <= 2.0**-bits
    np.testing.assert_array_equal(rounded_to_bits(values, bits=24), values)
