"""What a launched process runs: joins a queue from `studies` to an engine from `training`.

Workers are identical and hold no state that is not on disk: kill one at any moment and another goes
on with its cells. A worker never imports polars or altair.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from wesar_sweep.budget import Meter
from wesar_sweep.config import load_study, resolved_precision
from wesar_sweep.config.run import Architecture
from wesar_sweep.config.space import longest_context, possible_values
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.launchers.base import LIFE_VARIABLE
from wesar_sweep.launchers.processes import started_at
from wesar_sweep.store.beat import Beat, SlotBeat, WorkerState, write_beat
from wesar_sweep.store.drive import read_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held
from wesar_sweep.store.provenance import (
    boot,
    cpu_model,
    merge_provenance,
    prepared_as,
    project_commit,
    require_same_corpus,
    require_same_sets,
)
from wesar_sweep.store.spent import Spent

if TYPE_CHECKING:
    import torch

    from wesar_sweep.studies.queue import CellQueue
    from wesar_sweep.training.engine import Engine

_log = logging.getLogger(__name__)

_BEAT_EVERY_S = 1.0
_RATE_OVER_S = 5.0
"""The speed shown is a mean over about so many seconds."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def main(
    *,
    directory: str,
    worker: str,
    device: str = "auto",
    slots: int | None = None,
    memory_fraction: float = 0.8,
    workers: int = 1,
    follow_driver: bool = False,
    checkpoint_min: float | None = None,
    ranks: int = 1,
    ranks_are_tasks: bool = False,
) -> None:
    """Train runs of a study until there is nothing left to take, or until asked to stop.

    The budget is that of the call which runs the study (`store.drive`); when it is used up, the
    worker stops in good order.

    Args:
        directory: The study's results directory; its `study.yaml` says what to train.
        worker: This worker's name, unique among the living.
        device: ``auto``, ``cpu`` or ``cuda``.
        slots: Runs to train at once; None: from memory.
        memory_fraction: Share of the free memory that the slots may fill.
        workers: Workers that share this machine's memory.
        follow_driver: Stop when no process holds the study's driver lock any more.
        checkpoint_min: Minutes between two checkpoints; None makes none.
        ranks: Processes, each with a device, that train each run together.
        ranks_are_tasks: They are the tasks of this job, all of which call this function, their
            places in torch's variables RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; else this
            process starts the others on its own machine.

    Raises:
        StoreError: The results directory cannot be used, or the corpus is not the study's.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    study_directory = StudyDirectory(Path(directory))
    if ranks > 1 and ranks_are_tasks and os.environ["RANK"] != "0":
        from wesar_sweep.ranks import follow_in_job

        follow_in_job(study_directory, size=ranks, device=torch_device(device))
        return
    study = load_study(study_directory.study_file)
    # A name of its own for each life of a requeued job: the one before may not know yet that its
    # node counts as dead, and what it holds must not look like this one's.
    life = os.environ.get(LIFE_VARIABLE, "0")
    worker = worker if life == "0" else f"{worker}.{life}"
    watch = _Watch(study_directory, worker=worker, follow_driver=follow_driver, devices=ranks)
    with watch.stop_signals(), watch.meter:
        try:
            _train(
                study,
                study_directory,
                watch,
                device=device,
                slots=slots,
                memory_fraction=memory_fraction,
                workers=workers,
                checkpoint_min=checkpoint_min,
                ranks=ranks,
                ranks_are_tasks=ranks_are_tasks,
            )
        except BaseException as error:
            watch.say("failed", message=f"{type(error).__name__}: {error}")
            raise
        watch.say("stopping" if watch.stop_asked else "finished", message=watch.stop_reason)


def _train(
    study: Study,
    directory: StudyDirectory,
    watch: _Watch,
    *,
    device: str,
    slots: int | None,
    memory_fraction: float,
    workers: int,
    checkpoint_min: float | None,
    ranks: int,
    ranks_are_tasks: bool,
) -> None:
    watch.say("starting")
    from wesar_sweep.data.corpus import document_end, load_corpus
    from wesar_sweep.data.evaluation_sets import sets_of
    from wesar_sweep.ranks import lead
    from wesar_sweep.studies.queue import CellQueue
    from wesar_sweep.training.checkpoints import Checkpoints
    from wesar_sweep.training.engine import Engine
    from wesar_sweep.training.feed import as_tensor, is_fed
    from wesar_sweep.training.kept_weights import WeightKeeper
    from wesar_sweep.training.memory import Fit, choose_slots
    from wesar_sweep.training.stack import StackTraits

    where = torch_device(device)
    if where.type == "cuda":
        from wesar_sweep.kernels.fused import compiling

        compiling.prepare()
    with (
        lead(directory, size=ranks, device=where, in_job=ranks_are_tasks) as together,
        CellQueue(
            study, directory, watch.worker, most_cells=watch.most_cells, stop_asked=watch.on_wait
        ) as queue,
    ):
        watch.queue = queue
        corpus = load_corpus(
            study.data, context=longest_context(study), prepared_as=prepared_as(directory)
        )
        require_same_corpus(directory, sha256=corpus.sha256)
        sets = sets_of(study, corpus=corpus)
        require_same_sets(directory, sha256={name: one.sha256 for name, one in sets.items()})
        precision = resolved_precision(study, on_gpu=where.type == "cuda")
        watch.set_machine(where, corpus_hash=corpus.sha256, precision=precision)
        facts: dict[str, Any] = {"workers": {watch.worker: watch.machine_facts()}}
        if sets:
            facts["evaluation_sets"] = {name: one.facts() for name, one in sets.items()}
        merge_provenance(directory, facts=facts)

        methods = [str(name) for name in possible_values(study, "method")]
        traits = StackTraits.of(
            study, methods=methods, document_end=document_end(corpus, data=study.data)
        )
        fed = is_fed(corpus.train, device=where)

        def slots_for(architecture: Architecture) -> Fit:
            fit = choose_slots(
                # What this rank holds.
                replace(architecture, batch=max(1, architecture.batch // ranks)),
                device=where,
                memory_fraction=memory_fraction,
                workers=workers,
                traits=traits,
                precision=precision,
                token_dtype=as_tensor(corpus.train).dtype,
                fed=fed,
            )
            # Ranks train one run at a time, unless told otherwise.
            chosen = slots or (1 if ranks > 1 else None)
            return fit if chosen is None else replace(fit, slots=chosen)

        checkpoints = None
        if checkpoint_min is not None:
            checkpoints = Checkpoints(directory, worker=watch.worker, precision=precision)
        keeper = None
        if study.keep_weights:
            keeper = WeightKeeper(directory, mask_documents=study.data.mask_documents)

        Engine(
            study,
            queue=queue,
            corpus=corpus,
            device=where,
            methods=methods,
            slots=slots_for,
            worker=watch.worker,
            on_block=watch.on_block,
            evaluation_sets=sets,
            checkpoints=checkpoints,
            weights=keeper,
            ranks=together,
            fed=fed,
            checkpoint_every_s=math.inf if checkpoint_min is None else 60 * checkpoint_min,
        ).train()


def torch_device(name: str) -> torch.device:
    """The device to train on; on a CPU with one thread, so that sums have one order.

    Raises:
        StoreError: ``cuda`` was asked for and torch sees none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StoreError(
            "device cuda was asked for and torch sees no GPU: use --device cpu, or install a torch "
            "built for this machine's CUDA"
        )
    if name == "cpu":
        torch.set_num_threads(1)
    return torch.device(name)


