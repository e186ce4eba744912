"""A study's database on a PostgreSQL server: for workers on any number of hosts.

* **The lock** is the server's: a transaction begins by `pg_advisory_xact_lock` of the study, and
  the server lets go of it with the transaction, however that ends. A worker frozen in the middle is
  cut off by `idle_in_transaction_session_timeout`.
* **Who lives** stands in `wesar_sweep_workers` (`studies.beats`).
"""

from __future__ import annotations

import importlib.util
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from wesar_sweep.config.storage_url import StorageUrl
from wesar_sweep.errors import ConfigError
from wesar_sweep.studies.database import CHANGES_TABLES, StudyDatabase, _Session

PATIENCE_S = 120.0
"""How long a database that does not answer is tried again: longer than a restart takes."""

OPENING_PATIENCE_S = 20.0
"""The same for the first word to it, where a wrong address is as likely as a restart."""

_LOCK_TIMEOUT_S = 600
"""As on one host: a sampler may think for seconds while it holds the lock, once a worker."""

_TABLES = (
    *CHANGES_TABLES,
    """CREATE TABLE IF NOT EXISTS wesar_sweep_workers (
        study text NOT NULL, worker text NOT NULL, incarnation text NOT NULL, host text NOT NULL,
        machine text NOT NULL, seen_at timestamptz NOT NULL, ended boolean NOT NULL,
        PRIMARY KEY (study, worker))""",
)
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('wesar-sweep ' || :name, 0))")
# The turn's row stays locked until the commit, so numbers become visible in their order.
_NOTE = text(
    """WITH turn AS (
        INSERT INTO wesar_sweep_turns AS t (study, number) VALUES (:study, 1)
        ON CONFLICT (study) DO UPDATE SET number = t.number + 1 RETURNING number)
    INSERT INTO wesar_sweep_changes (study, trial_id, number)
        SELECT :study, changed, turn.number
        FROM turn, unnest(CAST(:trials AS integer[])) AS changed
        ON CONFLICT (study, trial_id) DO UPDATE SET number = excluded.number
        RETURNING number"""
)
_GONE = re.compile(r"08...|57P0[1-5]|25P03|40001|40P01|53300")
"""SQLSTATEs after which the same may succeed on a new connection (PostgreSQL, appendix A)."""
_NO_USE = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf|permission denied"
    r"|resolve host|certificate|SSL|invalid"
)
"""What a refusal to connect says where trying again is of no use."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def connect(url: StorageUrl, *, idle_timeout_s: float, pooled: bool = True) -> Engine:
    """Connections to a server, none opened yet.

    Args:
        url: The database.
        idle_timeout_s: A transaction in which nothing is said for so long is undone.
        pooled: Keep connections open between uses.

    Raises:
        ConfigError: The client library is missing.
    """
    return create_engine(url.for_sqlalchemy, **_engine_options(url, idle_timeout_s, pooled))


def require_client(url: StorageUrl) -> None:
    """See to it that there is a library to reach the server by.

    Raises:
        ConfigError: There is none; it says what to install.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            f"storage {url.shown} needs psycopg, which is not installed: "
            "pip install 'wesar-sweep[postgres]'"
        )


def _engine_options(url: StorageUrl, idle_timeout_s: float, pooled: bool) -> dict[str, Any]:
    require_client(url)
    idle_ms = max(1, round(idle_timeout_s * 1000))
    settings = {
        "lock_timeout": f"{_LOCK_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{idle_ms}ms",
        # A frozen client that does not fetch its answer is not idle; this is for its connection.
        "tcp_user_timeout": f"{idle_ms}ms",
    }
    # A server whose host vanished is noticed within half a minute, not after hours.
    client = {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": "wesar-sweep",
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    client = {name: value for name, value in client.items() if name not in dict(url.options)}
    options: dict[str, Any] = {"connect_args": client, "hide_parameters": True}
    if not pooled:
        options["poolclass"] = NullPool
    return options


def connection_lost(error: BaseException | None) -> bool:
    """Whether an error is of the connection or the server's state: the same may succeed later."""
    while error is not None:
        if isinstance(error, DBAPIError):
            state = getattr(error.orig, "sqlstate", None)
            if state is not None:
                return error.connection_invalidated or _GONE.fullmatch(state) is not None
            if error.connection_invalidated:
                return True
            refused = isinstance(error, OperationalError | InterfaceError)
            return refused and not _NO_USE.search(str(error.orig))
        error = error.__cause__ or error.__context__
    return False


def keep_trying(body: Callable[[], _T], *, patience_s: float, what: str) -> _T:
    """Do something with the database, anew while the connection is lost: jittered, bounded.

    Args:
        body: May run several times: it must not leave anything behind where it fails.
        patience_s: After so long the error is raised.
        what: Names the database, for the log.

    Raises:
        SQLAlchemyError: The database refuses, or did not come back.
        StorageInternalError: Likewise, as Optuna says it.
    """
    deadline = time.monotonic() + patience_s
    pause = 0.1
    while True:
        try:
            return body()
        except (SQLAlchemyError, StorageInternalError) as error:
            if not connection_lost(error) or time.monotonic() > deadline:
                raise
            if pause == 0.1:
                _log.warning("%s does not answer; trying for %g s", what, patience_s)
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, 5.0)


class PostgresDatabase(StudyDatabase):
    """One study on a PostgreSQL server. Used by one thread.

    Args:
        url: The server's database.
        study: The study's name there.
        idle_timeout_s: A transaction in which this process says nothing for so long is undone.

    Raises:
        ConfigError: The client library is missing.
    """

    def __init__(self, url: StorageUrl, *, study: str, idle_timeout_s: float) -> None:
        """Open it, and make the tables where they are missing."""
        self.url = url
        options = _engine_options(url, idle_timeout_s, pooled=True)

        def backend() -> RDBStorage:
            # It changes its options.
            return RDBStorage(
                url.for_sqlalchemy,
                engine_kwargs=dict(options),
                skip_table_creation=True,
            )

        def made_safely() -> RDBStorage:
            guard = connect(url, idle_timeout_s=idle_timeout_s, pooled=False)
            # Two that make tables at once are in each other's way, IF NOT EXISTS or not.
            with guard.begin() as connection:
                connection.execute(_LOCK, {"name": ""})
                models.BaseModel.metadata.create_all(connection)
                for statement in _TABLES:
                    connection.execute(text(statement))
            # Likewise two that write down which version the tables have.
            with guard.begin() as connection:
                connection.execute(_LOCK, {"name": ""})
                return backend()

        made = keep_trying(made_safely, patience_s=OPENING_PATIENCE_S, what=url.shown)
        super().__init__(made, log=study)

    def _begin(self, session: _Session) -> None:
        def lock() -> None:
            try:
                session.execute(_LOCK, {"name": self._log_name})
            except SQLAlchemyError:
                session.rollback()
                raise

        keep_trying(lock, patience_s=PATIENCE_S, what=self.url.shown)

    def _note(self, session: _Session, trial_ids: Sequence[int]) -> int:
        found = session.execute(_NOTE, {"study": self._log_name, "trials": trial_ids})
        return int(found.scalars().all()[0])
