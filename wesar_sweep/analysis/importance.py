"""Which knobs decide whether a cell is among the best: PED-ANOVA, by Optuna.

PED-ANOVA (Watanabe, Bansal & Hutter, IJCAI 2023, arXiv 2304.10255; with conditions: arXiv
2601.20800) compares how the best cells lie along a knob with how all cells lie along it: the
Pearson divergence of two kernel density estimates. A knob counts where the best cells crowd at some
of its values. It is measured against where the sampler looked, so a knob that a sampler has already
narrowed counts for less.

The study is made anew in memory from the outcomes, diverged cells at their capped loss and pruned
ones behind all others: `report` needs no database, and nothing bad is left out. Optuna is imported
when this is asked for, here alone outside of `wesar_sweep.studies`: a second implementation would
have to be kept equal to Optuna's.

The figure is never negative and, with few cells, large by chance. So beside it stand what shuffling
the cells' values gives, with a p, adjusted by Holm for the number of knobs; and the spread over
resampled cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import searched_knobs
from wesar_sweep.analysis.search import is_log, is_numeric
from wesar_sweep.analysis.significance import holm
from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.space import values
from wesar_sweep.config.study import Study

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MIN_CELLS = 10
"""With fewer cells there is nothing to estimate a density from."""

BEST = 0.1
"""The share of cells that counts as the best; more where that would be less than `BEST_CELLS`."""

BEST_CELLS = 5
"""Fewer best cells than this make the figure unsteady, by Optuna's own advice."""

SHUFFLES_A_KNOB = 40
"""Shuffles for each knob: with so many, the least p is 0.025 after Holm, whatever their number."""

RESAMPLES = 49
GENERATOR_SEED = 20241

IMPORTANCE = pl.Schema(
    [
        ("knob", pl.String()),
        ("importance", pl.Float64()),
        ("share", pl.Float64()),
        ("share_low", pl.Float64()),
        ("share_high", pl.Float64()),
        ("chance", pl.Float64()),
        ("p", pl.Float64()),
        ("p_holm", pl.Float64()),
        ("cells", pl.Int64()),
        ("best_cells", pl.Int64()),
        ("shuffles", pl.Int64()),
    ]
)
"""``importance`` is Optuna's figure, ``share`` its part of the sum over all knobs, with the middle
95 % of `RESAMPLES` bootstraps of the cells; ``chance`` the mean importance over ``shuffles``
shuffles of the cells' values; ``p`` the share of those with at least as much."""


def best_share(cells: int) -> float:
    """The share of so many cells that counts as the best."""
    return min(0.5, max(BEST, BEST_CELLS / cells))


def importance(history: pl.DataFrame, *, study: Study) -> pl.DataFrame:
    """The importance of every searched knob, greatest first.

    With several objectives the best cells are those nearest the Pareto front.

    Args:
        history: As `wesar_sweep.analysis.search.search_history` gives it.
        study: For the space and the objectives.

    Returns:
        Columns as `IMPORTANCE` says; no row for fewer than `MIN_CELLS` cells, or where every cell
        has the same value.
    """
    knobs = [knob for knob in searched_knobs(study) if history[knob].n_unique() > 1]
    told_NM = _told(history, study)
    if len(told_NM) < MIN_CELLS or not knobs or len(np.unique(told_NM, axis=0)) == 1:
        return pl.DataFrame(schema=IMPORTANCE)
    with _quiet():
        evaluate = _Evaluator(history, told_NM, knobs, study)
        found_P = evaluate(np.arange(len(told_NM)), told_NM)
        rng = np.random.default_rng(GENERATOR_SEED)
        every, shuffles = np.arange(len(told_NM)), SHUFFLES_A_KNOB * len(knobs) - 1
        shuffled_BP = np.array([evaluate(every, rng.permutation(told_NM)) for _ in range(shuffles)])
        picked = rng.integers(len(told_NM), size=(RESAMPLES, len(told_NM)))
        resampled_BP = np.array([evaluate(places, told_NM) for places in picked])
    sums_B = resampled_BP.sum(axis=1)
    shares_BP = resampled_BP[sums_B > 0] / sums_B[sums_B > 0, None]
    low_P, high_P = np.quantile(shares_BP, [0.025, 0.975], axis=0)
    p_P = (1 + (shuffled_BP >= found_P).sum(axis=0)) / (1 + shuffles)
    total = float(found_P.sum()) or 1.0
    best = int(np.ceil(best_share(len(told_NM)) * len(told_NM)))
    rows = list(
        zip(
            knobs,
            found_P.tolist(),
            (found_P / total).tolist(),
            low_P.tolist(),
            high_P.tolist(),
            shuffled_BP.mean(axis=0).tolist(),
            p_P.tolist(),
            holm(p_P.tolist()),
            [len(told_NM)] * len(knobs),
            [best] * len(knobs),
            [shuffles] * len(knobs),
            strict=True,
        )
    )
    return pl.DataFrame(rows, schema=IMPORTANCE, orient="row").sort("importance", descending=True)


