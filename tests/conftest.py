"""Without a GPU, Triton's kernels run in its interpreter: set before anything imports them.

And the one PostgreSQL server of a test session, started by the first test that needs it.
"""

import os
import shutil
from collections.abc import Iterator

import postgres_server
import pytest

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _storage_is_the_tests_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that the caller's environment names is not the tests' to write to."""
    monkeypatch.delenv("WESAR_STORAGE", raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server, or the test is skipped and says why. Mark such tests `postgres`."""
    why_not = postgres_server.missing()
    if why_not is not None:
        pytest.skip(why_not)
    server = postgres_server.Server()
    yield server
    server.remove()
