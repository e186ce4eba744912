"""What a pruner left of a search, by invented outcomes and curves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from invented_study import lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cut_short import best_whole_cells, cut_cells
from wesar_sweep.config.listed import cell_of
from wesar_sweep.config.run import make_run
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Curve, Outcome

SPACE = {
    "method": ["he", "wesar"],
    "lr": {"low": 1e-4, "high": 1.0, "log": True},
    "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
}
START = 5.5


def a_study(**changes: Any) -> Study:
    made = {
        "space": SPACE,
        "replicates": 3,
        "sampler": {"name": "tpe", "cells": 9},
        "pruner": {"name": "median"},
        **changes,
    }
    return lr_study(**made)


class Invented:
    """A search written down run by run."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: list[Outcome] = []
        self.curves: dict[tuple[int, int], Curve] = {}

    def run(
        self,
        trial: int,
        seed: int,
        losses: dict[int, float],
        status: str = "completed",
        *,
        lr: float,
        **params: Any,
    ) -> None:
        """A run with these losses by step; its last is the one it ended with."""
        cell = {"method": "he", "lr": lr, **params}
        steps = max(losses, default=0)
        self.rows.append(
            Outcome(
                study=self.study.name,
                trial=trial,
                seed=seed,
                hyperparameters=make_run(self.study, trial, seed, cell).columns(),
                status=status,  # type: ignore[arg-type]
                init_loss=START if losses else None,
                val_loss=losses.get(steps),
                steps=steps,
            )
        )
        if losses:
            self.curves[trial, seed] = Curve(
                loss=np.zeros(steps, np.float32),
                grad_norm=np.zeros(steps, np.float32),
                eval_step=np.array([0, *losses]),
                eval_loss=np.array([START, *losses.values()], np.float32),
                probe_step=np.array([], np.int64),
            )

    @property
    def analysis(self) -> Analysis:
        return Analysis(self.study, outcomes_frame(self.rows), self.curves)


@pytest.fixture
def search() -> Invented:
    return Invented(a_study())


def test_a_cell_stands_where_the_first_of_its_runs_was_ended(search: Invented) -> None:
    search.run(0, 0, {100: 4.0, 200: 1.0}, "pruned", lr=1e-2)
    search.run(0, 1, {100: 3.0}, "pruned", lr=1e-2)
    # Above its initial loss it counts as that; one never started counts not at all.
    search.run(0, 2, {100: 9.0, 200: 2.0, 300: 1.5}, lr=1e-2)
    (cut,) = cut_cells(search.analysis)
    assert (cut.step, cut.n) == (100, 3)
    assert cut.loss == pytest.approx((4.0 + 3.0 + START) / 3)


def test_what_diverged_before_counts_at_its_initial_loss(search: Invented) -> None:
    search.run(4, 0, {50: math.nan}, "diverged", lr=1e-2)
    search.run(4, 1, {100: 3.5}, "pruned", lr=1e-2)
    search.run(4, 2, {}, "pruned", lr=1e-2)
    (cut,) = cut_cells(search.analysis)
    assert (cut.trial, cut.step, cut.n, cut.loss) == (4, 100, 2, (START + 3.5) / 2)


def test_one_whose_seeds_were_not_started_stands_at_the_end_of_the_others(search: Invented) -> None:
    search.run(0, 0, {100: 4.0, 300: 2.0}, lr=1e-2)
    search.run(0, 1, {}, "pruned", lr=1e-2)
    search.run(0, 2, {}, "pruned", lr=1e-2)
    (cut,) = cut_cells(search.analysis)
    assert (cut.step, cut.n, cut.loss) == (300, 1, 2.0)


def test_without_a_curve_the_outcome_tells(search: Invented) -> None:
    search.run(0, 0, {100: 4.0}, "pruned", lr=1e-2)
    search.curves.clear()
    (cut,) = cut_cells(search.analysis)
    assert (cut.step, cut.n, cut.loss) == (100, 1, 4.0)
    search.rows = [replace(row, val_loss=None) for row in search.rows]
    (cut,) = cut_cells(search.analysis)
    assert (cut.n, cut.loss) == (0, None)


def test_a_setting_counts_once_and_not_where_it_ran_to_the_end(search: Invented) -> None:
    search.run(0, 0, {100: 4.0}, "pruned", lr=1e-2)
    search.run(1, 0, {100: 4.0, 200: 3.0}, "pruned", lr=1e-2)
    search.run(2, 0, {100: 4.0}, "pruned", lr=1e-3)
    search.run(3, 0, {100: 4.0, 300: 3.0}, lr=1e-3)
    search.run(4, 0, {}, "failed", lr=1e-1)
    search.run(5, 0, {100: 4.0}, "pruned", lr=1e-1)
    assert [(cut.trial, cut.step) for cut in cut_cells(search.analysis)] == [(1, 200), (5, 100)]


def test_the_best_is_no_pruned_cell(search: Invented) -> None:
    for seed, loss in enumerate((2.0, 2.2, 2.4)):
        search.run(0, seed, {300: loss}, lr=1e-2)
        search.run(1, seed, {300: loss + 1}, lr=1e-3)
    # Two of its seeds are far better; the third was ended.
    search.run(2, 0, {300: 0.5}, lr=3e-2)
    search.run(2, 1, {300: 0.5}, lr=3e-2)
    search.run(2, 2, {100: 5.0}, "pruned", lr=3e-2)
    (best,) = best_whole_cells(search.analysis)
    assert best.trial == 0 and best.params == {"method": "he", "lr": 1e-2}
    assert (best.loss, best.seeds, best.losses) == (pytest.approx(2.2), (0, 1, 2), (2.0, 2.2, 2.4))
    assert best.loss_low is not None and best.loss_low < 2.2
    search.rows = search.rows[-3:]
    assert best_whole_cells(search.analysis) == []


@pytest.mark.parametrize(
    ("cell", "space"),
    [
        ({"method": "wesar", "lr": 0.0123456789, "sigma2": 1e-3}, {}),
        ({"method": "he", "lr": 1e-4}, {}),
        # Of he it means nothing, and the outcomes have none.
        ({"method": "he", "lr": 1e-4, "sigma2": 1e-5}, {"sigma2": {"low": 1e-5, "high": 1e-3}}),
        ({"method": "he", "lr": 1e-4, "ffn_width": None}, {"ffn_width": [128, None]}),
        ({"method": "he", "lr": 1e-4, "clip": None}, {"clip": [None, 1.0]}),
    ],
)
def test_the_cell_of_an_outcome_is_found_again(cell: Any, space: Any) -> None:
    study = a_study(space={**SPACE, "sigma2": SPACE["sigma2"], **space})
    if "sigma2" not in cell:
        study = a_study(space={**SPACE, **space})
    columns = make_run(study, 0, 0, cell).columns()
    assert cell_of(study, columns) == cell


def test_an_outcome_of_another_space_is_none_of_its_cells() -> None:
    columns = make_run(a_study(), 0, 0, {"method": "he", "lr": 2.0}).columns()
    with pytest.raises(ValueError, match=r"no cell of the space has lr 2\.0"):
        cell_of(a_study(), columns)
