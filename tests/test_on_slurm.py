"""Studies on a real Slurm: whatever becomes of the jobs, the study is the undisturbed one."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from slurm_cluster import wait_for
from test_end_to_end import STUDY, assert_same_runs, command, run

from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold
from wesar_sweep.store.outcomes import read_outcomes

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SWEEP = """
launcher: slurm
device: cpu
slots: 1
gpus_per_worker: 1
timeout_min: 5
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    # Runs of a second: long enough to be disturbed.
    path.write_text(STUDY.replace("steps: 40", "steps: 100"))
    return path


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory) -> StudyDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "inline.yaml").write_text("launcher: inline\nslots: 18\n")
    run("run", study, "--on", folder / "inline.yaml", "--out", folder / "out")
    return StudyDirectory(folder / "out")


class Driver:
    """A driver in the background, and the study it runs."""

    def __init__(
        self,
        study: Path,
        folder: Path,
        *,
        workers: int,
        minutes: int = 5,
        retries: int = 2,
        more: str = "",
    ) -> None:
        self.directory = StudyDirectory(folder / "out")
        self.sweep = folder / "slurm.yaml"
        self.sweep.write_text(SWEEP.replace("timeout_min: 5", f"timeout_min: {minutes}") + more)
        words = ("run", study, "--on", self.sweep, "--workers", workers, "--set")
        self.said = folder / "driver.err"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command(*words, f"retries={retries}", "--out", self.directory.root),
                stdout=said,
                stderr=said,
            )

    def wait_for_outcomes(self, least: int) -> None:
        """Until so many runs are done; fewer than all, or there is nothing to disturb."""
        folder = self.directory.outcomes_folder
        wait_for(lambda: folder.exists() and self.outcomes() >= least)
        assert self.outcomes() < 18, "the study was over before it was disturbed"

    def outcomes(self) -> int:
        return len(read_outcomes(self.directory))

    def beats(self) -> dict[str, str]:
        return {beat.worker: beat.state for beat in read_beats(self.directory)}

    def hold(self) -> int:
        """SIGSTOP to the only worker, so that on a fast machine there is something left to do."""
        (beat,) = [beat for beat in read_beats(self.directory) if beat.state == "training"]
        # Not within a turn at the study's database: nobody else would have one.
        with hold(self.directory.ask_lock_file):
            os.kill(beat.pid, signal.SIGSTOP)
            wait_for(lambda: psutil.Process(beat.pid).status() == psutil.STATUS_STOPPED)
        return beat.pid

    def finish(self, *, code: int = 0) -> str:
        """What it said, once it is over."""
        try:
            self.process.wait(timeout=240)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=90)
            raise AssertionError(f"it does not end: {self.said.read_text()}") from None
        assert self.process.returncode == code, self.said.read_text()
        return self.said.read_text()


