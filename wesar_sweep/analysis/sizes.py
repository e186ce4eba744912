"""How the best learning rate, the basin and the largest stable lr move with the size of the model.

One row a (method, other searched knobs, size). The best lr is that of the least cell mean on the
grid; its interval is a bootstrap over seeds, resampled together at every lr. It is no finer than
the grid, and at the lowest or highest lr of it the true best may lie beyond. The largest stable lr
is that of `wesar_sweep.analysis.stable_lr`, with Wilson's interval of the rate there. Nothing is
extrapolated to sizes that were not trained; slopes over those that were are in
`wesar_sweep.analysis.size_trend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import polars as pl

from wesar_sweep.analysis.axes import Axes, series_label
from wesar_sweep.analysis.basin import TOLERANCE
from wesar_sweep.analysis.lr_curves import SeriesLosses
from wesar_sweep.config.parameter_count import model_parameters
from wesar_sweep.config.run import Architecture
from wesar_sweep.config.study import Study

SIZE_KNOBS = ("width", "depth", "heads", "ffn_width")
"""Knobs that make up the size of a model."""

_FIGURES: Mapping[str, type[pl.DataType]] = {
    "parameters": pl.Int64,
    "best_lr": pl.Float64,
    "best_lr_low": pl.Float64,
    "best_lr_high": pl.Float64,
    "at_low_edge": pl.Boolean,
    "at_high_edge": pl.Boolean,
    "best_loss": pl.Float64,
    "basin_width": pl.Float64,
    "basin_width_low": pl.Float64,
    "basin_width_high": pl.Float64,
    "basin_is_lower_bound": pl.Boolean,
    "stable_lr": pl.Float64,
    "stable_lr_n": pl.Int64,
    "stable_lr_diverged": pl.Int64,
    "stable_lr_rate_high": pl.Float64,
    "stable_lr_is_lower_bound": pl.Boolean,
    "stable_lr_next": pl.Float64,
    "n_lr": pl.Int64,
    "n_seeds": pl.Int64,
    "note": pl.String,
}


def size_knobs(layout: Axes) -> tuple[str, ...]:
    """The size knobs that the study searches beside its axis."""
    return tuple(knob for knob in SIZE_KNOBS if knob in layout.series)


def line_label(row: Mapping[str, Any], layout: Axes) -> str:
    """The label of a series without its size: ``wesar σ²=4e-5``."""
    names = tuple(knob for knob in layout.series if knob not in SIZE_KNOBS)
    return series_label(row, names)


def architecture_of(row: Mapping[str, Any], study: Study) -> Architecture:
    """The architecture of a row of `Analysis.cells` or of outcomes."""
    names = (field.name for field in fields(Architecture) if field.name != "vocabulary")
    return Architecture(**{name: row[name] for name in names}, vocabulary=study.data.vocabulary)


def sizes(
    series: Sequence[SeriesLosses],
    basins: pl.DataFrame,
    stable: pl.DataFrame,
    cells: pl.DataFrame,
    *,
    study: Study,
    layout: Axes,
) -> pl.DataFrame:
    """Best lr, basin width and largest stable lr of every line at every size.

    Args:
        series: `series_losses` of a study whose axis is lr.
        basins: `basin_width` of the same.
        stable: `largest_stable_lr` of the same study.
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: The study.
        layout: `axes(study)`.

    Returns:
        line, series, method, the searched size knobs, then the parameters of the model, the best lr
        with its interval (null with one seed) and whether it is at an edge of the lr that have a
        counted run, its loss, the basin's width in decades with its interval and whether it is a
        lower bound, the largest stable lr (null where even the lowest counted one is not stable)
        with the runs there, the upper end of Wilson's interval of their rate, whether it is a lower
        bound (no higher lr was tried, or none of them has a counted run) and the next lr that was
        tried; counts, and why a figure is missing. Empty where no size is searched beside lr.
    """
    knobs = size_knobs(layout)
    schema = pl.Schema(
        {"line": pl.String, "series": pl.String, "method": pl.String}
        | dict.fromkeys(knobs, pl.Int64)
        | dict(_FIGURES)
    )
    if not knobs or not series:
        return pl.DataFrame(schema=schema)
    rows = {row["series"]: row for row in cells.unique("series").iter_rows(named=True)}
    widths = {row["series"]: row for row in basins.iter_rows(named=True)}
    limits = {row["series"]: row for row in stable.iter_rows(named=True)}
    found = []
    for one in series:
        row = rows[one.series]
        found.append(
            {
                "line": line_label(row, layout),
                "series": one.series,
                "method": one.method,
                **{knob: row[knob] for knob in knobs},
                "parameters": model_parameters(architecture_of(row, study)),
                **_best(one),
                **_basin(widths[one.series]),
                **_stable(limits[one.series]),
            }
        )
    order = pl.Series([row["line"] for row in found]).unique(maintain_order=True)
    frame = pl.DataFrame(found, schema=schema)
    return frame.sort(pl.col("line").cast(pl.Enum(order)), *knobs)


def _best(one: SeriesLosses) -> dict[str, Any]:
    n, places = one.n, len(one.axis_L)
    figures: dict[str, Any] = {"n_lr": places, "n_seeds": n, "note": one.lost_words}
    if not places:
        return figures | {"note": f"no lr has a counted run: {one.lost_words}"}
    mean_L = one.mean_L
    best = int(mean_L.argmin())
    if not mean_L[best] < one.start_loss - TOLERANCE:
        # The least of losses of which none was learnt is not the best of anything.
        return figures | {"note": "no cell got below its initial loss"}
    spread = None
    if n >= 2:
        spread = one.interval(one.axis_L[one.resampled().argmin(axis=1)])
    return figures | {
        "best_lr": float(one.axis_L[best]),
        "best_lr_low": spread.low if spread else None,
        "best_lr_high": spread.high if spread else None,
        "at_low_edge": best == 0,
        "at_high_edge": best == places - 1,
        "best_loss": float(mean_L[best]),
    }


def _basin(row: Mapping[str, Any]) -> dict[str, Any]:
    ends = ("touches_low", "touches_high", "lost_low", "lost_high")
    bounded = None if row["width"] is None else any(bool(row[end]) for end in ends)
    return {
        "basin_width": row["width"],
        "basin_width_low": row["width_low"],
        "basin_width_high": row["width_high"],
        "basin_is_lower_bound": bounded,
    }


def _stable(row: Mapping[str, Any]) -> dict[str, Any]:
    bounded = None if row["lr"] is None else bool(row["at_edge"] or row["lost_above"])
    return {
        "stable_lr": row["lr"],
        "stable_lr_n": row["n"],
        "stable_lr_diverged": row["diverged"],
        "stable_lr_rate_high": row["rate_high"],
        "stable_lr_is_lower_bound": bounded,
        "stable_lr_next": row["next_lr"],
    }
