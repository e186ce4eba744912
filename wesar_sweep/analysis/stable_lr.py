"""The largest stable lr: how far lr can go up before runs diverge, and how sure n lets us be."""

from __future__ import annotations

import polars as pl

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.analysis.intervals import wilson

SCHEMA = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("lr", pl.Float64()),
        ("n", pl.Int64()),
        ("diverged", pl.Int64()),
        ("rate_low", pl.Float64()),
        ("rate_high", pl.Float64()),
        ("next_lr", pl.Float64()),
        ("next_n", pl.Int64()),
        ("next_diverged", pl.Int64()),
        ("at_edge", pl.Boolean()),
        ("bound", pl.Float64()),
        ("note", pl.String()),
    ]
)
"""``lr`` is null where even the lowest one is not stable. The true limit lies between ``lr`` and
``next_lr``, as far as the grid can tell; ``at_edge``: no higher lr was tried."""


def largest_stable_lr(cells: pl.DataFrame, *, layout: Axes, bound: float = 0.0) -> pl.DataFrame:
    """For every series the highest lr up to which the divergence rate stays at or below a bound.

    "Up to which": every lower lr that was tried stays below the bound too, so a lucky cell above an
    unstable one does not count.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        layout: `axes(study)`; without a grid of lr there is no row.
        bound: Largest rate k/n that counts as stable; 0 means never diverged.

    Returns:
        One row a series as `SCHEMA` says, highest lr first; the interval is Wilson's, of the rate
        at ``lr``.
    """
    rows: list[tuple[object, ...]] = []
    if layout.axis == "lr" and layout.gridded:
        found = one_cell_a_place(cells.filter(pl.col("n") > 0), layout=layout)
        for (_,), part in found.group_by(["series"], maintain_order=True):
            rows.append(_row(part.sort("lr"), bound))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.sort("lr", "series", descending=[True, False], nulls_last=True)


def _row(part: pl.DataFrame, bound: float) -> tuple[object, ...]:
    cells = part.select("lr", "n", "diverged", "rate").rows()
    stable = 0
    while stable < len(cells) and cells[stable][3] <= bound:
        stable += 1
    lr, n, k = (None, None, None) if stable == 0 else cells[stable - 1][:3]
    spread = wilson(k, n) if k is not None and n is not None else None
    after = (None, None, None) if stable == len(cells) else cells[stable][:3]
    note = ""
    if stable == 0:
        note = "the lowest lr that was tried is not stable"
    elif stable == len(cells):
        note = "no higher lr was tried"
    return (
        part["series"][0],
        part["method"][0],
        lr,
        n,
        k,
        spread.low if spread else None,
        spread.high if spread else None,
        *after,
        stable == len(cells),
        bound,
        note,
    )
