"""Optuna's study in its database: made once, opened by every worker, readable by the dashboard.

SQLite, the default, stays in its default journal mode with full synchronisation: one file, sound
after SIGKILL and after a power cut, and readable where nothing can be written, as in a checked-out
reference study. Every write of this project is made under `StudyDirectory.ask_lock_file`, so
writers queue up instead of meeting in the database. With PostgreSQL the lock is the server's
(`studies.postgres`), so workers may be on any number of hosts.

Which of the two a study is in is settled when it begins, by the environment variable WESAR_STORAGE
(the driver sets it from the sweep file, so that workers inherit it and no file or argument holds a
password), and stays so: `storage_of`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.storage_url import STORAGE_VARIABLE, StorageUrl, parse_storage_url
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import StoreError
from wesar_sweep.store.file_systems import network_file_system
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold, is_held
from wesar_sweep.store.storage_record import (
    make_storage_record,
    read_storage_record,
    replace_storage_record,
)
from wesar_sweep.studies.beats import living, read_seen
from wesar_sweep.studies.database import SqliteDatabase, StudyDatabase
from wesar_sweep.studies.postgres import (
    OPENING_PATIENCE_S,
    PostgresDatabase,
    connect,
    connection_lost,
    keep_trying,
    require_client,
)
from wesar_sweep.studies.pruners import build_pruner
from wesar_sweep.studies.samplers import build_sampler
from wesar_sweep.studies.searching import CELL

OBJECTIVES = "objectives"
"""User attribute of the study: names of the objectives, in their order."""

_LOCK_TIMEOUT_S = 600.0
"""A sampler may think for seconds while it holds the lock, once a worker."""


_IDLE_GRACES = 2
"""A transaction may stand still for so many graces: a frozen worker must not block the others."""


class ConnectionLost(StoreError):
    """The server went away within a transaction: none of it took place, or all of it.

    The same may be asked again; `studies.queue` does.
    """


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a study's database is, as `storage_of` and `settle_storage` find it."""

    url: StorageUrl | None
    """None: SQLite, in the study's directory."""
    study: str
    """The study's name in the database."""
    grace_s: float
    """PostgreSQL: a worker that was not seen for so long is dead."""

    @property
    def idle_timeout_s(self) -> float:
        """How long a transaction may stand still."""
        return _IDLE_GRACES * self.grace_s

    def shown(self, directory: StudyDirectory) -> str:
        """The database, for people."""
        return str(directory.database_file) if self.url is None else self.url.shown


def asked_storage(sweep: Sweep) -> StorageUrl | None:
    """The database that the sweep file says, else the environment; None: SQLite.

    Where both name one database, the one with a password is taken.

    Raises:
        ConfigError: A URL is not one of a PostgreSQL database.
    """
    given = _given_storage()
    if sweep.storage is None:
        return given
    asked = parse_storage_url(sweep.storage)
    if given is not None and given.same_place(asked) and asked.password is None:
        return given
    return asked


def settle_storage(study: Study, directory: StudyDirectory, sweep: Sweep) -> Storage:
    """Settle where a study's database is, or find that the sweep agrees with what was settled.

    Raises:
        ConfigError: A URL is not one of a PostgreSQL database.
        StoreError: The study is in another database, or SQLite will not do on this file system.
    """
    asked = asked_storage(sweep)
    if asked is not None:
        require_client(asked)
    record = read_storage_record(directory)
    if record is None and sweep.storage is not None and directory.database_file.exists():
        raise StoreError(
            f"the study in {directory.root} is in {directory.database_file}, not in "
            f"{parse_storage_url(sweep.storage).shown}: go on without storage in the sweep file, "
            "or begin anew with --out"
        )
    if record is None:
        if asked is None or directory.database_file.exists():
            # Before anything is trained, and before there is a file to lose.
            _require_local_disk(directory)
        directory.create()
        return storage_of(study, directory, asked=asked, grace_s=sweep.heartbeat_grace_s)
    # A sweep that does not say it, as that of a plain `resume`, leaves it as it was.
    said = "heartbeat_grace_s" in sweep.model_fields_set
    if said and record.heartbeat_grace_s != sweep.heartbeat_grace_s:
        record = replace(record, heartbeat_grace_s=sweep.heartbeat_grace_s)
        replace_storage_record(directory, record)
    return storage_of(study, directory, asked=asked)


