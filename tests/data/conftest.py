"""A cache of their own for tests that prepare text."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where prepared corpora go; the user's own is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WESAR_CACHE", str(folder))
    return folder
