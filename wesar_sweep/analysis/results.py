"""Every figure of one study, each computed once: what reports and the Python interface use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from wesar_sweep.analysis.axes import Axes, axes, expected_series
from wesar_sweep.analysis.basin import TOLERANCE, basin_width
from wesar_sweep.analysis.boundary import boundaries
from wesar_sweep.analysis.cells import cells, ranked
from wesar_sweep.analysis.completeness import Completeness, completeness
from wesar_sweep.analysis.cost import Accounts, Cost
from wesar_sweep.analysis.effective_lr import gates_of_series
from wesar_sweep.analysis.evaluation_sets import best_evaluations, cell_evaluations
from wesar_sweep.analysis.finished import Finished, finished
from wesar_sweep.analysis.importance import importance
from wesar_sweep.analysis.lr_curves import SeriesLosses, lr_curves, seed_points, series_losses
from wesar_sweep.analysis.lr_sensitivity import effective_lr_sensitivity, lr_sensitivity
from wesar_sweep.analysis.paired import (
    PairedDifference,
    Ties,
    best_difference,
    paired_difference,
    tied_with_best,
    with_paired_spikes,
)
from wesar_sweep.analysis.pairwise import pairwise
from wesar_sweep.analysis.probe_statistics import probe_statistics
from wesar_sweep.analysis.replicates import further_seeds, wanted
from wesar_sweep.analysis.run_spikes import RunSpikes, run_spikes
from wesar_sweep.analysis.search import search_history
from wesar_sweep.analysis.size_trend import size_trend
from wesar_sweep.analysis.sizes import sizes
from wesar_sweep.analysis.spike_ratios import spike_ratios
from wesar_sweep.analysis.spike_statistics import spike_statistics, worst_spikes
from wesar_sweep.analysis.stability_boundary import (
    RATE,
    second_axes,
    stability_boundary,
    stability_cells,
)
from wesar_sweep.analysis.stable_lr import largest_stable_lr
from wesar_sweep.analysis.step_time import trained_one_at_a_time
from wesar_sweep.analysis.verdict import Verdict, verdict
from wesar_sweep.config.load import load_study
from wesar_sweep.config.study import Study
from wesar_sweep.errors import ConfigError, Problem, StoreError
from wesar_sweep.store.finished_search import FinishedSearch, read_finished_search
from wesar_sweep.store.frames import Key, read_curves, read_outcomes_frame
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Curve


@dataclass(frozen=True)
class Analysis:
    """A study, its outcomes and curves, and every figure made of them."""

    study: Study
    raw_outcomes: pl.DataFrame
    """As `wesar_sweep.store.frames.outcomes_frame` gives them."""
    curves: Mapping[Key, Curve] = field(default_factory=dict)
    """By (trial, seed); figures that need curves are null for runs without one."""
    unreadable: tuple[str, ...] = ()
    """What was wrong with curve files and the like that could not be read."""
    accounts: Accounts = field(default_factory=Accounts)
    """What workers and driver wrote down of the cost; empty for a study in memory."""
    one_at_a_time: bool = False
    """Whether it is known that no run shared its steps with others, so that they have a time."""
    finished_search: FinishedSearch | None = None
    """What is known of the search whose pruned cells this study finishes, if it does."""

    @classmethod
    def read(cls, directory: StudyDirectory, *, study: Study | None = None) -> Analysis:
        """Read a study from disk, finished or not. A damaged curve costs that curve alone.

        Args:
            directory: The study's directory.
            study: Default what is in its study file.

        Raises:
            StoreError: An outcomes file is damaged.
            ConfigError: The study file is.
        """
        study = study or load_study(directory.study_file)
        outcomes = read_outcomes_frame(directory, study=study)
        keys = outcomes.select("trial", "seed").rows()
        curves, unreadable = read_curves(directory, keys)
        search = None
        try:
            search = read_finished_search(directory)
        except StoreError as error:
            unreadable.append(str(error))
        return cls(
            study,
            outcomes,
            curves,
            tuple(unreadable),
            Accounts.read(directory),
            one_at_a_time=trained_one_at_a_time(directory, outcomes),
            finished_search=search,
        )

    @cached_property
    def layout(self) -> Axes:
        """How the cells lie: axis and series."""
        return axes(self.study)

    @cached_property
    def run_spikes(self) -> RunSpikes:
        """Every spike of every run."""
        return run_spikes(self.raw_outcomes, self.curves, study=self.study)

    @property
    def spikes(self) -> pl.DataFrame:
        """Raw and paired spikes a run, counted."""
        return self.run_spikes.runs

    @cached_property
    def spike_statistics(self) -> pl.DataFrame:
        """What the spikes of every series come to."""
        return spike_statistics(self.run_spikes, self.raw_outcomes, self.cells, self.curves)

    @cached_property
    def spike_ratios(self) -> pl.DataFrame:
        """Update ratios of every series before and at its spikes."""
        every = self.study.probes.every
        return spike_ratios(
            self.run_spikes, self.raw_outcomes, self.cells, self.curves, every=every
        )

    @cached_property
    def probe_statistics(self) -> pl.DataFrame:
        """Update ratios and norms of every probed cell."""
        return probe_statistics(self.cells, self.best_cells, self.curves, layout=self.layout)

    @cached_property
    def worst_spikes(self) -> pl.DataFrame:
        """The five worst spikes, at most one a run."""
        return worst_spikes(self.run_spikes, self.raw_outcomes)

    @cached_property
    def outcomes(self) -> pl.DataFrame:
        """One row a run, paired spikes among its columns."""
        return with_paired_spikes(self.raw_outcomes, self.spikes)

    @cached_property
    def cells(self) -> pl.DataFrame:
        """One row a cell."""
        return cells(self.outcomes, study=self.study, layout=self.layout)

    @property
    def ranked(self) -> pl.DataFrame:
        """The cells, best first."""
        return ranked(self.cells)

    @cached_property
    def lr_curves(self) -> pl.DataFrame:
        """Loss along the axis, one row a (series, axis value)."""
        return lr_curves(self.cells, layout=self.layout)

    @cached_property
    def seed_points(self) -> pl.DataFrame:
        """Every counted run as a point."""
        return seed_points(self.outcomes, self.cells, study=self.study, layout=self.layout)

    @property
    def shows_effective_lr(self) -> bool:
        """Whether lr is the axis and means more or less than lr to the weights of some series."""
        return self.layout.axis == "lr" and bool((self.cells["initial_gate"] != 1).any())

    @cached_property
    def series(self) -> tuple[str, ...]:
        """Labels of all series: those of the grid in its order, then any other found."""
        found = self.cells.sort("trial")["series"].unique(maintain_order=True).to_list()
        return tuple(dict.fromkeys([*expected_series(self.study, self.layout), *found]))

    @cached_property
    def completeness(self) -> Completeness:
        """How much of the study has ended."""
        return completeness(self.raw_outcomes, study=self.study)

    @cached_property
    def further_seeds(self) -> pl.DataFrame:
        """The cells to which adaptive replicates gave more than the least of seeds, and why."""
        if self.study.adaptive is None:
            return further_seeds({}, study=self.study)
        cells = self.completeness.expected_cells
        found = wanted(self.raw_outcomes, study=self.study, cells=cells)
        return further_seeds(found, study=self.study)

    @cached_property
    def boundary(self) -> pl.DataFrame:
        """Where runs begin to diverge in every series of a boundary search, highest first."""
        return boundaries(self.raw_outcomes, study=self.study, layout=self.layout)

    @cached_property
    def ties(self) -> Ties:
        """The trial with the least loss, and those that cannot be told apart from it."""
        return tied_with_best(self.cells)

    @cached_property
    def verdict(self) -> Verdict:
        """What the study found, in three sentences."""
        return verdict(
            self.cells,
            study=self.study,
            layout=self.layout,
            ties=self.ties,
            basins=self.basin_width(),
            stable=self.largest_stable_lr(),
            boundary=self.boundary,
            finished=self.finished,
            partial=self.completeness.partial,
        )

    def basin_width(self, *, tolerance: float = TOLERANCE) -> pl.DataFrame:
        """The basin of every series, widest first."""
        return basin_width(self._lr_series, tolerance=tolerance)

    def largest_stable_lr(self, *, bound: float = 0.0) -> pl.DataFrame:
        """The largest stable lr of every series, highest first."""
        return largest_stable_lr(self.cells, layout=self.layout, bound=bound)

    def stability_cells(self, *, across: str | None = None) -> pl.DataFrame:
        """Divergence over the axis and a second one, as `stability_boundary` takes it."""
        known = second_axes(self.study, self.layout)
        if across is not None and across not in known:
            problem = Problem(
                "there is no such second axis", value=repr(across), allowed=", ".join(known)
            )
            raise ConfigError(problem)
        return stability_cells(self.cells, layout=self.layout, across=across)

    def stability_boundary(self, *, across: str | None = None, rate: float = RATE) -> pl.DataFrame:
        """The lr at which the rate of divergence passes `rate`, for each place of a second axis.

        Args:
            across: A searched number beside lr; None for the series.
            rate: Between 0 and 1.

        Raises:
            ConfigError: The study does not search such a number.
            ValueError: The rate is not between 0 and 1.
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate must be between 0 and 1, not {rate}")
        known = self._boundaries
        if (across, rate) not in known:
            placed = self.stability_cells(across=across)
            known[across, rate] = stability_boundary(placed, layout=self.layout, rate=rate)
        return known[across, rate]

    def lr_sensitivity(self) -> pl.DataFrame:
        """The LR sensitivity of every series, least first."""
        return lr_sensitivity(self._lr_series)

    def effective_lr_sensitivity(self) -> pl.DataFrame:
        """The same over one range of effective lr, in which methods that shift lr are equal."""
        return effective_lr_sensitivity(self._lr_series, gates=gates_of_series(self.cells))

    def paired_difference(self, a: str, b: str) -> PairedDifference:
        """Series b minus series a, run by run at equal axis values; n counts seeds."""
        return paired_difference(self.cells, a, b, layout=self.layout)

    def best_difference(self, a: int, b: int) -> PairedDifference:
        """Cell b minus cell a, seed by seed; cells by their trials.

        Raises:
            ValueError: There is no such trial.
        """
        if unknown := sorted({a, b} - set(self.cells["trial"])):
            raise ValueError(f"this study has no trial {unknown[0]}")
        return best_difference(self.cells, a, b)

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """Best lr, basin width and largest stable lr at every size; empty without a size."""
        return sizes(
            self._lr_series,
            self.basin_width(),
            self.largest_stable_lr(),
            self.cells,
            study=self.study,
            layout=self.layout,
        )

    @cached_property
    def size_trend(self) -> pl.DataFrame:
        """Slopes of best lr, basin width and largest stable lr against 3 sizes or more."""
        gates = gates_of_series(self.cells)
        return size_trend(self._lr_series, self.sizes, gates=gates, layout=self.layout)

    @cached_property
    def best_evaluations(self) -> pl.DataFrame:
        """Each line's best cell at each size, on every evaluation set."""
        outcomes, cells = self.raw_outcomes, self.cells
        return best_evaluations(outcomes, cells, study=self.study, layout=self.layout)

    @cached_property
    def cell_evaluations(self) -> pl.DataFrame:
        """Every cell with a counted run, on every evaluation set."""
        return cell_evaluations(self.raw_outcomes, study=self.study)

    @cached_property
    def best_cells(self) -> pl.DataFrame:
        """The best cell of every series, best first."""
        return self.ranked.unique("series", keep="first", maintain_order=True)

    @cached_property
    def search_history(self) -> pl.DataFrame:
        """Every cell in the order it was asked for, with what the sampler was told."""
        return search_history(self.raw_outcomes, study=self.study)

    @cached_property
    def finished(self) -> Finished | None:
        """What pruning hid from the search whose cells this study finishes; None: it does not."""
        return finished(self.cells, study=self.study, search=self.finished_search)

    @cached_property
    def cost(self) -> Cost:
        """Device time, tokens and steps, by status and by worker."""
        return Cost(self.raw_outcomes, self.study, self.accounts)

    @cached_property
    def importance(self) -> pl.DataFrame:
        """Which searched knobs decide whether a cell is among the best."""
        return importance(self.search_history, study=self.study)

    @cached_property
    def pairwise(self) -> pl.DataFrame:
        """Every two series at their best cells, seed by seed."""
        return pairwise(self.cells, self.best_cells)

    @cached_property
    def _boundaries(self) -> dict[tuple[str | None, float], pl.DataFrame]:
        """What `stability_boundary` has computed: chart, words and tables ask for the same."""
        return {}

    @cached_property
    def _lr_series(self) -> list[SeriesLosses]:
        return series_losses(self.cells, layout=self.layout) if self.layout.axis == "lr" else []
