"""A cell's figures: finite whatever blew up."""

from __future__ import annotations

import math

import pytest
from fabricated_runs import diverged, failed, make_study, outcome_of

from wesar_sweep.config.run import Run, make_run
from wesar_sweep.studies.cells import aggregate, capped_loss, chance_loss

STUDY = make_study()
CHANCE = chance_loss(STUDY)


def run_of(seed: int) -> Run:
    return make_run(STUDY, 0, seed, {"lr": 1e-2})


@pytest.mark.parametrize(
    ("val_loss", "init_loss", "expected"),
    [
        (2.0, 5.5, 2.0),
        (9.0, 5.5, 5.5),
        (math.nan, 5.5, 5.5),
        (math.inf, 5.5, 5.5),
        (-math.inf, 5.5, 5.5),
        (None, 5.5, 5.5),
        (2.0, math.nan, 2.0),
        (math.nan, math.nan, math.log(256)),
        (None, None, math.log(256)),
    ],
)
def test_a_runs_loss_is_capped(
    val_loss: float | None, init_loss: float | None, expected: float
) -> None:
    outcome = outcome_of(run_of(0), val_loss=val_loss, init_loss=init_loss)
    assert capped_loss(outcome, chance=CHANCE) == expected


def test_the_cap_comes_before_the_mean() -> None:
    wild = outcome_of(run_of(0), val_loss=1000.0)
    good = outcome_of(run_of(1), val_loss=2.5)
    result = aggregate([wild, good], chance=CHANCE)
    assert result is not None
    assert result.val_loss == 4.0


def test_diverged_counts_and_failed_does_not() -> None:
    outcomes = [
        outcome_of(run_of(0), val_loss=2.5, spikes=3),
        diverged(run_of(1)),
        failed(run_of(2)),
    ]
    result = aggregate(outcomes, chance=CHANCE)
    assert result is not None
    assert (result.n, result.diverged, result.failed) == (2, 1, 1)
    assert (result.val_loss, result.divergence_rate, result.spikes) == (4.0, 0.5, 1.5)
    assert result.constraint == 0.5
    assert result.objectives(("spikes", "val_loss", "divergence_rate")) == [1.5, 4.0, 0.5]


def test_a_stable_cell_is_feasible() -> None:
    result = aggregate([outcome_of(run_of(0))], chance=CHANCE)
    assert result is not None
    assert result.constraint == 0.0


def test_of_failures_alone_nothing_is_known() -> None:
    assert aggregate([failed(run_of(0)), failed(run_of(1))], chance=CHANCE) is None
