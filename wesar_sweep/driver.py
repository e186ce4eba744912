"""What the process of a person does: prepares the directory, launches workers, watches, ends well.

It trains nothing itself (except through the inline launcher) and keeps no state that is not on
disk: kill it, and `resume` goes on.
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
from wesar_sweep.config.storage_url import STORAGE_VARIABLE
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import LaunchError, StoreError
from wesar_sweep.launchers.base import Job, Launcher, WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher, environment
from wesar_sweep.launchers.local import LocalLauncher
from wesar_sweep.launchers.placement import WorkerPlacement, plan_workers
from wesar_sweep.progress import Display
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import HeldLock, try_hold
from wesar_sweep.store.provenance import (
    collect_provenance,
    merge_provenance,
    require_same_corpus,
)
from wesar_sweep.studies.check import check
from wesar_sweep.studies.progress import Progress, Summary
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import (
    asked_storage,
    close_study,
    living_workers,
    open_study,
    settle_storage,
    storage_of,
)

_log = logging.getLogger(__name__)

_POLL_S = 0.1
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
    resolved_precision(study, on_gpu=placements[0].device == "cuda")
    directory = StudyDirectory(root)
    url = asked_storage(sweep)
    # Workers inherit it: an argument or a file would show the password.
    inherited = {} if url is None else {STORAGE_VARIABLE: url.full}
    with _driver_lock(directory), environment(inherited):
        _prepare(study, directory, sweep=sweep, command=command)
        progress = Progress(directory, study)
        with Display(study, directory, quiet=quiet), _stop_signals() as asked:
            summary = progress.read()
            if not summary.complete:
                _await_former_workers(study, directory, asked)
                placements = placements[: max(1, summary.runs - summary.runs_done)]
                _Crew(study, sweep, directory, placements).work(progress, asked)
        with CellQueue(study, directory, "driver") as queue:
            queue.settle()
        return progress.read()


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


def _prepare(
    study: Study, directory: StudyDirectory, *, sweep: Sweep, command: Sequence[str] | None
) -> None:
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
    storage = settle_storage(study, directory, sweep)
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
    facts["storage"] = "SQLite" if storage.url is None else storage.url.shown
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


def _await_former_workers(study: Study, directory: StudyDirectory, asked: Sequence[int]) -> None:
    """Wait until no worker of a former driver lives: it notices that driver's death within a block.

    One that died on another host counts as alive for the grace.

    Otherwise its cells would be nobody's: not waiting, since it holds them, nor finished.

    Raises:
        StoreError: One goes on all the same.
    """
    grace_s = storage_of(study, directory).grace_s
    deadline = time.monotonic() + max(_STOP_GRACE_S, 1.5 * grace_s)
    while living := living_workers(study, directory):
        if time.monotonic() > deadline or asked:
            raise StoreError(
                f"a worker of an earlier run of this study still lives: {', '.join(living)}. Wait "
                "for it, or end it (its host and process number: "
                f"{directory.beat_file(living[0])}), then resume"
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
        self._launcher: Launcher = (
            InlineLauncher()
            if sweep.launcher == "inline"
            else LocalLauncher(directory.workers_folder)
        )
        self._names = _worker_names(directory)
        self._restarts = study.retries
        self._jobs: dict[int, tuple[Job, str]] = {}

    def work(self, progress: Progress, asked: list[int]) -> None:
        """Keep workers alive until nothing is left to train.

        Raises:
            Interrupted: A signal came, or the stop file was made.
            LaunchError: The workers ended and the study is not complete.
        """
        stopped = 0
        last: Job | None = None
        try:
            for index in range(len(self._placements)):
                self._start(index)
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
                    if state == "failed":
                        _log.warning("worker %s died: %s", name, job.failure())
                    asked_to = self._was_stopped(name) and state == "finished"
                    stopped += asked_to
                    # One that found nothing more to take is needed again only if it was the last.
                    if (state == "failed" or not (self._jobs or asked_to)) and (
                        self._restarts > 0 and not progress.read().complete
                    ):
                        self._restarts -= 1
                        self._start(index)
                time.sleep(_POLL_S)
        finally:
            self._launcher.close()
        if last is not None and not progress.read().complete:
            raise LaunchError(_early_end(last, self._directory, stopped=stopped))

    def _start(self, index: int) -> None:
        name = next(self._names)
        placement = self._placements[index]
        task = _task(
            self._sweep, self._directory, placement, name=name, workers=len(self._placements)
        )
        self._jobs[index] = self._launcher.submit(task, index=placement.index), name

    def _was_stopped(self, name: str) -> bool:
        """Whether a worker ended because it was asked to: its time limit, or somebody's signal."""
        return any(
            beat.worker == name and beat.state == "stopping" for beat in read_beats(self._directory)
        )


def _worker_names(directory: StudyDirectory) -> Iterator[str]:
    """The names w0, w1, … that no earlier worker of this study had: each writes its own files."""
    number = len(list(directory.workers_folder.glob("*.lock")))
    while True:
        name = f"w{number}"
        if (
            not directory.worker_lock_file(name).exists()
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
            "workers": workers,
            "follow_driver": True,
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
        if all(job.poll() in ("finished", "failed") for job in jobs):
            break
        time.sleep(_POLL_S)
    directory.stop_file.unlink(missing_ok=True)


def _early_end(job: Job, directory: StudyDirectory, *, stopped: int) -> str:
    """Why there are no workers left although there is something left to train."""
    go_on = f"wesar-sweep resume {os.path.relpath(directory.root)}"
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
