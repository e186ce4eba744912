"""The queue that feeds slots: cells in, runs out; outcomes in, one observation a cell out.

The store is the truth: a run with an outcome on disk is never handed out again, whatever the
database says, and a cell whose outcomes are all on disk is told without training.

Where no cell is left to start, finished ones that are to have more seeds (`store.wanted`) are taken
again under their numbers: by adaptive replicates, or because the study goes on with more of them.
Then a boundary search says what it wants to know next (`studies.searching`).

With PostgreSQL a worker may have been frozen for so long that others took it for dead and have its
cells. So there each turn begins by giving up the cells that carry another's name, and a result is
written only while its cell is this worker's. A turn whose connection died is done again, from what
was in hand before it; rows that it had written are not written twice.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from optuna.trial import TrialState

from wesar_sweep.config.run import Architecture, Run, make_run
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.curves import read_curve, write_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import try_hold
from wesar_sweep.store.outcomes import OutcomeReader, OutcomeWriter
from wesar_sweep.store.rows import Curve, Outcome
from wesar_sweep.store.searched import step_seeds
from wesar_sweep.studies.beats import Heart
from wesar_sweep.studies.cells import aggregate, capped_loss, chance_loss, start_loss
from wesar_sweep.studies.claims import WORKER, Claim, Claims
from wesar_sweep.studies.postgres import PATIENCE_S
from wesar_sweep.studies.pruners import judges_replicates
from wesar_sweep.studies.replicates import Cell
from wesar_sweep.studies.samplers import INDIFFERENT, ignores_constraints
from wesar_sweep.studies.searching import CELL, Searching
from wesar_sweep.studies.storage import (
    ConnectionLost,
    close_study,
    database_errors,
    database_of,
    exclusive,
    open_study,
    storage_of,
)
from wesar_sweep.studies.wanting import Wanting

STATUS = "status"
"""User attribute of a finished trial: completed, diverged (all replicates), pruned or failed."""

PRUNED_AT = "pruned_at"
"""User attribute: step (for wilcoxon: replicate) at which the pruner gave the cell up."""

CONSTRAINT = "divergence"

NAME_TIMEOUT_S = 2.0
"""Seconds to wait for a worker of the same name that is about to end."""

_TURN_S = 1.0
"""Seconds after which a worker that takes several cells lets others have the study's lock."""

_GIVE_WAY_S = 0.012
"""How long it leaves them the lock: longer than they sleep between two tries (`store.locks`)."""

_WAIT_S = 0.5
"""How long a worker without work waits for results of others that may bring some."""

