"""The loop: take runs, train them as a stack, judge each, refill its slot.

Deciding what to train is the queue's (`training.queue`); what a step computes is the stack's
(`training.stack`). The host reads losses a block at a time and judges every step of it in order,
so that a run's record does not depend on where blocks end. On a GPU it reads a block while the next
one runs, so that the device never waits for a verdict.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wesar_sweep.config.precision import resolved_precision
from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.config.study import Study
from wesar_sweep.data.corpus import Corpus, document_end
from wesar_sweep.data.evaluation_sets import LoadedSet
from wesar_sweep.errors import StoreError
from wesar_sweep.stability.divergence import Verdict
from wesar_sweep.store.rows import Curve, FloatArray, Outcome, Status
from wesar_sweep.training.checkpoints import Checkpoints, SavedRun
from wesar_sweep.training.data_parallel import LeaderStack, Ranks
from wesar_sweep.training.feed import train_tokens
from wesar_sweep.training.kept_weights import WeightKeeper
from wesar_sweep.training.memory import Fit
from wesar_sweep.training.queue import RunQueue
from wesar_sweep.training.record import RunRecord
from wesar_sweep.training.set_judge import SetJudge
from wesar_sweep.training.stack import MOST_STEPS, Block, Stack, StackTraits

_log = logging.getLogger(__name__)

BLOCK_STEPS = {"cpu": 20, "cuda": MOST_STEPS}
"""Most steps between two looks of the host at the losses."""

BLOCK_SECONDS = {"cpu": 1.0, "cuda": 0.1}
"""About the longest time between them: how long a worker takes to hear that it should stop.

On a GPU a run that has diverged keeps its slot for one block and a half, and a block costs nothing.
"""

CHECKPOINTS_APART = 50
"""So many times as long as a checkpoint took passes before the next, or they take over the time."""

MOST_FAULTS = 5
"""So many faults on end, with no run finished between them, and the process is given up."""


class MachineFault(Exception):
    """The machine, not the run, stopped a whole stack, such as by a CUDA error."""


class OutOfMemory(MachineFault):
    """The stack did not fit."""


@contextmanager
def _machine_faults() -> Iterator[None]:
    """Tell the machine's faults, torch's RuntimeError and MemoryError, from our own."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        raise MachineFault(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Begun:
    """A block of steps that was begun, and whom it trains."""

    block: Block
    runs: list[tuple[int, RunRecord]]
    """Slot and record; the record may have left the slot since."""
    probe_offsets: list[list[int]]
    """Which steps of the block each of these runs is probed at."""
    started_at: float