class _Watch:
    """Tells the outside what the worker does, and the worker what the outside wants."""

    def __init__(
        self, directory: StudyDirectory, *, worker: str, follow_driver: bool, devices: int
    ) -> None:
        self.worker = worker
        self.stop_asked = False
        self.stop_reason = ""
        self.queue: CellQueue | None = None
        drive = read_drive(directory)
        self.most_cells = None if drive is None else drive.budget.trials
        self.meter = Meter(
            directory, worker=worker, drive=drive, devices=devices, figures=self._spent
        )
        self._directory, self._follow_driver = directory, follow_driver
        self._beat = Beat(
            worker=worker,
            pid=os.getpid(),
            host=platform.node(),
            process_started=started_at(os.getpid()),
            started_at=time.time(),
        )
        self._engine: Engine | None = None
        self._precision = ""
        self._rate_since = (time.monotonic(), 0)

    @contextmanager
    def stop_signals(self) -> Iterator[None]:
        """Take SIGTERM, SIGINT and SIGUSR2 as a wish to stop at the next block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self.stop_asked = True
            outer = before[signal.Signals(number)]
            # Inline, the driver listens too; Python's own handler would tear the block apart.
            if callable(outer) and outer is not signal.default_int_handler:
                outer(number, frame)

        before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        for number in _STOP_SIGNALS:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def set_machine(self, device: torch.device, *, corpus_hash: str, precision: str) -> None:
        """Keep what only this process knows of its machine."""
        import torch

        self._precision = precision
        cuda = device.type == "cuda"
        versions = {"torch": str(torch.__version__)}
        if cuda:
            versions["cuda"] = str(torch.version.cuda)
        self._beat = replace(
            self._beat,
            device=device.type,
            device_name=torch.cuda.get_device_name(device) if cuda else cpu_model(),
            corpus_hash=corpus_hash,
            versions=versions,
        )

    def machine_facts(self) -> dict[str, object]:
        """The same for the provenance."""
        beat = self._beat
        return {
            "host": beat.host,
            "boot": boot(),
            # A study may be gone on with by another version than began it.
            "commit": project_commit(),
            "device": beat.device,
            "device_name": beat.device_name,
            "versions": beat.versions,
            "corpus_hash": beat.corpus_hash,
            "precision": self._precision,
        }

    def say(self, state: WorkerState, *, message: str = "") -> None:
        """Write a beat now."""
        self._beat = replace(
            self._beat, state=state, message=message, updated_at=time.time(), **self._figures()
        )
        write_beat(self._directory, beat=self._beat)

    def on_block(self, engine: Engine) -> bool:
        """Beat once a second and look whether to stop; called by the engine after every block."""
        self._engine = engine
        if not self.stop_asked and (reason := self.meter.used_up()):
            self.stop_asked, self.stop_reason = True, reason
            _log.warning("%s: stopping", reason)
        if time.time() - self._beat.updated_at < _BEAT_EVERY_S and self._beat.state == "training":
            return self.stop_asked
        self.say("training")
        return self._look()

    def on_wait(self) -> bool:
        """The same while there is nothing to train, but perhaps soon another worker's cells."""
        self.say("idle")
        return self._look()

    def _look(self) -> bool:
        self.stop_asked |= self._directory.stop_file.exists()
        if self._follow_driver and not is_held(self._directory.driver_lock_file):
            _log.warning("the process that started this worker is gone: stopping")
            self.stop_asked = True
        return self.stop_asked

    def _spent(self) -> Spent:
        """What this process has trained and started."""
        cells = 0 if self.queue is None else self.queue.cells_started
        engine = self._engine
        if engine is None:
            return Spent(cells=cells)
        return Spent(
            tokens=engine.tokens,
            cells=cells,
            training_seconds=engine.training_seconds,
            evaluation_seconds=engine.evaluation_seconds,
            slot_steps=engine.slot_steps,
        )

    def _figures(self) -> dict[str, Any]:
        """What the engine trains and how fast; nothing before there is one."""
        engine = self._engine
        if engine is None:
            return {}
        since, tokens = self._rate_since
        elapsed = time.monotonic() - since
        rate = (engine.tokens - tokens) / elapsed if elapsed > _RATE_OVER_S / 10 else None
        if elapsed > _RATE_OVER_S:
            self._rate_since = (time.monotonic(), engine.tokens)
        return {
            "slots": tuple(
                SlotBeat(record.run.trial, record.run.seed, record.steps_done, record.steps)
                for record in engine.records
                if record is not None
            ),
            "slot_count": len(engine.records) or None,
            "runs_done": engine.runs_done,
            "tokens": engine.tokens,
            "tokens_per_second": rate or self._beat.tokens_per_second,
            "training_seconds": engine.training_seconds,
            "evaluation_seconds": engine.evaluation_seconds,
        }
