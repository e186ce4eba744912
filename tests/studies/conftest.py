"""Tests that open many databases, each in no time; the contract of queues over both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
from _pytest.fixtures import SubRequest
from optuna.storages._rdb.storage import _VersionManager

from wesar_sweep.store.layout import StudyDirectory


@pytest.fixture(scope="session", autouse=True)
def _one_look_at_the_schema() -> Iterator[None]:
    """Optuna reads its schema's history from ten files at each opening: here once a session."""
    known: list[str] = []
    read = _VersionManager.get_head_version

    def remembered(self: _VersionManager) -> str:
        if not known:
            known.append(read(self))
        return known[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "get_head_version", remembered)
        yield


@pytest.fixture(scope="session")
def postgres_url(postgres: postgres_server.Server) -> str:
    """One database for all studies of the session: each has a name of its own in it."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def each_database(request: SubRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the test's studies in SQLite, then in PostgreSQL."""
    if request.param == "postgres":
        monkeypatch.setenv("WESAR_STORAGE", request.getfixturevalue("postgres_url"))
    return str(request.param)


@pytest.fixture
def directory(tmp_path: Path, each_database: str) -> StudyDirectory:
    """For what holds with every database."""
    return StudyDirectory(tmp_path / "s")