def storage_of(
    study: Study,
    directory: StudyDirectory,
    *,
    asked: StorageUrl | None = None,
    grace_s: float | None = None,
) -> Storage:
    """Where a study's database is: what its directory says, else what was asked for.

    Args:
        study: The study.
        directory: Its directory.
        asked: A database, with the password where one is needed; None: by the environment.
        grace_s: For a study that begins now; None: the default.

    Raises:
        ConfigError: A URL is not one of a PostgreSQL database.
        StoreError: The directory says another database than was asked for.
    """
    asked = asked or _given_storage()
    grace_s = grace_s or float(Sweep.model_fields["heartbeat_grace_s"].default)
    record = read_storage_record(directory)
    if record is None:
        if asked is None or directory.database_file.exists():
            return Storage(None, study.name, grace_s)
        record = make_storage_record(
            directory, url=asked.shown, name=study.name, heartbeat_grace_s=grace_s
        )
    if record.study.rpartition(".")[0] != study.name:
        raise StoreError(
            f"{record.url} holds no study named {study.name} for {directory.root}, whose study is "
            f"{record.study} ({directory.storage_file})"
        )
    settled = parse_storage_url(record.url, where=str(directory.storage_file))
    if asked is not None and not settled.same_place(asked):
        raise StoreError(
            f"the study in {directory.root} is in {settled.shown}, not in {asked.shown}. If its "
            f"database was moved, say so in {directory.storage_file}; else leave away "
            f"{STORAGE_VARIABLE} and storage in the sweep file, or name the right one"
        )
    return Storage(asked or settled, record.study, record.heartbeat_grace_s)


def living_workers(study: Study, directory: StudyDirectory) -> list[str]:
    """The names of the workers that live: on one host by their locks, on several by their beats.

    Raises:
        StoreError: The database failed.
    """
    storage = storage_of(study, directory)
    if storage.url is None:
        return sorted(p.stem for p in directory.workers_folder.glob("*.lock") if is_held(p))
    url = storage.url
    engine = connect(url, idle_timeout_s=storage.idle_timeout_s, pooled=False)

    def ask() -> list[str]:
        with engine.connect() as connection:
            seen = read_seen(connection, storage.study)
        return living(seen, directory, grace_s=storage.grace_s)

    with database_errors(directory, url):
        return keep_trying(ask, patience_s=OPENING_PATIENCE_S, what=url.shown)


def _given_storage() -> StorageUrl | None:
    text = os.environ.get(STORAGE_VARIABLE, "")
    return parse_storage_url(text, where=STORAGE_VARIABLE) if text.strip() else None


def _require_local_disk(directory: StudyDirectory) -> None:
    kind = network_file_system(directory.root)
    if kind is not None:
        raise StoreError(
            f"{directory.root} lies on a network file system ({kind}), where SQLite's locks do not "
            "hold and the study's database would be lost. Keep the study in PostgreSQL (storage: "
            "postgresql://user@host:port/database in the sweep file, or "
            f"{STORAGE_VARIABLE}), or its results on a local disk (--out)"
        )


@contextmanager
def exclusive(directory: StudyDirectory, opened: optuna.Study | None = None) -> Iterator[None]:
    """Be the only process of this host that takes or changes trials of this study.

    All changes within are one transaction of `opened`, and made together or, by a kill, not at all.
    One `exclusive` within another of the same `opened` is part of it.

    Raises:
        StoreError: Another process held the lock for ten minutes, or the database failed;
            `ConnectionLost` where the same may be asked again.
    """
    database = None if opened is None else database_of(opened)
    if database is not None and database.in_transaction:
        yield
        return
    if isinstance(database, PostgresDatabase):
        with database_errors(directory, database.url), database.transaction():
            yield
        return
    with (
        hold(directory.ask_lock_file, timeout_s=_LOCK_TIMEOUT_S, purpose="take the next cell"),
        database_errors(directory),
        nullcontext() if database is None else database.transaction(),
    ):
        yield


