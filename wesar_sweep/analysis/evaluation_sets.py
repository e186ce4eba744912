"""Every cell on every evaluation set, and each line's best at every size: Tables 5, 6 and 9.

The validation set is there always, other sets where outcomes have a column for them
(`wesar_sweep.store.frames.EVALUATION_PREFIX`). A line is a method with its other searched knobs but
for size; its best cell at a size is the best by validation loss.

A run is capped first: on the validation set at its initial loss, on another set at the loss of a
uniform guess there (``chance``), its own loss before training not being measured. A loss that is
not finite, or missing because the run diverged, counts as that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes, searched_knobs
from wesar_sweep.analysis.cells import chance_loss, ranked, with_capped_loss
from wesar_sweep.analysis.intervals import Vector, student_mean
from wesar_sweep.analysis.sizes import SIZE_KNOBS, architecture_of, line_label
from wesar_sweep.config.evaluation import UNITS, VALIDATION, Unit
from wesar_sweep.config.parameter_count import model_parameters, trained_parameters
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import EVALUATION_PREFIX

__all__ = [
    "VALIDATION",
    "best_evaluations",
    "cell_evaluations",
    "evaluation_sets",
    "searched_sizes",
    "set_unit",
    "with_words",
]

_FIGURES: pl.Schema = pl.Schema(
    {
        "evaluation": pl.String(),
        **{f"{name}{end}": pl.Float64() for name in ("loss", "ppl", "word_ppl")
           for end in ("", "_low", "_high")},
    }
)  # fmt: skip


def evaluation_sets(outcomes: pl.DataFrame) -> tuple[str, ...]:
    """The names of all evaluation sets, `VALIDATION` first."""
    further = [c.removeprefix(EVALUATION_PREFIX) for c in outcomes.columns if _of_a_set(c)]
    # After a dot comes a further figure of the set.
    return (VALIDATION, *(name for name in further if "." not in name))


def _of_a_set(column: str) -> bool:
    return column.startswith(EVALUATION_PREFIX)


def set_unit(study: Study, name: str) -> Unit:
    """What the loss on a set is a mean over: LAMBADA's is a word, all others' a token."""
    found = study.evaluation.sets.get(name)
    return "token" if found is None else UNITS[found.kind]


def with_words(outcomes: pl.DataFrame) -> frozenset[str]:
    """The sets with a perplexity a word beside that a token: WikiText."""
    names = (n for n in evaluation_sets(outcomes) if n != VALIDATION)
    return frozenset(n for n in names if _tokens_a_word(outcomes, n) is not None)


def searched_sizes(study: Study) -> tuple[str, ...]:
    """The size knobs that the study searches, its axis among them where that is one."""
    return tuple(knob for knob in SIZE_KNOBS if knob in searched_knobs(study))


def cell_evaluations(outcomes: pl.DataFrame, *, study: Study) -> pl.DataFrame:
    """One row a (cell with a counted run, evaluation set), by trial.

    Args:
        outcomes: One row a run.
        study: The study.

    Returns:
        trial, n, diverged, evaluation, then loss (nats a unit, `set_unit`), ppl and word_ppl, each
        with its interval over seeds. They are null where a completed run was not evaluated on the
        set; word_ppl where the set has none.
    """
    runs = with_capped_loss(outcomes, study=study).filter("counted")
    found = []
    for (trial,), own in runs.group_by(["trial"], maintain_order=True):
        diverged = own.filter(pl.col("status") == "diverged").height
        counts = {"trial": trial, "n": own.height, "diverged": diverged}
        found += [counts | figures for figures in _on_every_set(own.sort("seed"), outcomes, study)]
    counts_schema = {"trial": pl.Int64(), "n": pl.Int64(), "diverged": pl.Int64()}
    return pl.DataFrame(found, schema=pl.Schema({**counts_schema, **_FIGURES})).sort(
        "trial", maintain_order=True
    )


def best_evaluations(
    outcomes: pl.DataFrame, cells: pl.DataFrame, *, study: Study, layout: Axes
) -> pl.DataFrame:
    """One row a (line, size, evaluation set), lines in the order of their trials.

    Args:
        outcomes: One row a run.
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: The study.
        layout: `axes(study)`.

    Returns:
        line, series, trial, method, the searched size knobs, the axis, parameters of the model and
        those that are trained, then the columns of `cell_evaluations`.
    """
    sizes = searched_sizes(study)
    along = () if layout.axis is None or layout.axis in sizes else (layout.axis,)
    runs = with_capped_loss(outcomes, study=study).filter("counted")
    best: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in ranked(cells).iter_rows(named=True):
        best.setdefault((line_label(row, layout), *(row[knob] for knob in sizes)), row)
    order = [line_label(row, layout) for row in cells.sort("trial").iter_rows(named=True)]
    lines = list(dict.fromkeys(order))
    found: list[dict[str, Any]] = []
    for key in sorted(best, key=lambda key: (lines.index(str(key[0])), *key[1:])):
        row = best[key]
        architecture = architecture_of(row, study)
        common = {
            "line": key[0],
            **{name: row[name] for name in ("series", "trial", "method", *sizes, *along)},
            "parameters": model_parameters(architecture),
            "trained_parameters": trained_parameters(
                architecture, study.method_parts(row["method"])
            ),
            **{name: row[name] for name in ("n", "diverged")},
        }
        own = runs.filter(pl.col("trial") == row["trial"]).sort("seed")
        found += [common | figures for figures in _on_every_set(own, outcomes, study)]
    return pl.DataFrame(found, schema_overrides=_FIGURES if found else None,
                        infer_schema_length=None)  # fmt: skip


def _on_every_set(
    own: pl.DataFrame, outcomes: pl.DataFrame, study: Study
) -> list[dict[str, str | float | None]]:
    """The figures of one cell's counted runs on each set."""
    found: list[dict[str, str | float | None]] = []
    for name in evaluation_sets(outcomes):
        per_word, highest = None, float(own["start_loss"].max())  # type: ignore[arg-type]
        if name != VALIDATION:
            per_word, highest = _tokens_a_word(outcomes, name), _chance(outcomes, name, study)
        losses = _losses(own, name, chance=highest)
        found.append({"evaluation": name, **_figures(losses, highest, per_word)})
    return found


