"""What the process of a person does: prepares the directory, launches workers, watches, ends well.

It trains nothing itself (except through the inline launcher) and keeps no state that is not on
disk: kill it, and `resume` goes on. Local workers end with it; a Slurm cluster's jobs go on without
it, and `resume` takes them over.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from wesar_sweep.config import anchored, dump_study, load_study, resolved_precision, study_hash
from wesar_sweep.config.space import possible_values
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import LaunchError, StoreError
from wesar_sweep.launchers.base import Job, Launcher, WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher
from wesar_sweep.launchers.local import LocalLauncher
from wesar_sweep.launchers.placement import WorkerPlacement, plan_workers
from wesar_sweep.launchers.slurm import SlurmLauncher
from wesar_sweep.progress import Display
from wesar_sweep.store import checkpoint_files
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import HeldLock, is_held, try_hold
from wesar_sweep.store.provenance import (
    collect_provenance,
    merge_provenance,
    require_same_corpus,
)
from wesar_sweep.studies.check import check
from wesar_sweep.studies.progress import Progress, Summary
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import close_study, open_study

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_CLUSTER_POLL_S = 1.0
"""A login node is others', too; Slurm itself is asked less often (`launchers.slurm_states`)."""
_STOP_GRACE_S = 60.0
"""Seconds workers get to stop after Ctrl-C; then they are killed, and nothing finished is lost."""