def database_of(opened: optuna.Study) -> StudyDatabase:
    """The database of a study that `open_study` gave."""
    storage = opened._storage
    assert isinstance(storage, StudyDatabase), "made by open_study"
    return storage


@contextmanager
def database_errors(directory: StudyDirectory, url: StorageUrl | None = None) -> Iterator[None]:
    """Turn what the database may raise into an error for people.

    Args:
        directory: The study's directory.
        url: The PostgreSQL database that is used; None: SQLite.

    Raises:
        StoreError: The database failed; of PostgreSQL `ConnectionLost` where it went away.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        if url is None:
            raise StoreError(
                f"the study database {directory.database_file} failed: {error}; "
                "outcomes already written are safe: resume the study when the cause is mended"
            ) from error
        said = error.__cause__ if isinstance(error, StorageInternalError) else error
        kind = ConnectionLost if connection_lost(error) else StoreError
        # Not chained: the driver's own errors may quote how it connects.
        raise kind(
            f"the study database {url.shown} failed: {url.hide(str(said or error)).strip()}; "
            "outcomes already written are safe: resume the study when the cause is mended "
            "(wesar-sweep storage check says whether it is)"
        ) from None


def open_study(study: Study, directory: StudyDirectory) -> optuna.Study:
    """Make the Optuna study or open it, and see to it that every listed cell is queued once.

    Safe to call from any number of processes, and again after a kill at any moment.

    Raises:
        StoreError: The database cannot be used, or is of a study with other objectives.
        ConfigError: PostgreSQL is asked for and its client library is missing.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.create()
    storage = storage_of(study, directory)
    if storage.url is None:
        _require_local_disk(directory)
        with exclusive(directory):
            return _prepared(study, directory, storage, SqliteDatabase(directory.database_file))
    with database_errors(directory, storage.url):
        database = PostgresDatabase(
            storage.url, study=storage.study, idle_timeout_s=storage.idle_timeout_s
        )
        return _prepared(study, directory, storage, database)


def _prepared(
    study: Study, directory: StudyDirectory, storage: Storage, database: StudyDatabase
) -> optuna.Study:
    """Make or open the study in one transaction; the database is closed where that fails."""
    with ExitStack() as undo:
        undo.callback(database.close)
        with database.transaction():
            opened = optuna.create_study(
                storage=database,
                study_name=storage.study,
                directions=["minimize"] * len(study.objectives),
                sampler=build_sampler(study, number=0),
                pruner=build_pruner(study),
                load_if_exists=True,
            )
            names = opened.user_attrs.get(OBJECTIVES)
            if names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    opened.set_metric_names(list(study.objectives))
                opened.set_user_attr(OBJECTIVES, list(study.objectives))
            elif tuple(names) != study.objectives:
                raise StoreError(
                    f"{storage.shown(directory)} holds a study of {', '.join(names)}, not of "
                    f"{', '.join(study.objectives)}; choose another results directory"
                )
            if study.question and "question" not in opened.user_attrs:
                opened.set_user_attr("question", study.question)
            _enqueue_listed(study, opened)
        undo.pop_all()
    return opened


def close_study(opened: optuna.Study) -> None:
    """Close the connections to the database; the study is not to be used afterwards."""
    database_of(opened).close()


def _enqueue_listed(study: Study, opened: optuna.Study) -> None:
    """Put the cells that are missing into the queue; each is one transaction with its index."""
    cells = listed_cells(study)
    if cells is None:
        return
    present = {trial.user_attrs.get(CELL) for trial in opened.get_trials(deepcopy=False)}
    for index, cell in enumerate(cells):
        if index not in present:
            opened.enqueue_trial(dict(cell), user_attrs={CELL: index})
