"""What only a cluster's jobs can get wrong; a real Slurm throughout."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_cluster import Cluster, cluster, missing, wait_for
from test_launcher_contract import HERE, facts, path_with

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import LaunchError
from wesar_sweep.launchers.base import WorkerTask
from wesar_sweep.launchers.slurm import SlurmLauncher, signal_lead_s

pytestmark = pytest.mark.slurm

Make = Callable[..., SlurmLauncher]


@pytest.fixture
def launcher(slurm: Cluster, tmp_path: Path) -> Iterator[Make]:
    made: list[SlurmLauncher] = []

    def make(**keys: object) -> SlurmLauncher:
        sweep = Sweep(launcher="slurm", **keys)  # type: ignore[arg-type]
        made.append(SlurmLauncher(tmp_path / "jobs", sweep, poll_interval_s=0.3))
        return made[-1]

    yield make
    for one in made:
        one.close()


def task(tmp_path: Path, function: str, *, name: str = "w0", **changes: object) -> WorkerTask:
    made = WorkerTask(
        name=name,
        function=f"launched_functions:{function}",
        arguments={"path": str(tmp_path / f"{name}.facts")},
        environment={"PYTHONPATH": path_with(HERE)},
        timeout_min=5,
        log=tmp_path / f"{name}.log",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_arrays_are_split_where_the_cluster_allows_no_longer_one(
    launcher: Make, tmp_path: Path
) -> None:
    tasks = [task(tmp_path, "greet", name=f"w{index}") for index in range(5)]
    jobs = launcher(gpus_per_worker=1).submit_all(tasks)
    ids = [job.id.partition("_") for job in jobs]
    assert [index for _, _, index in ids] == ["0", "1", "2", "3", ""]
    assert len({array for array, _, _ in ids}) == 2
    assert [job.wait(timeout_s=60) for job in jobs] == ["finished"] * 5
    seen = [facts(tmp_path / f"w{index}.facts") for index in range(5)]
    # One GPU each, of a node's four, by Slurm's choice.
    assert {one["gpus"] for one in seen} <= {"0", "1", "2", "3"}
    assert {job.ending() for job in jobs} == {"done"}
    left = {path.suffix for path in (tmp_path / "jobs").iterdir()}
    assert left == {".sh"}, "pickles of finished jobs were left"


def test_a_job_of_several_tasks_over_two_nodes(launcher: Make, tmp_path: Path) -> None:
    """Each task finds torch's variables for its place, and what it has written is told apart."""
    one = launcher(ranks_per_worker=4, nodes=2, cpus_per_worker=4)
    job = one.submit(task(tmp_path, "take_place"), index=0)
    assert job.wait(timeout_s=60) == "finished", job.failure()
    places = [facts(tmp_path / f"w0.facts{rank}") for rank in range(4)]
    address, port = places[0][3:5]
    assert 20_000 <= int(port) < 32_000
    assert places == [
        [str(rank), str(rank % 2), "4", address, port, f"n{1 + rank // 2}"] for rank in range(4)
    ]
    assert {path.suffix for path in (tmp_path / "jobs").iterdir()} == {".sh"}
    logs = [tmp_path / name for name in ("w0.log", "w0.rank1.log", "w0.rank2.log", "w0.rank3.log")]
    assert [path.read_text().count("here I am\n") for path in logs] == [1] * 4


def test_at_most_so_many_at_once(launcher: Make, slurm: Cluster, tmp_path: Path) -> None:
    tasks = [task(tmp_path, "listen", name=f"w{index}") for index in range(5)]
    jobs = launcher(array_parallelism=2).submit_all(tasks)
    facts(tmp_path / "w0.facts")
    facts(tmp_path / "w4.facts")
    assert len(slurm.jobs("RUNNING")) == 2
    waiting = next(job for job in jobs if job.poll() == "pending")
    waiting.terminate()
    assert waiting.wait(timeout_s=20) == "failed"
    assert waiting.ending() == "cancelled"


def test_a_killed_worker_is_a_fault_and_a_killed_job_is_cancelled(
    launcher: Make, tmp_path: Path
) -> None:
    first, second = launcher().submit_all([task(tmp_path, "sleep", name=f"w{i}") for i in (0, 1)])
    os.kill(facts(tmp_path / "w0.facts")["pid"], signal.SIGKILL)
    assert first.wait(timeout_s=20) == "failed"
    assert first.ending() == "fault"
    said = first.failure() or ""
    assert f"job {first.id}: the worker ended with an error (state FAILED, exit code 137:0" in said
    assert ", node n" in said
    facts(tmp_path / "w1.facts")
    assert second.poll() == "running"
    second.kill()
    assert second.wait(timeout_s=20) == "failed"
    assert second.ending() == "cancelled"


