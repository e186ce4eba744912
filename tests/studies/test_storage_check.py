"""`storage check`: fit storages pass, others are told why not, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import postgres_server
import pytest
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from wesar_sweep.cli import app
from wesar_sweep.config.storage_url import parse_storage_url
from wesar_sweep.studies import storage, storage_check
from wesar_sweep.studies.storage_check import CELLS, TAKERS, check_storage
from wesar_sweep.studies.trial_taker import Taken, repeated

TABLES = ("studies", "trials", "wesar_sweep_turns", "wesar_sweep_changes", "wesar_sweep_workers")


@pytest.mark.slow
def test_a_folder(tmp_path: Path) -> None:
    facts = check_storage(None, folder=tmp_path / "results")
    assert facts.fit and facts.version is not None and facts.version.startswith("SQLite 3")
    assert (facts.taken, facts.takers) == (CELLS, TAKERS)
    assert facts.commit_ms is not None and facts.asks_a_second is not None
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server(postgres: postgres_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new_database()
    monkeypatch.setenv("WESAR_STORAGE", url)
    done = CliRunner().invoke(app, ["storage", "check", "--json"])
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["fit"], facts["problems"]) == (0, True, [])
    assert facts["version"].startswith("PostgreSQL 1") and facts["encrypted"] is False
    assert (facts["taken"], facts["takers"]) == (CELLS, TAKERS)
    assert facts["round_trip_ms"] < facts["commit_ms"]
    assert postgres_server.PASSWORD not in done.output
    database = str(make_url(url).database)
    for table in TABLES:
        assert postgres.say(f"SELECT count(*) FROM {table}", database=database) == [(0,)], table


@pytest.mark.postgres
def test_too_few_connections(postgres: postgres_server.Server) -> None:
    url = parse_storage_url(postgres.new_database())
    postgres.say("ALTER ROLE tester CONNECTION LIMIT 9")
    try:
        facts = check_storage(url, folder=Path())
    finally:
        postgres.say("ALTER ROLE tester CONNECTION LIMIT -1")
    assert not facts.fit and "connections are free" in facts.problems[0]


@pytest.mark.postgres
def test_a_role_that_may_not_make_tables(postgres: postgres_server.Server) -> None:
    url = postgres.new_database()
    name = str(make_url(url).database)
    postgres.say("DROP ROLE IF EXISTS guest")
    postgres.say("CREATE ROLE guest LOGIN PASSWORD 'hush'")
    guest = f"postgresql://guest:hush@127.0.0.1:{postgres.port}/{name}"
    facts = check_storage(parse_storage_url(guest), folder=Path())
    assert not facts.fit and "permission denied for schema public" in facts.problems[0]
    assert "hush" not in str(facts)


def test_a_server_that_is_not_there() -> None:
    done = CliRunner().invoke(app, ["storage", "check", "postgresql://u:hush@127.0.0.1:1/d"])
    assert done.exit_code == 1
    assert "not fit" in done.stdout and "Connection refused" in done.output
    assert "hush" not in done.output


def test_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "network_file_system", lambda path: "nfs4")
    facts = check_storage(None, folder=tmp_path)
    assert "network file system (nfs4)" in facts.problems[0]
    monkeypatch.undo()
    monkeypatch.setattr(storage, "network_file_system", lambda path: "lustre")
    (problem,) = check_storage(None, folder=tmp_path).problems
    assert "lies on a network file system (lustre)" in problem and "postgresql://" in problem


def test_control_a_repeated_trial_is_seen() -> None:
    taken = [Taken(trials, 0.0, 1.0, 0.1, 0.1, 0.1) for trials in ((1, 2, 5), (3, 2), (5,))]
    assert repeated(taken) == [2, 5]
