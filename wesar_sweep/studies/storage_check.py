"""Will a storage hold? Measured with the project's own transactions, before a study rests on it.

What is written is removed again: in PostgreSQL a study of its own, on a disk a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from wesar_sweep.config import dump_study
from wesar_sweep.config.space import Range
from wesar_sweep.config.storage_url import STORAGE_VARIABLE, StorageUrl
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_atomically
from wesar_sweep.store.file_systems import network_file_system
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.postgres import connect
from wesar_sweep.studies.storage import (
    close_study,
    database_errors,
    database_of,
    exclusive,
    open_study,
    storage_of,
)
from wesar_sweep.studies.trial_taker import repeated, take_together

TAKERS = 8
CELLS = 40
_SAMPLES = 30
_SLOWEST_ROUND_TRIP_MS = 100.0
_SLOWEST_COMMIT_MS = 500.0
"""A run costs about three commits and ten round trips under one lock for all workers: at these
bounds a study of 32 workers hands out about one run in three seconds."""
_LEAST_FREE_MB = 100
_LEAST_CONNECTIONS = 2 * TAKERS + 4
_OLDEST_SERVER = 120000
"""PostgreSQL's own number of version 12, the oldest that Optuna's users report on."""
_FORGET = ("wesar_sweep_turns", "wesar_sweep_changes", "wesar_sweep_workers")


@dataclass(slots=True)
class StorageFacts:
    """What was found; None where it could not be measured, or does not apply."""

    storage: str
    """The database, without a password, or the folder."""
    kind: str
    """``sqlite`` or ``postgresql``."""
    version: str | None = None
    encrypted: bool | None = None
    """Whether the connection is (TLS)."""
    round_trip_ms: float | None = None
    """Median of asking for nothing."""
    commit_ms: float | None = None
    """Median of a transaction with one write, at the study's lock."""
    takers: int | None = None
    """Processes that asked at the same time."""
    taken: int | None = None
    """Trials that they got, of `CELLS` queued."""
    asks_a_second: float | None = None
    free_mb: int | None = None
    """Room on the disk; a server's disk cannot be asked for."""
    database_mb: int | None = None
    """Size of the server's database."""
    free_connections: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        """Whether studies may rest on it."""
        return not self.problems

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "fit": self.fit}


def check_storage(
    url: StorageUrl | None, *, folder: Path, say: Callable[[str], object] = lambda _: None
) -> StorageFacts:
    """Measure a storage and judge it.

    Args:
        url: A PostgreSQL database; None: SQLite in `folder`.
        folder: Where results would lie; made where it is missing.
        say: Told what is being measured.

    Raises:
        ConfigError: PostgreSQL is asked for and its client library is missing.
        StoreError: The folder cannot be written to.
    """
    if url is None:
        facts = StorageFacts(storage=str(folder), kind="sqlite")
        _look_at_disk(folder, facts)
    else:
        facts = StorageFacts(storage=url.shown, kind="postgresql")
        say("asking the server")
        _look_at_server(url, facts)
    if facts.fit:
        with tempfile.TemporaryDirectory(
            prefix=".storage-check-", dir=folder if url is None else None
        ) as place:
            _use(url, StudyDirectory(Path(place) / "study"), facts, say)
    return facts


def _look_at_disk(folder: Path, facts: StorageFacts) -> None:
    import sqlite3

    facts.version = f"SQLite {sqlite3.sqlite_version}"
    kind = network_file_system(folder)
    if kind is not None:
        facts.problems.append(
            f"{folder} lies on a network file system ({kind}), where SQLite's locks do not hold: "
            "use a local disk, or PostgreSQL (storage: postgresql://user@host:port/database)"
        )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, path=folder) from error
    facts.free_mb = shutil.disk_usage(folder).free // 2**20
    if facts.free_mb < _LEAST_FREE_MB:
        facts.problems.append(
            f"{facts.free_mb} MB are free in {folder}; a study needs {_LEAST_FREE_MB}: free some"
        )