def _told(history: pl.DataFrame, study: Study) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[cells, objectives] what each cell came to; one cut short is no better than the worst."""
    told_NM = history.select(study.objectives).to_numpy().astype(np.float64)
    cut_N = (history["pruned"] > 0).to_numpy()
    if cut_N.any() and not cut_N.all():
        told_NM[cut_N] = np.maximum(told_NM[cut_N], told_NM[~cut_N].max(axis=0))
    return told_NM


class _Evaluator:
    """Importances of some cells with some values, in the order of the knobs."""

    def __init__(
        self,
        history: pl.DataFrame,
        told_NM: np.ndarray[Any, np.dtype[np.float64]],
        knobs: Sequence[str],
        study: Study,
    ) -> None:
        import optuna
        from optuna.importance import PedAnovaImportanceEvaluator
        from optuna.storages import InMemoryStorage
        from optuna.trial import create_trial

        class Sample(optuna.Study):
            """A study that shows the trials it is given."""

            shown: Sequence[FrozenTrial] = ()

            def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
                return list(self.shown)

        kinds = {knob: _distribution(knob, history, study) for knob in knobs}
        storage = InMemoryStorage()
        directions = [optuna.study.StudyDirection.MINIMIZE] * told_NM.shape[1]
        storage.create_new_study(directions, "importance")
        self._study, self._knobs = Sample("importance", storage), list(knobs)
        self._evaluator = PedAnovaImportanceEvaluator(target_quantile=best_share(len(told_NM)))
        rows = history.select(knobs).iter_rows(named=True)
        for row, values_M in zip(rows, told_NM.tolist(), strict=True):
            # A knob that is off in this cell because its condition does not hold is none of it.
            params = {k: v for k, v in row.items() if v is not None or _can_be_off(k, study)}
            self._study.add_trial(
                create_trial(
                    params=params,
                    distributions={knob: kinds[knob] for knob in params},
                    values=values_M,
                )
            )
        self._trials = optuna.Study.get_trials(self._study)
        for trial in self._trials:
            # One object for all: the evaluator sorts trials by it, and equal copies take long.
            trial.distributions = {knob: kinds[knob] for knob in trial.distributions}

    def __call__(
        self,
        places: np.ndarray[Any, np.dtype[np.int64]],
        told_NM: np.ndarray[Any, np.dtype[np.float64]],
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        for trial, values_M in zip(self._trials, told_NM.tolist(), strict=True):
            trial.values = values_M
        self._study.shown = [self._trials[place] for place in places]
        present = {knob for trial in self._study.shown for knob in trial.params}
        asked = [knob for knob in self._knobs if knob in present]
        found = self._evaluator.evaluate(self._study, params=asked)
        return np.array([found.get(knob, 0.0) for knob in self._knobs])


def _can_be_off(knob: str, study: Study) -> bool:
    return None in (values(study.space[knob], knob) or ())


def _distribution(knob: str, history: pl.DataFrame, study: Study) -> BaseDistribution:
    """How the cells may lie along a knob: numbers in their order, all else as names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = history[knob].unique().to_list()
    numbers = [value for value in found if value is not None]
    if not is_numeric(knob, study):
        return CategoricalDistribution(sorted(found, key=str))
    low, high, log = min(numbers), max(numbers), is_log(knob, study)
    if knob_table()[knob].kind == "integer":
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling of studies in memory, and of what the table says better."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
