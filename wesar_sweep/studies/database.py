"""Optuna's storage as this project uses it: one commit a turn at the lock, and no row read twice.

Optuna commits every single write, which on SQLite is one wait for the disk each, and reads all
unfinished trials anew at every look at the study. With dozens of trials in hand that takes longer
than training them. Here all writes of a `transaction` are one commit, and what this process wrote
is not read back; what others wrote is, and SQLite says whether there is any.

What a study does and when is not decided here (`studies.queue`, `studies.claims`).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

_BUSY_TIMEOUT_S = 60


class _Session(Session):
    """A session whose commits wait for the end of the transaction it is put into."""

    grouped = False
    broken = False

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
        self.broken |= self.grouped
        super().rollback()

    def close(self) -> None:
        """End; in a transaction only forget the rows that were read."""
        if self.grouped:
            self.expunge_all()
        else:
            super().close()


class StudyDatabase(_CachedStorage):
    """An SQLite file of one or more studies. Used by one thread.

    Args:
        file: The database.
        trusted: Whether the tables are known to be there and of this version: making sure of it
            takes 0.1 s.
    """

    def __init__(self, file: Path, *, trusted: bool = False) -> None:
        """Open it, or make it where it is missing."""
        backend = RDBStorage(
            f"sqlite:///{file.absolute()}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_TIMEOUT_S}},
            skip_compatibility_check=trusted,
            skip_table_creation=trusted,
        )
        backend.scoped_session = scoped_session(sessionmaker(bind=backend.engine, class_=_Session))
        # Making sure of the tables takes two connections; one is left, and always the same.
        backend.engine.dispose()
        super().__init__(backend)
        self._versions: dict[int, tuple[object, int]] = {}
        """Study -> connection and its `data_version` when the study was last read."""
        self._looked = False

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
        session.grouped, session.broken, self._looked = True, False, False
        try:
            yield
        finally:
            session.grouped = False
            try:
                if session.broken:
                    self._forget()
                else:
                    session.commit()
            except BaseException:
                session.rollback()
                self._forget()
                raise
            finally:
                session.close()
        if session.broken:
            # Optuna keeps to itself that a row was there already, which under the lock cannot be.
            raise StorageInternalError("a write of the transaction was refused")

    def _forget(self) -> None:
        """Read everything anew: what was written did not take place."""
        self._versions.clear()
        for study in self._studies.values():
            study.trials.clear()
            study.unfinished_trial_ids.clear()
            study.last_finished_trial_id = -1
        self._trial_id_to_study_id_and_number.clear()
        self._study_id_and_number_to_trial_id.clear()

    def close(self) -> None:
        """Close the connection; the storage is not to be used afterwards."""
        self.remove_session()
        self._backend.engine.dispose()

    def _session(self) -> _Session:
        session = self._backend.scoped_session()
        assert isinstance(session, _Session)
        return session

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
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        if (trial := self._remember(trial_id)) is not None:
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            trial.distributions[param_name] = distribution

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `BaseStorage.set_trial_state_values`."""
        changed = super().set_trial_state_values(trial_id, state=state, values=values)
        if not changed:
            self._forget()
        elif (trial := self._remember(trial_id)) is not None:
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
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        row = insert(model).values(trial_id=trial_id, **key, **columns)
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


def _copy(trial: FrozenTrial) -> FrozenTrial:
    """A trial whose mappings may be changed."""
    new = copy.copy(trial)
    new.params, new.distributions = dict(trial.params), dict(trial.distributions)
    new.user_attrs, new.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
    new.intermediate_values = dict(trial.intermediate_values)
    return new
