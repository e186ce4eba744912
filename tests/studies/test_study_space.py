"""From a space to Optuna's distributions and back to exact values."""

from __future__ import annotations

import optuna
import pytest
from fabricated_runs import LR, make_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from wesar_sweep.config.space import Choices, Range, grid_cells
from wesar_sweep.config.study import Study
from wesar_sweep.studies.samplers import build_sampler
from wesar_sweep.studies.space import axes, suggest, varies_architecture

TPE = {"name": "tpe", "cells": 30}


def drawn(study: Study, *, count: int) -> list[dict[str, object]]:
    opened = optuna.create_study(sampler=build_sampler(study, number=0))
    return [dict(suggest(study, opened.ask())) for _ in range(count)]


@pytest.mark.parametrize(
    ("knob", "parameter", "expected"),
    [
        ("lr", LR, FloatDistribution(1e-4, 1e-1, log=True)),
        ("lr", Choices(choices=(1e-3, 1e-2)), CategoricalDistribution((1e-3, 1e-2))),
        ("clip", Choices(choices=(None, 1.0)), CategoricalDistribution((None, 1.0))),
        ("beta2", Range(low=0.9, high=0.99), FloatDistribution(0.9, 0.99)),
        ("weight_decay", Range(low=0.0, high=0.3, step=0.1), FloatDistribution(0.0, 0.3, step=0.1)),
        ("warmup", Range(low=10, high=100), IntDistribution(10, 100)),
        ("warmup", Range(low=10, high=100, log=True), IntDistribution(10, 100, log=True)),
        ("warmup", Range(low=10, high=50, step=20), IntDistribution(10, 50, step=20)),
        (
            "lr",
            Range(low=1e-3, high=1e-1, log=True, points=3),
            CategoricalDistribution((1e-3, 1e-2, 1e-1)),
        ),
        (
            "width",
            Range(low=32, high=128, log=True, points=3),
            CategoricalDistribution((32, 64, 128)),
        ),
    ],
)
def test_distributions(knob: str, parameter: Choices | Range, expected: object) -> None:
    study = make_study(space={knob: parameter}, sampler=TPE)
    assert axes(study)[knob].distribution == expected


def test_a_stepped_value_is_the_configured_one_to_the_bit() -> None:
    study = make_study(
        space={"weight_decay": Range(low=0.0, high=0.3, step=0.1)},
        sampler={"name": "random", "cells": 40},
    )
    values = {cell["weight_decay"] for cell in drawn(study, count=40)}
    assert values == {0.0, 0.1, 0.2, 0.3}
    # Optuna's own arithmetic gives 0.30000000000000004 there.
    assert 0.1 * 3 not in values


def test_a_condition_holds_whatever_the_order_in_the_file() -> None:
    study = make_study(
        space={
            "sigma2": Range(low=1e-5, high=1e-3, log=True, when={"method": "wesar"}),
            "method": Choices(choices=("wesar", "small")),
        },
        sampler=TPE,
    )
    cells = drawn(study, count=20)
    assert {cell["method"] for cell in cells} == {"wesar", "small"}
    assert all(("sigma2" in cell) == (cell["method"] == "wesar") for cell in cells)


def test_a_condition_on_a_fixed_knob() -> None:
    parameter = Choices(choices=(1e-5, 1e-3), when={"method": "wesar"})
    assert drawn(make_study(space={"sigma2": parameter}, sampler=TPE, method="wesar"), count=1)[0]
    assert not drawn(make_study(space={"sigma2": parameter}, sampler=TPE, method="he"), count=1)[0]


def test_a_grids_cells_come_back_exactly_from_the_queue() -> None:
    study = make_study(
        space={
            "lr": Range(low=1e-4, high=3e-1, log=True, points=7),
            "sigma2": Choices(choices=(4e-5, 1e-3), when={"method": "wesar"}),
            "method": Choices(choices=("wesar", "small")),
            "clip": Choices(choices=(None, 1.0)),
            "depth": Range(low=2, high=8, step=3),
        }
    )
    opened = optuna.create_study(sampler=build_sampler(study, number=0))
    cells = grid_cells(study)
    for cell in cells:
        opened.enqueue_trial(cell)
    assert [suggest(study, opened.ask()) for _ in cells] == cells


def test_which_knobs_change_a_shape() -> None:
    assert not varies_architecture(make_study())
    assert varies_architecture(make_study(space={"width": Choices(choices=(32, 64))}))
    assert varies_architecture(make_study(space={"batch": Choices(choices=(4, 8))}))
