"""What the process of a person does: prepares the directory, launches workers, watches, ends well.

It trains nothing itself (except through the inline launcher) and keeps no state that is not on
disk: kill it, and `resume` goes on. The workers are `crew`'s.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from wesar_sweep.config import anchored, dump_study, load_study, resolved_precision, study_hash
from wesar_sweep.config.space import longest_context, possible_values
from wesar_sweep.config.storage_url import STORAGE_VARIABLE
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.crew import Crew, slurm_launcher, worker_task
from wesar_sweep.endings import Cancelled, recorded
from wesar_sweep.errors import ConfigError, Problem, StoreError
from wesar_sweep.launchers.inline import environment
from wesar_sweep.launchers.placement import WorkerPlacement, plan_workers
from wesar_sweep.progress import Display
from wesar_sweep.store import checkpoint_files
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.drive import Drive
from wesar_sweep.store.finished_search import require_text_of_search
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import HeldLock, try_hold
from wesar_sweep.store.provenance import (
    collect_provenance,
    merge_provenance,
    require_same_corpus,
    require_same_sets,
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
_FORMER_GRACE_S = 60.0
"""Seconds in which workers of a former driver notice that it is gone."""


def run_study(
    study: Study,
    *,
    sweep: Sweep,
    root: Path,
    command: Sequence[str] | None = None,
    quiet: bool = False,
    on_ready: Callable[[], None] | None = None,
) -> Summary:
    """Train what is left of a study and return how it stands.

    Args:
        study: What to train.
        sweep: On which machines.
        root: The results directory; made, or gone on with where it holds the same study.
        command: For the provenance; default this process's.
        quiet: Show no progress.
        on_ready: Called once the study is this process's and all that can be wrong with the input
            has been looked at.

    Raises:
        ConfigError: The study asks for what is not installed, or for a precision that the device
            has not, or the text cannot be read.
        StoreError: The directory holds another study, or another process runs it now.
        LaunchError: Workers cannot be started, or keep dying.
        EndedEarly: Ctrl-C or SIGTERM, the stop file or a budget, after the workers have stopped.
    """
    placements = plan_checked(study, sweep=sweep)
    directory = StudyDirectory(root)
    url = asked_storage(sweep)
    # Workers inherit it: an argument or a file would show the password.
    inherited = {} if url is None else {STORAGE_VARIABLE: url.full}
    with _driver_lock(directory), environment(inherited):
        _prepare(study, directory, sweep=sweep, command=command)
        progress = Progress(directory, study)
        with recorded(directory, progress, budget=sweep.budget, workers=len(placements)) as drive:
            if on_ready is not None:
                on_ready()
            _work(study, sweep, directory, placements, progress, drive, quiet=quiet)
        summary = progress.read()
        if summary.complete:
            checkpoint_files.clear_all(directory)
        return summary


def _require_even_shares(study: Study, sweep: Sweep) -> None:
    """Each rank of a worker trains an equal share of every batch.

    Raises:
        ConfigError: Some batch of the study does not divide.
    """
    ranks = sweep.ranks_per_worker
    uneven = [batch for batch in possible_values(study, "batch") if int(str(batch)) % ranks]
    if uneven:
        raise ConfigError(
            Problem(
                f"a batch of {uneven[0]} sequences does not divide among {ranks} ranks",
                path="ranks_per_worker",
                value=repr(ranks),
                allowed="a divisor of training.batch",
            )
        )


def plan_checked(study: Study, *, sweep: Sweep) -> list[WorkerPlacement]:
    """The workers of a study, after all checks that need no results directory.

    Raises:
        ConfigError: As `run_study`.
    """
    check(study)
    _require_even_shares(study, sweep)
    placements = plan_workers(sweep)
    resolved_precision(study, on_gpu=placements[0].on_gpu)
    return placements


def rehearse(study: Study, *, sweep: Sweep, root: Path) -> str:
    """What `run_study` would start: the scripts for sbatch, or the workers one a line.

    Nothing is started, submitted or written.

    Raises:
        ConfigError: As for `run_study`.
    """
    placements = plan_checked(study, sweep=sweep)
    directory = StudyDirectory(root.absolute())
    if sweep.launcher != "slurm":
        return "\n".join(
            " ".join((p.name, p.device, *(f"{k}={v}" for k, v in p.environment.items())))
            for p in placements
        )
    tasks = [
        worker_task(sweep, directory, placement, name=placement.name, workers=len(placements))
        for placement in placements
    ]
    return "\n".join(slurm_launcher(study, sweep, directory).scripts(tasks))


def _work(
    study: Study,
    sweep: Sweep,
    directory: StudyDirectory,
    placements: list[WorkerPlacement],
    progress: Progress,
    drive: Drive,
    *,
    quiet: bool,
) -> None:
    """Train to the end, with workers and a display."""
    with Display(study, directory, quiet=quiet), _stop_signals() as asked:
        summary = progress.read()
        if not summary.complete:
            placements = placements[: max(1, summary.runs_at_most - summary.runs_done)]
            crew = Crew(study, sweep, directory, placements, drive)
            _await_former_workers(study, directory, asked, ours=crew.names)
            crew.work(progress, asked)
    with CellQueue(study, directory, "driver") as queue:
        queue.settle()


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
    from wesar_sweep.data.corpus import load_corpus
    from wesar_sweep.data.evaluation_sets import sets_of
    from wesar_sweep.data_view import shown

    fingerprint = study_hash(study)
    changed = False
    if directory.study_file.exists():
        former = load_study(directory.study_file)
        there = study_hash(former)
        changed = there != fingerprint
        if changed and not _asks_for_more_seeds(study, former):
            raise StoreError(
                f"{directory.root} holds another study (hash {there[:12]}, this one "
                f"{fingerprint[:12]}): "
                "choose another place (--out, or out= in Python) or another name (--set name=…), "
                f"or go on with that one by `wesar-sweep resume {directory.root}`"
            )
    storage = settle_storage(study, directory, sweep)
    if changed and (living := living_workers(study, directory)):
        raise StoreError(
            f"a worker of this study still lives and knows of the former replicates: "
            f"{', '.join(living)}. Wait for it, or end it, then ask for more seeds"
        )
    with shown() as progress:
        corpus = load_corpus(study.data, context=longest_context(study), progress=progress)
    resumed = directory.provenance_file.exists()
    require_same_corpus(directory, sha256=corpus.sha256)
    if study.finishes is not None:
        require_text_of_search(directory, sha256=corpus.sha256)
    # Read by the workers again; what is wrong with them is said before anything is launched.
    sets = sets_of(study, corpus=corpus)
    require_same_sets(directory, sha256={name: one.sha256 for name, one in sets.items()})
    directory.create()
    directory.stop_file.unlink(missing_ok=True)
    text = dump_study(anchored(study, Path.cwd())).encode()
    # An equal study may have another title.
    if not directory.study_file.exists() or directory.study_file.read_bytes() != text:
        write_atomically(directory.study_file, text)
    facts = collect_provenance(study_hash=fingerprint, command=command)
    if resumed:
        # With more seeds it is of another hash from here on.
        facts = {
            "resumed": {facts["started_at"]: facts["command"]},
            "study_hash": fingerprint,
        }
    facts["storage"] = "SQLite" if storage.url is None else storage.url.shown
    facts["corpus"] = {
        "description": corpus.description,
        "sha256": corpus.sha256,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "entropy_rate": corpus.entropy_rate,
        "bytes_per_token": corpus.bytes_per_token,
        "prepared_as": corpus.prepared_as,
    }
    if corpus.tokenizer is not None:
        facts["corpus"]["tokenizer"] = corpus.tokenizer.description
        facts["corpus"]["end_of_document"] = corpus.tokenizer.end_of_document
        write_atomically(directory.tokenizer_file, corpus.tokenizer.to_json().encode())
    merge_provenance(directory, facts=facts)
    close_study(open_study(study, directory))


def _asks_for_more_seeds(study: Study, former: Study) -> bool:
    """Whether a study differs from a former one by its replicates alone, and asks for no fewer.

    Never of a boundary search, whose seeds belong to its steps by their number.
    """
    alike = former.model_copy(update={"replicates": study.replicates})
    return (
        study.sampler.name != "boundary"
        and study_hash(alike) == study_hash(study)
        and study.least_replicates >= former.least_replicates
        and study.most_replicates >= former.most_replicates
    )


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
    study: Study, directory: StudyDirectory, asked: Sequence[int], *, ours: set[str]
) -> None:
    """Wait until no worker of a former driver lives: it notices that driver's death within a block.

    One that died on another host counts as alive for the grace.

    Otherwise its cells would be nobody's: not waiting, since it holds them, nor finished.

    Args:
        study: The study.
        directory: Where its results go.
        asked: Signals that came in.
        ours: Workers that this driver has taken over.

    Raises:
        StoreError: One goes on all the same.
        Cancelled: The stop file was made.
    """
    grace_s = storage_of(study, directory).grace_s
    deadline = time.monotonic() + max(_FORMER_GRACE_S, 1.5 * grace_s)
    while living := [
        name
        for name in living_workers(study, directory)
        # A job that was begun again has its life in its name: w0.1 is the second one of w0.
        if name.partition(".")[0] not in ours
    ]:
        if directory.stop_file.exists():
            raise Cancelled
        if time.monotonic() > deadline or asked:
            raise StoreError(
                f"a worker of an earlier run of this study still lives: {', '.join(living)}. Wait "
                "for it, or end it (its host and process number: "
                f"{directory.beat_file(living[0])}), then resume"
            )
        time.sleep(_POLL_S)
