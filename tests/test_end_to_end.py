"""The command line as users have it: real processes, training and storage, on tiny models."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from wesar_sweep.store.curves import read_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold, is_held
from wesar_sweep.store.outcomes import read_outcomes

STUDY = """
title: A tiny study
space:
  lr: [1e-3, 3e-2, 1e4]
  method: [he, wesar, weight_norm]
replicates: 2
model: {width: 12, depth: 1, heads: 2, context: 16}
training: {steps: 40, batch: 4, warmup: 4}
data: {source: synthetic, symbols: 32, length: 40000}
evaluation: {sequences: 8, every: 16}
probes: {every: 5}
divergence: {window: 4, patience: 8}
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "wesar_sweep", *map(str, words)]


def run(*words: object, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def inline(tmp_path_factory) -> Path:
    """One worker, this process: the quickest to start, and all slots in one stack."""
    path = tmp_path_factory.mktemp("sweep") / "inline.yaml"
    path.write_text("launcher: inline\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(study, inline, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run("run", study, "--on", inline, "--slots", 3, "--out", out)
    return StudyDirectory(out), done


def assert_same_runs(left: StudyDirectory, right: StudyDirectory, *, runs: int = 18) -> None:
    """Every run bit for bit, but for who trained it and how long that took."""
    pairs = [{(o.trial, o.seed): o for o in read_outcomes(d)} for d in (left, right)]
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == runs
    for key, a in pairs[0].items():
        b = pairs[1][key]
        for name in ("hyperparameters", "status", "diverged_at", "reason", "spikes", "steps"):
            assert getattr(a, name) == getattr(b, name), (key, name)
        for name in ("init_loss", "val_loss", "val_bpb", "best_loss"):
            x, y = getattr(a, name), getattr(b, name)
            assert x == y or (x is not None and math.isnan(x) and math.isnan(y)), (key, name)
        c, d = read_curve(left, *key), read_curve(right, *key)
        for name in ("loss", "grad_norm", "eval_step", "eval_loss", "probe_step"):
            np.testing.assert_array_equal(getattr(c, name), getattr(d, name))
        for name in c.probes:
            np.testing.assert_array_equal(c.probes[name], d.probes[name])


def test_a_study_from_yaml_to_report(undisturbed):
    directory, done = undisturbed
    assert done.stdout.rstrip().endswith("report.html")
    assert Path(done.stdout.rstrip().splitlines()[-1]).resolve() == directory.report_file.resolve()
    assert "18 runs" in done.stderr
    page = directory.report_file.read_text()
    assert "A tiny study" in page
    provenance = json.loads(directory.provenance_file.read_text())
    assert len(provenance["corpus"]["sha256"]) == 64


def test_divergence_is_a_result(undisturbed):
    """An absurd rate: exit code 0, runs diverged with step and reason, their trials complete."""
    directory, _ = undisturbed
    outcomes = read_outcomes(directory)
    absurd = [o for o in outcomes if o.hyperparameters["lr"] == 1e4]
    assert len(absurd) == 6
    assert {o.status for o in absurd} == {"diverged"}
    assert all(o.diverged_at is not None and o.reason for o in absurd)
    assert {o.status for o in outcomes if o.hyperparameters["lr"] == 1e-3} == {"completed"}
    opened = optuna.load_study(study_name="tiny", storage=f"sqlite:///{directory.database_file}")
    assert len(opened.trials) == 9
    for trial in opened.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert math.isfinite(trial.value)
    worst = {t.number for t in opened.trials if t.params["lr"] == 1e4}
    assert all(
        opened.trials[n].constraints and max(opened.trials[n].constraints.values()) > 0
        for n in worst
    )


@pytest.mark.parametrize("slots", [1, 16])
def test_slots_change_nothing(study, inline, undisturbed, tmp_path, slots):
    run("run", study, "--on", inline, "--slots", slots, "--out", tmp_path / "out")
    assert_same_runs(undisturbed[0], StudyDirectory(tmp_path / "out"))


def test_control_another_seed_is_another_run(study, inline, undisturbed, tmp_path):
    """The control of the comparison above: it does tell runs apart."""
    run("run", study, "--on", inline, "--out", tmp_path / "out", "--set", "data.seed=1")
    with pytest.raises(AssertionError):
        assert_same_runs(undisturbed[0], StudyDirectory(tmp_path / "out"))


def wait_for(condition, *, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_killed_and_resumed_is_the_same_study(study, undisturbed, tmp_path):
    """SIGKILL of the driver in the middle, two local workers: resume completes it, bit for bit."""
    directory = StudyDirectory(tmp_path / "out")
    driver = subprocess.Popen(
        command("run", study, "--workers", 2, "--slots", 2, "--out", directory.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: directory.outcomes_folder.exists() and len(read_outcomes(directory)) >= 3)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {(o.trial, o.seed): o for o in read_outcomes(directory)}
    # At once: the workers may still be in their last block.
    assert len(before) < 18, "the study was over before it was killed: nothing was shown"
    run("resume", directory.root)
    assert_same_runs(undisturbed[0], directory)
    lines = [
        json.loads(line)
        for file in directory.outcomes_folder.glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    keys = [(line["trial"], line["seed"]) for line in lines]
    assert len(keys) == len(set(keys)) == 18, "a finished run was trained twice"


def test_killed_worker_is_replaced(study, undisturbed, tmp_path):
    """SIGKILL of one worker: the study completes without help, and nothing is lost or doubled."""
    directory = StudyDirectory(tmp_path / "out")
    driver = subprocess.Popen(
        command("run", study, "--workers", 2, "--slots", 1, "--out", directory.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    beat = directory.beat_file("w0")
    wait_for(lambda: beat.exists() and json.loads(beat.read_text())["state"] == "training")
    os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL)
    assert driver.wait(timeout=120) == 0
    assert_same_runs(undisturbed[0], directory)


LONG = STUDY.replace("steps: 40", "steps: 1500").replace("lr: [1e-3, 3e-2, 1e4]", "lr: [1e-3]")


def test_killed_again_and_again_a_run_goes_on_where_it_stood(inline, tmp_path):
    """SIGKILL of the worker every second or so: its checkpoints carry the runs to the same end."""
    study, sweep = tmp_path / "long.yaml", tmp_path / "sweep.yaml"
    study.write_text(LONG + "retries: 9\n")
    sweep.write_text("workers: 1\nslots: 6\ncheckpoint_min: 0.002\n")
    run("run", study, "--on", inline, "--out", tmp_path / "undisturbed")
    directory = StudyDirectory(tmp_path / "out")
    driver = subprocess.Popen(
        command("run", study, "--on", sweep, "--out", directory.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    kills = 0
    for life in range(4):
        folder = directory.checkpoints_folder / f"w{life}"
        wait_for(lambda f=folder: len(list(f.glob("[0-9]*"))) or driver.poll() is not None)
        beat = json.loads(directory.beat_file(f"w{life}").read_text())
        if driver.poll() is not None:
            break
        os.kill(beat["pid"], signal.SIGKILL)
        kills += 1
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert kills >= 2, "the study was over before it could be killed: nothing was shown"
    logs = "".join(path.read_text() for path in directory.workers_folder.glob("*.log"))
    assert logs.count("goes on after") >= kills
    assert not directory.checkpoints_folder.exists()
    assert_same_runs(StudyDirectory(tmp_path / "undisturbed"), directory, runs=6)


def test_ctrl_c_says_how_to_go_on(study, undisturbed, tmp_path):
    directory = StudyDirectory(tmp_path / "out")
    driver = subprocess.Popen(
        command("run", study, "--workers", 1, "--out", directory.root),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: directory.outcomes_folder.exists() and len(read_outcomes(directory)) >= 1)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "wesar-sweep resume" in errors
    assert "Traceback" not in errors
    assert not is_held(directory.worker_lock_file("w0"))
    run("resume", directory.root, "--workers", 1)
    assert_same_runs(undisturbed[0], directory)


def test_workers_stopped_by_others_are_no_silent_end(study, undisturbed, tmp_path):
    """SIGTERM of the only worker, as at a time limit: exit code 1 that says why, and resume."""
    directory = StudyDirectory(tmp_path / "out")
    driver = subprocess.Popen(
        command("run", study, "--workers", 1, "--slots", 1, "--out", directory.root),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    beat = directory.beat_file("w0")
    wait_for(lambda: beat.exists() and json.loads(beat.read_text())["state"] == "training")
    os.kill(json.loads(beat.read_text())["pid"], signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "stopped before the end" in errors and "wesar-sweep resume" in errors
    run("resume", directory.root, "--workers", 1)
    assert_same_runs(undisturbed[0], directory)


def test_a_text_study_resumes_from_anywhere_and_takes_a_new_title(study, inline, tmp_path):
    """Relative paths mean the folder of the first run; a new title changes no run."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "text", there):
        folder.mkdir(parents=True)
    for n in range(30):
        (here / "text" / f"{n}.txt").write_text(f"document number {n}, " * 40)
    data = "data={source: text, paths: [text]}"
    small = ["--set", "space.lr=1e-3", "--set", "space.method=he", "--set", data]
    words = ["run", study, "--on", inline, *small, "--set", "retries=5"]
    run(*words, cwd=here)
    resumed = run("resume", here / "results" / "tiny", "--on", inline, cwd=there)
    assert resumed.stdout.rstrip().endswith("report.html")
    run(*words, "--set", "title=Another title", "--set", "retries=1", cwd=here)
    assert "Another title" in (here / "results" / "tiny" / "study.yaml").read_text()


def test_status_knows_whether_somebody_runs_it(undisturbed, tmp_path):
    directory, _ = undisturbed
    copy = tmp_path / "copy"
    shutil.copytree(directory.root, copy)
    for file in (copy / "outcomes").iterdir():
        file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")
    assert "stopped; resume goes on" in run("status", copy).stdout
    with hold(StudyDirectory(copy).driver_lock_file):
        assert "running" in run("status", copy).stdout
        facts = json.loads(run("status", copy, "--json").stdout)
        assert facts["driver_alive"] is True and facts["running"] == 0


def test_a_finished_study_is_not_trained_again(study, inline, undisturbed):
    directory, _ = undisturbed
    files = {f: f.read_bytes() for f in directory.outcomes_folder.iterdir()}
    done = run("run", study, "--on", inline, "--out", directory.root)
    assert done.stdout.rstrip().endswith("report.html")
    assert {f: f.read_bytes() for f in directory.outcomes_folder.iterdir()} == files


def test_the_resolved_study_reproduces_the_study(inline, undisturbed, tmp_path):
    directory, _ = undisturbed
    run("run", directory.study_file, "--on", inline, "--out", tmp_path / "again")
    assert_same_runs(directory, StudyDirectory(tmp_path / "again"))


def test_another_study_in_the_same_place_is_refused(study, inline, undisturbed):
    directory, _ = undisturbed
    done = run("run", study, "--set", "training.steps=41", "--out", directory.root, code=2)
    assert "another study" in done.stderr and "--out" in done.stderr
    assert len(read_outcomes(directory)) == 18


def test_bad_input_is_exit_code_2_and_runs_nothing(study, tmp_path):
    done = run("run", study, "--set", "training.stepz=5", "--out", tmp_path / "x", code=2)
    assert "training.stepz" in done.stderr and "steps" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
    missing = run("status", tmp_path / "nothing", code=2)
    assert "no study in" in missing.stderr


def test_status_plan_export(study, undisturbed, tmp_path):
    directory, _ = undisturbed
    facts = json.loads(run("status", directory.root, "--json").stdout)
    assert facts["complete"] and facts["runs"] == 18 and facts["diverged"] >= 6
    assert "complete" in run("status", directory.root).stdout
    planned = json.loads(run("plan", study, "--device", "cpu", "--json").stdout)
    assert planned["cells"] == 9 and planned["runs"] == 18
    assert planned["tokens"] == 18 * 40 * 4 * 16
    # 6 a parameter of 4·12² + 2·12·48 + 32·12, and attention's 12·N·d·T.
    assert planned["flops"] == planned["tokens"] * (6 * (4 * 144 + 2 * 576 + 384) + 12 * 12 * 16)
    assert planned["seconds"] > 0
    for format in ("csv", "json", "parquet"):
        path = tmp_path / f"runs.{format}"
        run("export", directory.root, "--format", format, "--out", path)
        assert path.stat().st_size > 500


def test_time_and_slots_are_accounted_for(undisturbed):
    import wesar_sweep as ws

    directory, _ = undisturbed
    cost = ws.open_result(directory.root).analysis.cost
    # Three slots, and runs that diverge at once: some steps are in vain, most are not.
    assert 0.3 < cost.occupancy <= 1
    kept = cost.outcomes["steps_trained"].sum()
    assert 0 <= cost.tokens_in_vain <= (cost.total.slot_steps - kept) * 64
    (worker,) = cost.by_worker.iter_rows(named=True)
    assert worker["training_seconds"] > 0 and worker["evaluation_seconds"] > 0
    assert worker["training_seconds"] + worker["evaluation_seconds"] < worker["device_seconds"]
    assert cost.by_status["device_seconds"].sum() == pytest.approx(worker["device_seconds"])
    # Of the newest call, which may be one that found nothing left to train.
    assert cost.wall_seconds > 0


def test_the_python_interface(undisturbed):
    import wesar_sweep as ws

    result = ws.open_result(undisturbed[0].root)
    frame = result.outcomes
    assert frame.height == 18
    assert {"study", "trial", "seed", "method", "lr", "sigma2", "status", "val_ppl"} <= set(
        frame.columns
    )
    assert result.summary.complete
    assert result.curve(trial=0, seed=0).loss.shape == (40,)
