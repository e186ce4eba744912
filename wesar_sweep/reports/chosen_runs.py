"""Which runs stand for their series in a chart of single runs, and at which setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.analysis.verdict import setting
from wesar_sweep.reports.drawing import drawn_series
from wesar_sweep.store.frames import Key

AT_BEST = "each at its best"
"""The setting at which every series is shown by its best cell."""

MAX_SETTINGS = 12
"""Values of the axis that a reader can choose from; of more, as many spread evenly."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A cell of each series, to be shown together."""

    name: str
    """`AT_BEST`, or an equal value of the axis such as ``lr 1e-3``."""
    cells: Mapping[str, Mapping[str, Any]]
    """Series -> a row of `Analysis.cells`, in the order of the legend."""


def settings(analysis: Analysis, *, trials: Sequence[int] | None = None) -> list[Setting]:
    """The settings at which series can be shown together; the first is what is shown at first.

    Args:
        analysis: The study.
        trials: Show these cells in place of the best ones, at no other setting.

    Raises:
        ValueError: One of `trials` has no counted run, or its series is not drawn.
    """
    shown = drawn_series(analysis)
    cells = analysis.cells.filter((pl.col("n") > 0) & pl.col("series").is_in(shown))
    if trials is not None:
        rows = {row["trial"]: row for row in cells.iter_rows(named=True)}
        if lacking := [trial for trial in trials if trial not in rows]:
            raise ValueError(f"trials {lacking} have no counted run, or their series is not drawn")
        return _settings([("chosen cells", [rows[trial] for trial in trials])], shown, analysis)
    best = analysis.best_cells.filter(pl.col("n") > 0).to_dicts()
    found = [(AT_BEST, best)]
    axis = analysis.layout.axis
    if axis is not None and analysis.layout.gridded:
        placed = one_cell_a_place(cells, layout=analysis.layout)
        values = placed[axis].unique().sort().to_list()
        kept = np.unique(np.linspace(0, len(values) - 1, MAX_SETTINGS).round().astype(int))
        for place in kept.tolist() if values else ():
            name = f"{axis_title(axis)} {format_value(values[place], knob=axis)}"
            found.append((name, placed.filter(pl.col(axis) == values[place]).to_dicts()))
    return _settings(found, shown, analysis)


def _settings(
    found: Sequence[tuple[str, list[dict[str, Any]]]], shown: Sequence[str], analysis: Analysis
) -> list[Setting]:
    made = []
    for name, rows in found:
        by_series = {row["series"]: row for row in rows if one_run(row, analysis) is not None}
        if by_series:
            made.append(
                Setting(name, {name: by_series[name] for name in shown if name in by_series})
            )
    return made


def one_run(cell: Mapping[str, Any], analysis: Analysis) -> Key | None:
    """A cell's run with a curve: its first seed that completed, else its first with one."""
    good = [seed for seed in cell["seeds"] if seed not in cell["diverged_seeds"]]
    keys = ((cell["trial"], seed) for seed in [*good, *cell["seeds"]])
    return next((key for key in keys if key in analysis.curves), None)


def cell_words(cell: Mapping[str, Any], analysis: Analysis) -> str:
    """``wesar σ²=4e-5 at lr 1e-3``."""
    return setting(dict(cell), study=analysis.study, layout=analysis.layout)
