"""Which workers of a study live: on one host by the lock on a file, on several by their beats.

A lock on a file says nothing about other hosts. So with PostgreSQL each worker has a row, which a
thread of its own renews, with the *server's* clock: no two hosts' clocks are ever compared. Whoever
was not seen for the study's grace is dead to the others, whatever it thinks of itself. One that was
frozen for longer finds out when it next writes: its trials carry another's name, or its row another
incarnation (`Heart.holds_name`).
"""

from __future__ import annotations

import logging
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from wesar_sweep.config.storage_url import StorageUrl
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held
from wesar_sweep.studies.postgres import OPENING_PATIENCE_S, connect, keep_trying

BEAT_INTERVAL_S = 10.0
"""How often a worker says that it lives, where the grace is not shorter than six of these."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STATEMENT_TIMEOUT = text("SET statement_timeout = '5s'")
_BEAT = text(
    """UPDATE wesar_sweep_workers SET seen_at = clock_timestamp()
    WHERE study = :study AND worker = :worker AND incarnation = :incarnation AND NOT ended"""
)
_TAKE_NAME = text(
    """INSERT INTO wesar_sweep_workers
        (study, worker, incarnation, host, machine, seen_at, ended)
    VALUES (:study, :worker, :incarnation, :host, :machine, clock_timestamp(), false)
    ON CONFLICT (study, worker) DO UPDATE SET
        incarnation = excluded.incarnation, host = excluded.host, machine = excluded.machine,
        seen_at = excluded.seen_at, ended = false
    WHERE wesar_sweep_workers.ended
        OR wesar_sweep_workers.machine = :machine
        OR wesar_sweep_workers.seen_at < clock_timestamp() - make_interval(secs => :grace)"""
)
_END = text(
    """UPDATE wesar_sweep_workers SET ended = true
    WHERE study = :study AND worker = :worker AND incarnation = :incarnation"""
)
_HOLDS = text(
    """SELECT count(*) FROM wesar_sweep_workers
    WHERE study = :study AND worker = :worker AND incarnation = :incarnation AND NOT ended"""
)
_SEEN = text(
    """SELECT worker, host, machine, ended,
        extract(epoch FROM clock_timestamp() - seen_at) AS age_s
    FROM wesar_sweep_workers WHERE study = :study"""
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker as the server knows it."""

    host: str
    machine: str
    """The host's boot: two hosts may have one name."""
    ended: bool
    """Whether it let go of its name in good order."""
    age_s: float
    """Seconds since it was last seen, by the server's clock."""

    def lives(self, directory: StudyDirectory, worker: str, *, grace_s: float) -> bool:
        """Whether it counts as alive: seen within the grace, and not known to be gone."""
        if self.ended or self.age_s > grace_s:
            return False
        # On this host the lock knows at once what the beats would tell after the grace.
        return self.machine != this_machine() or is_held(directory.worker_lock_file(worker))


def this_machine() -> str:
    """The boot of this host; processes for which it is the same see the same locks."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return f"{platform.node()} {uuid.getnode()}"


def read_seen(connection: Connection | Session, study: str) -> dict[str, Seen]:
    """Every worker that the study ever had, by name."""
    rows = connection.execute(_SEEN, {"study": study}).all()
    return {
        row.worker: Seen(row.host, row.machine, row.ended, max(0.0, float(row.age_s)))
        for row in rows
    }


def living(seen: Mapping[str, Seen], directory: StudyDirectory, *, grace_s: float) -> list[str]:
    """The names of those that live, sorted."""
    return sorted(n for n, one in seen.items() if one.lives(directory, n, grace_s=grace_s))


class Heart:
    """Says for one worker that it lives, from construction to `stop`; a thread of its own.

    Args:
        url: The server's database.
        directory: The study's directory.
        study: The study's name there.
        worker: The worker's name; its lock on this host is held by the caller.
        grace_s: After so long without a beat the others take the worker for dead.

    Raises:
        StoreError: A worker of that name lives on another host.
    """

    def __init__(
        self,
        url: StorageUrl,
        *,
        directory: StudyDirectory,
        study: str,
        worker: str,
        grace_s: float,
    ) -> None:
        """Take the name, waiting for the grace of a former life of it."""
        self._url, self._directory, self._worker = url, directory, worker
        self.interval_s = min(BEAT_INTERVAL_S, grace_s / 6)
        self._me = {"study": study, "worker": worker, "incarnation": uuid.uuid4().hex}
        self._engine: Engine = connect(url, idle_timeout_s=grace_s)
        self._stopping = threading.Event()
        try:
            self._take_name(grace_s)
        except BaseException:
            self._engine.dispose()
            raise
        self._thread = threading.Thread(target=self._loop, name=f"heart-{worker}", daemon=True)
        self._thread.start()

    def holds_name(self, session: Session) -> bool:
        """Whether the name is still this one's, asked within the caller's transaction."""
        return bool(session.execute(_HOLDS, self._me).scalar())

    def stop(self) -> None:
        """Beat no more, and tell the others that this worker ended; a second call does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join()
        try:
            with self._engine.begin() as connection:
                connection.execute(_STATEMENT_TIMEOUT)
                connection.execute(_END, self._me)
        except SQLAlchemyError as error:
            # The grace says the same a little later.
            _log.warning("could not sign off: %s", self._url.hide(str(error)))
        finally:
            self._engine.dispose()
            self._touch((0.0, 0.0))

    def _touch(self, times: tuple[float, float] | None = None) -> None:
        """For displays, which do without the database (`store.beat`)."""
        lock_file = self._directory.worker_lock_file(self._worker)
        try:
            os.utime(lock_file, times)
        except OSError as error:
            _log.warning("cannot touch %s: %s", lock_file, error)

    def _take_name(self, grace_s: float) -> None:
        asked = {
            **self._me,
            "host": platform.node(),
            "machine": this_machine(),
            "grace": grace_s,
        }

        def take() -> int:
            with self._engine.begin() as connection:
                return connection.execute(_TAKE_NAME, asked).rowcount

        deadline = time.monotonic() + grace_s + self.interval_s
        while not keep_trying(take, patience_s=OPENING_PATIENCE_S, what=self._url.shown):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"a worker named {self._worker} is alive on another host; "
                    f"stop it, or wait for it ({self._directory.root})"
                )
            time.sleep(min(1.0, self.interval_s))

    def _loop(self) -> None:
        answered = True
        while not self._stopping.wait(self.interval_s * random.uniform(0.8, 1.0)):
            try:
                with self._engine.begin() as connection:
                    connection.execute(_STATEMENT_TIMEOUT)
                    connection.execute(_BEAT, self._me)
                answered = True
            except SQLAlchemyError as error:
                if answered:
                    _log.warning("a beat was missed: %s", self._url.hide(str(error)))
                answered = False
            self._touch()
