"""Who trains which trial: taking cells from Optuna so that none is taken twice and none is lost.

A trial is claimed under the study's lock and carries its worker's name (user attribute `WORKER`)
for as long as it runs. When that worker is dead, or gave the trial back, another claims it *under
the same number*: the outcomes of its finished replicates stay valid. Optuna's own way, a new trial
with the same parameters, would train them twice.

Whether a worker lives is one question in one function (`_lives`); on one host the lock on its file
answers it, on several its beats (`studies.beats`).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from wesar_sweep.config.run import Architecture, make_run
from wesar_sweep.config.space import Scalar
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held
from wesar_sweep.studies.beats import Seen, read_seen
from wesar_sweep.studies.database import Running
from wesar_sweep.studies.samplers import build_sampler
from wesar_sweep.studies.space import suggest, varies_architecture
from wesar_sweep.studies.storage import database_of, exclusive, storage_of

WORKER = "worker"
"""User attribute of a trial: the worker that trains it or trained it; None when given back."""

_ORPHAN_INTERVAL_S = 30.0
"""How often a worker looks for orphans while the queue still has waiting trials."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that is ours, with the cell's parameters."""

    trial: Trial
    params: dict[str, Scalar]
    adopted: bool = False
    """Whether a former worker had it."""
    told: frozenset[int] = frozenset()
    """Steps whose intermediate value Optuna has from that worker."""


