"""The queue: every run once, every cell told once, one finite observation a cell."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from fabricated_runs import (
    LR,
    curve_of,
    diverged,
    drain,
    failed,
    finish,
    make_study,
    outcome_of,
    rows,
    trials_of,
)
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from wesar_sweep.config.space import Choices
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold
from wesar_sweep.store.outcomes import OutcomeWriter, read_outcomes
from wesar_sweep.studies import claims as claims_module
from wesar_sweep.studies import queue as queue_module
from wesar_sweep.studies.claims import WORKER, Claims
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import close_study, database_of, open_study
from wesar_sweep.training.queue import RunQueue


@pytest.fixture
def sqlite_directory(tmp_path: Path) -> StudyDirectory:
    """For what is SQLite's alone."""
    return StudyDirectory(tmp_path / "s")


def die(queue: CellQueue) -> None:
    """End a worker as SIGKILL does: its lock goes, it beats no more, nothing is given back."""
    if queue._heart is not None:
        queue._heart._stopping.set()
        queue._heart._thread.join()
        queue._heart._engine.dispose()
    queue._lock.release()
    close_study(queue._opened)


def test_a_grid_is_trained_once_and_told(directory: StudyDirectory) -> None:
    study = make_study()
    with CellQueue(study, directory, "w0") as queue:
        as_the_engine_sees_it: RunQueue = queue
        assert as_the_engine_sees_it is queue
        drain(queue)
        assert queue.take(3) == []
    assert sorted(rows(directory)) == [(trial, seed) for trial in range(3) for seed in range(2)]
    trials = trials_of(study, directory)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert trials[0].value == pytest.approx(4.005)
    assert trials[0].constraints == {"divergence": 0.0}
    assert trials[0].user_attrs == {
        "cell": 0,
        "worker": "w0",
        "status": "completed",
        "n": 2,
        "diverged": 0,
        "val_loss": pytest.approx(4.005),
    }
    assert all(directory.curve_file(*key).exists() for key in rows(directory))


def test_take_hands_out_replicates_before_new_cells(directory: StudyDirectory) -> None:
    with CellQueue(make_study(replicates=3), directory, "w0") as queue:
        assert [run.key for run in queue.take(2)] == [(0, 0), (0, 1)]
        assert [run.key for run in queue.take(2)] == [(0, 2), (1, 0)]


def test_one_answer_has_one_shape(directory: StudyDirectory) -> None:
    study = make_study(
        space={"width": Choices(choices=(32, 64)), "lr": Choices(choices=(1e-3, 1e-2))}
    )
    with CellQueue(study, directory, "w0") as queue:
        first = queue.take(100)
        assert [run.key for run in first] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {run.architecture.width for run in first} == {32}
        assert queue.take(1, architecture=first[0].architecture) == []
        second = queue.take(1)
        assert second[0].architecture.width == 64
        more = queue.take(100, architecture=second[0].architecture)
        assert [run.key for run in more] == [(2, 1), (3, 0), (3, 1)]


def test_a_sampler_holds_other_shapes_for_later_and_not_too_many(directory: StudyDirectory) -> None:
    study = make_study(
        space={"width": Choices(choices=(32, 64)), "lr": LR},
        sampler={"name": "random", "cells": 40},
        replicates=1,
    )
    with CellQueue(study, directory, "w0") as queue:
        shape = queue.take(1)[0].architecture
        taken = queue.take(100, architecture=shape)
        assert {run.architecture for run in taken} == {shape}
        held = len(trials_of(study, directory)) - 1 - len(taken)
        assert held == 4
        other = queue.take(100)
        assert {run.architecture.width for run in other} == {96 - shape.width}
        assert len(other) >= 4


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", "nsga2"])
def test_a_sampler_draws_as_many_cells_as_asked_and_all_different(
    directory: StudyDirectory, name: str
) -> None:
    study = make_study(space={"lr": LR}, sampler={"name": name, "cells": 6}, replicates=1)
    # Two workers and a restart: workers that shared one seed would draw the same cells.
    for worker in ("w0", "w1", "w0"):
        with CellQueue(study, directory, worker) as queue:
            for run in queue.take(2):
                finish(queue, outcome_of(run), curve_of())
            last = queue.take(1)
    assert last == []
    assert len({trial.params["lr"] for trial in trials_of(study, directory)}) == 6


