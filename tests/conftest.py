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


@pytest.fixture(scope="session")
def slurm_running(tmp_path_factory):
    """A Slurm of this test process's own."""
    from slurm_cluster import cluster, missing

    if why := missing():
        pytest.skip(why)
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def slurm(slurm_running, monkeypatch):
    """The same with nothing on it, for the clients of this test."""
    slurm_running.settle()
    monkeypatch.setenv("SLURM_CONF", str(slurm_running.conf))
    return slurm_running


@pytest.fixture(autouse=True)
def _storage_is_the_tests_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that the caller's environment names is not the tests' to write to."""
    monkeypatch.delenv("WESAR_STORAGE", raising=False)


@pytest.fixture(autouse=True)
def _prepared_text_is_the_tests_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's cache of prepared corpora is left alone; one for all tests of a process."""
    monkeypatch.setenv("WESAR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL server, or the test is skipped and says why. Mark such tests `postgres`."""
    why_not = postgres_server.missing()
    if why_not is not None:
        pytest.skip(why_not)
    server = postgres_server.Server()
    yield server
    server.remove()
