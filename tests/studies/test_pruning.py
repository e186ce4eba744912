"""Pruning: one value a step from several replicates, and the end of those not needed any more."""

from __future__ import annotations

import math

import pytest
from fabricated_runs import curve_of, diverged, finish, make_study, outcome_of, report, trials_of
from optuna.trial import TrialState

from wesar_sweep.config.run import Run
from wesar_sweep.config.space import Choices
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.progress import summary
from wesar_sweep.studies.queue import PRUNED_AT, CellQueue

LRS = Choices(choices=(1e-2, 1e-4, 1e-3))


def cut_above(upper: float, **changes: object) -> Study:
    """A study that gives up cells whose mean loss exceeds a bound."""
    pruner = {"name": "threshold", "options": {"upper": upper}}
    return make_study(space={"lr": LRS}, pruner=pruner, replicates=3, **changes)


def pruned(run: Run) -> Outcome:
    return outcome_of(run, status="pruned", val_loss=None)


def intermediate(study: Study, directory: StudyDirectory) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in trials_of(study, directory)]


def states(study: Study, directory: StudyDirectory) -> list[TrialState]:
    return [trial.state for trial in trials_of(study, directory)]


def test_a_value_is_the_mean_and_waits_for_the_last_replicate(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        a, b, c = queue.take(3)
        assert not report(queue, a, step=50, val_loss=9.0)
        assert not report(queue, b, step=50, val_loss=1.0)
        assert intermediate(study, directory)[0] == {}
        assert not report(queue, c, step=50, val_loss=2.0)
        assert intermediate(study, directory)[0] == {50: 4.0}


def test_one_that_runs_ahead_does_not_settle_later_steps(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        a, b, c = queue.take(3)
        for run, steps in ((a, (50, 100)), (b, (50,)), (c, (50,))):
            for step in steps:
                report(queue, run, step=step, val_loss=2.0)
        assert intermediate(study, directory)[0] == {50: 2.0}


def test_a_pruned_cell_stops_its_runs_and_is_told(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        a, b, c = queue.take(3)
        assert not report(queue, a, step=50, val_loss=5.0)
        assert not report(queue, b, step=50, val_loss=5.0)
        assert report(queue, c, step=50, val_loss=5.0)
        finish(queue, pruned(c), curve_of())
        assert report(queue, a, step=100, val_loss=0.1)
        finish(queue, pruned(a), curve_of())
        assert states(study, directory)[0] == TrialState.RUNNING
        # It had reached its end before it could hear of it.
        finish(queue, outcome_of(b), curve_of())
        assert states(study, directory)[0] == TrialState.PRUNED
        assert queue.take(1)[0].trial == 1
    first = trials_of(study, directory)[0]
    assert (first.value, first.user_attrs["status"]) == (5.0, "pruned")


def test_replicates_of_a_pruned_cell_are_never_started(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        (a,) = queue.take(1)
        assert report(queue, a, step=50, val_loss=5.0)
        finish(queue, pruned(a), curve_of())
        assert queue.take(1)[0].trial == 1
    now = summary(directory, study)
    assert (now.pruned, now.cells_pruned, now.cells_done, now.waiting) == (3, 1, 1, 6)


def test_a_diverged_replicate_counts_as_its_initial_loss(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        a, b, c = queue.take(3)
        assert not report(queue, a, step=50, val_loss=2.0)
        assert not report(queue, b, step=50, val_loss=2.0)
        # Its end is the last news of step 50: (2 + 2 + 5.5) / 3.
        finish(queue, diverged(c), curve_of())
        assert intermediate(study, directory)[0] == {50: pytest.approx(9.5 / 3)}
        assert not report(queue, a, step=100, val_loss=4.0)
        assert report(queue, b, step=100, val_loss=4.0), "(4 + 4 + 5.5) / 3 is above the bound"


def test_with_one_slot_the_value_is_of_the_replicates_started(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        (a,) = queue.take(1)
        assert not report(queue, a, step=50, val_loss=3.0)
        finish(queue, outcome_of(a), curve_of())
        (b,) = queue.take(1)
        # Optuna takes one value a step: it stands.
        assert not report(queue, b, step=50, val_loss=9.0)
        assert not report(queue, b, step=100, val_loss=3.0)
        assert intermediate(study, directory)[0] == {50: 3.0, 100: 3.0}


def test_what_is_not_finite_is_never_told(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        (a,) = queue.take(1)
        assert not report(queue, a, step=50, val_loss=math.nan)
        assert intermediate(study, directory)[0] == {}


def test_who_goes_on_with_a_cell_knows_its_losses(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    with CellQueue(study, directory, "w0") as queue:
        a, b = queue.take(2)
        report(queue, a, step=50, val_loss=2.0)
        finish(queue, outcome_of(a), curve_of({0: 5.5, 50: 2.0, 100: 7.0}))
        assert not report(queue, b, step=50, val_loss=2.0)
    with CellQueue(study, directory, "w1") as queue:
        b, c = queue.take(2)
        assert (b.key, c.key) == ((0, 1), (0, 2))
        report(queue, b, step=50, val_loss=2.0)
        assert not report(queue, c, step=50, val_loss=2.0)
        assert not report(queue, b, step=100, val_loss=4.0)
        # 7.0 comes from the curve of a, above its initial loss of 5.5: (5.5 + 4 + 4) / 3.
        assert report(queue, c, step=100, val_loss=4.0)
        assert intermediate(study, directory)[0] == {50: 2.0, 100: 4.5}


def test_a_cell_given_up_before_a_kill_is_not_taken_up_again(directory: StudyDirectory) -> None:
    study = cut_above(4.0)
    queue = CellQueue(study, directory, "w0")
    (a,) = queue.take(1)
    assert report(queue, a, step=50, val_loss=5.0)
    queue.release()
    with CellQueue(study, directory, "w1") as other:
        assert other.take(1)[0].trial == 1
    first = trials_of(study, directory)[0]
    assert (first.user_attrs[PRUNED_AT], first.state) == (50, TrialState.PRUNED)


def test_median_spares_the_worse_half(directory: StudyDirectory) -> None:
    pruner = {"name": "median", "options": {"n_startup_trials": 1}}
    study = make_study(space={"lr": LRS}, pruner=pruner, replicates=1)
    ended = {}
    with CellQueue(study, directory, "w0") as queue:
        while runs := queue.take(1):
            outcome = outcome_of(runs[0])
            assert outcome.val_loss is not None
            if report(queue, runs[0], step=50, val_loss=outcome.val_loss):
                outcome = pruned(runs[0])
            finish(queue, outcome, curve_of())
            ended[runs[0].hyperparameters.lr] = outcome.status
    assert ended == {1e-2: "completed", 1e-4: "pruned", 1e-3: "pruned"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sha", {"min_resource": 10}),
        ("hyperband", {"min_resource": 10}),
        ("percentile", {"percentile": 50}),
    ],
)
def test_other_pruners_run_to_the_end(
    directory: StudyDirectory, name: str, options: dict[str, object]
) -> None:
    study = make_study(space={"lr": LRS}, pruner={"name": name, "options": options}, replicates=1)
    with CellQueue(study, directory, "w0") as queue:
        while runs := queue.take(1):
            stop = any(report(queue, runs[0], step=step, val_loss=3.0) for step in (10, 40, 160))
            finish(queue, (pruned if stop else outcome_of)(runs[0]), curve_of())
    assert {state.is_finished() for state in states(study, directory)} == {True}


def test_wilcoxon_compares_replicates_and_starts_no_more(directory: StudyDirectory) -> None:
    pruner = {"name": "wilcoxon", "options": {"p_threshold": 0.2, "n_startup_steps": 3}}
    study = make_study(space={"lr": Choices(choices=(1e-2, 1e-4))}, pruner=pruner, replicates=5)
    trained: dict[int, int] = {}
    with CellQueue(study, directory, "w0") as queue:
        while runs := queue.take(1):
            assert not report(queue, runs[0], step=50, val_loss=9.0)
            finish(queue, outcome_of(runs[0]), curve_of())
            trained[runs[0].trial] = trained.get(runs[0].trial, 0) + 1
    # Of three pairs all one way the one-sided p is 1/8.
    assert trained == {0: 5, 1: 3}
    assert [state.name for state in states(study, directory)] == ["COMPLETE", "PRUNED"]
    now = summary(directory, study)
    assert (now.completed, now.pruned, now.complete) == (8, 2, True)