def test_divergence_is_told_as_a_finite_value_and_a_constraint(directory: StudyDirectory) -> None:
    study = make_study(space={"lr": LR}, sampler={"name": "tpe", "cells": 3})
    with CellQueue(study, directory, "w0") as queue:
        drain(queue, train=diverged)
    trials = trials_of(study, directory)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [trial.value for trial in trials] == [5.5] * 3
    assert [trial.constraints for trial in trials] == [{"divergence": 1.0}] * 3
    assert trials[0].user_attrs["status"] == "diverged"


def test_why_not_nan() -> None:
    """The control of the test above: this is what would become of a diverged cell told as it is."""
    study = optuna.create_study()
    with pytest.warns(UserWarning, match="nan is not acceptable"):
        study.tell(study.ask(), math.nan)
    assert study.trials[0].state == TrialState.FAIL


def test_several_objectives_and_no_constraint_on_one_of_them(directory: StudyDirectory) -> None:
    study = make_study(objectives=("divergence_rate", "val_loss", "spikes"))
    with CellQueue(study, directory, "w0") as queue:
        drain(queue, train=lambda run: (diverged if run.seed else outcome_of)(run, spikes=3))
    trial = trials_of(study, directory)[0]
    assert trial.values == [0.5, pytest.approx(4.75), 3.0]
    assert trial.constraints == {}


def test_failed_runs_are_tried_again_as_often_as_stated(directory: StudyDirectory) -> None:
    study = make_study(space={"lr": Choices(choices=(1e-3,))}, replicates=2, retries=2)
    with CellQueue(study, directory, "w0") as queue:
        trained = drain(queue, train=lambda run: failed(run) if run.seed else outcome_of(run))
    assert [run.seed for run in trained] == [0, 1, 1, 1]
    good, bad = read_outcomes(directory)
    assert (good.status, good.attempt, bad.status, bad.attempt) == ("completed", 1, "failed", 3)
    (trial,) = trials_of(study, directory)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 3.0)
    assert (trial.user_attrs["n"], trial.user_attrs["failed"]) == (1, 1)


def test_a_cell_that_failed_altogether_is_fail_and_replaced(directory: StudyDirectory) -> None:
    study = make_study(
        space={"lr": LR}, sampler={"name": "random", "cells": 3}, replicates=1, retries=0
    )
    with CellQueue(study, directory, "w0") as queue:
        drain(queue, train=lambda run: failed(run) if run.trial == 0 else outcome_of(run), slots=1)
    trials = trials_of(study, directory)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[0].user_attrs["reason"] == "out of memory"


def test_a_broken_machine_does_not_draw_cells_without_end(directory: StudyDirectory) -> None:
    study = make_study(
        space={"lr": LR}, sampler={"name": "random", "cells": 3}, replicates=1, retries=0
    )
    with CellQueue(study, directory, "w0") as queue:
        assert len(drain(queue, train=failed)) == 6


def test_diverged_runs_are_never_tried_again(directory: StudyDirectory) -> None:
    with CellQueue(make_study(), directory, "w0") as queue:
        assert len(drain(queue, train=diverged)) == 6


def test_a_dead_workers_cell_goes_on_under_its_number(directory: StudyDirectory) -> None:
    study = make_study(replicates=3)
    dead = CellQueue(study, directory, "w0")
    first, second = dead.take(2)
    finish(dead, outcome_of(first), curve_of())
    with CellQueue(study, directory, "w1") as alive:
        assert [run.trial for run in alive.take(1)] == [1], "a living worker's cell was taken"
        die(dead)
        rest = drain(alive)
    assert {run.key for run in rest} >= {(0, 1), (0, 2)}
    assert first.key not in {run.key for run in rest}
    assert sorted(rows(directory)) == sorted(set(rows(directory)))
    assert second.key in rows(directory)
    assert len(trials_of(study, directory)) == 3


def test_a_worker_of_the_same_name_takes_up_its_former_lifes_cell(
    directory: StudyDirectory,
) -> None:
    study = make_study()
    dead = CellQueue(study, directory, "w0")
    finish(dead, outcome_of(dead.take(1)[0]), curve_of())
    die(dead)
    with CellQueue(study, directory, "w0") as again:
        assert again.take(1)[0].key == (0, 1)


def test_released_cells_are_taken_up_by_others(directory: StudyDirectory) -> None:
    study = make_study()
    first = CellQueue(study, directory, "w0")
    finish(first, outcome_of(first.take(2)[0]), curve_of())
    first.release()
    first.release()
    with CellQueue(study, directory, "w1") as second:
        assert second.take(1)[0].key == (0, 1)