class Interrupted(Exception):
    """The user or the system asked to stop; all that was finished is on disk."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def run_study(
    study: Study,
    *,
    sweep: Sweep,
    root: Path,
    command: Sequence[str] | None = None,
    quiet: bool = False,
) -> Summary:
    """Train what is left of a study and return how it stands.

    Args:
        study: What to train.
        sweep: On which machines.
        root: The results directory; made, or gone on with where it holds the same study.
        command: For the provenance; default this process's.
        quiet: Show no progress.

    Raises:
        ConfigError: The study asks for what is not installed, or for a precision that the device
            has not, or the text cannot be read.
        StoreError: The directory holds another study, or another process runs it now.
        LaunchError: Workers cannot be started, or keep dying.
        Interrupted: Ctrl-C or SIGTERM, after the workers have stopped.
    """
    check(study)
    placements = plan_workers(sweep)
    resolved_precision(study, on_gpu=placements[0].on_gpu)
    directory = StudyDirectory(root)
    with _driver_lock(directory):
        _prepare(study, directory, command=command)
        progress = Progress(directory, study)
        with Display(study, directory, quiet=quiet), _stop_signals() as asked:
            summary = progress.read()
            if not summary.complete:
                placements = placements[: max(1, summary.runs - summary.runs_done)]
                crew = _Crew(study, sweep, directory, placements)
                _await_former_workers(directory, asked, ours=crew.names)
                crew.work(progress, asked)
        with CellQueue(study, directory, "driver") as queue:
            queue.settle()
        summary = progress.read()
        if summary.complete:
            checkpoint_files.clear_all(directory)
        return summary


def rehearse(study: Study, *, sweep: Sweep, root: Path) -> str:
    """What `run_study` would start: the scripts for sbatch, or the workers one a line.

    Nothing is started, submitted or written.

    Raises:
        ConfigError: As for `run_study`.
    """
    check(study)
    placements = plan_workers(sweep)
    resolved_precision(study, on_gpu=placements[0].on_gpu)
    directory = StudyDirectory(root.absolute())
    if sweep.launcher != "slurm":
        return "\n".join(
            " ".join((p.name, p.device, *(f"{k}={v}" for k, v in p.environment.items())))
            for p in placements
        )
    tasks = [
        _task(sweep, directory, placement, name=placement.name, workers=len(placements))
        for placement in placements
    ]
    return "\n".join(_slurm_launcher(study, sweep, directory).scripts(tasks))


def _slurm_launcher(study: Study, sweep: Sweep, directory: StudyDirectory) -> SlurmLauncher:
    return SlurmLauncher(directory.slurm_folder, sweep, job_name=study.name)


@contextmanager
def _driver_lock(directory: StudyDirectory) -> Iterator[HeldLock]:
    lock = try_hold(directory.driver_lock_file, timeout_s=2.0)
    if lock is None:
        raise StoreError(
            f"another process is running the study in {directory.root} now: "
            f"watch it with `wesar-sweep status {directory.root}`, or choose another place "
            "with --out"
        )
    with lock:
        yield lock


def _prepare(study: Study, directory: StudyDirectory, *, command: Sequence[str] | None) -> None:
    """Everything that must be on disk, and be right, before anything is trained."""
    # Imported late: numpy and the corpus readers, which `status` and `report` do without.
    from wesar_sweep.training.corpus import load_corpus

    fingerprint = study_hash(study)
    if directory.study_file.exists():
        there = study_hash(load_study(directory.study_file))
        if there != fingerprint:
            raise StoreError(
                f"{directory.root} holds another study (hash {there[:12]}, this one "
                f"{fingerprint[:12]}): "
                "choose another place (--out, or out= in Python) or another name (--set name=…), "
                f"or go on with that one by `wesar-sweep resume {directory.root}`"
            )
    contexts = [int(str(context)) for context in possible_values(study, "context")]
    corpus = load_corpus(study.data, context=max(contexts))
    resumed = directory.provenance_file.exists()
    require_same_corpus(directory, sha256=corpus.sha256)
    directory.create()
    directory.stop_file.unlink(missing_ok=True)
    text = dump_study(anchored(study, Path.cwd())).encode()
    # An equal study may have another title.
    if not directory.study_file.exists() or directory.study_file.read_bytes() != text:
        write_atomically(directory.study_file, text)
    facts = collect_provenance(study_hash=fingerprint, command=command)
    if resumed:
        facts = {"resumed": {facts["started_at"]: facts["command"]}}
    facts["corpus"] = {
        "description": corpus.description,
        "sha256": corpus.sha256,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "entropy_rate": corpus.entropy_rate,
    }
    merge_provenance(directory, facts=facts)
    close_study(open_study(study, directory))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Signals that came in, newest last: SIGINT and SIGTERM end a study in good order."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await_former_workers(
    directory: StudyDirectory, asked: Sequence[int], *, ours: set[str]
) -> None:
    """Wait until no worker of a former driver lives: it notices that driver's death within a block.

    Otherwise its cells would be nobody's: not waiting, since it holds them, nor finished.

    Args:
        directory: The study's.
        asked: Signals that came in.
        ours: Workers that this driver has taken over.

    Raises:
        StoreError: One goes on all the same.
    """
    deadline = time.monotonic() + _STOP_GRACE_S
    while living := [
        path
        for path in directory.workers_folder.glob("*.lock")
        # A job that was begun again has its life in its name: w0.1 is the second one of w0.
        if path.stem.partition(".")[0] not in ours and is_held(path)
    ]:
        if time.monotonic() > deadline or asked:
            names = ", ".join(path.stem for path in living)
            raise StoreError(
                f"a worker of an earlier run of this study still lives: {names}. Wait for it, or "
                f"end it (its process number: {living[0].with_suffix('.json')}), then resume"
            )
        time.sleep(_POLL_S)


class _Crew:
    """The workers of one driver: started together, replaced when they die, ended with the study."""

    def __init__(
        self,
        study: Study,
        sweep: Sweep,
        directory: StudyDirectory,
        placements: Sequence[WorkerPlacement],
    ) -> None:
        self._sweep, self._directory, self._placements = sweep, directory, placements
        self._launcher: Launcher
        match sweep.launcher:
            case "inline":
                self._launcher = InlineLauncher()
            case "local":
                self._launcher = LocalLauncher(directory.workers_folder)
            case "slurm":
                self._launcher = _slurm_launcher(study, sweep, directory)
        self._jobs: dict[int, tuple[Job, str]] = {
            index: (job, task.name) for index, (task, job) in enumerate(self._launcher.former())
        }
        if self._jobs:
            _log.warning("going on with %d job(s) of an earlier run", len(self._jobs))
        self._names = _worker_names(directory, taken=self.names)
        self._restarts = study.retries

    @property
    def names(self) -> set[str]:
        """The workers in hand."""
        return {name for _, name in self._jobs.values()}

    def work(self, progress: Progress, asked: list[int]) -> None:
        """Keep workers alive until nothing is left to train.

        Raises:
            Interrupted: A signal came, or the stop file was made.
            LaunchError: The workers ended and the study is not complete.
        """
        stopped = 0
        last: Job | None = None
        poll_s = _CLUSTER_POLL_S if self._sweep.launcher == "slurm" else _POLL_S
        try:
            self._start(*range(len(self._jobs), len(self._placements)))
            while self._jobs:
                for index, (job, name) in list(self._jobs.items()):
                    state = job.wait() if self._sweep.launcher == "inline" else job.poll()
                    if asked or self._directory.stop_file.exists():
                        _stop(self._directory, [job for job, _ in self._jobs.values()], asked)
                        raise Interrupted(asked[-1] if asked else signal.SIGINT)
                    if state in ("pending", "running"):
                        continue
                    del self._jobs[index]
                    last = job
                    ending = job.ending()
                    complete = progress.read().complete
                    if state == "failed":
                        _log.warning("worker %s ended: %s", name, job.failure())
                    asked_to = ending == "cancelled" or (
                        ending == "done" and self._was_stopped(name)
                    )
                    stopped += asked_to
                    if complete:
                        self._dismiss()
                    elif ending == "gave_way":
                        self._start(index)
                    # One that found nothing more to take is needed again only if it was the last.
                    elif (ending == "fault" or not (self._jobs or asked_to)) and self._restarts > 0:
                        self._restarts -= 1
                        self._start(index)
                time.sleep(poll_s)
        finally:
            self._launcher.close()
        if last is not None and not progress.read().complete:
            raise LaunchError(_early_end(last, self._directory, self._sweep, stopped=stopped))

    def _start(self, *indices: int) -> None:
        """Start workers, or replace them: together, as one array where there are arrays."""
        names = [next(self._names) for _ in indices]
        placements = [self._placements[index % len(self._placements)] for index in indices]
        tasks = [
            _task(self._sweep, self._directory, placement, name=name, workers=len(self._placements))
            for name, placement in zip(names, placements, strict=True)
        ]
        if tasks:
            jobs = self._launcher.submit_all(tasks, first_index=indices[0])
            self._jobs |= dict(zip(indices, zip(jobs, names, strict=True), strict=True))

    def _dismiss(self) -> None:
        """Cancel the jobs that have not begun: there is nothing left for them to train."""
        for index, (job, _) in list(self._jobs.items()):
            if job.poll() == "pending":
                job.kill()
                del self._jobs[index]

    def _was_stopped(self, name: str) -> bool:
        """Whether a worker ended because it was asked to: its time limit, or somebody's signal."""
        lives = [b for b in read_beats(self._directory) if b.worker.partition(".")[0] == name]
        return bool(lives) and max(lives, key=lambda b: b.updated_at).state == "stopping"