class Engine:
    """Trains what a queue hands out, on one device, one architecture at a time.

    Args:
        study: The study; fixes evaluation, probes and rules.
        queue: Hands out runs and takes results.
        corpus: Tokens.
        device: Where to train.
        methods: Every value `method` can take.
        slots: K and micro-batches for an architecture.
        worker: Name written into outcomes.
        evaluation_sets: Further texts that runs are judged on, those of the study by their names.
        on_block: Called after every block; returning True asks to stop at once.
        checkpoints: Where unfinished runs are saved and found again; None: nowhere.
        checkpoint_every_s: Seconds between two checkpoints; one is also made before a stop.
        weights: Keeps the weights of completed runs; None: they are let go.
        ranks: The processes that train each stack together, of which this is the first.
        refill: Whether a run may enter a stack that others have begun; off only to measure what
            refilling gains.
        fed: Whether a GPU is fed its tokens from host memory; None: where they would take too much
            of its own (`training.feed`).
    """

    def __init__(
        self,
        study: Study,
        *,
        queue: RunQueue,
        corpus: Corpus,
        device: torch.device,
        methods: Sequence[str],
        slots: Callable[[Architecture], Fit],
        worker: str,
        on_block: Callable[[Engine], bool],
        evaluation_sets: Mapping[str, LoadedSet] | None = None,
        checkpoints: Checkpoints | None = None,
        checkpoint_every_s: float = math.inf,
        weights: WeightKeeper | None = None,
        ranks: Ranks | None = None,
        refill: bool = True,
        fed: bool | None = None,
    ) -> None:
        self._ranks = ranks
        self._checkpoints, self._checkpoint_every_s = checkpoints, checkpoint_every_s
        self._weights = weights
        self._saved_at = time.monotonic()
        self._refill = refill
        self._precision = resolved_precision(study, on_gpu=device.type == "cuda")
        self._study, self._queue, self._corpus = study, queue, corpus
        self._device, self._slots, self._worker, self._on_block = device, slots, worker, on_block
        self._judge_on_sets = SetJudge(evaluation_sets or {}, device=device).judge
        # A CPU has nothing to overlap.
        self._overlaps = device.type == "cuda"
        self._traits = StackTraits.of(
            study, methods=methods, document_end=document_end(corpus, data=study.data)
        )
        self._train_S = train_tokens(corpus.train, device=device, fed=fed)
        self._bytes_per_token: dict[int, float] = {}
        """Of the held-out windows, by context."""
        self._waiting: list[Run] = []
        self._entering: list[Run] = []
        self._suspects: set[tuple[int, int]] = set()
        self._fits: dict[Architecture, Fit] = {}
        self._set_aside: list[Run] = []
        self._faults = 0
        self._step_seconds = 0.0
        self._save_seconds = 0.0
        self._read_at = 0.0
        self._results: list[tuple[Outcome, Curve | None]] = []
        self.records: list[RunRecord | None] = []
        """What trains in each slot."""
        self.tokens = 0
        """Tokens trained by this engine, all runs together."""
        self.runs_done = 0
        """Runs handed in, failed ones included."""
        self.training_seconds = 0.0
        """Time spent in training steps: by the clock, on a GPU by the device's."""
        self.evaluation_seconds = 0.0
        """Wall time spent in evaluating."""
        self.checkpoint_seconds = 0.0
        """Wall time spent in making checkpoints and keeping weights."""
        self.queue_seconds = 0.0
        """Wall time spent in the queue: its database, and the disk it keeps results on."""
        self.slot_steps = 0
        """Steps of all slots of the stacks while they trained, empty ones included."""
        self.kept_steps = 0
        """Those of them that stand in the curve of a run that was handed in."""

    def train(self) -> None:
        """Train until the queue has nothing more to take, or `on_block` asks to stop."""
        limit: int | None = None
        while not self._on_block(self):
            alone = False
            if not self._waiting:
                self._waiting += self._take(1)
            if not self._waiting and self._set_aside:
                self._waiting, alone = [self._set_aside.pop(0)], True
            if not self._waiting:
                return
            architecture = self._waiting[0].architecture
            fit = self._fit(architecture)
            slots = 1 if alone else limit or fit.slots
            if slots > len(self._waiting):
                self._waiting += self._take(slots - len(self._waiting), architecture)
            try:
                try:
                    self._train_stack(
                        architecture,
                        slots=slots,
                        micro_batches=fit.micro_batches,
                        refill=self._refill and not alone,
                    )
                finally:
                    self._hand_in()
                limit = None
            except OutOfMemory as fault:
                if len(self.records) <= 1:
                    self._give_up(fault)
                else:
                    limit = len(self.records) // 2
                    _log.warning("%d slots do not fit, going on with %d: %s", slots, limit, fault)
                    self._waiting = self._unload() + self._waiting
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
            except MachineFault as fault:
                self._give_up(fault)

    def _take(self, count: int, architecture: Architecture | None = None) -> list[Run]:
        """Runs from the queue; those that were in a stack that failed are set aside."""
        with self._in_queue():
            runs = self._queue.take(count, architecture=architecture)
        self._set_aside += [run for run in runs if run.key in self._suspects]
        return [run for run in runs if run.key not in self._suspects]

    def _hand_in(self) -> None:
        """Hand in the results of the runs that have ended, all at once: one wait for the disk."""
        results, self._results = self._results, []
        if results:
            with self._in_queue():
                self._queue.finish(results)

    def _may_wait(self) -> bool:
        """Whether results are handed in while the next block runs, after more runs were taken."""
        return self._overlaps and not self._queue.learns

    @contextmanager
    def _in_queue(self) -> Iterator[None]:
        """Count the time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.queue_seconds += time.perf_counter() - start

    def _fit(self, architecture: Architecture) -> Fit:
        """K for an architecture, found out once."""
        if architecture not in self._fits:
            with _machine_faults():
                self._fits[architecture] = self._slots(architecture)
        return self._fits[architecture]

    def _train_stack(
        self, architecture: Architecture, *, slots: int, micro_batches: int, refill: bool
    ) -> None:
        """Train runs of one shape, and what the queue sends after them, until none is left."""
        # The queue gave all it has for this shape: a stack for more would train empty slots.
        self.records = [None] * min(slots, len(self._waiting))
        self._step_seconds = 0.0
        with _machine_faults():
            make = Stack if self._ranks is None else partial(LeaderStack, ranks=self._ranks)
            stack = make(
                architecture,
                slots=len(self.records),
                traits=self._traits,
                train_S=self._train_S,
                device=self._device,
                precision=self._precision,
                deterministic=self._study.training.deterministic,
                micro_batches=micro_batches,
            )
            stack.warm_up()
            window_ST = self._validation_windows(architecture.context)
        begun: _Begun | None = None
        while True:
            self._enter(stack, window_ST)
            if begun is None:
                self._drop_empty_slots(stack)
            if not any(self.records):
                return
            before, begun = begun, self._begin_block(stack)
            self._hand_in()
            if before is not None:
                self._judge_block(stack, before)
            # A verdict on this block is needed before an evaluation.
            if not self._overlaps or any(record.evaluation_due for _, record in self._live()):
                self._judge_block(stack, begun)
                begun = None
                self._evaluate(stack, window_ST)
            if not self._may_wait():
                self._hand_in()
            stop = self._on_block(self)
            if stop or self._checkpoint_due():
                if begun is not None:
                    self._judge_block(stack, begun)
                    begun = None
                    self._evaluate(stack, window_ST)
                    self._hand_in()
                self._save(stack)
            if stop:
                return
            free = self.records.count(None)
            if free and refill:
                self._waiting += self._take(free, architecture)

    def _checkpoint_due(self) -> bool:
        if self._checkpoints is None:
            return False
        # Where a checkpoint takes long there are fewer.
        every = max(self._checkpoint_every_s, CHECKPOINTS_APART * self._save_seconds)
        return time.monotonic() - self._saved_at >= every

    def _save(self, stack: Stack) -> None:
        """Make a checkpoint of the runs of the stack, all of whose steps have been judged."""
        live = self._live()
        if self._checkpoints is None or not live:
            return
        start = time.monotonic()
        try:
            with _machine_faults():
                self._checkpoints.save(stack, live)
        except StoreError as error:
            # Training can do without, and its results may still find room.
            _log.warning("no checkpoint: %s", error)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start
        self.checkpoint_seconds += self._save_seconds

    def _keep_weights(self, stack: Stack, slot: int, record: RunRecord, val_loss: float) -> None:
        """Write the weights of a run that has completed; its outcome is handed in after that."""
        if self._weights is None:
            return
        start = time.monotonic()
        try:
            with _machine_faults():
                self._weights.keep(stack, slot, record.run, val_loss=val_loss)
        except StoreError as error:
            # The row of its outcome is small and may still find room: without it the run is lost.
            run = record.run
            _log.warning("trial %d, seed %d: no weights kept: %s", run.trial, run.seed, error)
        self.checkpoint_seconds += time.monotonic() - start

    def _validation_windows(self, context: int) -> Tensor:
        """Evenly spaced held-out windows, [sequences, context + 1], the same for every run."""
        tokens = self._corpus.validation
        last = len(tokens) - context - 1
        count = min(self._study.evaluation.sequences, last // context + 1)
        first_S = np.linspace(0, last, count).astype(np.int64)
        window_ST = tokens[first_S[:, None] + np.arange(context + 1)]
        if self._corpus.tokenizer is not None and context not in self._bytes_per_token:
            # Of what is judged itself: of a sample of a text it may differ by some percent.
            token_bytes = self._corpus.tokenizer.token_bytes()
            self._bytes_per_token[context] = float(token_bytes[window_ST[:, 1:]].mean())
        return torch.from_numpy(window_ST.astype(np.int64)).to(self._device)

    def _enter(self, stack: Stack, window_ST: Tensor) -> None:
        """Start waiting runs in free slots and measure their loss before the first step."""
        free = [slot for slot, record in enumerate(self.records) if record is None]
        slots = free[: len(self._waiting)]
        self._entering, self._waiting = self._waiting[: len(slots)], self._waiting[len(slots) :]
        with _machine_faults():
            stack.load_many(slots, self._entering)
        saved = {
            slot: self._find(run, stack) for slot, run in zip(slots, self._entering, strict=True)
        }
        new = [slot for slot in slots if saved[slot] is None]
        init_losses = dict(zip(new, self._measure(stack, new, window_ST), strict=True))
        resumed: list[tuple[int, RunRecord]] = []
        for slot, run in zip(slots, self._entering, strict=True):
            state = saved[slot]
            if state is None:
                self.records[slot] = RunRecord(run, self._study, init_losses[slot])
                continue
            record = RunRecord.resumed(run, self._study, state.record)
            with _machine_faults():
                stack.restore(slot, state.rows, steps_done=record.steps_done)
            self.records[slot] = record
            resumed.append((slot, record))
        self._entering = []
        self._report_again(stack, resumed)

    def _find(self, run: Run, stack: Stack) -> SavedRun | None:
        """Where a run stood when somebody last saved it."""
        if self._checkpoints is None:
            return None
        found = self._checkpoints.find(run, like=stack)
        if found is not None:
            at = len(found.record.loss)
            _log.info("trial %d, seed %d goes on after %d steps", run.trial, run.seed, at)
        return found

    def _report_again(self, stack: Stack, resumed: Sequence[tuple[int, RunRecord]]) -> None:
        """Tell the queue what resumed runs had come to: whoever had them may have died with it."""
        reports = [
            (slot, record, step, loss)
            for slot, record in resumed
            for step, loss in record.intermediate()
        ]
        if not reports:
            return
        with self._in_queue():
            pruned = self._queue.report([(r.run, step, loss) for _, r, step, loss in reports])
        for (slot, record, _, _), stop in zip(reports, pruned, strict=True):
            if stop and self.records[slot] is record:
                self._leave_pruned(stack, slot, record)

    def _measure(self, stack: Stack, slots: Sequence[int], window_ST: Tensor) -> list[float]:
        """Held-out loss of some slots, with the time it takes."""
        start = time.perf_counter()
        with _machine_faults():
            losses = stack.evaluate(slots, window_ST) if slots else []
        self.evaluation_seconds += time.perf_counter() - start
        return losses

    def _drop_empty_slots(self, stack: Stack) -> None:
        """An empty slot costs as much as a full one: go on with a smaller stack.

        On a GPU that costs a new capture of the step, so it is done when half of them are empty.
        """
        kept = [slot for slot, record in enumerate(self.records) if record is not None]
        most = len(self.records) - 1 if self._device.type == "cpu" else len(self.records) // 2
        if 0 < len(kept) <= most:
            with _machine_faults():
                stack.keep(kept)
            self.records = [self.records[slot] for slot in kept]

    def _live(self) -> list[tuple[int, RunRecord]]:
        return [(slot, record) for slot, record in enumerate(self.records) if record is not None]

    def _begin_block(self, stack: Stack) -> _Begun:
        """Begin the steps to the next evaluation of any run, a block at most."""
        live = self._live()
        kind = self._device.type
        in_time = int(BLOCK_SECONDS[kind] / self._step_seconds) if self._step_seconds else 1
        most = BLOCK_STEPS[kind]
        steps = min(most, max(1, in_time), *(r.steps_to_evaluation for _, r in live))
        probes = [[n for n in range(steps) if record.probe_due(n)] for _, record in live]
        start = time.perf_counter()
        with _machine_faults():
            block = stack.train(steps, probe_at={offset for own in probes for offset in own})
        for _, record in live:
            record.steps_begun += steps
        self.slot_steps += steps * len(self.records)
        return _Begun(block, live, probes, start)

    def _judge_block(self, stack: Stack, begun: _Begun) -> None:
        """Wait for a block and judge every step of it."""
        with _machine_faults():
            loss_SK, norm_SK, probes = begun.block.read()
        # From where the block before ended, if this one was begun before that.
        now = time.perf_counter()
        seconds = begun.block.seconds() or now - max(begun.started_at, self._read_at)
        self._read_at = now
        self._step_seconds = seconds / begun.block.steps
        self.training_seconds += seconds
        for (slot, record), offsets in zip(begun.runs, begun.probe_offsets, strict=True):
            if self.records[slot] is not record:
                continue  # It ended by what the block before had shown.
            for offset in offsets:
                own = {name: value[slot].copy() for name, value in probes[offset].items()}
                record.add_probe(offset, own)
            self._judge(stack, slot, record, loss_SK[:, slot], norm_SK[:, slot])

    def _judge(
        self, stack: Stack, slot: int, record: RunRecord, loss: FloatArray, norm: FloatArray
    ) -> None:
        """Keep a block of one run; end the run where the divergence rule says so."""
        self.tokens += len(loss) * record.run.architecture.tokens_per_step
        verdict = record.add_block(loss.copy(), norm.copy())
        if verdict is not None:
            curve = record.curve(stack.probe_axes(), steps=verdict.step + 1)
            self._leave(slot, record, curve, "diverged", verdict.step, verdict.reason)

    def _evaluate(self, stack: Stack, window_ST: Tensor) -> None:
        """Evaluate the runs that stand at an evaluation step; end the finished and the pruned."""
        standing = [(slot, record) for slot, record in self._live() if record.evaluation_due]
        if not standing:
            return
        due = [(slot, record) for slot, record in standing if record.validation_due]
        losses = self._measure(stack, [slot for slot, _ in due], window_ST)
        going_on: list[tuple[int, RunRecord]] = []
        reports: list[tuple[Run, int, float]] = []
        ended: list[tuple[int, RunRecord, float, Verdict | None]] = []
        for (slot, record), val_loss in zip(due, losses, strict=True):
            record.add_evaluation(val_loss)
            if not record.finished:
                going_on.append((slot, record))
                reports.append((record.run, record.steps_done, record.capped(val_loss)))
                continue
            verdict = record.verdict_at_end()
            if verdict is None and not math.isfinite(val_loss):
                step = record.steps_done - 1
                verdict = Verdict(step, f"validation loss not finite after step {step}")
            ended.append((slot, record, val_loss, verdict))
        diverged = [slot for slot, _, _, verdict in ended if verdict is not None]
        start = time.perf_counter()
        with _machine_faults():
            self._judge_on_sets(stack, [one for one in standing if one[0] not in diverged])
        self.evaluation_seconds += time.perf_counter() - start
        for slot, record, val_loss, verdict in ended:
            curve = record.curve(stack.probe_axes())
            if verdict is None:
                self._keep_weights(stack, slot, record, val_loss)
                self._leave(slot, record, curve, "completed")
            else:
                self._leave(slot, record, curve, "diverged", verdict.step, verdict.reason)
        if not self._may_wait():
            self._hand_in()
        if not reports:
            return
        with self._in_queue():
            pruned = self._queue.report(reports)
        for (slot, record), stop in zip(going_on, pruned, strict=True):
            if stop:
                self._leave_pruned(stack, slot, record)

    def _leave_pruned(self, stack: Stack, slot: int, record: RunRecord) -> None:
        curve = record.curve(stack.probe_axes())
        reason = f"pruned after {record.steps_done} steps"
        self._leave(slot, record, curve, "pruned", reason=reason)

    def _leave(
        self,
        slot: int,
        record: RunRecord,
        curve: Curve,
        status: Status,
        diverged_at: int | None = None,
        reason: str = "",
    ) -> None:
        """Free the slot of a run that has ended; its result is handed in next."""
        outcome = record.outcome(
            status,
            curve=curve,
            worker=self._worker,
            bytes_per_token=self._bytes_per_token.get(
                record.run.architecture.context, self._corpus.bytes_per_token
            ),
            diverged_at=diverged_at,
            reason=reason,
        )
        self.records[slot] = None
        self.runs_done += 1
        self.kept_steps += len(curve.loss)
        self._faults = 0
        self._results.append((outcome, curve))

    def _unload(self) -> list[Run]:
        """The runs of the stack, which is given up; those that still wait are not among them."""
        runs = [record.run for _, record in self._live()] + self._entering
        self.records, self._entering = [], []
        return runs

    def _give_up(self, fault: MachineFault) -> None:
        """Hand in every run of the stack as failed; the queue decides which are tried again.

        Which of them is to blame is not known: a further try is made with each alone.

        Raises:
            MachineFault: This process is not fit to go on: after an error of CUDA, or when nothing
                but faults came of it for a while.
        """
        _log.error("the stack failed: %s", fault)
        for run in self._unload():
            failed = Outcome.untrained(run, status="failed", reason=str(fault), worker=self._worker)
            self.runs_done += 1
            self._suspects.add(run.key)
            self._results.append((failed, None))
        self._hand_in()
        self._faults += 1
        broken = self._device.type == "cuda" and not isinstance(fault, OutOfMemory)
        broken |= self._ranks is not None  # The others are in the middle of something.
        if broken or self._faults >= MOST_FAULTS:
            raise fault
