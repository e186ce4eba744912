"""Optuna's storage as this project uses it: one commit a turn at the lock, and no row read twice.

Optuna commits every single write, which on SQLite is one wait for the disk each, and reads all
unfinished trials anew at every look at the study. With dozens of trials in hand that takes longer
than training them. Here all writes of a `transaction` are one commit, and what this process wrote
is not read back.

What others wrote is: beside Optuna's tables, `wesar_sweep_changes` has the number of the
transaction that last changed each trial, so a look at the study reads the trials that others
changed and no more. Those who write without this class, such as a dashboard, are not seen until the
next start.

`StudyDatabase` holds what is alike in every database; `SqliteDatabase` is the one of a single host,
`studies.postgres` that of several. What a study does and when is not decided here
(`studies.queue`, `studies.claims`).
"""

from __future__ import annotations

import copy
import json
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Select, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

_BUSY_TIMEOUT_S = 60

CHANGES_TABLES = (
    """CREATE TABLE IF NOT EXISTS wesar_sweep_turns (
        study text PRIMARY KEY, number bigint NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS wesar_sweep_changes (
        study text NOT NULL, trial_id integer NOT NULL, number bigint NOT NULL,
        PRIMARY KEY (study, trial_id))""",
    """CREATE INDEX IF NOT EXISTS wesar_sweep_changes_by_number
        ON wesar_sweep_changes (study, number)""",
)
_NUMBER = text("SELECT number FROM wesar_sweep_turns WHERE study = :study")
_CHANGED = text(
    """SELECT trial_id, state FROM wesar_sweep_changes AS changes JOIN trials USING (trial_id)
    WHERE changes.study = :study AND changes.number > :known"""
)
_NEXT_NUMBER = text(
    """INSERT INTO wesar_sweep_turns (study, number) VALUES (:study, 1)
    ON CONFLICT (study) DO UPDATE SET number = number + 1"""
)
_NOTE = text(
    """INSERT INTO wesar_sweep_changes (study, trial_id, number) VALUES (:study, :trial, :number)
    ON CONFLICT (study, trial_id) DO UPDATE SET number = excluded.number"""
)
_CONSTRAINTS = "constraints:"
"""Before the names of a trial's constraints among its system attributes."""
_LAST_ID = 2**31 - 1
"""The largest that the column of Optuna's table holds."""
_MOST_AT_ONCE = 500
"""Trials asked for by one statement: databases bound the number of its parameters."""


class _Session(Session):
    """A session whose commits wait for the end of the transaction it is put into."""

    grouped = False
    broken = False
    cause: BaseException | None = None
    """What broke it."""

    def commit(self) -> None:
        """Commit, or leave that to the end of the transaction."""
        if self.grouped:
            self.flush()
        else:
            super().commit()

    def rollback(self) -> None:
        """Undo; in a transaction everything that came before in it, too.

        Optuna also calls this when it refuses something itself, before it has written anything:
        then what came before stands.
        """
        if self.grouped and not isinstance(sys.exception(), SQLAlchemyError):
            self.expunge_all()
            return
        if self.grouped:
            self.broken, self.cause = True, sys.exception()
        super().rollback()

    def close(self) -> None:
        """End; in a transaction only forget the rows that were read."""
        if self.grouped:
            self.expunge_all()
        else:
            super().close()


class Running(NamedTuple):
    """A running trial, as far as it is known without reading it."""

    number: int
    value: Any
    """Of the user attribute that was asked for; None where it has none."""


