"""Means over cells with seeds as what is independent, where cells may have unequal seeds.

Adaptive replicates give later seeds to selected cells only, which are the unsure and the best. A
mean by seed over whatever cells it has would then tell how cells were chosen. So only a seed that
every cell has bears witness.
"""

from __future__ import annotations

import polars as pl

from wesar_sweep.analysis.intervals import Vector


def balanced(frame: pl.DataFrame, *, cell: str) -> pl.DataFrame:
    """The rows of the seeds that every cell of the frame has; none where there is no such seed.

    Args:
        frame: With ``seed`` and the column that tells cells apart.
        cell: Its name.
    """
    cells = frame[cell].n_unique()
    return frame.filter(pl.col(cell).n_unique().over("seed") == cells)


def by_seed(frame: pl.DataFrame, figure: str, *, cell: str) -> Vector:
    """The mean over cells of each seed that every cell has, in the order of the seeds."""
    means = balanced(frame, cell=cell).group_by("seed").agg(pl.col(figure).mean()).sort("seed")
    return means[figure].cast(pl.Float64).to_numpy()


def balanced_mean(frame: pl.DataFrame, figure: str, *, cell: str) -> float | None:
    """The mean of `by_seed`; where no seed is in every cell, the mean over cells of their means.

    None for no row.
    """
    means = by_seed(frame, figure, cell=cell)
    if len(means):
        return float(means.mean())
    of_cells = frame.group_by(cell, maintain_order=True).agg(pl.col(figure).mean())[figure].mean()
    return of_cells if isinstance(of_cells, float) else None
