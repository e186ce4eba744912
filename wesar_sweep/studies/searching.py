"""A boundary search in Optuna's queue: each series' next value, once its last one has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wesar_sweep.config.boundary import BoundarySearch, boundary_search
from wesar_sweep.config.space import Scalar
from wesar_sweep.config.study import Study
from wesar_sweep.stability.boundary import Scale, Tried, next_place, scale_of
from wesar_sweep.store.rows import Outcome
from wesar_sweep.store.searched import SearchedRun, Step, steps_by_series

if TYPE_CHECKING:
    import optuna

CELL = "cell"
"""User attribute of a trial: its index in `config.listed`; of a boundary search [series, step]."""


class DueStep(NamedTuple):
    """A value that is to be tried now."""

    series: int
    step: int
    params: dict[str, Scalar]


class Searching:
    """The search of one study, by the outcomes on disk."""

    def __init__(self, study: Study, search: BoundarySearch) -> None:
        """Nothing is read."""
        self._study, self._search = study, search
        self._scale: Scale = scale_of(search, seeds=study.least_replicates)

    @classmethod
    def of(cls, study: Study) -> Searching | None:
        """The search of a study; None where its sampler is another."""
        search = boundary_search(study)
        return None if search is None else cls(study, search)

    @property
    def most_cells(self) -> int:
        """Cells of all series at most."""
        return len(self._search.series) * self._search.most

    def due(self, rows: Iterable[Outcome]) -> list[DueStep]:
        """The next step of every series that goes on and waits for no result.

        Args:
            rows: Final outcomes: no failed ones with tries left.
        """
        found = []
        for series, steps in enumerate(self._steps(rows)):
            value = self._next(steps)
            if value is not None:
                params = {**self._search.series[series], self._search.along: value}
                # In the file's order, as a grid has them.
                ordered = {knob: params[knob] for knob in self._study.space if knob in params}
                found.append(DueStep(series, len(steps), ordered))
        return found

    def cells(self, rows: Iterable[Outcome]) -> int:
        """Cells that were asked for so far: those with a result, and the steps that are due."""
        return sum(len(steps) + (self._next(steps) is not None) for steps in self._steps(rows))

    def enqueue(self, opened: optuna.Study, rows: Iterable[Outcome]) -> bool:
        """Put the steps that are due into the queue, each once. Only under the study's lock.

        Returns:
            Whether there were any that had not been there.
        """
        due = self.due(rows)
        if not due:
            return False
        trials = opened.get_trials(deepcopy=False)
        present = {tuple(t.user_attrs[CELL]) for t in trials if CELL in t.user_attrs}
        new = [one for one in due if (one.series, one.step) not in present]
        for one in new:
            opened.enqueue_trial(dict(one.params), user_attrs={CELL: [one.series, one.step]})
        return bool(new)

    def _steps(self, rows: Iterable[Outcome]) -> list[list[Step]]:
        runs = (SearchedRun(r.trial, r.seed, r.status, r.hyperparameters) for r in rows)
        return steps_by_series(runs, study=self._study, search=self._search)

    def _next(self, steps: Sequence[Step]) -> float | None:
        """The value that a series tries next; None where it has ended or waits for a result."""
        if any(step.ended < self._study.least_replicates for step in steps):
            return None
        place = self._search.place
        tried = tuple(Tried(place(step.value), step.n, step.diverged) for step in steps)
        found = next_place(tried, self._scale)
        return None if found is None else self._search.values[self._scale.places.index(found)]