class StudyDatabase(_CachedStorage):
    """The database of one study. Used by one thread.

    Args:
        backend: Optuna's view of it; its sessions are replaced.
        log: Name of the study's log of changes in the database.
    """

    def __init__(self, backend: RDBStorage, *, log: str) -> None:
        """Take over Optuna's engine."""
        backend.remove_session()
        backend.scoped_session = scoped_session(sessionmaker(bind=backend.engine, class_=_Session))
        # Making sure of the tables takes two connections; one is left, and always the same.
        backend.engine.dispose()
        super().__init__(backend)
        self._log_name = log
        self._looked = False
        self._touched: set[int] = set()
        """Trials that the transaction changed."""
        self._known: int | None = None
        """Number of the last transaction whose changes are known."""
        self._changed: dict[int, str] = {}
        """Trial that others changed and that was not read since -> its state."""

    @abstractmethod
    def _begin(self, session: _Session) -> None:
        """Take what a transaction needs before its first write."""

    @abstractmethod
    def _note(self, session: _Session, trial_ids: Sequence[int]) -> int:
        """Write down that the transaction changes these trials; returns its number."""

    def _changing(self) -> AbstractContextManager[None]:
        """What each write of a trial is made within: the transaction, else one of its own."""
        return nullcontext() if self.in_transaction else self.transaction()

    @property
    def in_transaction(self) -> bool:
        """Whether a `transaction` is open."""
        return self._session().grouped

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes within as one. To be held under the study's lock only.

        An error that is not the database's leaves standing what was written before it.

        Raises:
            StorageInternalError: The database failed; then none of the writes took place.
        """
        session = self._session()
        assert not session.grouped, "transactions do not nest"
        self._begin(session)
        self._touched.clear()
        session.grouped, session.broken, self._looked = True, False, False
        try:
            yield
        finally:
            session.grouped = False
            try:
                if session.broken:
                    self._forget()
                else:
                    number = self._note(session, sorted(self._touched)) if self._touched else None
                    session.commit()
                    # Otherwise others changed something in between that was not looked at.
                    if self._known is not None and number == self._known + 1:
                        self._known = number
            except BaseException:
                session.rollback()
                self._forget()
                raise
            finally:
                session.close()
        if session.broken:
            # Optuna keeps to itself that a row was there already, which under the lock cannot be,
            # and that it tried again what had failed.
            raise StorageInternalError("a write of the transaction was refused") from session.cause

    def _forget(self) -> None:
        """Read everything anew: what was written did not take place."""
        self._known = None
        self._changed.clear()
        for study in self._studies.values():
            study.trials.clear()
            study.unfinished_trial_ids.clear()
            study.last_finished_trial_id = -1
        self._trial_id_to_study_id_and_number.clear()
        self._study_id_and_number_to_trial_id.clear()

    def connection(self) -> Session:
        """What to ask the database by, within the transaction that is open if one is."""
        return self._session()

    def close(self) -> None:
        """Close the connection; the storage is not to be used afterwards."""
        # Not its own, which does nothing: what is open would end when it is cleared away.
        self._backend.remove_session()
        self._backend.engine.dispose()

    def _insert(self, model: Any) -> Any:
        """An insertion that knows `on_conflict_do_update`, which standard SQL does not."""
        is_sqlite = self._backend.engine.dialect.name == "sqlite"
        return (insert_sqlite if is_sqlite else insert_postgresql)(model)

    def _session(self) -> _Session:
        session = self._backend.scoped_session()
        assert isinstance(session, _Session)
        return session

    def _look(self, study_id: int) -> None:
        """See what others changed, at most once a transaction: it keeps them out."""
        session = self._session()
        if session.grouped and self._looked and self._known is not None:
            return
        # The number before the rows: a change between the two is then read twice, not never.
        number = session.execute(_NUMBER, {"study": self._log_name}).scalar() or 0
        if self._known is not None and number != self._known:
            asked = {"study": self._log_name, "known": self._known}
            self._changed |= {row.trial_id: row.state for row in session.execute(_CHANGED, asked)}
        session.close()
        if self._known is None:
            super()._read_trials_from_remote_storage(study_id)
        self._known = number
        self._looked = session.grouped

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read what others changed."""
        self._look(study_id)
        changed = list(self._changed)
        for start in range(0, len(changed), _MOST_AT_ONCE):
            with self._lock:
                found = self._backend._get_trials(
                    study_id,
                    states=None,
                    included_trial_ids=set(changed[start : start + _MOST_AT_ONCE]),
                    # These and no others: the changes name the new ones, too.
                    trial_id_greater_than=_LAST_ID,
                )
                self._add_trials_to_cache(study_id, found)
        self._changed.clear()

    def state_of(self, trial: FrozenTrial, *, study_id: int) -> TrialState:
        """The state now of a trial that was read before; the rest of it is not read again."""
        self._look(study_id)
        changed = self._changed.get(trial._trial_id)
        if changed is not None:
            return TrialState[changed]
        return self._studies[study_id].trials[trial.number].state

    def counts(self, study_id: int) -> Counter[TrialState]:
        """How many trials there are of each state; no trial is read."""
        trial = models.TrialModel
        asked = (
            select(trial.state, func.count())
            .where(trial.study_id == study_id)
            .group_by(trial.state)
        )
        return Counter({state: count for state, count in self._rows(asked)})

    def running(self, study_id: int, attribute: str) -> list[Running]:
        """The running trials with one of their user attributes, by number; no trial is read."""
        trial, value = models.TrialModel, models.TrialUserAttributeModel
        asked = (
            select(trial.number, value.value_json)
            .outerjoin(value, (value.trial_id == trial.trial_id) & (value.key == attribute))
            .where(trial.study_id == study_id, trial.state == TrialState.RUNNING)
            .order_by(trial.number)
        )
        return [
            Running(number, None if value_json is None else json.loads(value_json))
            for number, value_json in self._rows(asked)
        ]

    def _rows(self, asked: Select[Any]) -> Sequence[Any]:
        session = self._session()
        rows = session.execute(asked).all()
        session.close()
        return rows

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage.get_trial`."""
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None:
            return self._backend.get_trial(trial_id)
        study_id, number = place
        self._look(study_id)
        if trial_id in self._changed:
            self._read_trials_from_remote_storage(study_id)
        trial = self._studies[study_id].trials[number]
        # Optuna's trials write into what they are given.
        return trial if trial.state.is_finished() else _copy(trial)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `BaseStorage.create_new_study`."""
        # Asked first: a refusal of the database would undo the transaction that this is part of.
        if study_name is not None:
            with suppress(KeyError):
                self._backend.get_study_id_from_name(study_name)
                raise DuplicatedStudyError(f"there is a study named {study_name}")
        return super().create_new_study(directions, study_name)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See `BaseStorage.create_new_trial`."""
        with self._changing():
            trial_id = super().create_new_trial(study_id, template_trial)
            self._remember(trial_id)
        return trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """See `BaseStorage.set_trial_param`."""
        with self._changing():
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            trial = self._remember(trial_id)
        if trial is not None:
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            trial.distributions[param_name] = distribution

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `BaseStorage.set_trial_state_values`."""
        with self._changing():
            changed = super().set_trial_state_values(trial_id, state=state, values=values)
            trial = self._remember(trial_id) if changed else None
        if not changed:
            self._forget()
        elif trial is not None:
            trial.state = state
            if values is not None:
                trial.values = [float(value) for value in values]
            # Some microseconds after what the database has; for looking at only.
            if state == TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()
        return changed

    def reopen(self, trial_id: int) -> None:
        """Make a finished trial a running one that has been told nothing: it gets more seeds.

        Optuna knows no such step; its tables do. Parameters, attributes and intermediate values
        stand.
        """
        value, attribute = models.TrialValueModel, models.TrialSystemAttributeModel
        with self._changing():
            with _create_scoped_session(self._backend.scoped_session) as session:
                row = models.TrialModel.find_or_raise_by_id(trial_id, session)
                row.state, row.datetime_complete = TrialState.RUNNING, None
                constraint = attribute.key.startswith(_CONSTRAINTS)
                for told in (
                    delete(value).where(value.trial_id == trial_id),
                    delete(attribute).where(attribute.trial_id == trial_id, constraint),
                ):
                    session.execute(told, execution_options={"synchronize_session": False})
            trial = self._remember(trial_id)
        if trial is not None:
            trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
            trial.system_attrs = {
                key: value
                for key, value in trial.system_attrs.items()
                if not key.startswith(_CONSTRAINTS)
            }

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """See `BaseStorage.set_trial_intermediate_value`."""
        model = models.TrialIntermediateValueModel
        value, kind = model.intermediate_value_to_stored_repr(intermediate_value)
        columns = {"intermediate_value": value, "intermediate_value_type": kind}
        trial = self._put(model, trial_id, {"step": step}, columns)
        trial.intermediate_values[step] = float(intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_user_attr`."""
        value_json = json.dumps(value)
        trial = self._put(
            models.TrialUserAttributeModel, trial_id, {"key": key}, {"value_json": value_json}
        )
        trial.user_attrs[key] = json.loads(value_json)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_system_attr`."""
        value_json = json.dumps(value)
        trial = self._put(
            models.TrialSystemAttributeModel, trial_id, {"key": key}, {"value_json": value_json}
        )
        trial.system_attrs[key] = json.loads(value_json)

    def _put(
        self, model: Any, trial_id: int, key: dict[str, Any], columns: dict[str, Any]
    ) -> FrozenTrial:
        """Write one row of a trial, as `RDBStorage` does but without reading the trial first.

        Returns:
            What is known of the trial, to be changed alike.
        """
        with self._changing():
            trial = self.get_trial(trial_id)
            self.check_trial_is_updatable(trial_id, trial.state)
            row = self._insert(model).values(trial_id=trial_id, **key, **columns)
            row = row.on_conflict_do_update(index_elements=["trial_id", *key], set_=columns)
            with _create_scoped_session(self._backend.scoped_session) as session:
                session.execute(row)
            return self._remember(trial_id) or trial

    def _remember(self, trial_id: int) -> FrozenTrial | None:
        """What is known of a trial, to be changed; None where nothing is known of it yet.

        Always a new object: who holds the old one has a snapshot, as Optuna's pruners expect.
        """
        self._touched.add(trial_id)
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None:
            return None
        study_id, number = place
        if trial_id in self._changed:
            self._read_trials_from_remote_storage(study_id)
        trial = self._studies[study_id].trials[number] = _copy(
            self._studies[study_id].trials[number]
        )
        return trial


