"""Typed rows as polars frames: one outcome a row, one curve a row with its series as lists.

Together with `wesar_sweep.store.published` the only user of polars in this room; a worker imports
neither. No statistics: those are in `wesar_sweep.analysis`. Floats that are not finite stay NaN or
inf, what was not measured is null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.run import Architecture, Hyperparameters
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.curves import read_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.store.published import read_published_curves, read_published_outcomes
from wesar_sweep.store.rows import Curve, Outcome
from wesar_sweep.store.rows import Key as Key

EVALUATION_PREFIX = "eval_"
"""Columns of further evaluation sets: ``eval_wikitext`` is the loss on the set ``wikitext``, and
``eval_wikitext.word_ppl`` a further figure; no set has a dot in its name."""

KNOBS: tuple[str, ...] = tuple(
    field.name
    for row in (Hyperparameters, Architecture)
    for field in fields(row)
    if field.name != "vocabulary"
)
"""Every knob that an outcome carries, in the order of the columns; ``method`` is the first."""

_KINDS: Mapping[str, type[pl.DataType]] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "boolean": pl.Boolean,
    "name": pl.String,
}
_BEFORE: Mapping[str, type[pl.DataType]] = {
    "study": pl.String,
    "trial": pl.Int64,
    "seed": pl.Int64,
}
_AFTER: Mapping[str, type[pl.DataType]] = {
    "status": pl.String,
    "diverged_at": pl.Int64,
    "reason": pl.String,
    "init_loss": pl.Float64,
    "val_loss": pl.Float64,
    "val_ppl": pl.Float64,
    "val_bpb": pl.Float64,
    "best_loss": pl.Float64,
    "spikes": pl.Int64,
    "paired_spikes": pl.Int64,
    "steps_trained": pl.Int64,
    "tokens": pl.Int64,
    "seconds": pl.Float64,
    "worker": pl.String,
    "attempt": pl.Int64,
}


def outcomes_schema(evaluations: Iterable[str] = ()) -> pl.Schema:
    """Names and types of the columns of an outcomes frame, in their order.

    ``steps`` is the knob (steps asked for); ``steps_trained`` is how far the run came.

    Args:
        evaluations: What follows `EVALUATION_PREFIX` in the columns of further evaluation sets.
    """
    knobs = {name: _KINDS[knob_table()[name].kind] for name in KNOBS}
    further = {EVALUATION_PREFIX + name: pl.Float64 for name in evaluations}
    return pl.Schema([*_BEFORE.items(), *knobs.items(), *_AFTER.items(), *further.items()])


def outcomes_frame(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    """One row an outcome, sorted by (trial, seed).

    ``paired_spikes`` is null here: it is counted from the curves of several runs together, by
    `wesar_sweep.analysis.paired`. ``val_ppl`` is exp(val_loss), a token.

    Args:
        outcomes: Any number, none included: then the frame is empty and has its types.

    Returns:
        Columns as `outcomes_schema` says.
    """
    evaluations = sorted({name for outcome in outcomes for name in _evaluations(outcome)})
    schema = outcomes_schema(evaluations)
    rows = [_row(outcome, evaluations) for outcome in outcomes]
    return pl.DataFrame(rows, schema=schema, orient="row").sort("trial", "seed")


def read_outcomes_frame(directory: StudyDirectory, *, study: Study | None = None) -> pl.DataFrame:
    """The outcomes of a study on disk, published or not, as `outcomes_frame` gives them.

    Args:
        directory: The study's directory; one without outcomes gives an empty frame.
        study: Keeps only this study's rows where it is given.

    Raises:
        StoreError: A file is damaged or cannot be read.
    """
    if directory.published:
        published = read_published_outcomes(directory)
        missing = [name for name in outcomes_schema().names() if name not in published.columns]
        if missing:
            raise StoreError(
                f"{directory.outcomes_table} lacks {', '.join(missing)}: it was published by "
                "another version of wesar-sweep; publish the study anew, or read it with that one"
            )
        return published
    found = read_outcomes(directory)
    kept = [outcome for outcome in found if study is None or outcome.study == study.name]
    return outcomes_frame(kept)


def read_curves(
    directory: StudyDirectory, keys: Iterable[Key]
) -> tuple[dict[Key, Curve], list[str]]:
    """The curves of some runs of a study on disk, published or not.

    Runs without a curve (failed ones) are left out. A damaged file costs that curve alone; of a
    published study, whose curves are one table, all.

    Returns:
        The curves by (trial, seed), and what was wrong with those that could not be read.
    """
    if directory.published:
        try:
            found = read_published_curves(directory)
        except StoreError as error:
            return {}, [str(error)]
        return {key: found[key] for key in keys if key in found}, []
    curves: dict[Key, Curve] = {}
    unreadable: list[str] = []
    for trial, seed in keys:
        if directory.curve_file(trial, seed).exists():
            try:
                curves[trial, seed] = read_curve(directory, trial, seed)
            except StoreError as error:
                unreadable.append(str(error))
    return curves, unreadable


def decimate(values: ArrayLike, *, points: int, log: bool = False) -> NDArray[np.int64]:
    """Places of a series to draw so that no spike is lost: least and largest of each stretch.

    Args:
        values: [S] a series; the first value of a stretch that is not finite counts as its largest.
        points: About how many places to keep, at least 4.
        log: Stretches grow with the place, for an axis of the logarithm of place + 1.

    Returns:
        Ascending places, the first and the last of the series among them; all of them where there
        are no more than `points`.

    Raises:
        ValueError: `points` is below 4, or `values` is not one series.
    """
    values_S = np.asarray(values, dtype=np.float64)
    if values_S.ndim != 1 or points < 4:
        raise ValueError(f"decimate needs one series and at least 4 points, not {points}")
    count = len(values_S)
    if count <= points:
        return np.arange(count)
    stretches = (points - 2) // 2
    if log:
        edges = np.unique(np.geomspace(1, count + 1, stretches + 1).astype(np.int64) - 1)
        edges[-1] = count
    else:
        edges = np.linspace(0, count, stretches + 1).astype(np.int64)
    judged_S = np.where(np.isfinite(values_S), values_S, np.inf)
    kept = [0, count - 1]
    for start, end in pairwise(edges.tolist()):
        stretch = judged_S[start:end]
        kept += [start + int(np.argmin(stretch)), start + int(np.argmax(stretch))]
    return np.unique(np.array(kept, dtype=np.int64))


def curves_frame(
    curves: Mapping[Key, Curve], *, points: int | None = None, values: str = "loss"
) -> pl.DataFrame:
    """Training curves, one run a row: ``.explode("step", values)`` makes the long frame.

    Args:
        curves: By (trial, seed).
        points: Thin each to about so many places by `decimate`; None keeps every step.
        values: ``loss`` or ``grad_norm``.

    Returns:
        trial, seed, step (list, from 0), and the series (list) under its own name.
    """
    rows = []
    for (trial, seed), curve in sorted(curves.items()):
        series = np.asarray(getattr(curve, values), dtype=np.float64)
        kept = np.arange(len(series)) if points is None else decimate(series, points=points)
        rows.append((trial, seed, kept.tolist(), series[kept].tolist()))
    schema = pl.Schema(
        [
            ("trial", pl.Int64()),
            ("seed", pl.Int64()),
            ("step", pl.List(pl.Int64)),
            (values, pl.List(pl.Float64)),
        ]
    )
    return pl.DataFrame(rows, schema=schema, orient="row")


def probes_frame(
    curves: Mapping[Key, Curve],
    *,
    probe: str,
    roles: Sequence[str] | None = None,
    points: int | None = None,
) -> pl.DataFrame:
    """One probe's series, one matrix (or layer) of one run a row.

    Args:
        curves: By (trial, seed); runs without the probe give no row.
        probe: Such as ``update_ratio``.
        roles: Keep only these last parts of the labels, such as ``u`` and ``w``.
        points: As for `curves_frame`.

    Returns:
        trial, seed, label (``layers.0.u``), role (``u``), layer (0; null for embeddings), step
        (list), value (list).
    """
    rows = []
    for (trial, seed), curve in sorted(curves.items()):
        if probe not in curve.probes:
            continue
        for column, label in enumerate(curve.probe_axes[probe]):
            parts = label.split(".")
            if roles is not None and parts[-1] not in roles:
                continue
            layer = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
            series = np.asarray(curve.probes[probe][:, column], dtype=np.float64)
            kept = np.arange(len(series)) if points is None else decimate(series, points=points)
            steps = np.asarray(curve.probe_step)[kept].tolist()
            rows.append((trial, seed, label, parts[-1], layer, steps, series[kept].tolist()))
    schema = pl.Schema(
        [
            ("trial", pl.Int64()),
            ("seed", pl.Int64()),
            ("label", pl.String()),
            ("role", pl.String()),
            ("layer", pl.Int64()),
            ("step", pl.List(pl.Int64)),
            ("value", pl.List(pl.Float64)),
        ]
    )
    return pl.DataFrame(rows, schema=schema, orient="row")


def _row(outcome: Outcome, evaluations: Sequence[str]) -> tuple[object, ...]:
    loss = outcome.val_loss
    after: dict[str, object] = {
        name: getattr(outcome, name, None) for name in _AFTER if name != "steps_trained"
    }
    after |= {"val_ppl": None if loss is None else _exp(loss), "steps_trained": outcome.steps}
    return (
        outcome.study,
        outcome.trial,
        outcome.seed,
        *(outcome.hyperparameters.get(name) for name in KNOBS),
        *(after[name] for name in _AFTER),
        *map(_evaluations(outcome).get, evaluations),
    )


def _evaluations(outcome: Outcome) -> dict[str, float]:
    """``wikitext`` -> loss, ``wikitext.word_ppl`` -> that figure."""
    return {
        name if figure == "loss" else f"{name}.{figure}": value
        for name, figures in outcome.evaluations.items()
        for figure, value in figures.items()
    }


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
