"""PostgreSQL: workers on several hosts, servers that go away, workers that are taken for dead."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import postgres_server
import pytest
from fabricated_runs import (
    curve_of,
    drain,
    finish,
    make_study,
    outcome_of,
    rows,
    sixty_cells,
    trials_of,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError, StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import try_hold
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.studies import beats, postgres
from wesar_sweep.studies.claims import WORKER
from wesar_sweep.studies.postgres import PostgresDatabase, connection_lost
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import (
    ConnectionLost,
    close_study,
    database_of,
    exclusive,
    living_workers,
    open_study,
    settle_storage,
)

pytestmark = pytest.mark.postgres

SCRIPT = Path(__file__).with_name("fabricated_runs.py")
ALL_SIXTY = [(trial, seed) for trial in range(60) for seed in range(2)]


@pytest.fixture
def directory(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> StudyDirectory:
    monkeypatch.setenv("WESAR_STORAGE", postgres_url)
    return StudyDirectory(tmp_path / "s")


def with_grace(study: Study, directory: StudyDirectory, grace_s: float) -> Study:
    """Begin a study in which a worker is dead after so many seconds."""
    settle_storage(study, directory, Sweep(heartbeat_grace_s=grace_s))
    return study


@pytest.fixture
def start(
    directory: StudyDirectory, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts workers whose words go to WORKER.txt, and leaves none behind."""
    started = []

    def popen(worker: str, seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SCRIPT), str(directory.root), worker, str(seconds)]
        with (tmp_path / f"{worker}.txt").open("wb") as said:
            started.append(subprocess.Popen(command, stderr=said))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def lines_of(directory: StudyDirectory, worker: str) -> int:
    path = directory.outcomes_file(worker)
    return path.read_text().count("\n") if path.exists() else 0


def assert_whole(study: Study, directory: StudyDirectory) -> None:
    """Every run of the sixty cells once, every trial told by whoever has it."""
    assert sorted(rows(directory)) == ALL_SIXTY
    trials = trials_of(study, directory)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 60
    assert [trial.user_attrs["cell"] for trial in trials] == list(range(60))
    assert all(trial.user_attrs["n"] == 2 for trial in trials)