def _chance(outcomes: pl.DataFrame, name: str, study: Study) -> float:
    """Nats a unit of a uniform guess on a set; all runs that were judged on it say the same."""
    column = f"{EVALUATION_PREFIX}{name}.chance"
    known = outcomes[column].max() if column in outcomes.columns else None
    return chance_loss(study) if known is None else float(known)  # type: ignore[arg-type]


def _tokens_a_word(outcomes: pl.DataFrame, name: str) -> float | None:
    """Scored tokens for each word of a set, from runs that have both perplexities."""
    column = EVALUATION_PREFIX + name
    if f"{column}.word_ppl" not in outcomes.columns:
        return None
    ratio = outcomes.select(
        (pl.col(f"{column}.word_ppl").log() / pl.col(column)).alias("ratio")
    ).filter(pl.col("ratio").is_finite())["ratio"]
    found = ratio.median()
    return float(found) if isinstance(found, float) else None


def _losses(runs: pl.DataFrame, name: str, *, chance: float) -> Vector | None:
    """Capped losses of the counted runs on one set; None where one was not measured."""
    if name == VALIDATION:
        return runs["capped_loss"].to_numpy()
    column = runs[EVALUATION_PREFIX + name]
    if runs.filter((pl.col("status") == "completed") & column.is_null()).height:
        return None
    loss = column.fill_null(math.inf).to_numpy()
    return np.where(np.isfinite(loss), np.minimum(loss, chance), chance)


def _figures(
    losses: Vector | None, highest: float, per_word: float | None
) -> dict[str, float | None]:
    values: Sequence[float | None] = (None, None, None)
    if losses is not None and len(losses):
        spread = student_mean(losses, least=0.0, most=highest)
        ends = (spread.low, spread.high) if spread else (None, None)
        values = (float(losses.mean()), *ends)
    found: dict[str, float | None] = {}
    scales: Mapping[str, float | None] = {"ppl": 1.0, "word_ppl": per_word}
    for end, value in zip(("", "_low", "_high"), values, strict=True):
        found[f"loss{end}"] = value
        for figure, scale in scales.items():
            known = value is not None and scale is not None
            found[f"{figure}{end}"] = math.exp(min(value * scale, 700.0)) if known else None  # type: ignore[operator]
    return {name: found[name] for name in _FIGURES if name != "evaluation"}
