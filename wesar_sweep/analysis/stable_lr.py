"""The largest stable lr: how far lr can go up before runs diverge, and how sure n lets us be."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.cells import one_cell_a_place, without_count
from wesar_sweep.analysis.intervals import Matrix, wilson

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
        ("from_lowest", pl.Boolean()),
        ("lost_above", pl.Int64()),
        ("bound", pl.Float64()),
        ("note", pl.String()),
    ]
)
"""``lr`` is null where even the lowest counted one is not stable. ``next_lr`` is the next that was
tried; the true limit may be below ``lr`` too, since few seeds often show no diverged run where some
would. Where ``next_n`` is 0 every run there was pruned or failed, and ``lost_above`` counts such lr
up to the next that has a counted run. ``at_edge``: no higher lr was tried. ``from_lowest``: the
lowest lr of the grid has a counted run."""


def largest_stable_lr(cells: pl.DataFrame, *, layout: Axes, bound: float = 0.0) -> pl.DataFrame:
    """For every series the highest lr up to which the divergence rate stays at or below a bound.

    "Up to which": every lower lr with a counted run stays below the bound too, so a lucky cell
    above an unstable one does not count. An lr at which every run was pruned or failed tells
    nothing of divergence: it is passed over, and ``note`` says so.

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
        found = one_cell_a_place(cells, layout=layout)
        for (_,), part in found.group_by(["series"], maintain_order=True):
            rows.append(_row(part.sort("lr"), bound))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.sort("lr", "series", descending=[True, False], nulls_last=True)


def last_stable_place(rate_BL: Matrix, *, bound: float = 0.0) -> NDArray[np.int64]:
    """[B] where the unbroken stable range of each ladder of lr ends; −1 where it has none.

    Args:
        rate_BL: [B, L] divergence rates at ascending lr with a counted run.
        bound: Largest rate that counts as stable.
    """
    unstable_BL = rate_BL > bound
    first_B = np.where(unstable_BL.any(axis=1), unstable_BL.argmax(axis=1), rate_BL.shape[1])
    return np.asarray(first_B - 1, dtype=np.int64)


def _row(part: pl.DataFrame, bound: float) -> tuple[object, ...]:
    cells = part.select("lr", "n", "diverged", "rate").rows()
    counted = [place for place, cell in enumerate(cells) if cell[1] > 0]
    unstable = next((place for place in counted if cells[place][3] > bound), len(cells))
    last = max((place for place in counted if place < unstable), default=None)
    lr, n, k = (None, None, None) if last is None else cells[last][:3]
    spread = wilson(k, n) if k is not None and n is not None else None
    # Where nothing is stable, what is unstable comes next, not the lost ones below it.
    following = last + 1 if last is not None else unstable if counted else 0
    after = cells[following][:3] if following < len(cells) else (None, None, None)
    above = part.slice(following, unstable - following) if last is not None else part.clear()
    below = part.slice(0, last if last is not None else unstable)
    notes = []
    if not counted:
        notes.append(f"no lr has a counted run: {without_count(part)}")
    elif last is None:
        lowest = "has a counted run" if unstable else "was tried"
        notes.append(f"the lowest lr that {lowest} is not stable")
    elif last == len(cells) - 1:
        notes.append("no higher lr was tried")
    elif above.height:
        notes.append(f"higher lr were tried, but {without_count(above)}")
    if counted and (why := without_count(below)):
        notes.append(f"lower lr were tried, but {why}")
    return (
        part["series"][0],
        part["method"][0],
        lr,
        n,
        k,
        spread.low if spread else None,
        spread.high if spread else None,
        *after,
        last == len(cells) - 1,
        bool(counted) and counted[0] == 0 and part["place"][0] == 0,
        above.height,
        bound,
        "; ".join(notes),
    )