@pytest.mark.slow
def test_eight_workers_take_each_trial_once(
    directory: StudyDirectory, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    workers = [start(f"w{number}", 0.01) for number in range(8)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 8
    assert_whole(sixty_cells(), directory)
    assert living_workers(sixty_cells(), directory) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_database_loses_and_repeats_nothing(
    directory: StudyDirectory,
    start: Callable[..., subprocess.Popen[bytes]],
    postgres: postgres_server.Server,
    mode: str,
) -> None:
    workers = [start(f"w{number}", 0.05) for number in range(3)]
    for part in (20, 50):
        until(lambda part=part: len(rows(directory)) >= part)
        postgres.stop(mode=mode)
        # Long enough for every worker to notice.
        time.sleep(1.0)
        postgres.start()
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 3
    assert_whole(sixty_cells(), directory)


@pytest.mark.slow
def test_a_worker_frozen_beyond_the_grace_and_woken(
    directory: StudyDirectory, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    study = with_grace(sixty_cells(), directory, 2.0)
    frozen = start("frozen", 0.3)
    until(lambda: lines_of(directory, "frozen") >= 2)
    frozen.send_signal(signal.SIGSTOP)
    had = lines_of(directory, "frozen")
    others = [start(f"w{number}", 0.01) for number in range(2)]
    assert [worker.wait(timeout=120) for worker in others] == [0, 0]
    assert_whole(study, directory)
    assert lines_of(directory, "frozen") == had
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(timeout=60) == 0
    assert_whole(study, directory)
    assert lines_of(directory, "frozen") == had, "it wrote what is another's"
    assert "is another worker's now" in (tmp_path / "frozen.txt").read_text()


@pytest.mark.slow
def test_a_killed_worker(
    directory: StudyDirectory, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    victim, other = start("victim", 0.05), start("w0", 0.01)
    until(lambda: lines_of(directory, "victim") >= 2)
    victim.kill()
    assert other.wait(timeout=120) == 0
    assert_whole(sixty_cells(), directory)


def far_away(
    study: Study, directory: StudyDirectory, worker: str, monkeypatch: pytest.MonkeyPatch
) -> CellQueue:
    """A worker whose host is another, as far as its beats tell."""
    with monkeypatch.context() as patch:
        patch.setattr(beats, "this_machine", lambda: "another host")
        return CellQueue(study, directory, worker)


def fall_silent(queue: CellQueue) -> None:
    """Beat no more, as a frozen worker, and still hold the lock."""
    assert queue._heart is not None
    queue._heart._stopping.set()
    queue._heart._thread.join()
    queue._heart._engine.dispose()


def test_another_hosts_dead_worker_is_waited_for_and_its_cell_adopted(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_grace(make_study(replicates=1), directory, 1.5)
    dead = far_away(study, directory, "w0", monkeypatch)
    (run,) = dead.take(1)
    with CellQueue(study, directory, "w1") as queue:
        finish(dead, outcome_of(run), None)
        (run,) = dead.take(1)
        fall_silent(dead)
        assert living_workers(study, directory) == ["w0", "w1"]
        others = queue.take(5)
        assert [other.trial for other in others] == [2]
        finish(queue, outcome_of(others[0]), None)
        began = time.monotonic()
        # Nothing is left but what a worker has that was seen a moment ago.
        assert [other.key for other in queue.take(5)] == [run.key]
        assert 0.3 < time.monotonic() - began < 5
        assert living_workers(study, directory) == ["w1"]
        finish(queue, outcome_of(run), None)
        # The dead one was only frozen.
        finish(dead, outcome_of(run), curve_of())
        assert dead.take(1) == []
    dead.release()
    assert sorted(rows(directory)) == [(0, 0), (1, 0), (2, 0)]
    assert not directory.curve_file(*run.key).exists(), "a curve of what is another's"
    assert [t.user_attrs[WORKER] for t in trials_of(study, directory)] == ["w0", "w1", "w1"]


def test_control_without_the_fence_a_run_is_written_twice(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_grace(make_study(replicates=1), directory, 1.5)
    dead = far_away(study, directory, "w0", monkeypatch)
    (run,) = dead.take(1)
    fall_silent(dead)
    time.sleep(1.6)
    with CellQueue(study, directory, "w1") as queue:
        assert queue.take(1)[0].key == run.key
        finish(queue, outcome_of(run), None)
    with monkeypatch.context() as patch, pytest.raises(UpdateFinishedTrialError):
        patch.setattr(dead, "_give_up_others", lambda *_, **__: None)
        finish(dead, outcome_of(run), None)
    assert rows(directory) == [run.key, run.key]
    # Readers keep one all the same, and all the same one.
    (kept,) = read_outcomes(directory)
    assert kept.worker == "w0"
    dead.release()


def test_a_living_worker_far_away_is_not_waited_for_long(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_grace(make_study(replicates=1), directory, 3.0)
    with far_away(study, directory, "w0", monkeypatch) as alive:
        alive.take(3)
        with CellQueue(study, directory, "w1") as queue:
            began = time.monotonic()
            assert queue.take(1) == []
            assert time.monotonic() - began < 2.0
        with CellQueue(study, directory, "w2", stop_asked=lambda: True) as queue:
            fall_silent(alive)
            assert queue.take(1) == []


def test_a_name_that_another_process_took_is_lost(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_grace(make_study(replicates=1), directory, 1.5)
    first = far_away(study, directory, "w0", monkeypatch)
    (run,) = first.take(1)
    fall_silent(first)
    # The flock of another host would not be seen here.
    first._lock.release()
    with CellQueue(study, directory, "w0") as second:
        assert second.take(1)[0].key == run.key
        with pytest.raises(StoreError, match="another process has taken the name of worker w0"):
            finish(first, outcome_of(run), None)
        assert rows(directory) == []
        assert first._cells == {}
        finish(second, outcome_of(run), None)
    close_study(first._opened)
    assert rows(directory) == [run.key]


def test_a_name_in_use_on_another_host_is_refused(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = with_grace(make_study(), directory, 0.6)
    with far_away(study, directory, "w0", monkeypatch) as first:
        first._lock.release()
        with pytest.raises(StoreError, match="a worker named w0 is alive on another host"):
            CellQueue(study, directory, "w0")
        again = try_hold(directory.worker_lock_file("w0"))
        assert again is not None, "it was let go of"
        first._lock = again


def test_a_worker_frozen_in_a_transaction_is_cut_off(directory: StudyDirectory) -> None:
    study = with_grace(make_study(replicates=1), directory, 0.4)
    with CellQueue(study, directory, "w0") as queue:
        frozen = open_study(study, directory)
        began = time.monotonic()
        with (
            pytest.raises(ConnectionLost, match="idle-in-transaction"),
            exclusive(directory, frozen),
        ):
            trial = frozen.ask()
            # The server ends it after two graces, and only then lets the worker in.
            assert [run.trial for run in queue.take(1)] == [0]
            assert 0.5 < time.monotonic() - began < 10
            trial.set_user_attr("late", 1)
        close_study(frozen)
    assert all("late" not in trial.user_attrs for trial in trials_of(study, directory))


@pytest.mark.parametrize("took_place", [True, False])
def test_a_commit_without_an_answer_is_settled(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch, took_place: bool
) -> None:
    """Whether it took place or not, after the next try there is one row and one told trial."""
    study = make_study(replicates=1, pruner=None)
    with CellQueue(study, directory, "w0") as queue:
        session = database_of(queue._opened)._session()
        commit = session.commit
        failures: list[int] = []

        def cut() -> None:
            if session.grouped or len(failures) >= 3:
                commit()
                return
            failures.append(1)
            if took_place:
                commit()
            raise OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)

        monkeypatch.setattr(session, "commit", cut)
        runs = queue.take(2)
        assert [run.trial for run in runs] == [0, 1]
        assert len(failures) == 3
        failures.clear()
        queue.finish([(outcome_of(run), curve_of()) for run in runs])
        assert len(failures) == 3
        assert queue._cells == {}
    assert rows(directory) == [(0, 0), (1, 0)]
    states = [trial.state.name for trial in trials_of(study, directory)]
    assert states == ["COMPLETE", "COMPLETE", "WAITING"]


def test_two_directories_of_one_name_are_two_studies(
    directory: StudyDirectory, tmp_path: Path
) -> None:
    other = StudyDirectory(tmp_path / "other")
    with CellQueue(make_study(), directory, "w0") as queue:
        drain(queue)
    assert {trial.state.name for trial in trials_of(make_study(), directory)} == {"COMPLETE"}
    close_study(open_study(make_study(), other))
    assert {trial.state.name for trial in trials_of(make_study(), other)} == {"WAITING"}


def test_a_study_stays_where_it_began(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = make_study()
    close_study(open_study(study, directory))
    assert not directory.database_file.exists()
    monkeypatch.setenv("WESAR_STORAGE", "postgresql://elsewhere/db")
    with pytest.raises(StoreError, match=r"is in postgresql://tester@.*not in .*elsewhere/db"):
        open_study(study, directory)
    # And one in SQLite too, whatever the environment says; the file's word is refused.
    monkeypatch.delenv("WESAR_STORAGE")
    begun = StudyDirectory(tmp_path / "begun")
    close_study(open_study(study, begun))
    monkeypatch.setenv("WESAR_STORAGE", "postgresql://elsewhere/db")
    close_study(open_study(study, begun))
    with pytest.raises(StoreError, match=r"study\.db, not in postgresql://u@h/d"):
        settle_storage(study, begun, Sweep(storage="postgresql://u:hush@h/d"))


def test_the_grace_changes_only_where_a_sweep_says_it(directory: StudyDirectory) -> None:
    study = with_grace(make_study(), directory, 7.0)
    assert settle_storage(study, directory, Sweep()).grace_s == 7.0
    assert settle_storage(study, directory, Sweep(heartbeat_grace_s=9.0)).grace_s == 9.0
    assert settle_storage(study, directory, Sweep(slots=1)).grace_s == 9.0


def test_a_server_that_is_not_there_or_refuses(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setattr("wesar_sweep.studies.postgres.OPENING_PATIENCE_S", 0.3)
    began = time.monotonic()
    monkeypatch.setenv("WESAR_STORAGE", "postgresql://tester:hush-hush@127.0.0.1:1/db")
    with pytest.raises(StoreError, match="Connection refused") as refused:
        open_study(make_study(), directory)
    assert 0.3 < time.monotonic() - began < 5
    wrong = urlsplit(postgres_url)._replace(
        netloc=f"tester:hush-hush@127.0.0.1:{urlsplit(postgres_url).port}"
    )
    directory.storage_file.unlink()
    monkeypatch.setattr("wesar_sweep.studies.postgres.OPENING_PATIENCE_S", 60.0)
    monkeypatch.setenv("WESAR_STORAGE", wrong.geturl())
    with pytest.raises(StoreError, match="authentication failed") as denied:
        open_study(make_study(), directory)
    assert time.monotonic() - began < 20, "trying again is of no use there"
    for caught in (refused, denied):
        assert "hush" not in str(caught.value) + str(caught.value.__cause__)
    assert "hush" not in directory.storage_file.read_text()


def test_without_the_client_library(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wesar-sweep\[postgres\]'"):
        settle_storage(make_study(), directory, Sweep())


def test_connections_are_given_back(
    directory: StudyDirectory, postgres: postgres_server.Server
) -> None:
    def count() -> int:
        (row,) = postgres.say(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wesar-sweep'"
        )
        return int(str(row[0]))

    before = count()
    with CellQueue(make_study(), directory, "w0") as queue:
        queue.take(1)
        assert count() <= before + 2
    until(lambda: count() == before)


def test_not_every_error_is_worth_another_try() -> None:
    class Refusal(Exception):
        sqlstate = "42501"

    assert not connection_lost(OperationalError("", {}, Refusal("permission denied")))
    Refusal.sqlstate = "57P01"
    assert connection_lost(OperationalError("", {}, Refusal("shutting down")))
    Refusal.sqlstate = None  # type: ignore[assignment]
    assert connection_lost(OperationalError("", {}, Refusal("connection refused")))
    assert not connection_lost(OperationalError("", {}, Refusal("role x does not exist")))
    assert not connection_lost(ValueError())


def test_the_lock_is_the_studys(directory: StudyDirectory, tmp_path: Path) -> None:
    """Studies in one database do not keep each other waiting; workers of one study do."""
    other = StudyDirectory(tmp_path / "other")
    a, same, b = (
        open_study(make_study(), directory),
        open_study(make_study(), directory),
        open_study(make_study(), other),
    )
    with exclusive(directory, a):
        with exclusive(other, b):
            b.ask()
        asked = database_of(same)
        assert isinstance(asked, PostgresDatabase)
        session = asked._session()
        session.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(StoreError, match="lock timeout"), exclusive(directory, same):
            same.ask()
    for opened in (a, same, b):
        close_study(opened)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_over_tls_with_the_servers_certificate_looked_at(
    postgres: postgres_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of the URL reach the client; another's certificate is refused at once, in words."""
    postgres_server.certify(tmp_path)
    server = postgres_server.Server(tls=True)
    try:
        trusted = f"{server.url('postgres')}?sslmode=verify-full&sslrootcert="
        monkeypatch.setenv("WESAR_STORAGE", f"{trusted}{server.certificate}")
        opened = open_study(make_study(), StudyDirectory(tmp_path / "s"))
        asked = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert database_of(opened).connection().execute(asked).scalar() is True
        close_study(opened)
        monkeypatch.setenv("WESAR_STORAGE", f"{trusted}{tmp_path}/server.crt")
        # One that is tried again is not refused within this test's life.
        monkeypatch.setattr("wesar_sweep.studies.postgres.OPENING_PATIENCE_S", 600.0)
        with pytest.raises(StoreError, match="certificate verify failed"):
            open_study(make_study(), StudyDirectory(tmp_path / "other"))
    finally:
        server.remove()
