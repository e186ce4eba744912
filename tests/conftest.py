"""Without a GPU, Triton's kernels run in its interpreter: set before anything imports them."""

import os
import shutil

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
