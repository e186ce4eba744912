"""Effective lr: what the learning rate amounts to on the weights that the model computes with.

lr times α₀ of the median weight matrix (`wesar_sweep.config.initial_gates`): a step of lr on W
moves W̄ by about α₀ · lr at the start. Methods that only change the meaning of lr, as WeSaR does,
have their optima at one effective lr, and a basin that is wider in lr is as much wider in this.
What it cannot say: gates learn, and other roles have other α₀.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import polars as pl

from wesar_sweep.config.initial_gates import median_initial_gate
from wesar_sweep.config.run import Architecture
from wesar_sweep.config.study import Study

_SHAPE = tuple(field.name for field in fields(Architecture) if field.name != "vocabulary")


def with_effective_lr(cells: pl.DataFrame, *, study: Study) -> pl.DataFrame:
    """The cells with ``initial_gate``, α₀ of the median matrix, and ``effective_lr`` = lr · α₀.

    Args:
        cells: With every knob under its YAML name.
        study: For the parts of its methods and the size of its vocabulary.
    """

    @cache
    def gate(method: str, sigma2: float | None, *shape: object) -> float:
        architecture = Architecture(
            vocabulary=study.data.vocabulary,
            **dict(zip(_SHAPE, shape, strict=True)),  # type: ignore[arg-type]
        )
        parts = study.method_parts(method)
        return median_initial_gate(parts, sigma2=sigma2, architecture=architecture)

    gates = [gate(*row) for row in cells.select("method", "sigma2", *_SHAPE).rows()]
    found = cells.with_columns(pl.Series("initial_gate", gates, dtype=pl.Float64))
    return found.with_columns(effective_lr=pl.col("lr") * pl.col("initial_gate"))


def gates_of_series(cells: pl.DataFrame) -> dict[str, float]:
    """Series -> α₀, by which its lr become effective ones; on a grid it is one for all its cells.

    Args:
        cells: As `with_effective_lr` gives them, with their series.
    """
    return dict(cells.select("series", "initial_gate").iter_rows())
