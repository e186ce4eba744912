"""Studies in the background as users have them: detach, watch, workers, cancel, and going on."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_end_to_end import STUDY, assert_same_runs, command, run, wait_for

from wesar_sweep.launchers.processes import started_at
from wesar_sweep.liveness import Living, living
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold, is_held
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.store.spent import read_spent

CANCELLED = 4
TWO_WORKERS = ("--workers", 2, "--slots", 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Long enough to be met in the middle: some seconds of two workers."""
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY.replace("steps: 40", "steps: 200").replace("every: 16", "every: 50"))
    return path


@pytest.fixture(scope="module")
def inline(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "inline.yaml"
    path.write_text("launcher: inline\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(study, inline, tmp_path_factory) -> StudyDirectory:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run("run", study, "--on", inline, "--slots", 18, "--out", out)
    return StudyDirectory(out)


@pytest.fixture
def directory(tmp_path):
    """A results directory; whatever still runs in it is killed when the test is over."""
    made = StudyDirectory(tmp_path / "out")
    yield made
    if made.workers_folder.exists():
        for process in living(made):
            process.kill()


def driver_of(directory: StudyDirectory) -> dict:
    return json.loads(directory.driver_file.read_text())


def status(directory: StudyDirectory) -> dict:
    return json.loads(run("status", directory.root, "--json").stdout)


def trains(directory: StudyDirectory, worker: str = "w0") -> bool:
    beat = directory.beat_file(worker)
    return beat.exists() and bool(json.loads(beat.read_text())["slots"])


def gone(directory: StudyDirectory) -> bool:
    return not list(living(directory))


def test_detached_it_outlives_terminal_and_hangup_and_is_watched_to_its_end(
    study, undisturbed, directory
):
    """The command returns once the study is taken; a second driver is refused; the bits agree."""
    begun = run("run", study, *TWO_WORKERS, "--out", directory.root, "--detach")
    assert Path(begun.stdout.strip()).resolve() == directory.root.resolve()
    assert is_held(directory.driver_lock_file) and directory.study_file.exists()
    for words in ("driver.log", "wesar-sweep status", "wesar-sweep cancel"):
        assert words in begun.stderr
    with subprocess.Popen(
        command("status", directory.root, "--watch", "--every", "0.3"),
        stdout=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        pid = driver_of(directory)["pid"]
        assert os.getsid(pid) == pid, "in a session of its own"
        os.kill(pid, signal.SIGHUP)
        # On a fast machine the study would end before the second command has begun.
        os.kill(pid, signal.SIGSTOP)
        try:
            second = run("resume", directory.root, "--detach", code=2)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "another process is running the study" in second.stderr
        watched, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0
    lines = watched.splitlines()
    heads = [line for line in lines if line.startswith("tiny: ")]
    assert "running" in heads[0] and "18 of 18" not in heads[0]
    assert heads[-1].startswith("tiny: complete") and "18 of 18 runs" in heads[-1]
    assert len({head for head in heads if "running" in head}) > 2, "it grew while it was watched"
    assert any("trains" in line and "w0 training" in line for line in lines)
    wait_for(lambda: directory.driver_log_file.read_text().rstrip().endswith("report.html"))
    assert "18 runs" in directory.driver_log_file.read_text()
    wait_for(lambda: gone(directory))
    assert_same_runs(undisturbed, directory)
    assert driver_of(directory)["ending"] == "complete"


def test_bad_input_is_refused_before_anything_is_detached(study, directory):
    done = run(
        "run", study, "--set", "training.stepz=5", "--out", directory.root, "--detach", code=2
    )
    assert "training.stepz" in done.stderr and "nothing was run" in done.stderr
    done = run("run", study, "--device", "cuda", "--out", directory.root, "--detach", code=2)
    assert "no GPU is visible" in done.stderr
    # This one is found by the second process, which says so here and not in its log.
    data = "data={source: text, paths: [nothing-here]}"
    done = run("run", study, "--set", data, "--out", directory.root, "--detach", code=2)
    assert "nothing-here" in done.stderr and "Traceback" not in done.stderr
    assert not directory.driver_log_file.exists() and gone(directory)


def test_watching_what_has_stopped_is_exit_code_1(study, undisturbed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed.root, copy)
    assert run("status", copy, "--watch").stdout.startswith("tiny: complete")
    for file in (copy / "outcomes").iterdir():
        file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")
    assert "stopped; resume goes on" in run("status", copy, "--watch", code=1).stdout
    with hold(StudyDirectory(copy).driver_lock_file):
        watching = subprocess.Popen(
            command("status", copy, "--watch"), stdout=subprocess.PIPE, text=True
        )
        assert watching.stdout.readline().startswith("tiny: running")
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=20)
        assert watching.returncode == 130


def test_cancelled_while_it_trains_and_gone_on_with(study, undisturbed, directory):
    run("run", study, *TWO_WORKERS, "--out", directory.root, "--detach")
    wait_for(lambda: len(read_outcomes(directory)) >= 2 and trains(directory))
    done = run("cancel", directory.root)
    assert gone(directory) and not directory.stop_file.exists()
    kept = len(read_outcomes(directory))
    assert 2 <= kept < 18, "the study was over before it was cancelled: nothing was shown"
    assert f"{kept} of 18 runs are kept" in done.stderr
    assert "wesar-sweep resume" in done.stderr
    assert driver_of(directory)["ending"] == "cancelled"
    known = status(directory)
    assert known["ended"] == "cancelled" and not known["driver_alive"]
    assert all("stopped in good order" in worker["ended"] for worker in known["workers"])
    before = {(o.trial, o.seed): o for o in read_outcomes(directory)}

    again = run("cancel", directory.root)
    assert "nobody runs the study" in again.stderr

    run("resume", directory.root, *TWO_WORKERS, "--detach")
    assert run("status", directory.root, "--watch", "--every", "0.3").returncode == 0
    wait_for(lambda: gone(directory))
    assert_same_runs(undisturbed, directory)
    after = {(o.trial, o.seed): o for o in read_outcomes(directory)}
    assert all(after[key] == row for key, row in before.items()), "kept runs were not trained again"


def test_a_driver_in_the_foreground_ends_with_its_own_exit_code(study, directory, inline):
    driver = subprocess.Popen(
        command("run", study, "--on", inline, "--slots", 1, "--out", directory.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: trains(directory))
    run("cancel", directory.root)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == CANCELLED
    assert "cancelled" in errors and "wesar-sweep resume" in errors and "Traceback" not in errors


def test_cancel_now_kills_a_worker_that_does_not_listen(study, undisturbed, directory):
    """SIGSTOP of a worker: asking is in vain, killing is not; the driver ends in good order."""
    run("run", study, *TWO_WORKERS, "--out", directory.root, "--detach")
    wait_for(lambda: trains(directory, "w0") and trains(directory, "w1"))
    deaf = json.loads(directory.beat_file("w0").read_text())["pid"]
    os.kill(deaf, signal.SIGSTOP)
    done = run("cancel", directory.root, "--timeout-s", 2, code=1)
    assert f"w0 (process {deaf} on {platform.node()})" in done.stderr and "--now" in done.stderr
    done = run("cancel", directory.root, "--now", "--timeout-s", 1)
    assert f"killed w0 (process {deaf}" in done.stderr and "killed driver" not in done.stderr
    assert gone(directory)
    assert driver_of(directory)["ending"] == "cancelled"
    listed = {w["worker"]: w for w in json.loads(run("workers", directory.root, "--json").stdout)}
    assert "died without a word" in listed["w0"]["ended"] and listed["w0"]["lost"]
    assert "stopped in good order" in listed["w1"]["ended"]
    lines = run("workers", directory.root).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["w0", "w1"]
    assert " · dead · " in lines[0] and "w0.log" in lines[0]
    run("resume", directory.root, "--workers", 2)
    assert_same_runs(undisturbed, directory)


def test_cancel_now_kills_a_deaf_driver_too(study, undisturbed, directory, inline):
    run("run", study, *TWO_WORKERS, "--out", directory.root, "--detach")
    wait_for(lambda: trains(directory))
    driver = driver_of(directory)["pid"]
    os.kill(driver, signal.SIGSTOP)
    done = run("cancel", directory.root, "--now", "--timeout-s", 3)
    assert f"killed driver (process {driver}" in done.stderr
    assert gone(directory) and not directory.stop_file.exists()
    assert "killed" in status(directory)["ended"]
    run("resume", directory.root, "--on", inline)
    assert_same_runs(undisturbed, directory)


def test_nobody_else_is_killed():
    """A process of that number is spared unless it started when ours did, on this host."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = started_at(process.pid)
    assert began
    try:
        assert not Living("w0", process.pid, platform.node(), began + 1).kill()
        assert not Living("w0", process.pid, "another-host", began).kill()
        assert not Living("w0", process.pid, platform.node(), None).kill()
        time.sleep(0.1)
        assert process.poll() is None
        # The control: ours is killed.
        assert Living("w0", process.pid, platform.node(), began).kill()
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert not Living("w0", process.pid, platform.node(), began).kill()
    finally:
        process.kill()


def test_the_log_of_a_lost_worker_is_shown(study, directory):
    """A worker that is killed again and again: the status and the driver's last word say why."""
    log = directory.log_file("w0")
    driver = subprocess.Popen(
        command("run", study, "--workers", 1, "--on", "/dev/stdin", "--out", directory.root),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    driver.stdin.write("worker_restarts: 0\n")
    driver.stdin.close()
    wait_for(lambda: trains(directory))
    with log.open("a") as file:
        file.write("the last thing it said\n")
    os.kill(json.loads(directory.beat_file("w0").read_text())["pid"], signal.SIGKILL)
    errors = driver.stderr.read()
    driver.stderr.close()
    assert driver.wait(timeout=60) == 1
    assert "the last thing it said" in errors and "wesar-sweep resume" in errors
    assert not directory.beat_file("w1").exists(), "worker_restarts: 0 replaces nobody"
    # Its account outlived it, but for about a second.
    assert read_spent(directory)["w0"].device_seconds > 0.5
    shown = run("status", directory.root).stdout
    assert "died without a word" in shown and "the last thing it said" in shown
    assert "the workers ended before the study did" in status(directory)["ended"]


def test_looking_writes_nothing_and_loads_no_library_of_training(undisturbed):
    def everything() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in undisturbed.root.rglob("*")}

    before = everything()
    for words in (("status",), ("status", "--json"), ("status", "--watch"), ("workers",)):
        source = (
            "import sys\nfrom wesar_sweep import cli\n"
            f"sys.argv = {['wesar-sweep', words[0], str(undisturbed.root), *words[1:]]!r}\n"
            "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "heavy = {'torch', 'optuna', 'polars', 'altair', 'submitit', 'numpy.random'}\n"
            "print('LOADED', *heavy & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded = done.stdout.splitlines()[-1].split()
        assert loaded == ["LOADED"], (words, loaded)
    assert everything() == before
