"""Optuna's storage as this project uses it: one commit a turn at the lock, and no row read twice.

Optuna commits every single write, which on SQLite is one wait for the disk each, and reads all
unfinished trials anew at every look at the study. With dozens of trials in hand that takes longer
than training them. Here all writes of a `transaction` are one commit, and what this process wrote
is not read back; what others wrote is, and the database says whether there is any.

`StudyDatabase` holds what is alike in every database; `SqliteDatabase` is the one of a single host,
`studies.postgres` that of several. What a study does and when is not decided here
(`studies.queue`, `studies.claims`).
"""

from __future__ import annotations

import copy
import json
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

_BUSY_TIMEOUT_S = 60


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


class StudyDatabase(_CachedStorage):
    """A database of one or more studies. Used by one thread.

    Args:
        backend: Optuna's view of it; its sessions are replaced.
    """

    def __init__(self, backend: RDBStorage) -> None:
        """Take over Optuna's engine."""
        backend.scoped_session = scoped_session(sessionmaker(bind=backend.engine, class_=_Session))
        # Making sure of the tables takes two connections; one is left, and always the same.
        backend.engine.dispose()
        super().__init__(backend)
        self._looked = False

    @abstractmethod
    def _begin(self, session: _Session) -> None:
        """Take what a transaction needs before its first write."""

    @abstractmethod
    def _before_commit(self, session: _Session) -> None:
        """Add to a transaction what others need to see that there was one."""

    @abstractmethod
    def _after_commit(self) -> None:
        """The transaction took place."""

    @abstractmethod
    def _forget_versions(self) -> None:
        """Read at the next look, whatever the database says of changes."""

    def _changing(self) -> AbstractContextManager[None]:
        """What each write of a trial is made within."""
        return nullcontext()

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
        session.grouped, session.broken, self._looked = True, False, False
        try:
            yield
        finally:
            session.grouped = False
            try:
                if session.broken:
                    self._forget()
                else:
                    self._before_commit(session)
                    session.commit()
                    self._after_commit()
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
        self._forget_versions()
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
        self.remove_session()
        self._backend.engine.dispose()

    def _insert(self, model: Any) -> Any:
        """An insertion that knows `on_conflict_do_update`, which standard SQL does not."""
        is_sqlite = self._backend.engine.dialect.name == "sqlite"
        return (insert_sqlite if is_sqlite else insert_postgresql)(model)

    def _session(self) -> _Session:
        session = self._backend.scoped_session()
        assert isinstance(session, _Session)
        return session

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage.get_trial`."""
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None:
            return self._backend.get_trial(trial_id)
        study_id, number = place
        self._read_trials_from_remote_storage(study_id)
        trial = self._studies[study_id].trials[number]
        # Optuna's trials write into what they are given.
        return trial if trial.state.is_finished() else _copy(trial)

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
        text = json.dumps(value)
        trial = self._put(
            models.TrialUserAttributeModel, trial_id, {"key": key}, {"value_json": text}
        )
        trial.user_attrs[key] = json.loads(text)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage.set_trial_system_attr`."""
        text = json.dumps(value)
        trial = self._put(
            models.TrialSystemAttributeModel, trial_id, {"key": key}, {"value_json": text}
        )
        trial.system_attrs[key] = json.loads(text)

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
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None:
            return None
        study_id, number = place
        trial = self._studies[study_id].trials[number] = _copy(
            self._studies[study_id].trials[number]
        )
        return trial


class SqliteDatabase(StudyDatabase):
    """An SQLite file. Who writes holds the study's lock on this host (`studies.storage`).

    Args:
        file: The database.
        trusted: Whether the tables are known to be there and of this version: making sure of it
            takes 0.1 s.
    """

    def __init__(self, file: Path, *, trusted: bool = False) -> None:
        """Open it, or make it where it is missing."""
        super().__init__(
            RDBStorage(
                f"sqlite:///{file.absolute()}",
                engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT_S}},
                skip_compatibility_check=trusted,
                skip_table_creation=trusted,
            )
        )
        self._versions: dict[int, tuple[object, int]] = {}
        """Study -> connection and its `data_version` when the study was last read."""

    def _begin(self, session: _Session) -> None:
        """Nothing: the lock on the host keeps others out."""

    def _before_commit(self, session: _Session) -> None:
        """Nothing: SQLite counts changes itself."""

    def _after_commit(self) -> None:
        """Nothing: a connection's own changes do not change its `data_version`."""

    def _forget_versions(self) -> None:
        self._versions.clear()

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read what others changed, at most once a transaction: it keeps them out."""
        session = self._session()
        if session.grouped and self._looked and study_id in self._versions:
            return
        # The number before the rows: a change between the two is then read twice, not never.
        connection = session.connection()
        number = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        version = (connection.connection.dbapi_connection, number)
        session.close()
        if self._versions.get(study_id) != version:
            super()._read_trials_from_remote_storage(study_id)
            self._versions[study_id] = version
        self._looked = session.grouped


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """A trial whose mappings may be changed."""
    new = copy.copy(trial)
    new.params, new.distributions = dict(trial.params), dict(trial.distributions)
    new.user_attrs, new.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    new.intermediate_values = dict(trial.intermediate_values)
    return new