def _look_at_server(url: StorageUrl, facts: StorageFacts) -> None:
    engine = connect(url, idle_timeout_s=60.0, pooled=False)
    try:
        with engine.connect() as connection:

            def one(statement: str) -> Any:
                return connection.execute(text(statement)).scalar()

            number = int(one("SELECT current_setting('server_version_num')"))
            facts.version = f"PostgreSQL {one('SHOW server_version')}"
            facts.encrypted = one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            facts.database_mb = int(one("SELECT pg_database_size(current_database())")) // 2**20
            allowed = int(one("SHOW max_connections"))
            kept = int(one("SHOW superuser_reserved_connections"))
            used = int(one("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'cl%'"))
            role = int(one("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user"))
            facts.free_connections = allowed - kept - used
            if role >= 0:
                facts.free_connections = min(facts.free_connections, role - 1)
            times = []
            for _ in range(_SAMPLES):
                start = time.perf_counter()
                connection.execute(text("SELECT 1"))
                times.append(time.perf_counter() - start)
            facts.round_trip_ms = 1000 * statistics.median(times)
    except SQLAlchemyError as error:
        facts.problems.append(
            f"{url.shown} does not answer: {_first_line(url.hide(str(error)))}. Look at host, "
            "port, database and user, and whether the password is in WESAR_STORAGE, PGPASSWORD or "
            "~/.pgpass"
        )
        return
    if number < _OLDEST_SERVER:
        facts.problems.append(f"{facts.version} is too old: 12 or later is needed")
    if facts.free_connections < _LEAST_CONNECTIONS:
        facts.problems.append(
            f"{facts.free_connections} connections are free and this check needs "
            f"{_LEAST_CONNECTIONS}: two a worker. Ask for a higher max_connections or role limit"
        )
    if facts.round_trip_ms is not None and facts.round_trip_ms > _SLOWEST_ROUND_TRIP_MS:
        facts.problems.append(
            f"a round trip takes {facts.round_trip_ms:.0f} ms, over {_SLOWEST_ROUND_TRIP_MS:.0f}: "
            "use a server nearer to the workers"
        )


def _use(
    url: StorageUrl | None,
    directory: StudyDirectory,
    facts: StorageFacts,
    say: Callable[[str], object],
) -> None:
    """Make a study in it, write to it, and have processes take its trials."""
    lr = Range(low=1e-4, high=1e-1, log=True, points=CELLS)
    study = Study(name="storage-check", space={"lr": lr}, replicates=1)
    environment = {key: value for key, value in os.environ.items() if key != STORAGE_VARIABLE}
    if url is not None:
        environment[STORAGE_VARIABLE] = url.full
    before = os.environ.pop(STORAGE_VARIABLE, None)
    if url is not None:
        os.environ[STORAGE_VARIABLE] = url.full
    try:
        say("writing")
        opened = open_study(study, directory)
        write_atomically(directory.study_file, dump_study(study).encode())
        try:
            facts.commit_ms = _commit_ms(directory, opened)
            say(f"taking trials with {TAKERS} processes at once")
            _take(directory, environment, facts)
        finally:
            if url is not None:
                _forget(study, directory, opened)
            close_study(opened)
    except StoreError as error:
        facts.problems.append(str(error))
    finally:
        os.environ.pop(STORAGE_VARIABLE, None)
        if before is not None:
            os.environ[STORAGE_VARIABLE] = before
    if facts.commit_ms is not None and facts.commit_ms > _SLOWEST_COMMIT_MS:
        facts.problems.append(
            f"a commit takes {facts.commit_ms:.0f} ms, over {_SLOWEST_COMMIT_MS:.0f}: use another "
            "disk or server"
        )


def _commit_ms(directory: StudyDirectory, opened: optuna.Study) -> float:
    trial_id = opened.get_trials(deepcopy=False)[0]._trial_id
    times = []
    for number in range(_SAMPLES):
        start = time.perf_counter()
        with exclusive(directory, opened):
            database_of(opened).set_trial_user_attr(trial_id, "storage-check", number)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _take(directory: StudyDirectory, environment: dict[str, str], facts: StorageFacts) -> None:
    taken = take_together(directory, count=TAKERS, mode="take", environment=environment)
    facts.takers = TAKERS
    facts.taken = sum(len(one.trials) for one in taken)
    seconds = max(one.ended_at for one in taken) - min(one.began_at for one in taken)
    facts.asks_a_second = facts.taken / seconds
    twice = repeated(taken)
    if twice:
        facts.problems.append(f"trials were taken twice: {', '.join(map(str, twice))}")
    if len({trial for one in taken for trial in one.trials}) < CELLS:
        facts.problems.append(f"of {CELLS} queued trials {facts.taken} were taken")


def _forget(study: Study, directory: StudyDirectory, opened: optuna.Study) -> None:
    """Take the study out of a database that outlives the check."""
    storage = storage_of(study, directory)
    with database_errors(directory, storage.url):
        optuna.delete_study(study_name=storage.study, storage=database_of(opened))
        connection = database_of(opened).connection()
        for table in _FORGET:
            connection.execute(text(f"DELETE FROM {table} WHERE study = :s"), {"s": storage.study})
        connection.commit()


def _first_line(said: str) -> str:
    return said.strip().splitlines()[0].rstrip(".")