def _worker_names(directory: StudyDirectory, *, taken: set[str]) -> Iterator[str]:
    """The names w0, w1, … that no earlier worker of this study had: each writes its own files.

    Args:
        directory: The study's.
        taken: Names of workers that may not have begun, and so have no files.
    """
    number = len(list(directory.workers_folder.glob("*.lock")))
    while True:
        name = f"w{number}"
        if (
            name not in taken
            and not directory.worker_lock_file(name).exists()
            and not directory.outcomes_file(name).exists()
        ):
            yield name
        number += 1


def _task(
    sweep: Sweep, directory: StudyDirectory, placement: WorkerPlacement, *, name: str, workers: int
) -> WorkerTask:
    return WorkerTask(
        name=name,
        function="wesar_sweep.worker:main",
        arguments={
            "directory": str(directory.root.absolute()),
            "worker": name,
            "device": placement.device,
            "slots": sweep.slots,
            "memory_fraction": sweep.memory_fraction,
            # On a cluster each has its own share of a node's memory, if the sweep says how much.
            "workers": 1 if sweep.memory_gb_per_worker else workers,
            "follow_driver": sweep.launcher != "slurm",
            "checkpoint_min": sweep.checkpoint_min,
            "ranks": sweep.ranks_per_worker,
        },
        environment=placement.environment,
        timeout_min=sweep.timeout_min,
        log=directory.log_file(name),
    )


def _stop(directory: StudyDirectory, jobs: Sequence[Job], asked: Sequence[int]) -> None:
    """Ask every worker to stop and wait for it; what does not listen is killed by the launcher.

    A second signal means not to wait.
    """
    directory.stop_file.touch()
    already = len(asked)
    print("stopping the workers; press Ctrl-C again to kill them", file=sys.stderr, flush=True)
    deadline = time.monotonic() + _STOP_GRACE_S
    while time.monotonic() < deadline and len(asked) == already:
        states = [job.poll() for job in jobs]
        if all(state in ("finished", "failed") for state in states):
            break
        for job, state in zip(jobs, states, strict=True):
            # It has not begun, or was about to begin again: nobody listens yet.
            if state == "pending":
                job.kill()
        time.sleep(_POLL_S)
    living = sum(job.poll() not in ("finished", "failed") for job in jobs)
    if living:
        print(f"{living} worker(s) did not stop: killing them", file=sys.stderr, flush=True)
    directory.stop_file.unlink(missing_ok=True)


def resume_command(root: Path, sweep: Sweep) -> str:
    """What a person types to go on; on a cluster the machines must be named again."""
    on = " --on SWEEP.yaml" if sweep.launcher == "slurm" else ""
    relative = os.path.relpath(root)
    return f"wesar-sweep resume {root if relative.startswith('..') else relative}{on}"


def _early_end(job: Job, directory: StudyDirectory, sweep: Sweep, *, stopped: int) -> str:
    """Why there are no workers left although there is something left to train."""
    go_on = resume_command(directory.root, sweep)
    if stopped:
        return (
            "the workers were stopped before the end, by their time limit (timeout_min) or by a "
            f"signal. What was finished is on disk; go on with: {go_on}"
        )
    why = job.failure() or "it found nothing to train"
    return (
        f"the workers ended before the study did; the last one: {why}\n{job.log_tail(15)}\n"
        f"What was finished is on disk. Mend the cause (logs: {directory.workers_folder}), then: "
        f"{go_on}"
    )
