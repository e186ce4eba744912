import math

import numpy as np
import pytest

from wesar_sweep.analysis.matrix_probes import (
    HISTORY,
    MIN_HISTORY,
    columns_by_role,
    finite_median,
    finite_values,
    jumps,
    largest,
    together,
)
from wesar_sweep.store.rows import Curve

LABELS = ("e", "layers.0.u", "layers.0.q_gain", "layers.0.w", "layers.10.u", "layers.1", "p")


def curve(values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Curve:
    none = np.empty(0, dtype=np.float32)
    return Curve(
        loss=none,
        grad_norm=none,
        eval_step=np.empty(0, dtype=np.int64),
        eval_loss=none,
        probe_step=np.arange(len(values)),
        probes={"update_ratio": values},
        probe_axes={"update_ratio": LABELS},
    )


def test_only_matrices_of_layers_have_a_role() -> None:
    probed = curve(np.ones((3, len(LABELS)), dtype=np.float32))
    columns = columns_by_role(probed, "update_ratio")
    assert {role: own.tolist() for role, own in columns.items()} == {"u": [1, 4], "w": [3]}
    assert together(columns, ("u", "g", "w")).tolist() == [1, 4, 3]
    assert together(columns, ("q",)).tolist() == []
    assert columns_by_role(probed, "weight_norm") == {}


def test_what_is_not_finite_is_nowhere_counted() -> None:
    values = np.ones((3, len(LABELS)), dtype=np.float32)
    values[1, 1], values[2, 1] = math.inf, math.nan
    found = finite_values(curve(values), "update_ratio")
    assert np.isfinite(found[:, 1]).tolist() == [True, False, False]
    assert largest(found) == 1 and np.isnan(largest(found[1:, 1:2], axis=0)).all()
    assert math.isnan(largest(np.empty((0, 2)))) and math.isnan(finite_median(np.empty(0)))


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_the_median_is_that_of_numpy(length: int) -> None:
    rng = np.random.default_rng(length)
    values = rng.standard_normal((50, length))
    values[rng.random(values.shape) < 0.4] = np.nan
    values[:, 0] = np.where(np.isnan(values).all(axis=1), 0.0, values[:, 0])
    assert finite_median(values, axis=1) == pytest.approx(np.nanmedian(values, axis=1))
    assert finite_median(values.T, axis=0) == pytest.approx(np.nanmedian(values, axis=1))
    assert float(finite_median(values)) == pytest.approx(float(np.nanmedian(values)))
    assert np.isnan(finite_median(np.full((2, length), np.nan), axis=1)).all()


def test_a_jump_is_a_probe_over_the_median_of_those_before_it() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(0.3 * rng.standard_normal((60, 3)))
    values[30, 1] = np.nan
    found = jumps(values)
    for place in range(60):
        for column in range(3):
            before = values[max(place - HISTORY, 0) : place, column]
            before = before[np.isfinite(before)]
            if len(before) < MIN_HISTORY:
                assert np.isnan(found[place, column])
            else:
                wanted = values[place, column] / np.median(before)
                assert found[place, column] == pytest.approx(wanted, nan_ok=True)


def test_a_single_jump_is_not_part_of_its_own_past() -> None:
    steady = np.full((40, 1), 2e-3)
    steady[25] *= 5
    found = jumps(steady)[:, 0]
    assert np.isnan(found[:MIN_HISTORY]).all()
    assert found[25] == pytest.approx(5)
    assert np.delete(found, 25)[MIN_HISTORY:] == pytest.approx(1)
    assert np.isnan(jumps(np.zeros((40, 1)))).all(), "a matrix that does not move has no jump"