def test_a_failed_attempt_counts_across_lives(directory: StudyDirectory) -> None:
    study = make_study(space={"lr": Choices(choices=(1e-3,))}, replicates=1, retries=1)
    dead = CellQueue(study, directory, "w0")
    finish(dead, failed(dead.take(1)[0]), None)
    die(dead)
    with CellQueue(study, directory, "w1") as queue:
        assert len(drain(queue, train=failed)) == 1
    assert [row.attempt for row in read_outcomes(directory)] == [2]


def test_killed_between_the_row_and_the_telling(directory: StudyDirectory) -> None:
    study = make_study(replicates=1)
    dead = CellQueue(study, directory, "w0")
    (run,) = dead.take(1)
    OutcomeWriter(directory, "w0").append(outcome_of(run))
    die(dead)
    with CellQueue(study, directory, "driver") as queue:
        assert queue.settle() == 1
        assert queue.settle() == 0
    trials = trials_of(study, directory)
    assert trials[0].state == TrialState.COMPLETE
    with CellQueue(study, directory, "w1") as queue:
        assert run.key not in {run.key for run in drain(queue)}


def test_settling_leaves_open_what_is_not_finished(directory: StudyDirectory) -> None:
    study = make_study()
    dead = CellQueue(study, directory, "w0")
    finish(dead, outcome_of(dead.take(1)[0]), curve_of())
    die(dead)
    with CellQueue(study, directory, "driver") as queue:
        assert queue.settle() == 0
    with CellQueue(study, directory, "w1") as queue:
        assert queue.take(1)[0].key == (0, 1)


def test_killed_while_a_sampler_was_asked(directory: StudyDirectory) -> None:
    study = make_study(
        space={"lr": LR, "method": Choices(choices=("he", "small"))},
        sampler={"name": "random", "cells": 1},
    )
    opened = open_study(study, directory)
    trial = opened.ask()
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    close_study(opened)
    with CellQueue(study, directory, "w0") as queue:
        runs = drain(queue)
    assert {run.trial for run in runs} == {0}
    assert {run.hyperparameters.lr for run in runs} == {lr}
    (only,) = trials_of(study, directory)
    assert only.user_attrs[WORKER] == "w0"


def test_the_store_outlives_the_database(directory: StudyDirectory, each_database: str) -> None:
    study = make_study()
    with CellQueue(study, directory, "w0") as queue:
        drain(queue)
    if each_database == "sqlite":
        directory.database_file.unlink()
    else:
        # Another study of that name is then made there.
        directory.storage_file.unlink()
    with CellQueue(study, directory, "w1") as queue:
        assert drain(queue) == []
    assert [trial.state.name for trial in trials_of(study, directory)] == ["COMPLETE"] * 3


def test_outcomes_of_another_study_are_not_taken_for_this_one(directory: StudyDirectory) -> None:
    with CellQueue(make_study(), directory, "w0") as queue:
        (run,) = queue.take(1)
        strange = replace(outcome_of(run), hyperparameters={**run.columns(), "lr": 0.5})
        OutcomeWriter(directory, "w9").append(strange)
        die(queue)
        with (
            CellQueue(make_study(), directory, "w1") as other,
            pytest.raises(
                StoreError, match=r"trial 0 has lr 0\.0001 .* and 0\.5 in the outcomes of w9"
            ),
        ):
            other.take(1)


def test_two_living_workers_of_one_name_are_refused(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "NAME_TIMEOUT_S", 0.05)
    with (
        CellQueue(make_study(), directory, "w0"),
        pytest.raises(StoreError, match="a worker named w0 is alive"),
    ):
        CellQueue(make_study(), directory, "w0")


