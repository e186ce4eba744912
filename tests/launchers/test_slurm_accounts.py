"""Jobs that only the accounts know: a real Slurm with slurmdbd, whose squeue forgets at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from slurm_cluster import Cluster, cluster, missing, wait_for
from test_slurm import task

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.launchers.base import Ending, JobState
from wesar_sweep.launchers.slurm import SlurmLauncher, SlurmWorkerJob
from wesar_sweep.launchers.slurm_states import LOST, SlurmStates

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@dataclass
class Ended:
    """Jobs that ended, each in its way, while nobody looked; squeue has forgotten them."""

    slurm: Cluster
    jobs: dict[str, SlurmWorkerJob]
    runs: SlurmWorkerJob
    """Of the same array as the job that was cancelled alone, as is the next."""
    waits: SlurmWorkerJob
    runaway: str

    def sacct(self, job: str, *words: str) -> list[str]:
        """Id and state of a job's rows."""
        layout = ("-n", "-X", "--parsable2", "--format=JobID,State")
        return self.slurm.client("sacct", *layout, "--jobs", job, *words).split("\n")[:-1]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    if why := missing(accounts=True):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("accounts")
    with cluster(folder / "slurm", accounts=True) as slurm, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm.conf))
        launchers: list[SlurmLauncher] = []

        def submit(function: str, *names: str, **keys: object) -> list[SlurmWorkerJob]:
            sweep = Sweep(launcher="slurm", **keys)  # type: ignore[arg-type]
            launchers.append(SlurmLauncher(folder / "jobs", sweep, poll_interval_s=0.3))
            tasks = [task(folder, function, name=name) for name in names]
            return list(launchers[-1].submit_all(tasks))

        requeued, _ = submit("listen", "requeued", "requeued_too")
        runs, waits, alone = submit("listen", "runs", "waits", "alone", array_parallelism=1)
        of_all = submit("greet", "of_all", "rest", slurm_additional_parameters={"hold": True})[0]
        (done,) = submit("greet", "done")
        (killed,) = submit("sleep", "killed")
        broken = task(folder, "leave", name="failed", arguments={"status": 3})
        failed = launchers[-1].submit(broken, index=0)
        wrap = ("-o", "/dev/null", "--wrap", "true")
        runaway = slurm.client("sbatch", "--parsable", *wrap).strip()

        wait_for((folder / "requeued.facts").exists)
        (folder / "requeued.facts").unlink()
        slurm.client("scontrol", "requeue", requeued.id)
        wait_for((folder / "runs.facts").exists)
        wait_for((folder / "killed.facts").exists)
        slurm.client("scancel", alone.id, killed.id, of_all.id.partition("_")[0])
        wait_for((folder / "requeued.facts").exists)
        slurm.client("scancel", "--signal=TERM", requeued.id)

        jobs = {
            "done": done,
            "failed": failed,
            "killed": killed,
            "requeued": requeued,
            "alone": alone,
            "of_all": of_all,
        }
        over = {runaway, *(job.id for job in jobs.values())}
        listed = ("squeue", "--noheader", "--array", "--states=all", "--format=%i")
        wait_for(lambda: not over & set(slurm.client(*listed).split()))
        yield Ended(slurm, jobs, runs, waits, runaway)
        for launcher in launchers:
            launcher.close()


def word(job: str) -> str:
    """Slurm's word by one look of a driver that has never looked before."""
    states = SlurmStates(interval_s=60)
    states.watch([job])
    return states.seen(job).word


@pytest.mark.parametrize(
    ("name", "said", "state", "ending"),
    [
        ("done", "COMPLETED", "finished", "done"),
        ("failed", "FAILED", "failed", "fault"),
        ("killed", "CANCELLED", "failed", "cancelled"),
        ("requeued", "COMPLETED", "finished", "done"),
        ("alone", "CANCELLED", "failed", "cancelled"),
        ("of_all", "CANCELLED", "failed", "cancelled"),
    ],
)
def test_the_accounts_say_at_once_how_it_ended(
    ended: Ended, name: str, said: str, state: JobState, ending: Ending
) -> None:
    job = ended.jobs[name]
    assert word(job.id) == said
    assert job.poll() == state
    assert job.ending() == ending


def test_others_of_an_array_go_on(ended: Ended) -> None:
    """The control of the one that was cancelled alone."""
    assert (ended.runs.poll(), ended.waits.poll()) == ("running", "pending")
    assert (word(ended.runs.id), word(ended.waits.id)) == ("RUNNING", "PENDING")


def test_what_sacct_prints(ended: Ended) -> None:
    """What the reading rests on: should these change, it has to be thought over."""
    jobs = ended.jobs
    # A cancelled job's word comes with others.
    by = f"CANCELLED by {os.getuid()}"
    assert ended.sacct(jobs["killed"].id) == [f"{jobs['killed'].id}|{by}"]
    # Of a requeued one there are several rows, of which it prints the last unless asked for all.
    again = jobs["requeued"].id
    assert ended.sacct(again) == [f"{again}|COMPLETED"]
    assert ended.sacct(again, "--duplicates") == [f"{again}|REQUEUED", f"{again}|COMPLETED"]
    # Tasks that never began have one row together, which is hidden from who asks for one of them.
    array = jobs["of_all"].id.partition("_")[0]
    assert ended.sacct(jobs["of_all"].id) == []
    (row,) = ended.sacct(array)
    assert row.startswith(f"{array}_[0-1") and row.endswith(by)


def test_a_job_of_last_week(ended: Ended) -> None:
    """sacct's window begins at midnight, but not where it is asked for jobs by number."""
    done = ended.jobs["done"].id
    times = ("submit", "eligible", "start", "end")
    earlier = ", ".join(f"time_{name} = time_{name} - 604800" for name in times)
    ended.slurm.sql(f"UPDATE wesar_job_table SET {earlier} WHERE id_job = {done}")
    assert word(done) == "COMPLETED"
    assert ended.sacct(done, "--starttime=midnight") == [], "the control: it is no job of today"


def test_an_ending_that_the_accounts_missed(ended: Ended) -> None:
    """Such a job runs for ever by the accounts; squeue's silence counts."""
    job = ended.runaway
    ended.slurm.sql(f"UPDATE wesar_job_table SET state = 1, time_end = 0 WHERE id_job = {job}")
    assert ended.sacct(job) == [f"{job}|RUNNING"]
    states = SlurmStates(interval_s=0, lost_after_s=0)
    states.watch([job])
    assert states.seen(job).word == LOST
