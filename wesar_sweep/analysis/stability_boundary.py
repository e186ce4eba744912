"""Divergence over two axes, and for each place of the second the lr at which half the runs diverge.

The first axis is that of the study (`analysis.axes`), the second any other searched number, or the
series. Nothing is pooled on a grid: every combination of the other knobs is a panel of its own.
Where cells were sampled a panel is a method (with other words, such as ``ffn``); many values of the
second axis are cut into ranges of about equally many cells, and other numbers are pooled.

That the rate rises with lr is an assumption (`analysis.monotone_boundary`): rows whose observed
rate falls anywhere say so, and how likely chance alone makes such a fall.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes, format_value, searched_knobs, series_label
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.analysis.intervals import CONFIDENCE
from wesar_sweep.analysis.monotone_boundary import RATE as RATE
from wesar_sweep.analysis.monotone_boundary import Fall, largest_fall, monotone_boundary
from wesar_sweep.config.knobs import Scalar, knob_table
from wesar_sweep.config.study import Study

CELLS_A_RANGE = 8
"""About so many cells stand in one range of a sampled second axis, which has 4 at most."""
MAX_RANGES = 4

SCHEMA = pl.Schema(
    [
        ("panel", pl.String()),
        ("row", pl.String()),
        ("method", pl.String()),
        ("across_low", pl.Float64()),
        ("across_high", pl.Float64()),
        ("lr_below", pl.Float64()),
        ("lr_above", pl.Float64()),
        ("lr_low", pl.Float64()),
        ("lr_high", pl.Float64()),
        ("rate", pl.Float64()),
        ("n_lr", pl.Int64()),
        ("n", pl.Int64()),
        ("n_fewest", pl.Int64()),
        ("diverged", pl.Int64()),
        ("fall_from_lr", pl.Float64()),
        ("fall_to_lr", pl.Float64()),
        ("rising_p", pl.Float64()),
        ("note", pl.String()),
    ]
)
"""``across_low`` and ``across_high``: the range of the second axis, equal on a grid, null where it
is off or there is none. The rate of divergence passes ``rate`` between ``lr_below`` and
``lr_above``, 95 % interval ``lr_low`` to ``lr_high``; null where no lr that was tried bounds it.
``n`` counts runs over all ``n_lr`` lr, ``n_fewest`` those of the lr that has the fewest.
``rising_p``: of the rate rising; 1 where it never falls, else the fall is between the two lr."""


def second_axes(study: Study, layout: Axes) -> tuple[str, ...]:
    """The searched numbers beside the axis, in the order of the file."""
    searched = searched_knobs(study)
    return tuple(k for k in searched if k != layout.axis and knob_table()[k].numeric)


def stability_cells(cells: pl.DataFrame, *, layout: Axes, across: str | None) -> pl.DataFrame:
    """The cells with a counted run, and where each lies on the map.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them; the study has an axis.
        layout: `axes(study)`.
        across: The second axis, one of `second_axes`; None for the series.

    Returns:
        The columns of `cells` with ``panel``, ``row`` (words), ``across_low`` and ``across_high``,
        by panel in the order of trials, then from the highest value of the second axis down, what
        has none last; on a grid also ``place``, one cell a place.
    """
    found = cells.filter(pl.col("n") > 0).sort("trial")
    if layout.gridded:
        found = one_cell_a_place(found, layout=layout).sort("trial")
    if across is None:
        return found.with_columns(
            panel=pl.lit(""),
            row="series",
            across_low=pl.lit(None, dtype=pl.Float64),
            across_high=pl.lit(None, dtype=pl.Float64),
        )
    pooled = {across} if layout.gridded else {k for k in layout.series if knob_table()[k].numeric}
    others = tuple(knob for knob in layout.series if knob not in pooled)
    panels = [series_label(row, others) for row in found.iter_rows(named=True)]
    found = found.with_columns(pl.Series("panel", panels, dtype=pl.String))
    parts = [
        _with_rows(part, across=across, cut=not layout.gridded)
        for _, part in found.group_by(["panel"], maintain_order=True)
    ]
    if not parts:
        return found.with_columns(row="panel", across_low=pl.col("lr"), across_high=pl.col("lr"))
    return pl.concat(parts)


def _with_rows(part: pl.DataFrame, *, across: str, cut: bool) -> pl.DataFrame:
    value = part[across].cast(pl.Float64)
    known = value.drop_nulls().to_numpy()
    low, high = value, value
    if cut and len(np.unique(known)) > MAX_RANGES:
        ranges = min(max(len(known) // CELLS_A_RANGE, 1), MAX_RANGES)
        edges = np.unique(np.quantile(known, np.arange(1, ranges) / ranges))
        index = np.searchsorted(edges, value.fill_null(0.0).to_numpy(), side="right")
        ends = part.select(pl.Series("of", index), pl.Series("value", value)).select(
            low=pl.col("value").min().over("of"), high=pl.col("value").max().over("of")
        )
        off = value.is_null()
        low = ends["low"].set(off, None)
        high = ends["high"].set(off, None)
    words = [_words(*ends, across, exact=not cut) for ends in zip(low, high, strict=True)]
    named = part.with_columns(
        pl.Series("row", words, dtype=pl.String),
        low.rename("across_low"),
        high.rename("across_high"),
    )
    return named.sort("across_low", descending=True, nulls_last=True, maintain_order=True)


def _words(low: float | None, high: float | None, knob: str, *, exact: bool) -> str:
    if low is None or high is None:
        return "–" if knob == "sigma2" else "off"
    integer = knob_table()[knob].kind == "integer"
    ends: list[Scalar] = [int(low), int(high)] if integer else [low, high]
    if low == high:
        return format_value(ends[0], knob=knob, digits=None if exact else 3)
    return " to ".join(format_value(end, knob=knob, digits=2) for end in ends)


def stability_boundary(placed: pl.DataFrame, *, layout: Axes, rate: float = RATE) -> pl.DataFrame:
    """For every row of the map the lr at which the rate of divergence passes `rate`.

    Args:
        placed: As `stability_cells` gives them.
        layout: `axes(study)`; where its axis is not lr there is no row, for of no other is it known
            that more of it is less stable.
        rate: Between 0 and 1.

    Returns:
        One row a (panel, row) as `SCHEMA` says, in the order of `placed`.
    """
    rows: list[tuple[object, ...]] = []
    if layout.axis == "lr":
        for (panel, row), part in placed.group_by(["panel", "row"], maintain_order=True):
            rows.append((panel, row, *_row(part, rate)))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _row(part: pl.DataFrame, rate: float) -> tuple[object, ...]:
    places = part.group_by("lr").agg(pl.col("n").sum(), pl.col("diverged").sum()).sort("lr")
    lr_L, n_L, k_L = (places[name].to_numpy() for name in ("lr", "n", "diverged"))
    found = monotone_boundary(lr_L, k_L, n_L, rate=rate)
    fall = largest_fall(k_L, n_L)
    return (
        part["method"][0],
        part["across_low"][0],
        part["across_high"][0],
        found.below,
        found.above,
        found.low,
        found.high,
        rate,
        len(lr_L),
        int(n_L.sum()),
        int(n_L.min()),
        int(k_L.sum()),
        *((None, None) if fall is None else (lr_L[fall.first], lr_L[fall.later])),
        1.0 if fall is None else fall.p,
        "" if fall is None else _note(fall, places),
    )


def _note(fall: Fall, places: pl.DataFrame) -> str:
    def at(index: int) -> str:
        lr, n, k = places.row(index)
        return f"{k}/{n} at {format_value(lr, knob='lr', digits=3)}"

    words = f"the rate falls: {at(fall.first)}, {at(fall.later)}"
    if fall.p < 1 - CONFIDENCE:
        return f"{words}; suggests that there is no one boundary (uncorrected p {fall.p:.2g})"
    return f"{words}; chance may do that (p {fall.p:.2f})"
