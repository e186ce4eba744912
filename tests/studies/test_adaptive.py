"""Adaptive replicates in the queue: the least first, then what is wanted, by whoever is there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fabricated_runs import (
    LR,
    LR_GRID,
    curve_of,
    diverged,
    drain,
    failed,
    finish,
    make_study,
    outcome_of,
    rows,
    taken_by_who_waits,
    trials_of,
)
from optuna.trial import TrialState

from wesar_sweep.config.replicates import AdaptiveReplicates, Until
from wesar_sweep.config.run import Run
from wesar_sweep.config.space import Choices
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.progress import summary
from wesar_sweep.studies.queue import CellQueue


def adaptive(least: int = 2, most: int = 6, **until: object) -> AdaptiveReplicates:
    until = until or {"divergence_halfwidth": 0.25}
    return AdaptiveReplicates(min=least, max=most, until=Until.model_validate(until))


def two_methods(**until: object) -> Study:
    space = {"lr": LR_GRID, "method": Choices(choices=("he", "small"))}
    return make_study(space=space, replicates=adaptive(**until))


def train(run: Run) -> Outcome:
    """The cells of lr 1e-1 diverge half of the time; losses vary by 0.1."""
    draw = random.Random(f"{run.trial} {run.seed}")
    lost = run.hyperparameters.lr > 0.05 and draw.random() < 0.5
    return diverged(run) if lost else outcome_of(run, val_loss=2.0 + draw.gauss(0, 0.1))


def test_the_least_of_all_cells_comes_first_then_the_widest(directory: StudyDirectory) -> None:
    study = make_study(replicates=adaptive())
    with CellQueue(study, directory, "w0") as queue:
        assert queue.learns
        trained = drain(
            queue, train=lambda r: (diverged if r.trial == 1 and r.seed else outcome_of)(r)
        )
    assert [run.key for run in trained[:6]] == [(t, seed) for t in range(3) for seed in range(2)]
    # 1 of 2 is the widest interval, and four more seeds are sure to be needed there.
    assert [run.trial for run in trained[6:]] == [1, 1, 1, 1, 0, 0, 2, 2]
    told = {trial.number: trial for trial in trials_of(study, directory)}
    assert [told[t].user_attrs["n"] for t in range(3)] == [4, 6, 4]
    assert {trial.state for trial in told.values()} == {TrialState.COMPLETE}
    # Optuna knows of all seeds, not of the least alone.
    assert told[1].constraints == {"divergence": pytest.approx(5 / 6)}
    assert told[0].constraints == {"divergence": 0.0}
    losses = [outcome_of(run).val_loss or 0.0 for run in trained if run.trial == 0]
    assert told[0].value == pytest.approx(sum(losses) / 4)


def by_one_worker(study: Study, root: Path) -> list[tuple[int, int]]:
    alone = StudyDirectory(root)
    with CellQueue(study, alone, "w0") as queue:
        drain(queue, train=train, slots=1)
    assert summary(alone, study).complete
    return sorted(rows(alone))


@pytest.mark.parametrize("until", [{"divergence_halfwidth": 0.25}, {"told_apart": True}])
def test_several_workers_and_kills_train_what_one_would(
    directory: StudyDirectory, tmp_path: Path, until: dict[str, object]
) -> None:
    study = two_methods(**until)
    draw = random.Random(1)
    for _ in range(3):
        a, b = (CellQueue(study, directory, name, stop_asked=lambda: True) for name in ("a", "b"))
        for queue in (a, b, a, b):
            for run in queue.take(3):
                # One in three is in a slot when the worker is stopped.
                if draw.random() < 0.67:
                    finish(queue, train(run), curve_of())
        a.release()
        b.release()
    with CellQueue(study, directory, "c") as last:
        drain(last, train=train)
    assert summary(directory, study).complete
    assert sorted(rows(directory)) == by_one_worker(study, tmp_path / "alone")
    assert all(trial.state == TrialState.COMPLETE for trial in trials_of(study, directory))


def test_a_worker_waits_for_seeds_that_others_results_may_bring(directory: StudyDirectory) -> None:
    study = make_study(space={"lr": Choices(choices=(1e-3,))}, replicates=adaptive(most=4))
    with CellQueue(study, directory, "a") as first, CellQueue(study, directory, "b") as second:
        mine = first.take(2)
        assert len(mine) == 2

        def end_both() -> None:
            for run in mine:
                finish(first, outcome_of(run), curve_of())

        got = taken_by_who_waits(second, 2, end_both)
        assert [run.key for run in got] == [(0, 2), (0, 3)]


def test_it_does_not_wait_for_a_fixed_number(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "s")
    study = make_study(space={"lr": Choices(choices=(1e-3,))})
    with CellQueue(study, directory, "a") as first, CellQueue(study, directory, "b") as second:
        assert len(first.take(2)) == 2
        assert second.take(2) == []


@pytest.mark.parametrize("more", [4, adaptive(least=3, most=5)])
def test_a_whole_study_goes_on_with_more_seeds(
    directory: StudyDirectory, more: int | AdaptiveReplicates
) -> None:
    study = make_study()
    with CellQueue(study, directory, "w0") as queue:
        drain(queue, train=lambda run: diverged(run) if run.trial == 2 else outcome_of(run))
    before = rows(directory)
    larger = make_study(replicates=more)
    assert not summary(directory, larger).complete
    with CellQueue(larger, directory, "w1") as queue:
        new = drain(queue)
    assert {run.seed for run in new if run.trial < 2} == {2, 3}
    assert sorted(rows(directory)) == sorted([*before, *(run.key for run in new)])
    assert summary(directory, larger).complete
    told = trials_of(larger, directory)
    assert [trial.user_attrs["n"] for trial in told[:2]] == [4, 4]
    assert told[2].user_attrs["diverged"] == 2


def test_a_pruned_cell_stays_pruned_with_more_seeds(directory: StudyDirectory) -> None:
    changes = {
        "pruner": {"name": "threshold", "options": {"upper": 3.0}},
        "evaluation": {"every": 50},
    }
    study = make_study(**changes)
    with CellQueue(study, directory, "w0") as queue:
        while runs := queue.take(2):
            for run in runs:
                (stop,) = queue.report([(run, 50, 5.0 if run.trial == 1 else 2.0)])
                ended = outcome_of(run, status="pruned") if stop else outcome_of(run)
                finish(queue, ended, curve_of())
    larger = make_study(replicates=3, **changes)
    with CellQueue(larger, directory, "w0") as queue:
        assert sorted(run.key for run in drain(queue)) == [(0, 2), (2, 2)]
    states = [trial.state.name for trial in trials_of(larger, directory)]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert summary(directory, larger).complete


def test_a_sampler_gets_all_its_cells_before_any_gets_more(directory: StudyDirectory) -> None:
    study = make_study(
        space={"lr": LR}, sampler={"name": "tpe", "cells": 4}, replicates=adaptive(), retries=0
    )
    with CellQueue(study, directory, "w0") as queue:
        trained = drain(queue, train=lambda run: failed(run) if run.trial == 0 else train(run))
    assert {run.trial for run in trained[:10]} == set(range(5))
    assert [run.key for run in trained if run.trial == 0] == [(0, 0), (0, 1)]
    assert summary(directory, study).complete
    states = [trial.state.name for trial in trials_of(study, directory)]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_a_budget_of_cells_leaves_their_further_seeds(directory: StudyDirectory) -> None:
    study = make_study(replicates=adaptive())
    with CellQueue(study, directory, "w0", most_cells=1) as queue:
        for run in queue.take(2):
            finish(queue, outcome_of(run), curve_of())
        assert queue.may_go_on
        assert [run.key for run in drain(queue)] == [(0, 2), (0, 3)]
        assert not queue.may_go_on


def test_progress_knows_the_least_and_the_most(directory: StudyDirectory) -> None:
    study = make_study(replicates=adaptive())
    now = summary(directory, study)
    assert (now.runs, now.runs_at_most, now.complete) == (6, 18, False)
    with CellQueue(study, directory, "w0") as queue:
        for run in queue.take(2):
            finish(queue, outcome_of(run), curve_of())
        now = summary(directory, study)
        assert (now.runs, now.waiting, now.cells_done) == (8, 6, 0)
        drain(queue)
    now = summary(directory, study)
    assert (now.runs, now.runs_done, now.waiting, now.complete) == (12, 12, 0, True)