@pytest.mark.parametrize("locked", [True, False])
def test_the_lock_keeps_two_workers_from_one_cell(
    sqlite_directory: StudyDirectory, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite lets two connections take the same waiting trial; without the lock, both do.

    The second worker asks at the worst moment, after the first has seen the trial waiting and
    before it says running. Without the lock it comes through and has the same trial: the control.
    """
    study = make_study()
    if not locked:
        monkeypatch.setattr(claims_module, "exclusive", lambda *_: nullcontext())
    first, second = open_study(study, sqlite_directory), open_study(study, sqlite_directory)
    taken: list[int] = []

    def ask(opened: optuna.Study, worker: str) -> None:
        claims = Claims(opened, study=study, directory=sqlite_directory, worker=worker)
        claim = claims.next(architecture=None, mine=set())
        assert claim is not None
        taken.append(claim.trial.number)

    rival = threading.Thread(target=ask, args=(second, "w1"))

    @event.listens_for(first._storage._backend.engine, "before_cursor_execute")
    def interleave(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE trials SET state") and not rival.ident:
            rival.start()
            rival.join(timeout=2.0 if not locked else 0.3)
            assert rival.is_alive() == locked

    with (
        hold(sqlite_directory.worker_lock_file("w0")),
        hold(sqlite_directory.worker_lock_file("w1")),
    ):
        ask(first, "w0")
        rival.join()
    close_study(first)
    close_study(second)
    assert sorted(taken) == ([0, 1] if locked else [0, 0])


def test_many_results_are_one_write_and_one_commit(
    sqlite_directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[object] = []
    with CellQueue(make_study(replicates=1), sqlite_directory, "w0") as queue:
        event.listen(database_of(queue._opened)._backend.engine, "commit", commits.append)
        runs = queue.take(3)
        assert len(commits) == 1
        synced: list[int] = []
        monkeypatch.setattr("wesar_sweep.store.outcomes.os.fsync", synced.append)
        queue.finish([(outcome_of(run), None) for run in runs])
        assert (len(synced), len(commits)) == (1, 2)
    assert [trial.state.name for trial in trials_of(make_study(), sqlite_directory)] == [
        "COMPLETE"
    ] * 3


def test_what_was_kept_before_the_disk_refused_a_curve_counts(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(replicates=1)
    dead = CellQueue(study, directory, "w0")
    runs = dead.take(2)
    write, calls = queue_module.write_curve, []

    def full(*arguments: object) -> Path:
        calls.append(arguments)
        if len(calls) == 2:
            raise StoreError("the disk is full")
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(queue_module, "write_curve", full)
    with pytest.raises(StoreError, match="the disk is full"):
        dead.finish([(outcome_of(run), curve_of()) for run in runs])
    die(dead)
    monkeypatch.setattr(queue_module, "write_curve", write)
    assert rows(directory) == [runs[0].key]
    with CellQueue(study, directory, "w1") as queue:
        assert [run.key for run in drain(queue)] == [(1, 0), (2, 0)]
    assert [trial.state.name for trial in trials_of(study, directory)] == ["COMPLETE"] * 3


def test_killed_while_it_took_cells_it_has_none(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claims of one `take` are one transaction: until its end nobody else sees any of them."""
    study = make_study(replicates=1)
    seen: list[list[str]] = []
    sign = Claims._sign

    def look(self: Claims, trial: optuna.trial.Trial) -> claims_module.Claim:
        claim = sign(self, trial)
        seen.append([other.state.name for other in trials_of(study, directory)])
        return claim

    monkeypatch.setattr(Claims, "_sign", look)
    with CellQueue(study, directory, "w0") as queue:
        assert len(queue.take(2)) == 2
    assert seen == [["WAITING"] * 3] * 2


@pytest.mark.parametrize(
    ("sampler", "pruner", "learns"),
    [
        ("random", None, False),
        ("tpe", None, True),
        ("random", "sha", True),
        ("random", "wilcoxon", True),
    ],
)
def test_who_learns_from_results_must_have_them_first(
    directory: StudyDirectory, sampler: str, pruner: str | None, learns: bool
) -> None:
    study = make_study(
        space={"lr": LR},
        sampler={"name": sampler, "cells": 2},
        pruner=None if pruner is None else {"name": pruner},
    )
    with CellQueue(study, directory, "w0") as queue:
        assert queue.learns == learns


def test_a_claim_that_was_rolled_back_is_not_given_back_over_its_new_owner(
    sqlite_directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is refused, another worker claims the trial: the first must not disown it."""
    study = make_study(replicates=1)
    first, second = (
        CellQueue(study, sqlite_directory, "w1"),
        CellQueue(study, sqlite_directory, "w2"),
    )
    session = database_of(first._opened)._session()

    def refuse() -> None:
        raise OperationalError("COMMIT", {}, Exception("disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(session, "commit", lambda: session.flush() if session.grouped else refuse())
        with pytest.raises(StoreError):
            first.take(1)
    taken = second.take(1)
    assert [run.trial for run in taken] == [0], "nobody has it"
    first.release()
    with CellQueue(study, sqlite_directory, "w3") as third:
        assert 0 not in [run.trial for run in third.take(3)], "it is still the second's"
    finish(second, outcome_of(taken[0]), curve_of())
    second.release()
