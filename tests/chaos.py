"""Faults without mercy: a study that is disturbed all the time ends as if nothing had happened.

    python -m tests.chaos [--faults 50] [--seed N] [--only sqlite]        (make chaos)

Workers and drivers are killed, asked to stop and frozen; lines of outcomes are torn, checkpoints
cut short, disks filled; a database is restarted where there is one to restart. Afterwards every
(trial, seed) stands once, with the values of an undisturbed study bit for bit, no trial is left
running, and the last command ended with exit code 0.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests import postgres_server
from tests.test_end_to_end import assert_same_runs, command
from wesar_sweep.config import load_study
from wesar_sweep.config.storage_url import STORAGE_VARIABLE
from wesar_sweep.launchers.inline import environment
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held
from wesar_sweep.studies import storage

STUDY = """
space:
  lr: {lrs}
  method: [he, wesar, weight_norm, sigma_reparam]
replicates: {replicates}
retries: 20
model: {{width: 12, depth: 1, heads: 2, context: 16}}
training: {{steps: {steps}, batch: 4, warmup: 4}}
data: {{source: synthetic, symbols: 32, length: 40000}}
evaluation: {{sequences: 8, every: 50}}
probes: {{every: 25}}
divergence: {{window: 4, patience: 8}}
"""

NO_DISK_BYTES = 200
"""Longest file that a worker with a full disk may write."""


@dataclass
class Disturber:
    """One study under fire.

    Args:
        directory: Where its results go.
        study: The study file.
        sweep: The sweep file.
        draw: Chooses what happens when.
        environment: Of its processes.
        restart_database: Restarts the database; None where that is a file.
        freeze_s: How long a worker is frozen; longer than its heartbeat's grace.
    """

    directory: StudyDirectory
    study: Path
    sweep: Path
    draw: random.Random
    environment: Mapping[str, str]
    restart_database: Callable[[], None] | None = None
    freeze_s: float = 3.0
    say: Callable[[str], object] = print
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    commands: int = 0
    _driver: subprocess.Popen[bytes] | None = None
    _frozen: list[tuple[float, int]] = field(default_factory=list)

    def run(self, faults: int, *, timeout_s: float = 900.0) -> int:
        """Disturb until there were so many faults, then let it end; the last exit code."""
        end = time.monotonic() + timeout_s
        code: int | None = None
        while code != 0:
            assert time.monotonic() < end, f"not over after {timeout_s:.0f} s: {self.faults}"
            self._start()
            code = self._one_life(faults, end)
        return code

    def _start(self) -> None:
        self.commands += 1
        words = ["resume", str(self.directory.root), "--on", str(self.sweep)]
        if not self.directory.study_file.exists():
            words = ["run", str(self.study), "--on", str(self.sweep)]
            words += ["--out", str(self.directory.root)]
        log = (self.directory.root.parent / "drivers.log").open("ab")
        self._driver = subprocess.Popen(
            command(*words), stdout=log, stderr=log, env={**os.environ, **self.environment}
        )
        log.close()

    def _one_life(self, faults: int, end: float) -> int:
        """From the start of a driver to its end."""
        assert self._driver is not None
        while self._driver.poll() is None:
            assert time.monotonic() < end, f"the driver hangs: {self.faults}"
            self._thaw()
            if self.faults.total() < faults and self._workers():
                self._strike()
            time.sleep(self.draw.uniform(0.05, 0.6))
        self._thaw(all_of_them=True)
        return self._driver.returncode

    def _workers(self) -> list[int]:
        """Process numbers of the living."""
        found = []
        for path in self.directory.workers_folder.glob("w*.json"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                if is_held(self.directory.worker_lock_file(path.stem)):
                    pid = int(json.loads(path.read_text())["pid"])
                    if psutil.pid_exists(pid):
                        found.append(pid)
        return found

    def _strike(self) -> None:
        """One fault, of any kind."""
        kinds: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: self._signal_worker(signal.SIGKILL),
            "worker asked to stop": lambda: self._signal_worker(signal.SIGTERM),
            "worker frozen": self._freeze,
            "driver killed": self._kill_driver,
            "line torn": self._tear_a_line,
            "checkpoint cut": self._cut_a_checkpoint,
            "disk full": self._fill_the_disk,
        }
        weights = [6, 3, 3, 2, 2, 3, 2]
        if self.restart_database is not None:
            kinds["database restarted"] = self._restart_database
            weights.append(2)
        (kind,) = self.draw.choices(list(kinds), weights)
        if kinds[kind]():
            self.faults[kind] += 1
            self.say(f"{self.faults.total():>3} {kind}")

    def _signal_worker(self, number: signal.Signals) -> bool:
        workers = self._workers()
        if not workers:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.draw.choice(workers), number)
            return True
        return False

    def _freeze(self) -> bool:
        workers = [pid for pid in self._workers() if pid not in {p for _, p in self._frozen}]
        if not workers or self._frozen:
            return False
        pid = self.draw.choice(workers)
        os.kill(pid, signal.SIGSTOP)
        self._frozen.append((time.monotonic() + self.freeze_s, pid))
        return True

    def _thaw(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for until, pid in list(self._frozen):
            if all_of_them or now >= until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self._frozen.remove((until, pid))

    def _kill_driver(self) -> bool:
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()
        return True

    def _tear_a_line(self) -> bool:
        """What a kill in the middle of a write leaves: only whole lines count."""
        living = {
            path.stem for path in self.directory.workers_folder.glob("*.lock") if is_held(path)
        }
        dead = [p for p in self.directory.outcomes_folder.glob("*.jsonl") if p.stem not in living]
        torn = [path for path in dead if path.read_bytes().endswith(b"\n")]
        if not torn:
            return False
        with self.draw.choice(torn).open("ab") as file:
            file.write(b'{"study": "torn", "trial": 1, "se')
        return True

    def _cut_a_checkpoint(self) -> bool:
        found = sorted(self.directory.checkpoints_folder.glob("*/[0-9]*"))
        if not found:
            return False
        with contextlib.suppress(FileNotFoundError):
            path = self.draw.choice(found)
            os.truncate(path, path.stat().st_size // 2)
            (path.parent / ".half").write_bytes(b"half a checkpoint")
            return True
        return False

    def _fill_the_disk(self) -> bool:
        """Of one worker: the system refuses what it writes, until it is another process."""
        workers = self._workers()
        if not workers:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            limits = (NO_DISK_BYTES, resource.RLIM_INFINITY)
            resource.prlimit(self.draw.choice(workers), resource.RLIMIT_FSIZE, limits)
            return True
        return False

    def _restart_database(self) -> bool:
        assert self.restart_database is not None
        self.restart_database()
        return True


def assert_undisturbed(
    directory: StudyDirectory, undisturbed: StudyDirectory, *, runs: int
) -> None:
    """Every run once, with the same bits; nobody lives, and nothing is left over."""
    lines: list[tuple[int, int]] = []
    for file in directory.outcomes_folder.glob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row["status"] != "failed":
                    lines.append((row["trial"], row["seed"]))
    assert len(lines) == len(set(lines)) == runs, collections.Counter(lines).most_common(3)
    assert_same_runs(undisturbed, directory, runs=runs)
    assert not [p for p in directory.workers_folder.glob("*.lock") if is_held(p)]
    assert not directory.checkpoints_folder.exists()


def write_study(folder: Path, *, lrs: int, replicates: int, steps: int) -> tuple[Path, int]:
    """A study file, and how many runs it has."""
    rates = [10 ** (-4 + 0.5 * n) for n in range(lrs - 1)] + [1e4]
    path = folder / "study.yaml"
    path.write_text(STUDY.format(lrs=rates, replicates=replicates, steps=steps))
    return path, lrs * 4 * replicates


def undisturbed_of(study: Path, folder: Path) -> StudyDirectory:
    """The same study, in one process."""
    sweep = folder / "inline.yaml"
    sweep.write_text("launcher: inline\n")
    out = folder / "undisturbed"
    subprocess.run(
        command("run", study, "--on", sweep, "--slots", 8, "--out", out),
        check=True,
        capture_output=True,
    )
    return StudyDirectory(out)


def disturbed(
    folder: Path,
    *,
    database: str,
    faults: int,
    seed: int,
    lrs: int,
    replicates: int,
    steps: int,
    workers: int = 4,
    say: Callable[[str], object] = print,
) -> Disturber:
    """One study under so many faults, compared with itself undisturbed.

    Args:
        folder: An empty one; two studies are made in it.
        database: `sqlite` or `postgres`, a server of its own.
        faults: At least so many, as long as the study lasts.
        seed: Of what happens when.
        lrs: Learning rates; cells are four times as many.
        replicates: Seeds a cell.
        steps: Of a run.
        workers: How many train at once.
        say: Told what is done.
    """
    study, runs = write_study(folder, lrs=lrs, replicates=replicates, steps=steps)
    sweep = folder / "sweep.yaml"
    keys = [f"workers: {workers}", "slots: 2", "checkpoint_min: 0.005", "worker_restarts: 1000"]
    server, url = None, None
    if database == "postgres":
        server = postgres_server.Server()
        url = server.new_database()
        keys += [f"storage: {url}", "heartbeat_grace_s: 2"]
    sweep.write_text("\n".join(keys) + "\n")

    def restart() -> None:
        assert server is not None
        server.stop(mode="immediate")
        server.start()

    try:
        disturber = Disturber(
            StudyDirectory(folder / "disturbed"),
            study,
            sweep,
            random.Random(seed),
            environment={"OMP_NUM_THREADS": "1"},
            restart_database=None if server is None else restart,
            freeze_s=3.5,
            say=say,
        )
        code = disturber.run(faults)
        assert code == 0
        assert_undisturbed(disturber.directory, undisturbed_of(study, folder), runs=runs)
        with environment({} if url is None else {STORAGE_VARIABLE: url}):
            assert not left_running(disturber.directory)
    finally:
        if server is not None:
            server.remove()
    return disturber


def left_running(directory: StudyDirectory) -> list[int]:
    """Numbers of trials that the database calls running or waiting."""
    study = load_study(directory.study_file)
    opened = storage.open_study(study, directory)
    try:
        return [
            trial.number
            for trial in opened.get_trials(deepcopy=False)
            if not trial.state.is_finished()
        ]
    finally:
        storage.close_study(opened)


def main() -> int:
    """Both databases, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    arguments = parser.parse_args()
    for name in ("sqlite", "postgres"):
        if arguments.only not in (None, name):
            continue
        if name == "postgres" and (why := postgres_server.missing()):
            print(f"postgres left out: {why}")
            continue
        print(f"{name}, seed {arguments.seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            done = disturbed(
                Path(folder), database=name, faults=arguments.faults, seed=arguments.seed,
                lrs=8, replicates=2, steps=1500,
            )  # fmt: skip
        print(
            f"{name}: {done.faults.total()} faults ({dict(done.faults)}), {done.commands} "
            "commands; every run once, with the bits of an undisturbed study",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