def test_a_requeued_job_is_pending_and_lives_again(
    launcher: Make, slurm: Cluster, tmp_path: Path
) -> None:
    """Told to give way: it stops in good order, comes back, and is at no time dead."""
    job = launcher().submit(task(tmp_path, "listen"), index=0)
    first = facts(tmp_path / "w0.facts")
    assert first["life"] == "0"
    (tmp_path / "w0.facts").unlink()
    slurm.client("scancel", "--signal=USR2", job.id)
    states = []
    wait_for(lambda: states.append(job.poll()) or (tmp_path / "w0.facts").exists())
    assert set(states) <= {"pending", "running"} and "pending" in states
    second = facts(tmp_path / "w0.facts")
    assert second["life"] == "1" and second["pid"] != first["pid"]
    assert "giving way" in job.log_tail()
    job.terminate()
    assert job.wait(timeout_s=20) == "finished"


def preempt(slurm: Cluster) -> None:
    """A job of the partition that goes before the others, on all of both nodes."""
    slurm.client(
        *("sbatch", "-p", "urgent", "-N2", "-n2", "-c4", "-o", "/dev/null", "--wrap", "sleep 1")
    )


def test_preempted_for_good(launcher: Make, slurm: Cluster, tmp_path: Path) -> None:
    """Where preemption cancels, one that does not give way in time does not come back."""
    job = launcher(partition="scrap").submit(task(tmp_path, "ignore"), index=0)
    facts(tmp_path / "w0.facts")
    preempt(slurm)
    assert job.wait(timeout_s=60) == "failed"
    assert job.ending() == "gave_way"
    assert "its place was wanted for a job that goes before it (state PREEMPTED" in (
        job.failure() or ""
    )


def test_preemption_by_sigterm_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most clusters send no signal of the job's choice; the worker asks why it was told to stop."""
    if why := missing():
        pytest.skip(why)
    with cluster(tmp_path / "slurm", preempt_signal=False) as plain:
        monkeypatch.setenv("SLURM_CONF", str(plain.conf))
        sweep = Sweep(launcher="slurm")
        one = SlurmLauncher(tmp_path / "jobs", sweep, poll_interval_s=0.3)
        job = one.submit(task(tmp_path, "listen"), index=0)
        assert facts(tmp_path / "w0.facts")["life"] == "0"
        (tmp_path / "w0.facts").unlink()
        preempt(plain)
        wait_for((tmp_path / "w0.facts").exists)
        assert facts(tmp_path / "w0.facts")["life"] == "1"
        assert job.poll() == "running"
        # The control: somebody's SIGTERM in this life is no preemption, so it ends.
        job.terminate()
        assert job.wait(timeout_s=60) == "finished"
        assert job.ending() == "done"


def test_jobs_outlive_their_launcher_and_are_found(
    launcher: Make, slurm: Cluster, tmp_path: Path
) -> None:
    ended, waits, runs = launcher().submit_all(
        [
            task(tmp_path, "greet", name="w0"),
            task(tmp_path, "listen", name="w1"),
            task(tmp_path, "listen", name="w2"),
        ]
    )
    ended.wait(timeout_s=30)
    facts(tmp_path / "w1.facts")
    facts(tmp_path / "w2.facts")
    slurm.client("scontrol", "requeue", waits.id)
    wait_for(lambda: slurm.jobs("PENDING") == [waits.id])
    found = launcher().former()
    assert [(task.name, job.id) for task, job in found] == [("w1", waits.id), ("w2", runs.id)]
    assert [job.poll() for _, job in found] == ["pending", "running"]


def test_slurm_refuses(launcher: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LaunchError, match="invalid partition specified: nowhere") as caught:
        launcher(partition="nowhere").submit(task(tmp_path, "greet"), index=3)
    assert "worker w0 (number 3)" in str(caught.value)
    assert "--dry-run" in str(caught.value)


def test_a_job_starts_with_a_clean_environment(
    launcher: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is itself a requeued job does not hand its own job's settings on."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    job = launcher().submit(task(tmp_path, "greet"), index=0)
    assert job.wait(timeout_s=30) == "finished"
    assert facts(tmp_path / "w0.facts")["life"] == "0"


def test_the_lead_leaves_half_of_a_short_time() -> None:
    assert signal_lead_s(Sweep(launcher="slurm"), timeout_min=60) == 120
    assert signal_lead_s(Sweep(launcher="slurm"), timeout_min=2) == 60
    assert signal_lead_s(Sweep(launcher="slurm", signal_lead_s=300), timeout_min=60) == 300
