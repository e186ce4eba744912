"""The database: one commit a transaction, nothing read twice, and still what Optuna would read."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from fabricated_runs import make_study, sixty_cells
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, text

from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.database import SqliteDatabase
from wesar_sweep.studies.storage import close_study, database_of, exclusive, open_study


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def opened_at(file: Path) -> optuna.Study:
    return optuna.create_study(
        storage=SqliteDatabase(file),
        study_name="s",
        pruner=SuccessiveHalvingPruner(min_resource=1),
        load_if_exists=True,
    )


def facts(trials: list[FrozenTrial]) -> list[tuple[object, ...]]:
    """All of the trials but the times."""
    return [
        (
            trial.number,
            trial.state,
            trial.values,
            list(trial.params.items()),
            trial.distributions,
            trial.user_attrs,
            trial.system_attrs,
            trial.intermediate_values,
        )
        for trial in trials
    ]


def a_life(study: optuna.Study, n: int) -> None:
    """A trial with everything that a trial may have."""
    trial = study.ask()
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("method", ["he", "small"])
    trial.suggest_int("depth", 1, 9)
    trial.set_user_attr("pair", (1, {"two": None}))
    trial.set_user_attr("pair", (n, {"two": None}))
    trial.report(0.1 * n, 1)
    trial.report(math.inf if n == 2 else 1 / 3, 4)
    trial.should_prune()
    if n == 1:
        trial.set_constraint("c", 0.5)
        study.tell(trial, 1e-300)
    elif n == 2:
        study.tell(trial, state=TrialState.PRUNED)


def test_what_it_knows_is_what_stands_in_the_file(file: Path) -> None:
    study = opened_at(file)
    study.enqueue_trial({"lr": 0.01}, user_attrs={"cell": 7})
    for n in range(5):
        with database_of(study).transaction():
            a_life(study, n)
    plain = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    assert facts(study.trials) == facts(plain.trials)
    assert facts([database_of(study).get_trial(t._trial_id) for t in plain.trials]) == facts(
        plain.trials
    )
    assert {trial.state.name for trial in plain.trials} == {"RUNNING", "COMPLETE", "PRUNED"}


def test_a_transaction_is_one_commit_and_reads_no_trial_back(file: Path) -> None:
    study = opened_at(file)
    trials = [study.ask() for _ in range(9)]
    statements, commits = [], []
    engine = database_of(study)._backend.engine

    @event.listens_for(engine, "before_cursor_execute")
    def say(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "commit", commits.append)
    with database_of(study).transaction():
        for trial in trials:
            trial.report(1.0, 1)
            trial.should_prune()
    assert len(commits) == 1
    assert sum(statement.startswith("INSERT") for statement in statements) == 18 + 2
    # Other than the rows: once, whether there is something new, and once which number this has.
    assert [s.split()[:4] for s in statements if not s.startswith("INSERT")] == [
        ["SELECT", "number", "FROM", "wesar_sweep_turns"]
    ] * 2


def test_others_see_all_of_a_transaction_or_nothing(file: Path) -> None:
    study, other = opened_at(file), opened_at(file)
    with database_of(study).transaction():
        study.ask().set_user_attr("worker", "w0")
        assert other.trials == []
    assert [trial.user_attrs for trial in other.trials] == [{"worker": "w0"}]


@pytest.mark.parametrize("looks", [True, False])
def test_what_others_change_is_seen(file: Path, looks: bool) -> None:
    """The control: who does not read what others changed sees the old state for ever."""
    study, other = opened_at(file), opened_at(file)
    trial = study.ask()
    assert [t.user_attrs for t in other.trials] == [{}]
    if not looks:
        database_of(other)._read_trials_from_remote_storage = lambda _: None  # type: ignore[method-assign]
    with database_of(study).transaction():
        trial.set_user_attr("worker", "w0")
    with database_of(other).transaction():
        found = database_of(other).get_trial(trial._trial_id).user_attrs
    assert found == ({"worker": "w0"} if looks else {})
    if looks:
        study.tell(trial, 1.0)
        assert other.trials[0].value == 1.0


def test_only_what_others_changed_is_read(tmp_path: Path, each_database: str) -> None:
    """Of twenty that wait, the one that another took; and its state is known without reading it."""
    directory = StudyDirectory(tmp_path / "s")
    study = make_study(space={"lr": sixty_cells().space["lr"]})
    first, second = open_study(study, directory), open_study(study, directory)
    assert len(first.trials) == len(second.trials) == 20
    read: list[list[int]] = []
    database = database_of(first)
    get = database._backend._get_trials

    def noted(study_id: int, **named: object) -> list[FrozenTrial]:
        found = get(study_id, **named)  # type: ignore[arg-type]
        read.append([trial.number for trial in found])
        return found

    database._backend._get_trials = noted  # type: ignore[method-assign]
    with exclusive(directory, first):
        mine = first.ask()
    first.get_trials()
    assert read == [], "what this process wrote"
    with exclusive(directory, second):
        theirs = second.ask()
    waiting = first.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    assert read == [[theirs.number]]
    with exclusive(directory, second):
        third = second.ask()
    states = [database.state_of(trial, study_id=first._study_id) for trial in waiting]
    taken = [n.number for n, s in zip(waiting, states, strict=True) if s == TrialState.RUNNING]
    assert taken == [third.number]
    assert database.get_trial(mine._trial_id).state == TrialState.RUNNING
    assert len(read) == 1, "nothing of a changed trial was asked for"
    assert database.get_trial(third._trial_id).state == TrialState.RUNNING
    assert read[1:] == [[third.number]]
    with exclusive(directory, second):
        second.tell(theirs, 1.0)
    with exclusive(directory, first):
        first.tell(mine, 2.0)
    values = [trial.values for trial in first.get_trials()]
    assert values.count([1.0]) == values.count([2.0]) == 1
    assert values == [trial.values for trial in second.get_trials()]
    close_study(first)
    close_study(second)


def test_what_was_given_out_does_not_change(file: Path) -> None:
    """A pruner holds the trials while it writes, and counts its own value once."""
    study = opened_at(file)
    trial = study.ask()
    before = study.get_trials(deepcopy=False)
    mine = database_of(study).get_trial(trial._trial_id)
    mine.user_attrs["scribble"] = 1
    trial.set_user_attr("worker", "w0")
    assert before[0].user_attrs == {}
    assert study.trials[0].user_attrs == {"worker": "w0"}


def test_a_refusal_that_is_not_the_databases_undoes_nothing(file: Path) -> None:
    study = opened_at(file)
    with pytest.raises(ZeroDivisionError), database_of(study).transaction():
        trial = study.ask()
        with pytest.raises(ValueError, match="Record does not exist"):
            study.best_trial  # noqa: B018
        trial.set_user_attr("worker", "w0")
        1 / 0  # noqa: B018
    plain = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    assert [t.user_attrs for t in plain.trials] == [{"worker": "w0"}]


def test_a_finished_trial_is_not_written_to(file: Path) -> None:
    study = opened_at(file)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("worker", "w0")


def test_a_database_that_fails_undoes_the_transaction_and_says_so(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "s")
    opened = open_study(make_study(), directory)
    database = database_of(opened)
    first = opened.get_trials(deepcopy=False)[0]._trial_id

    def sabotage() -> None:
        with database._session().bind.connect() as connection:  # type: ignore[union-attr]
            connection.execute(text("DROP TABLE trial_user_attributes"))
            connection.commit()

    sabotage()
    with (
        pytest.raises(StoreError, match=r"study\.db failed"),
        exclusive(directory, opened),
    ):
        opened.ask()
        database.create_new_trial(opened._study_id)
        database.set_trial_system_attr(first, "before", 1)
        database.set_trial_user_attr(first, "worker", "w0")
    with database._session() as session:
        rows = session.execute(text("SELECT key FROM trial_system_attributes")).scalars().all()
    assert "before" not in rows and "fixed_params" in rows
    assert database._studies[opened._study_id].trials == {}, "what was undone is still known"


def test_one_turn_within_another_is_part_of_it(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "s")
    opened = open_study(make_study(), directory)
    with exclusive(directory, opened), exclusive(directory, opened):
        assert database_of(opened).in_transaction
    assert not database_of(opened).in_transaction