@pytest.fixture
def start(study, tmp_path, slurm):
    drivers = []

    def begin(**options: object) -> Driver:
        drivers.append(Driver(study, tmp_path, **options))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def assert_nothing_trained_twice(directory: StudyDirectory) -> None:
    lines = [
        line
        for file in directory.outcomes_folder.glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(lines) == 18


def test_an_array_of_four_of_which_half_is_cancelled(start, slurm, undisturbed):
    """Those cancelled are not replaced: somebody did not want them. The others do the rest."""
    driver = start(workers=4)
    wait_for(lambda: len(slurm.jobs()) == 4)
    array = slurm.jobs()[0].partition("_")[0]
    assert slurm.jobs() == [f"{array}_{index}" for index in range(4)]
    driver.wait_for_outcomes(1)
    slurm.client("scancel", f"{array}_0", f"{array}_2")
    said = driver.finish()
    assert f"job {array}_0: somebody cancelled it (scancel) (state CANCELLED" in said
    assert set(driver.beats()) <= {"w0", "w1", "w2", "w3"}
    assert slurm.jobs() == []
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_requeued_by_somebody(start, slurm, undisturbed):
    driver = start(workers=2)
    driver.wait_for_outcomes(2)
    slurm.client("scontrol", "requeue", slurm.jobs()[0])
    wait_for(lambda: slurm.jobs("PENDING"))
    driver.finish()
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_the_only_worker_is_preempted_and_comes_back(start, slurm, undisturbed):
    driver = start(workers=1)
    driver.wait_for_outcomes(1)
    # Slurm wakes it before it tells it.
    driver.hold()
    urgent = ("-p", "urgent", "-N2", "-n2", "-c4", "-o", "/dev/null")
    slurm.client("sbatch", *urgent, "--wrap", "sleep 1")
    driver.finish()
    # In good order, and under a name of its own.
    assert driver.beats() == {"w0": "stopping", "w0.1": "finished"}
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_told_to_give_way_where_it_cannot_ask_slurm(start, slurm, undisturbed):
    """In a container without scontrol: the driver submits another, and counts it as no fault."""
    python = f"python: env PATH=/nowhere {sys.executable}\n"
    driver = start(workers=1, more=python, retries=0)
    driver.wait_for_outcomes(1)
    slurm.client("scancel", "--signal=USR2", slurm.jobs()[0])
    driver.finish()
    assert driver.beats() == {"w0": "stopping", "w1": "finished"}
    assert_same_runs(undisturbed, driver.directory)


def test_at_the_time_limit_it_stops_and_comes_back(start, slurm, undisturbed):
    """Slurm looks at limits twice a minute; until then the worker is held, so that work is left."""
    driver = start(workers=1, minutes=2, more="signal_lead_s: 30\n")
    driver.wait_for_outcomes(1)
    worker = driver.hold()

    def told() -> bool:
        try:
            status = Path(f"/proc/{worker}/status").read_text()
        except FileNotFoundError:
            # Slurm woke it as well, and it has stopped.
            return True
        waiting = next(line for line in status.splitlines() if line.startswith("ShdPnd"))
        return bool(int(waiting.split()[1], 16) & 1 << (signal.SIGUSR2 - 1))

    wait_for(told)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    driver.finish()
    assert driver.beats() == {"w0": "stopping", "w0.1": "finished"}
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_a_node_set_down(start, slurm, undisturbed):
    driver = start(workers=2, more="cpus_per_worker: 3\n")
    driver.wait_for_outcomes(2)
    try:
        slurm.client("scontrol", "update", "nodename=n1", "state=down", "reason=test")
        driver.finish()
    finally:
        slurm.client("scontrol", "update", "nodename=n1", "state=resume", check=False)
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_the_workers_outlive_their_driver_and_are_taken_over(start, slurm, undisturbed):
    """SIGKILL of the driver, one job held in the queue: resume submits no third."""
    driver = start(workers=2, more="array_parallelism: 1\n")
    driver.wait_for_outcomes(1)
    before = slurm.jobs()
    assert len(before) == 2 and len(slurm.jobs("PENDING")) == 1
    driver.process.kill()
    driver.process.wait()
    seen = driver.outcomes()
    wait_for(lambda: driver.outcomes() > seen)
    worker = driver.hold()
    said = driver.said.with_name("resumed.err")
    words = ("resume", driver.directory.root, "--on", driver.sweep, "--workers", 2)
    with said.open("w") as file:
        resumed = subprocess.Popen(command(*words), stdout=file, stderr=file)
    try:
        wait_for(lambda: "going on with 2 job(s) of an earlier run" in said.read_text())
    finally:
        os.kill(worker, signal.SIGCONT)
    assert resumed.wait(timeout=240) == 0, said.read_text()
    assert set(driver.beats()) <= {"w0", "w1"}
    assert slurm.jobs() == [], "the job that was not needed any more was left in the queue"
    assert_same_runs(undisturbed, driver.directory)
    assert_nothing_trained_twice(driver.directory)


def test_ctrl_c_leaves_nothing_in_the_queue(start, slurm):
    driver = start(workers=2, more="array_parallelism: 1\n")
    driver.wait_for_outcomes(1)
    driver.process.send_signal(signal.SIGINT)
    said = driver.finish(code=130)
    assert "stopping the workers" in said and "wesar-sweep resume" in said
    assert driver.beats() == {"w0": "stopping"}
    assert slurm.jobs() == []


def test_a_dry_run_prints_the_scripts_and_submits_nothing(study, slurm, tmp_path):
    sweep = tmp_path / "slurm.yaml"
    sweep.write_text(
        SWEEP + "partition: main\naccount: physics\nsetup: [module load cuda]\nsignal_lead_s: 90\n"
        "cpus_per_worker: 2\nmemory_gb_per_worker: 1.5\npython: apptainer exec x.sif python\n"
        "slurm_additional_parameters: {exclude: n7, mail_type: END, exclusive: true}\n"
    )
    words = ("run", study, "--on", sweep, "--out", tmp_path / "out", "--workers", 5, "--dry-run")
    said = run(*words).stdout
    for line in (
        "--partition=main", "--account=physics", "--time=5", "--signal=USR2@90", "--gres=gpu:1",
        "--mem=1500M", "--cpus-per-task=2", "--exclude=n7", "--mail-type=END", "--exclusive",
        "--requeue", "--job-name=tiny",
    ):  # fmt: skip
        assert f"\n#SBATCH {line}\n" in said, line
    assert "\nmodule load cuda\nexport OMP_NUM_THREADS=1\n" in said
    assert "apptainer exec x.sif python -u -m submitit.core._submit" in said
    # MaxArraySize of the cluster is four.
    assert said.count("#!/bin/bash") == 2 and said.count("--array=0-3%") == 1
    assert slurm.client("squeue", "-h") == ""
    assert not (tmp_path / "out").exists()


def test_a_dry_run_here_prints_the_workers(study, tmp_path):
    words = ("run", study, "--out", tmp_path / "out", "--workers", 2, "--device", "cpu")
    lines = run(*words, "--dry-run").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["w0", "cpu"], ["w1", "cpu"]]
    assert "OMP_NUM_THREADS=1" in lines[0]
    assert not (tmp_path / "out").exists()


def test_without_a_cluster_it_says_what_to_do(study, tmp_path, monkeypatch):
    """The scripts can be seen anywhere; submitting needs sbatch."""
    sweep = tmp_path / "slurm.yaml"
    sweep.write_text(SWEEP)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    words = ("run", study, "--on", sweep, "--out", tmp_path / "out")
    assert "#SBATCH --requeue" in run(*words, "--dry-run").stdout
    assert "there is no sbatch here" in run(*words, code=1).stderr
