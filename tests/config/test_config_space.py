"""Values of parameters, conditions and the cells of a grid."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.config import Choices, Range, active, grid_cells, parse_study, values
from wesar_sweep.config.space import When, parents_first, possible_values


@pytest.mark.parametrize(
    ("knob", "parameter", "expected"),
    [
        ("lr", Choices(choices=(1, 1e-3)), (1.0, 1e-3)),
        ("method", Choices(choices=("he", "wesar")), ("he", "wesar")),
        ("clip", Choices(choices=(None, 1)), (None, 1.0)),
        ("lr", Range(low=1e-3, high=1, log=True, points=4), (1e-3, 1e-2, 1e-1, 1.0)),
        ("lr", Range(low=3e-4, high=3e-2, log=True, points=3), (3e-4, 3e-3, 3e-2)),
        ("lr", Range(low=1e-3, high=1e-2, log=True, points=3), (1e-3, 3.162e-3, 1e-2)),
        ("beta1", Range(low=0.1, high=0.3, points=3), (0.1, 0.2, 0.3)),
        ("beta1", Range(low=0.1, high=0.7, step=0.2), (0.1, 0.3, 0.5, 0.7)),
        ("width", Range(low=16, high=256, log=True, points=5), (16, 32, 64, 128, 256)),
        ("depth", Range(low=1, high=4), (1, 2, 3, 4)),
        ("warmup", Range(low=0, high=100, step=50), (0, 50, 100)),
        ("lr", Range(low=1e-3, high=1.0, log=True), None),
    ],
)
def test_values(knob: str, parameter: Choices | Range, expected: tuple[object, ...] | None) -> None:
    found = values(parameter, knob)
    assert found == expected
    # 1 == 1.0 == True, so look at the types too.
    assert [type(v) for v in found or ()] == [type(v) for v in expected or ()]


ENDS = st.tuples(st.floats(1e-9, 1e6), st.floats(1e-9, 1e6)).filter(lambda e: e[0] < e[1])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ENDS, st.integers(2, 40), st.booleans())
def test_points_rise_from_low_to_high(ends: tuple[float, float], points: int, log: bool) -> None:
    low, high = ends
    # Between neighbouring floats there is nothing.
    if high / low < 1 + 1e-9:
        return
    found = values(Range(low=low, high=high, log=log, points=points), "lr")
    assert found is not None
    numbers = [float(v) for v in found if isinstance(v, float)]
    assert len(numbers) == points
    assert (numbers[0], numbers[-1]) == (low, high)
    assert all(before < after for before, after in pairwise(numbers))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(-5, 0), st.integers(3, 30))
def test_log_points_are_evenly_spaced(decades: int, exponent: int, points: int) -> None:
    low = 10.0**exponent
    found = values(Range(low=low, high=low * 10**decades, log=True, points=points), "lr")
    assert found is not None
    logs = [math.log10(float(v)) for v in found if isinstance(v, float)]
    for index, log in enumerate(logs):
        # Rounding to 4 significant digits moves a value by at most 1 in 2,000.
        assert log == pytest.approx(exponent + index * decades / (points - 1), abs=3e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(-50, 50), st.integers(1, 300), st.integers(1, 40))
def test_decimal_steps_are_exact(start: int, step: int, count: int) -> None:
    # In hundredths: 0.1 + 0.1 + 0.1 is not 0.3 in binary, but three steps of 0.1 must be.
    low, distance = start / 100, step / 100
    high = (start + count * step) / 100
    found = values(Range(low=low, high=high, step=distance), "lr")
    assert found == tuple((start + index * step) / 100 for index in range(count + 1))


def test_active() -> None:
    when: When = {"method": ("wesar", "he"), "depth": 2}
    assert active({"method": "he", "depth": 2}, when)
    assert not active({"method": "small", "depth": 2}, when)
    assert not active({"method": "he"}, when)
    assert active({}, {})
    # Python takes True for 1; a condition does not.
    assert not active({"depth": True}, {"depth": 1})


def test_grid_order_and_conditions() -> None:
    study = parse_study(
        {
            "space": {
                "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
                "method": ["he", "wesar"],
                "lr": [1e-3, 1e-2],
            }
        }
    )
    # Later knobs vary fastest, in the order of the file, though sigma2 depends on a later one.
    assert grid_cells(study) == [
        {"method": "he", "lr": 1e-3},
        {"method": "he", "lr": 1e-2},
        {"sigma2": 4e-5, "method": "wesar", "lr": 1e-3},
        {"sigma2": 4e-5, "method": "wesar", "lr": 1e-2},
        {"sigma2": 1e-3, "method": "wesar", "lr": 1e-3},
        {"sigma2": 1e-3, "method": "wesar", "lr": 1e-2},
    ]
    assert all(list(cell) == [k for k in study.space if k in cell] for cell in grid_cells(study))
    assert parents_first(study.space) == ("method", "sigma2", "lr")


def test_condition_on_an_inactive_knob_uses_its_fixed_value() -> None:
    study = parse_study(
        {
            "training": {"schedule": "wsd"},
            "space": {
                "method": ["he", "wesar"],
                "schedule": {"choices": ["cosine"], "when": {"method": "wesar"}},
                "decay_fraction": {"choices": [0.1, 0.3], "when": {"schedule": "wsd"}},
            },
        }
    )
    assert grid_cells(study) == [
        {"method": "he", "decay_fraction": 0.1},
        {"method": "he", "decay_fraction": 0.3},
        {"method": "wesar", "schedule": "cosine"},
    ]


def test_empty_space_is_one_cell() -> None:
    assert grid_cells(parse_study({"space": {}})) == [{}]


def test_grid_of_a_continuous_range() -> None:
    study = parse_study(
        {"space": {"lr": {"low": 0.1, "high": 1}}, "sampler": {"name": "tpe", "cells": 2}}
    )
    with pytest.raises(ValueError, match=r"space\.lr is a continuous range"):
        grid_cells(study)
    with pytest.raises(ValueError, match=r"space\.lr is a continuous range"):
        possible_values(study, "lr")


def test_possible_values() -> None:
    study = parse_study(
        {
            "method": "small",
            "space": {
                "depth": [1, 2],
                "method": {"choices": ["he", "wesar"], "when": {"depth": 2}},
            },
        }
    )
    assert possible_values(study, "method") == ("he", "wesar", "small")
    assert possible_values(study, "depth") == (1, 2)
    assert possible_values(study, "width") == (64,)
