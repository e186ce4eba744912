"""How a search went: every cell in the order it was asked for, with what its sampler was told.

The sampler's figures are not quite those of `wesar_sweep.analysis.cells`: a pruned run counts with
the loss it was ended at, as it did for the sampler. So a cell that a pruner cut short has a value
here, too high and marked; it is never the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.axes import searched_knobs
from wesar_sweep.analysis.cells import with_capped_loss
from wesar_sweep.config.knobs import Scalar, knob_table
from wesar_sweep.config.space import Choices, Range, values
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import KNOBS

OBJECTIVES = pl.Schema(
    [
        ("val_loss", pl.Float64()),
        ("divergence_rate", pl.Float64()),
        ("spikes", pl.Float64()),
    ]
)

MAX_TICKS = 6
"""A number with more values than this is labelled at round places instead."""

HISTORY = pl.Schema(
    [
        ("trial", pl.Int64()),
        ("n", pl.Int64()),
        ("diverged", pl.Int64()),
        ("pruned", pl.Int64()),
        *OBJECTIVES.items(),
        ("best", pl.Float64()),
        ("on_front", pl.Boolean()),
    ]
)
"""``n`` counts all runs but failed ones, pruned ones among them; objectives are means over those.
``best`` is the least first objective so far, of cells that no pruner cut short. ``on_front``: no
such cell is at least as good in every objective and better in one; null for one objective."""


def search_history(outcomes: pl.DataFrame, *, study: Study) -> pl.DataFrame:
    """One row a cell that has a run which did not fail, in the order of the trials.

    Args:
        outcomes: One row a run.
        study: For its objectives and the loss of a uniform guess.

    Returns:
        The knobs (`KNOBS`), then `HISTORY`.
    """
    # A pruned run as if it had been counted: its loss is the one at which it was ended. Those that
    # were never started, because their cell was ended, have none.
    spared = (pl.col("status") == "pruned") & (pl.col("steps_trained") == 0)
    as_told = outcomes.filter((pl.col("status") != "failed") & ~spared).with_columns(
        kept=pl.col("status"),
        status=pl.when(pl.col("status") == "pruned")
        .then(pl.lit("completed"))
        .otherwise(pl.col("status")),
    )
    runs = with_capped_loss(as_told, study=study)
    found = (
        runs.group_by("trial")
        .agg(
            *(pl.col(knob).first() for knob in KNOBS),
            n=pl.len().cast(pl.Int64),
            diverged=(pl.col("status") == "diverged").sum().cast(pl.Int64),
            pruned=(pl.col("kept") == "pruned").sum().cast(pl.Int64),
            val_loss=pl.col("capped_loss").mean(),
            divergence_rate=(pl.col("status") == "diverged").mean(),
            spikes=pl.col("spikes").mean(),
        )
        .sort("trial")
    )
    first = pl.when(pl.col("pruned") == 0).then(pl.col(study.objectives[0]))
    whole = (found["pruned"] == 0).to_numpy()
    front: list[bool | None] = [None] * found.height
    if len(study.objectives) > 1:
        front = list(_front(found.select(study.objectives).to_numpy(), whole).tolist())
    found = found.with_columns(
        best=first.cum_min().forward_fill(), on_front=pl.Series(front, dtype=pl.Boolean)
    )
    return found.select(*KNOBS, *HISTORY)


def _front(values_NM: NDArray[np.float64], whole_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which whole cells no other whole one dominates; all objectives are minimised."""
    front_N = whole_N.copy()
    for place, value_M in enumerate(values_NM):
        no_worse_N = (values_NM <= value_M).all(axis=1)
        better_N = (values_NM < value_M).any(axis=1)
        front_N[place] &= not (no_worse_N & better_N & whole_N).any()
    return front_N


@dataclass(frozen=True, slots=True)
class Dimension:
    """One searched knob as an axis of parallel coordinates."""

    knob: str
    log: bool
    """Whether places are even in the logarithm; only of numbers."""
    ticks: tuple[tuple[float, Scalar], ...]
    """(place from 0 to 1, value) to be labelled."""
    places: tuple[float | None, ...]
    """Where each cell stands, from 0 to 1; None where it has no value of this knob."""


def dimensions(history: pl.DataFrame, *, study: Study) -> tuple[Dimension, ...]:
    """The searched knobs with more than one value, each with the places of all cells.

    Args:
        history: As `search_history` gives it.
        study: For which knobs are searched, and whether in the logarithm.
    """
    found = []
    for knob in searched_knobs(study):
        column = history[knob].to_list()
        if len(set(column)) > 1:
            found.append(_dimension(knob, column, study))
    return tuple(found)


def is_log(knob: str, study: Study) -> bool:
    """Whether a searched number is even in the logarithm: as its range says, or its list spans."""
    parameter = study.space[knob]
    if isinstance(parameter, Range):
        return parameter.log
    known = [v for v in values(parameter, knob) or () if isinstance(v, int | float)]
    return bool(known) and min(known) > 0 and max(known) >= 10 * min(known)


def is_numeric(knob: str, study: Study) -> bool:
    """Whether a searched knob is a number in every cell that has it: no choice of it is off."""
    parameter = study.space[knob]
    listed = values(parameter, knob) if isinstance(parameter, Choices) else ()
    return knob_table()[knob].numeric and None not in (listed or ())


def _dimension(knob: str, column: Sequence[Scalar], study: Study) -> Dimension:
    if not is_numeric(knob, study):
        listed = values(study.space[knob], knob) or ()
        names = list(dict.fromkeys([*listed, *column]))
        last = max(1, len(names) - 1)
        at: dict[Scalar, float] = {name: place / last for place, name in enumerate(names)}
        ticks = tuple((place, name) for name, place in at.items())
        return Dimension(knob, False, ticks, tuple(at[value] for value in column))
    log = is_log(knob, study)
    numbers_N = np.array([np.nan if v is None else float(str(v)) for v in column])
    scaled_N = np.log10(numbers_N) if log else numbers_N
    low, high = float(np.nanmin(scaled_N)), float(np.nanmax(scaled_N))
    places_N = (scaled_N - low) / ((high - low) or 1.0)
    known = sorted({float(v) for v in numbers_N if np.isfinite(v)})
    if log and high - low >= 2:
        known = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    elif len(known) > MAX_TICKS:
        scaled = np.linspace(low, high, 5)
        known = [float(f"{v:.2g}") for v in (10**scaled if log else scaled)]
    spread = [
        (float(((np.log10(v) if log else v) - low) / ((high - low) or 1.0)), v) for v in known
    ]
    integer = knob_table()[knob].kind == "integer"
    return Dimension(
        knob=knob,
        log=log,
        ticks=tuple((min(max(at, 0.0), 1.0), round(v) if integer else v) for at, v in spread),
        places=tuple(float(v) if np.isfinite(v) else None for v in places_N),
    )