class Claims:
    """Takes trials for one worker."""

    def __init__(
        self,
        opened: optuna.Study,
        *,
        study: Study,
        directory: StudyDirectory,
        worker: str,
        most_cells: int | None = None,
    ) -> None:
        """Nothing is taken yet; with `most_cells` no more are started, by all workers together."""
        self._opened = opened
        self._study = study
        self._directory = directory
        self._worker = worker
        self._one_shape = not varies_architecture(study)
        # The queue of listed cells never grows: it is read once, and each entry tried in its turn.
        self._waiting: deque[FrozenTrial] = deque()
        self._architectures: dict[int, Architecture] = {}
        self._look_for_orphans_at = 0.0
        self._most_cells = most_cells
        self.started = 0
        """Cells this worker started; those it went on with do not count."""
        self._storage = storage_of(study, directory)

    def start_anew(self) -> None:
        """Forget what was taken: the transaction did not take place, or its answer was lost."""
        self._waiting.clear()
        self._look_for_orphans_at = 0.0

    def next(self, *, architecture: Architecture | None, mine: set[int]) -> Claim | None:
        """One more trial: an orphan, else a waiting one, else a new one where the study wants more.

        Args:
            architecture: Shape to prefer. Orphans and waiting trials of other shapes are passed
            over;
                a new one may have any, because only asking tells.
            mine: Numbers of the trials this worker has in hand.

        Returns:
            None when there is nothing to take now.

        Raises:
            StoreError: The database failed.
        """
        with exclusive(self._directory, self._opened):
            now = time.monotonic()
            claim = None
            if now >= self._look_for_orphans_at:
                claim = self._adopt(architecture, mine=mine)
                if claim is None:
                    self._look_for_orphans_at = now + _ORPHAN_INTERVAL_S
            may_start = claim is None and self._may_start()
            new = self._pop(architecture) if may_start else None
            claim = claim or new or self._adopt(architecture, mine=mine)
            if claim is None and may_start and self._wants_more():
                claim = new = self._sign(self._opened.ask())
            self.started += new is not None
            return claim

    def give_back(self, trial: Trial) -> None:
        """Let another worker, or this one, claim the trial again under the same number."""
        with exclusive(self._directory, self._opened):
            # A claim whose transaction failed never took place: the trial may be another's by now.
            for running in self._running():
                if running.number == trial.number and running.value == self._worker:
                    trial.set_user_attr(WORKER, None)

    def orphans(self, *, mine: set[int]) -> list[FrozenTrial]:
        """Running trials whose worker is dead or has given them back. Only under the lock."""
        lives: dict[str, bool] = {}
        seen = self._seen()
        found = []
        for running in self._running():
            owner = running.value
            if running.number in mine:
                continue
            # Without an owner it was taken by a worker that died before it could sign.
            if owner is not None:
                if owner not in lives:
                    lives[owner] = self._lives(owner, seen)
                if lives[owner]:
                    continue
            found.append(running.number)
        if not found:
            return []
        return [trial for trial in self._trials(TrialState.RUNNING) if trial.number in found]

    def adopt(self, orphan: FrozenTrial) -> Claim:
        """Sign an orphan. Only under the lock."""
        claim = self._sign(Trial(self._opened, orphan._trial_id))
        return replace(claim, adopted=True, told=frozenset(orphan.intermediate_values))

    def reopen(self, numbers: Sequence[int], *, architecture: Architecture | None) -> Claim | None:
        """Take the first of these trials that has finished, to train more of its seeds.

        It runs again under its number, and what Optuna was told of it is forgotten. Only under the
        lock.

        Args:
            numbers: In the order in which they are wanted.
            architecture: Shape to keep to.
        """
        if not numbers:
            return None
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        finished = {trial.number: trial for trial in self._trials(*states)}
        for number in numbers:
            trial = finished.get(number)
            if trial is not None and self._fits(trial, architecture):
                database_of(self._opened).reopen(trial._trial_id)
                return self.adopt(trial)
        return None

    def others_train(self) -> bool:
        """Whether a living worker beside this one has a running trial. Only under the lock."""
        seen = self._seen()
        owners = {running.value for running in self._running()}
        return any(owner is not None and self._lives(owner, seen) for owner in owners)

    def silent_owners(self, *, for_s: float) -> list[str]:
        """Workers with running trials that live, as far as is known, and were not seen for so long.

        Whether they died just now the next seconds will tell. Only under the lock; never any on one
        host, whose locks know at once.
        """
        seen = self._seen()
        owners = {running.value for running in self._running()}
        return sorted(
            owner
            for owner in owners
            if owner in seen and self._lives(owner, seen) and seen[owner].age_s > for_s
        )

    def _seen(self) -> dict[str, Seen]:
        """Every worker as the server knows it; empty with SQLite."""
        if self._storage.url is None:
            return {}
        return read_seen(database_of(self._opened).connection(), self._storage.study)

    def _lives(self, owner: str, seen: Mapping[str, Seen]) -> bool:
        # This worker holds its name's lock: a trial of that name not in hand is a former life's.
        if owner == self._worker:
            return False
        if self._storage.url is None:
            return is_held(self._directory.worker_lock_file(owner))
        # Who never beat has no row: it is not a worker of this database, or one of an older copy.
        # Should it live all the same, its writes are refused (`CellQueue`).
        known = seen.get(owner)
        return known is not None and known.lives(
            self._directory, owner, grace_s=self._storage.grace_s
        )

    def _running(self) -> list[Running]:
        """The running trials and their owners."""
        return database_of(self._opened).running(self._opened._study_id, WORKER)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._opened.get_trials(deepcopy=False, states=states)

    def _counts(self) -> Counter[TrialState]:
        return database_of(self._opened).counts(self._opened._study_id)

    def _sign(self, trial: Trial) -> Claim:
        # The owner first: a trial without one may be taken by anybody who holds the lock.
        trial.set_user_attr(WORKER, self._worker)
        self._opened.sampler = build_sampler(self._study, number=trial.number)
        return Claim(trial, suggest(self._study, trial))

    def _fits(self, trial: FrozenTrial, architecture: Architecture | None) -> bool:
        if architecture is None or self._one_shape:
            return True
        known = self._architectures.get(trial.number)
        if known is None:
            params: dict[str, Any] = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            known = make_run(self._study, trial.number, self._study.first_seed, params).architecture
            self._architectures[trial.number] = known
        return known == architecture

    def _adopt(self, architecture: Architecture | None, *, mine: set[int]) -> Claim | None:
        for orphan in self.orphans(mine=mine):
            if self._fits(orphan, architecture):
                return self.adopt(orphan)
        return None

    def _pop(self, architecture: Architecture | None) -> Claim | None:
        if not self._waiting and self._counts()[TrialState.WAITING]:
            self._waiting.extend(self._trials(TrialState.WAITING))
        passed: list[FrozenTrial] = []
        claim = None
        while self._waiting and claim is None:
            candidate = self._waiting.popleft()
            if not self._fits(candidate, architecture):
                passed.append(candidate)
            elif self._start(candidate):
                claim = self._sign(Trial(self._opened, candidate._trial_id))
        self._waiting.extendleft(reversed(passed))
        return claim

    def _start(self, waiting: FrozenTrial) -> bool:
        """Make a waiting trial a running one; False where another worker was first."""
        database = database_of(self._opened)
        # Asked first: a refusal of the database would undo the transaction that this is part of.
        state = database.state_of(waiting, study_id=self._opened._study_id)
        if state != TrialState.WAITING:
            return False
        return database.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING)

    def cells_started(self) -> int:
        """Cells that any worker has started, those that ended included."""
        counts = self._counts()
        return counts.total() - counts[TrialState.WAITING]

    def _may_start(self) -> bool:
        return self._most_cells is None or self.cells_started() < self._most_cells

    def _wants_more(self) -> bool:
        cells = self._study.sampler.cells
        if not self._study.sampler.draws or cells is None:
            return False
        counts = self._counts()
        # A cell that failed for good is replaced, but not without end: the machine may be broken.
        return counts.total() - counts[TrialState.FAIL] < cells and counts.total() < 2 * cells