class SqliteDatabase(StudyDatabase):
    """An SQLite file. Who writes holds the study's lock on this host (`studies.storage`).

    Args:
        file: The database.
    """

    def __init__(self, file: Path) -> None:
        """Open it, or make it where it is missing."""
        backend = RDBStorage(
            f"sqlite:///{file.absolute()}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT_S}},
        )
        with backend.engine.begin() as connection:
            for statement in CHANGES_TABLES:
                connection.execute(text(statement))
        super().__init__(backend, log="")

    def _begin(self, session: _Session) -> None:
        """Nothing: the lock on the host keeps others out."""

    def _note(self, session: _Session, trial_ids: Sequence[int]) -> int:
        # One statement each: RETURNING is unknown to the SQLite of some systems in use (3.34).
        session.execute(_NEXT_NUMBER, {"study": self._log_name})
        number = int(session.execute(_NUMBER, {"study": self._log_name}).scalar_one())
        rows = [{"study": self._log_name, "trial": trial, "number": number} for trial in trial_ids]
        session.execute(_NOTE, rows)
        return number


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """A trial whose mappings may be changed."""
    new = copy.copy(trial)
    new.params, new.distributions = dict(trial.params), dict(trial.distributions)
    new.user_attrs, new.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    new.intermediate_values = dict(trial.intermediate_values)
    return new
