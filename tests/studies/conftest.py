"""Tests that open many databases, each in no time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.storages._rdb.storage import _VersionManager


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
