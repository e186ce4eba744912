"""The queue that feeds slots: cells in, runs out; outcomes in, one observation a cell out.

The store is the truth: a run with an outcome on disk is never handed out again, whatever the
database says, and a cell whose outcomes are all on disk is told without training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from optuna.trial import TrialState

from wesar_sweep.config.run import Architecture, Run, make_run
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.curves import read_curve, write_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import try_hold
from wesar_sweep.store.outcomes import OutcomeReader, OutcomeWriter
from wesar_sweep.store.rows import Curve, Outcome
from wesar_sweep.studies.cells import aggregate, capped_loss, chance_loss, start_loss
from wesar_sweep.studies.claims import Claim, Claims
from wesar_sweep.studies.pruners import judges_replicates
from wesar_sweep.studies.replicates import Cell
from wesar_sweep.studies.samplers import INDIFFERENT, ignores_constraints
from wesar_sweep.studies.storage import close_study, exclusive, open_study

STATUS = "status"
"""User attribute of a finished trial: completed, diverged (all replicates), pruned or failed."""

PRUNED_AT = "pruned_at"
"""User attribute: step (for wilcoxon: replicate) at which the pruner gave the cell up."""

CONSTRAINT = "divergence"

NAME_TIMEOUT_S = 2.0
"""Seconds to wait for a worker of the same name that is about to end."""

_TURN_S = 1.0
"""Seconds after which a worker that takes several cells lets others have the study's lock."""

_GIVE_WAY_S = 0.006
"""How long it leaves them the lock: longer than they sleep between two tries (`store.locks`)."""

_OTHER_SHAPES = 4
"""Cells of other shapes a worker may hold for later while a sampler is asked for one that fits."""


class CellQueue:
    """One worker's queue; a `training.queue.RunQueue`. Used by one thread.

    Holds the worker's lock (`StudyDirectory.worker_lock_file`) from construction to `release`: that
    lock is what tells other workers that this one's cells are taken.

    Args:
        study: The study.
        directory: Where it lives.
        worker: The worker's name, such as ``w0``. Only one living worker may have it.
        most_cells: Start no more cells than so many, all workers and former calls together; those
            that were started are trained to their end. None: as many as the study has.

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
        self._reader = OutcomeReader(directory)
        self._writer = OutcomeWriter(directory, worker)
        self._cells: dict[int, Cell] = {}
        self._chance = chance_loss(study)

    def __enter__(self) -> CellQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def learns(self) -> bool:
        """See `training.queue.RunQueue.learns`."""
        # A pruner decides by them whether a cell's other replicates go on, or are started at all.
        return self._study.sampler.name not in INDIFFERENT or self._study.pruner is not None

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
            )

    def take(self, count: int, *, architecture: Architecture | None = None) -> Sequence[Run]:
        """At most `count` runs of one shape; see `training.queue.RunQueue.take`."""
        runs: list[Run] = []
        while len(runs) < count:
            with exclusive(self._directory, self._opened):
                give_way_at = time.monotonic() + _TURN_S
                while len(runs) < count and time.monotonic() < give_way_at:
                    cell = self._next_cell(architecture)
                    if cell is None:
                        return runs
                    run = cell.start()
                    assert run is not None, "a cell with nothing to do was chosen"
                    architecture = cell.architecture
                    runs.append(run)
            if len(runs) < count:
                time.sleep(_GIVE_WAY_S)
        return runs

    def report(self, losses: Sequence[tuple[Run, int, float]]) -> list[bool]:
        """Tell intermediate losses; see `training.queue.RunQueue` and `studies.replicates`."""
        if self._study.pruner is None or judges_replicates(self._study):
            return [self._cells[run.trial].pruned for run, _, _ in losses]
        pruned = []
        with exclusive(self._directory, self._opened):
            for run, step, val_loss in losses:
                cell = self._cells[run.trial]
                if not cell.pruned:
                    cell.reached(run.seed, step=step, val_loss=val_loss)
                    self._judge(cell, cell.settled())
                pruned.append(cell.pruned)
        return pruned

    def finish(self, results: Sequence[tuple[Outcome, Curve | None]]) -> None:
        """Keep results for good, then tell the study; see `training.queue.RunQueue.finish`.

        The queue counts the tries of a run and signs its row with the worker.

        Raises:
            StoreError: The disk or the database refuses. Rows that are written count.
        """
        rows: list[Outcome] = []
        try:
            for outcome, curve in results:
                cell = self._cells[outcome.trial]
                assert outcome.seed in cell.training, "a run that was not handed out"
                if curve is not None:
                    write_curve(self._directory, outcome.trial, outcome.seed, curve)
                attempt = cell.tries.get(outcome.seed, 0) + 1
                rows.append(replace(outcome, worker=self._worker, attempt=attempt))
        finally:
            # Also where the disk refused a curve: the runs before it are done.
            self._writer.append(*rows)
        with exclusive(self._directory, self._opened):
            for row in rows:
                self._end(row)

    def settle(self) -> int:
        """Tell the cells of dead workers whose outcomes are all on disk; nothing is trained.

        For the end of a study and the start of a resumed one: a worker killed between its last
        outcome and telling Optuna leaves such a trial running.

        Returns:
            How many cells were told.
        """
        self._reader.refresh()
        on_disk = {trial for trial, _ in self._reader.rows}
        with exclusive(self._directory, self._opened):
            orphans = self._claims.orphans(mine=set(self._cells))
            claims = [self._claims.adopt(orphan) for orphan in orphans if orphan.number in on_disk]
        told = 0
        for claim in claims:
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
            for cell in self._cells.values():
                self._claims.give_back(cell.trial)
            self._cells.clear()
        finally:
            close_study(self._opened)
            self._lock.release()

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
            if claim is None:
                return None
            self._take_in_hand(claim)

    def _take_in_hand(self, claim: Claim) -> None:
        cell = self._cell(claim)
        self._cells[claim.trial.number] = cell
        if cell.complete:
            self._tell(cell)

    def _cell(self, claim: Claim) -> Cell:
        """The cell as far as the disk knows it."""
        number = claim.trial.number
        runs = [make_run(self._study, number, seed, claim.params) for seed in self._study.seeds]
        cell = Cell(claim.trial, runs, self._chance, adopted=claim.adopted, told=set(claim.told))
        self._reader.refresh()
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
            for index, seed in enumerate(self._study.seeds)
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
            self._writer.append(row)
            cell.end(row)
