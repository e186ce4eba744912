"""Tables 5 and 6 of the paper (arXiv 2410.05052), from studies that contain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.evaluation_sets import VALIDATION, evaluation_sets, searched_sizes
from wesar_sweep.analysis.intervals import Interval
from wesar_sweep.analysis.sizes import line_label
from wesar_sweep.analysis.step_time import relative_step_time
from wesar_sweep.reports.figure import Section, divergence_words, seeds_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.set_tables import SET_WORDS, Measure, measures_of
from wesar_sweep.reports.tables import Table, number

MAX_SIZES = 12
"""Sizes in one table; a study that samples more has none."""


def paper_tables(analysis: Analysis) -> list[NamedTable]:
    """Table 5 of several sizes or evaluation sets, Table 6 where several methods were trained."""
    frame = analysis.best_evaluations
    if frame.is_empty():
        return []
    sizes = searched_sizes(analysis.study)
    count = frame.select(sizes).n_unique() if sizes else 1
    several = 1 < count <= MAX_SIZES
    on_sets = count == 1 and len(evaluation_sets(analysis.outcomes)) > 1
    found = [_table_5(analysis, frame)] if several or on_sets else []
    if frame["line"].n_unique() > 1 and (several or not sizes):
        found.append(_table_6(analysis, frame))
    return found


def _table_5(analysis: Analysis, frame: pl.DataFrame) -> NamedTable:
    """Methods down, sizes and evaluation sets across, k/n behind the figure."""
    sizes, measures = searched_sizes(analysis.study), measures_of(analysis)
    places = frame.select(*sizes, "parameters").unique().sort(*sizes, "parameters").rows(named=True)
    rows_of = {
        (row["line"], *(row[knob] for knob in sizes), row["evaluation"]): row
        for row in frame.iter_rows(named=True)
    }
    lines = frame["line"].unique(maintain_order=True).to_list()
    across = [(place, one) for place in places for one in measures]
    rows: list[tuple[str, ...]] = []
    strong: set[tuple[int, int]] = set()
    for line in lines:
        own = [
            (rows_of.get((line, *(place[knob] for knob in sizes), one.name)), one)
            for place, one in across
        ]
        rows.append((line, *(_ppl_and_counts(row, one) for row, one in own)))
    for column, (place, one) in enumerate(across, start=1):
        keys = [(line, *(place[knob] for knob in sizes), one.name) for line in lines]
        known = {
            line: rows_of[key][one.figure]
            for line, key in zip(lines, keys, strict=True)
            if key in rows_of and rows_of[key][one.figure] is not None
        }
        if known:
            strong.add((lines.index(min(known, key=lambda line: known[line])), column))

    def head(place: Mapping[str, Any], one: Measure) -> str:
        # Of the one size of a study nothing is said over each column.
        words = [_size(place, sizes)] if sizes else []
        if len(measures) > 1:
            words.append(f"{one.name}, a {one.unit}")
        return ": ".join(words)

    table = Table(
        columns=("series", *(head(place, one) for place, one in across)),
        rows=tuple(rows),
        numeric=(False, *(True for _ in across)),
        over=("perplexity" if len(measures) > 1 else "perplexity a token", 1),
        strong=frozenset(strong),
    )
    caption = f"The layout of the paper's Table 5. {_words(analysis)}"
    title = "Perplexity on every evaluation set"
    if sizes:
        caption += " In brackets behind a size: parameters of the model."
        title = "Perplexity at every size"
    else:
        caption += f" The model has {_short(places[0]['parameters'])} parameters."
    section: Section = "size" if sizes else "loss"
    return NamedTable("table-5", caption, table, frame, section=section, title=title)


def _size(place: Mapping[str, Any], sizes: Sequence[str]) -> str:
    """``width 64 (120 k)``."""
    words = ", ".join(f"{axis_title(knob)} {place[knob]}" for knob in sizes)
    return f"{words} ({_short(place['parameters'])})"


def _table_6(analysis: Analysis, frame: pl.DataFrame) -> NamedTable:
    """Methods and sizes down; perplexities, divergence, parameters and step time across."""
    sizes, measures = searched_sizes(analysis.study), measures_of(analysis)
    axis = analysis.layout.axis
    along = () if axis is None or axis in sizes else (axis,)
    firsts = frame.filter(evaluation=VALIDATION)
    times = _step_times(analysis, firsts)
    rows: list[tuple[str, ...]] = []
    numbers: list[dict[str, Any]] = []
    least = frame.group_by(*sizes, "evaluation").agg(pl.col("loss").min())
    best = frame.join(least, on=[*sizes, "evaluation", "loss"]).select("trial", "evaluation").rows()
    strong = set()
    for row, time in zip(firsts.iter_rows(named=True), times, strict=True):
        own = frame.filter(pl.col("trial") == row["trial"])
        by_set = {one["evaluation"]: one for one in own.iter_rows(named=True)}
        words = [row["line"], *(str(row[knob]) for knob in sizes)]
        words += [format_value(row[name], knob=name, digits=3) for name in along]
        strong |= {
            (len(rows), len(words) + place)
            for place, one in enumerate(measures)
            if (row["trial"], one.name) in best
        }
        words += [_ppl(by_set[one.name], one) for one in measures]
        words += [f"{row['diverged']}/{row['n']}", f"{row['trained_parameters']:,}"]
        value, spread = time or (None, None)
        if analysis.one_at_a_time:
            own_is_reference = row["line"] == _reference(firsts)
            words.append("1" if own_is_reference else _time(value, spread))
        rows.append(tuple(words))
        numbers.append(
            {
                **{k: row[k] for k in ("line", "trial", "method", *sizes, *along)},
                **{f"{one.figure}_{one.name}": by_set[one.name][one.figure] for one in measures},
                **{k: row[k] for k in ("n", "diverged", "parameters", "trained_parameters")},
                "relative_step_time": value,
                "relative_step_time_low": spread.low if spread else None,
                "relative_step_time_high": spread.high if spread else None,
            }
        )
    columns = ["series", *map(axis_title, sizes), *(f"best {axis_title(name)}" for name in along)]
    columns += [
        f"perplexity a {one.unit}" + (f", {one.name}" if len(measures) > 1 else "")
        for one in measures
    ]
    columns += ["diverged", "parameters trained"]
    columns += ["relative step time"] if analysis.one_at_a_time else []
    caption = (
        f"The layout of the paper's Table 6. {_words(analysis)} Parameters are those that "
        f"the optimizer trains: a method's gates and gains are among them. {_time_words(analysis)}"
    )
    numeric = (False, *(True for _ in columns[1:]))
    table = Table(tuple(columns), tuple(rows), numeric, strong=frozenset(strong))
    title = "Methods by perplexity, parameters and step time"
    found = pl.DataFrame(numbers, infer_schema_length=None)
    return NamedTable("table-6", caption, table, found, section="cost", title=title)


def _step_times(
    analysis: Analysis, firsts: pl.DataFrame
) -> list[tuple[float, Interval | None] | None]:
    """A line's time relative to the first line's, at the same size; over all its cells."""
    if not analysis.one_at_a_time:
        return [None] * firsts.height
    sizes = searched_sizes(analysis.study)
    cells, reference = analysis.cells.to_dicts(), _reference(firsts)
    found = []
    for row in firsts.iter_rows(named=True):
        same = [one for one in cells if all(one[knob] == row[knob] for knob in sizes)]
        trials = {
            line: [one["trial"] for one in same if line_label(one, analysis.layout) == line]
            for line in (row["line"], reference)
        }
        time = relative_step_time(analysis.outcomes, trials[row["line"]], trials[reference])
        found.append(time)
    return found


def _reference(firsts: pl.DataFrame) -> str:
    return str(firsts["line"][0])


def _words(analysis: Analysis) -> str:
    axis = analysis.layout.axis
    sizes = searched_sizes(analysis.study)
    at = f" at its best {axis_title(axis)}" if axis is not None and axis not in sizes else ""
    other = ""
    if len(evaluation_sets(analysis.outcomes)) > 1:
        other = f" The best is chosen on the validation set. {SET_WORDS}"
    each = " of each size" if sizes else ""
    with_word = any(one.unit == "word" for one in measures_of(analysis))
    or_word = ", or a word where the header says so," if with_word else ""
    return (
        f"Perplexity of each series{at}: exp of the mean loss in nats a token"
        f"{or_word} over seeds with "
        f"Student's 95 % interval ({seeds_words(analysis)}), diverged runs counted at "
        f"min(final, initial) loss, and diverged/counted runs. Bold is the lowest mean{each}."
        f"{other} {divergence_words(analysis.study.divergence)}"
    )


def _time_words(analysis: Analysis) -> str:
    if not analysis.one_at_a_time:
        return (
            "There is no step time here: runs shared their steps with others of the stack, of "
            "whatever method, or it is not known that they did not."
        )
    name = _reference(analysis.best_evaluations)
    return (
        f"Relative step time is wall time a step over that of {name}, evaluations included, the "
        "median over cells, mean over seeds with Student's 95 % interval; each worker's first run, "
        "which also loads kernels, is left out. Runs were trained one at a time, on a machine that "
        "may have had other work."
    )


def _ppl(row: Mapping[str, Any] | None, one: Measure) -> str:
    if row is None or row[one.figure] is None:
        return "–"
    words = number(row[one.figure], "ppl")
    low, high = row[f"{one.figure}_low"], row[f"{one.figure}_high"]
    return words if low is None else f"{words} ({number(low, 'ppl')}–{number(high, 'ppl')})"


def _ppl_and_counts(row: Mapping[str, Any] | None, one: Measure) -> str:
    words = _ppl(row, one)
    return words if row is None else f"{words}, {row['diverged']}/{row['n']}"


def _time(value: float | None, spread: Interval | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ({spread.low:.3f}–{spread.high:.3f})"


def _short(parameters: int) -> str:
    """``130M``, ``1.3B``."""
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{word}"
    return str(parameters)