_OTHER_SHAPES = 4
"""Cells of other shapes a worker may hold for later while a sampler is asked for one that fits."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CellQueue:
    """One worker's queue; a `training.queue.RunQueue`. Used by one thread.

    Holds the worker's lock (`StudyDirectory.worker_lock_file`) from construction to `release`: that
    lock is what tells other workers of this host that this one's cells are taken. With PostgreSQL
    it beats, too, for the other hosts (`studies.beats`).

    Args:
        study: The study.
        directory: Where it lives.
        worker: The worker's name, such as ``w0``. Only one living worker may have it.
        most_cells: Start no more cells than so many, all workers and former calls together; those
            that were started are trained to their end. None: as many as the study has.
        stop_asked: Asked while `take` waits to see whether other hosts' workers live; True ends
            that.

    Raises:
        StoreError: A worker of that name is alive, or the database cannot be used.
    """

    def __init__(
        self,
        study: Study,
        directory: StudyDirectory,
        worker: str,
        *,
        most_cells: int | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the worker's name and open the study; no cell is taken yet."""
        lock = try_hold(directory.worker_lock_file(worker), timeout_s=NAME_TIMEOUT_S)
        if lock is None:
            raise StoreError(
                f"a worker named {worker} is alive in {directory.root}; stop it, or wait for it"
            )
        self._lock = lock
        try:
            self._opened = open_study(study, directory)
            try:
                self._heart = _heart(study, directory, worker)
            except BaseException:
                close_study(self._opened)
                raise
        except BaseException:
            lock.release()
            raise
        self._study = study
        self._directory = directory
        self._worker = worker
        self._most_cells = most_cells
        self._claims = Claims(
            self._opened, study=study, directory=directory, worker=worker, most_cells=most_cells
        )
        self._stop_asked = stop_asked
        self._reader = OutcomeReader(directory)
        self._writer = OutcomeWriter(directory, worker)
        self._cells: dict[int, Cell] = {}
        self._chance = chance_loss(study)
        self._wanting = Wanting(study, self._reader)
        self._searching = Searching.of(study)
        self._sequential = study.adaptive is not None or self._searching is not None
        """Whether results may bring more to train."""
        self._unconfirmed: dict[tuple[int, int], Outcome] = {}
        """(trial, seed) -> the row that this turn has written, while it may have to be repeated."""

    def __enter__(self) -> CellQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def learns(self) -> bool:
        """See `training.queue.RunQueue.learns`."""
        # A pruner decides by them whether a cell's other replicates go on, or are started at all.
        return (
            self._study.sampler.name not in INDIFFERENT
            or self._study.pruner is not None
            or self._sequential
        )

    @property
    def cells_started(self) -> int:
        """Cells that this worker started."""
        return self._claims.started

    @property
    def may_go_on(self) -> bool:
        """Whether `most_cells` leaves something to train: a cell to start, or a started one."""
        with exclusive(self._directory, self._opened):
            started = self._claims.cells_started()
            return (
                self._most_cells is None
                or started < self._most_cells
                or bool(self._claims.orphans(mine=set()))
                or bool(self._wanting.trials())
            )

    def take(self, count: int, *, architecture: Architecture | None = None) -> Sequence[Run]:
        """At most `count` runs of one shape; see `training.queue.RunQueue.take`.

        With nothing in hand it waits for the other workers where their results may bring more to
        train. With PostgreSQL it also waits until every worker with cells was heard of once more:
        one may have died just now, and its cells would be nobody's.
        """
        began = time.monotonic()
        while True:
            runs = self._take(count, architecture)
            if runs or self._cells or self._stop_asked():
                return runs
            if self._sequential and self._turn(self._claims.others_train):
                time.sleep(_WAIT_S)
            elif self._heart is not None and self._turn(
                partial(self._claims.silent_owners, for_s=time.monotonic() - began)
            ):
                time.sleep(min(1.0, self._heart.interval_s))
            else:
                return runs
            self._claims.start_anew()

    def _take(self, count: int, architecture: Architecture | None) -> list[Run]:
        runs: list[Run] = []
        while len(runs) < count:
            more, any_left = self._turn(partial(self._some, count - len(runs), architecture))
            runs += more
            if not any_left:
                break
            architecture = runs[-1].architecture
            if len(runs) < count:
                time.sleep(_GIVE_WAY_S)
        return runs

    def _some(self, count: int, architecture: Architecture | None) -> tuple[list[Run], bool]:
        """As many runs as one turn allows, and whether there may be more. Under the lock."""
        runs: list[Run] = []
        give_way_at = time.monotonic() + _TURN_S
        while len(runs) < count and (not runs or time.monotonic() < give_way_at):
            cell = self._next_cell(architecture)
            if cell is None:
                return runs, False
            run = cell.start()
            assert run is not None, "a cell with nothing to do was chosen"
            architecture = cell.architecture
            runs.append(run)
        return runs, True

    def report(self, losses: Sequence[tuple[Run, int, float]]) -> list[bool]:
        """Tell intermediate losses; see `training.queue.RunQueue` and `studies.replicates`.

        A run whose cell is another worker's by now is to be ended.
        """
        if self._study.pruner is None or judges_replicates(self._study):
            return [self._is_over(run) for run, _, _ in losses]
        return self._turn(partial(self._report, losses))

    def _report(self, losses: Sequence[tuple[Run, int, float]]) -> list[bool]:
        pruned = []
        for run, step, val_loss in losses:
            if not self._is_over(run):
                cell = self._cells[run.trial]
                cell.reached(run.seed, step=step, val_loss=val_loss)
                self._judge(cell, cell.settled())
            pruned.append(self._is_over(run))
        return pruned

    def _is_over(self, run: Run) -> bool:
        cell = self._cells.get(run.trial)
        return cell is None or cell.pruned

    def finish(self, results: Sequence[tuple[Outcome, Curve | None]]) -> None:
        """Keep results for good, then tell the study; see `training.queue.RunQueue.finish`.

        The queue counts the tries of a run and signs its row with the worker.

        Raises:
            StoreError: The disk or the database refuses. Rows that are written count.
        """
        if self._heart is None:
            rows: list[Outcome] = []
            try:
                for outcome, curve in results:
                    rows.append(self._kept(outcome, curve))
            finally:
                # Also where the disk refused a curve: the runs before it are done.
                self._writer.append(*rows)
            with exclusive(self._directory, self._opened):
                for row in rows:
                    self._end(row)
            return
        if any(curve is not None for _, curve in results):
            # Looked at twice: writing curves under the lock would keep the other hosts waiting.
            self._turn(lambda: None)
        signed: list[Outcome] = []
        try:
            for outcome, curve in results:
                if self._has(outcome):
                    signed.append(self._kept(outcome, curve))
        finally:
            self._turn(partial(self._finish, signed))

    def _finish(self, signed: Sequence[Outcome]) -> None:
        """Write rows and tell the study, for cells that are still ours. Under the lock."""
        mine = [row for row in signed if self._has(row)]
        self._append(*mine)
        for row in mine:
            self._end(row)

    def _has(self, outcome: Outcome) -> bool:
        """Whether a result's cell is still in hand; of one that is not the log tells."""
        cell = self._cells.get(outcome.trial)
        if cell is not None and outcome.seed in cell.training:
            return True
        if (outcome.trial, outcome.seed) not in self._unconfirmed:
            _log.warning(
                "the result of trial %d seed %d is dropped: this worker was taken for dead and "
                "another has the trial",
                outcome.trial,
                outcome.seed,
            )
        return False

    def _kept(self, outcome: Outcome, curve: Curve | None) -> Outcome:
        """Write a run's curve; the row to write."""
        cell = self._cells[outcome.trial]
        assert outcome.seed in cell.training, "a run that was not handed out"
        if curve is not None:
            write_curve(self._directory, outcome.trial, outcome.seed, curve)
        attempt = cell.tries.get(outcome.seed, 0) + 1
        return replace(outcome, worker=self._worker, attempt=attempt)

    def _append(self, *rows: Outcome) -> None:
        """Write rows, but for those that this turn wrote before its connection died."""
        new = [row for row in rows if (row.trial, row.seed) not in self._unconfirmed]
        self._writer.append(*new)
        if self._heart is not None:
            self._unconfirmed |= {(row.trial, row.seed): row for row in new}

    def _turn(self, body: Callable[[], _T]) -> _T:
        """Do something as one transaction; with PostgreSQL anew where its connection died.

        Args:
            body: What it changes in hand is put back before it runs again.

        Raises:
            StoreError: The database failed, or another process took this worker's name.
        """
        if self._heart is None or database_of(self._opened).in_transaction:
            with exclusive(self._directory, self._opened):
                return body()
        self._unconfirmed.clear()
        deadline = time.monotonic() + PATIENCE_S
        again = False
        while True:
            before = {number: cell.copy() for number, cell in self._cells.items()}
            try:
                with exclusive(self._directory, self._opened):
                    self._give_up_others(self._heart, refresh=again)
                    return body()
            except ConnectionLost as error:
                self._cells = before
                self._claims.start_anew()
                if time.monotonic() > deadline:
                    raise
                _log.warning("a turn is done again: %s", error)
            again = True
            time.sleep(random.uniform(0.1, 1.0))

    def _give_up_others(self, heart: Heart, *, refresh: bool) -> None:
        """Let go of cells that another worker has by now. Under the lock."""
        database = database_of(self._opened)
        if not heart.holds_name(database.connection()):
            # Not to be given back either: they are those of the other process of this name.
            self._cells.clear()
            raise StoreError(
                f"another process has taken the name of worker {self._worker}, which was not heard "
                f"of for too long ({self._directory.root}); what it had in training is the other's"
            )
        for number, cell in list(self._cells.items()):
            known = database.get_trial(cell.trial._trial_id)
            if known.user_attrs.get(WORKER) != self._worker:
                _log.warning("trial %d is another worker's now", number)
                del self._cells[number]
            elif known.state.is_finished():
                # The turn that told it did take place; its answer was lost.
                del self._cells[number]
            elif refresh:
                cell.trial._cached_frozen_trial = known

    def settle(self) -> int:
        """Tell the cells of dead workers whose outcomes are all on disk; nothing is trained.

        For the end of a study and the start of a resumed one: a worker killed between its last
        outcome and telling Optuna leaves such a trial running.

        Returns:
            How many cells were told.
        """
        self._wanting.refresh()
        on_disk = {trial for trial, _ in self._reader.rows}
        return self._turn(partial(self._settle, on_disk))

    def _settle(self, on_disk: set[int]) -> int:
        told = 0
        for orphan in self._claims.orphans(mine=set(self._cells)):
            if orphan.number not in on_disk:
                continue
            claim = self._claims.adopt(orphan)
            cell = self._cell(claim)
            if cell.complete:
                self._cells[claim.trial.number] = cell
                self._tell(cell)
                told += 1
            else:
                self._claims.give_back(claim.trial)
        return told

    def release(self) -> None:
        """Give back the cells in hand, close the study, and let go of the worker's name.

        Any worker may then go on with those cells under the same trial numbers; their finished
        replicates stand. A second call does nothing.
        """
        if not self._lock.held:
            return
        try:
            if self._cells:
                self._turn(self._give_back)
        finally:
            if self._heart is not None:
                self._heart.stop()
            close_study(self._opened)
            self._lock.release()

    def _give_back(self) -> None:
        for cell in self._cells.values():
            self._claims.give_back(cell.trial)
        self._cells.clear()

    def _end(self, row: Outcome) -> None:
        """Tell the study of a row that is on the disk."""
        cell = self._cells[row.trial]
        if row.status == "failed" and row.attempt <= self._study.retries:
            cell.try_again(row)
        else:
            cell.end(row)
        if self._study.pruner is not None and not cell.pruned and not cell.complete:
            self._judge(
                cell,
                self._replicate_values(cell) if judges_replicates(self._study) else cell.settled(),
            )
        if cell.complete:
            self._tell(cell)

    def _next_cell(self, architecture: Architecture | None) -> Cell | None:
        """A cell with something to do, of that shape where one is given."""
        while True:
            others = 0
            for cell in self._cells.values():
                if cell.todo and not cell.pruned:
                    if architecture is None or cell.architecture == architecture:
                        return cell
                    others += 1
            if others >= _OTHER_SHAPES:
                return None
            claim = self._claims.next(architecture=architecture, mine=set(self._cells))
            claim = claim or self._claims.reopen(self._wanting.trials(), architecture=architecture)
            if claim is None:
                if self._search_on():
                    continue
                return None
            self._take_in_hand(claim)

    def _search_on(self) -> bool:
        """Put the next steps of a boundary search into the queue; whether there were any."""
        return self._searching is not None and self._searching.enqueue(
            self._opened, self._wanting.final()
        )

    def _take_in_hand(self, claim: Claim) -> None:
        cell = self._cell(claim)
        self._cells[claim.trial.number] = cell
        if cell.complete:
            self._tell(cell)

    def _cell(self, claim: Claim) -> Cell:
        """The cell as far as the disk knows it."""
        number = claim.trial.number
        self._wanting.refresh()
        seeds = self._wanting.seeds(number)
        # A trial that somebody put into the queue by hand is no step of the search.
        if self._searching is not None and CELL in claim.trial.user_attrs:
            _, step = claim.trial.user_attrs[CELL]
            seeds = step_seeds(self._study, step)
        runs = [make_run(self._study, number, seed, claim.params) for seed in seeds]
        cell = Cell(claim.trial, runs, self._chance, adopted=claim.adopted, told=set(claim.told))
        for run in runs:
            row = self._reader.rows.get(run.key)
            if row is None:
                cell.todo.append(run)
                continue
            self._check_belongs(row, run)
            if row.status == "failed" and row.attempt <= self._study.retries:
                cell.tries[run.seed] = row.attempt
                cell.todo.append(run)
            else:
                cell.end(row)
        cell.pruned = any(row.status == "pruned" for row in cell.results) or (
            cell.adopted and PRUNED_AT in claim.trial.user_attrs
        )
        if self._study.pruner is not None and cell.todo and not cell.pruned:
            self._recall_losses(cell)
        return cell

    def _recall_losses(self, cell: Cell) -> None:
        """The intermediate losses of replicates that ended before this worker had the cell."""
        for row in cell.results:
            if row.status == "failed":
                continue
            try:
                curve = read_curve(self._directory, row.trial, row.seed)
            except StoreError:
                # The outcome stands without its curve; the cell's mean is then over the others.
                continue
            start = start_loss(row, chance=self._chance)
            cell.losses[row.seed] = {
                int(step): min(float(loss), start) if loss == loss else start
                for step, loss in zip(curve.eval_step, curve.eval_loss, strict=True)
            }

    def _check_belongs(self, row: Outcome, run: Run) -> None:
        columns = run.columns()
        for knob, value in row.hyperparameters.items():
            if knob in columns and columns[knob] != value:
                raise StoreError(
                    f"trial {run.trial} has {knob} {columns[knob]!r} in "
                    f"{self._directory.database_file} and {value!r} in the outcomes of "
                    f"{row.worker}: they are not of the same study. Move one of the two away; "
                    "nothing was changed"
                )

    def _replicate_values(self, cell: Cell) -> list[tuple[int, float]]:
        """For a pruner that compares replicates: (replicate, final loss) of those that ended."""
        return [
            (index, capped_loss(cell.outcomes[seed], chance=self._chance))
            for index, seed in enumerate(run.seed for run in cell.runs)
            if seed in cell.outcomes and cell.outcomes[seed].status != "failed"
        ]

    def _judge(self, cell: Cell, values: Sequence[tuple[int, float]]) -> None:
        """Tell the pruner what is new and ask it."""
        for step, value in values:
            if step in cell.told or cell.pruned:
                continue
            with exclusive(self._directory, self._opened):
                cell.trial.report(value, step)
                cell.told.add(step)
                if cell.trial.should_prune():
                    cell.trial.set_user_attr(PRUNED_AT, step)
                    cell.pruned = True

    def _tell(self, cell: Cell) -> None:
        """Tell Optuna what the cell came to, and let it go."""
        trial = cell.trial
        judged = [row for row in cell.results if row.status != "pruned"]
        result = aggregate(judged, chance=self._chance)
        if cell.pruned:
            self._write_off(cell)
        attributes: dict[str, object] = {}
        values = None
        if cell.pruned:
            state, status = TrialState.PRUNED, "pruned"
        elif result is None:
            state, status = TrialState.FAIL, "failed"
            attributes["reason"] = cell.results[-1].reason
        else:
            state = TrialState.COMPLETE
            status = "diverged" if result.diverged == result.n else "completed"
            values = result.objectives(self._study.objectives)
        if result is not None:
            attributes |= {"n": result.n, "diverged": result.diverged, "val_loss": result.val_loss}
            if result.failed:
                attributes["failed"] = result.failed
        constrained = (
            values is not None
            and result is not None
            and "divergence_rate" not in self._study.objectives
            and not ignores_constraints(self._study.sampler.name)
        )
        with exclusive(self._directory, self._opened):
            for name, value in {**attributes, STATUS: status}.items():
                trial.set_user_attr(name, value)
            # A former worker may have died between setting it and telling.
            known = cell.adopted and CONSTRAINT in trial.constraints
            if constrained and result is not None and not known:
                trial.set_constraint(CONSTRAINT, result.constraint)
            self._opened.tell(trial, values, state=state)
        del self._cells[trial.number]

    def _write_off(self, cell: Cell) -> None:
        """Give the replicates that a pruned cell never started their rows: the disk knows all."""
        while cell.todo:
            run = cell.todo.popleft()
            reason = "never started: its cell was pruned by other replicates"
            row = Outcome.untrained(run, status="pruned", reason=reason, worker=self._worker)
            self._append(row)
            cell.end(row)


def _heart(study: Study, directory: StudyDirectory, worker: str) -> Heart | None:
    """What tells other hosts that the worker lives; None with SQLite, which has one host."""
    storage = storage_of(study, directory)
    if storage.url is None:
        return None
    with database_errors(directory, storage.url):
        return Heart(
            storage.url,
            directory=directory,
            study=storage.study,
            worker=worker,
            grace_s=storage.grace_s,
        )
