"""Table 9 of the paper for each evaluation set, and which perplexities a set has."""

from __future__ import annotations

from typing import Literal, NamedTuple

import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.analysis.evaluation_sets import (
    VALIDATION,
    evaluation_sets,
    set_unit,
    with_words,
)
from wesar_sweep.config.evaluation import Unit
from wesar_sweep.reports.figure import divergence_words, seeds_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.paper_layout import paper_layout
from wesar_sweep.reports.tables import Matrix, MatrixCell, number

SET_WORDS = (
    "On sets but the validation set a run counts at most at the loss of a uniform guess, and a "
    "diverged run at that."
)


class Measure(NamedTuple):
    """A perplexity on a set."""

    name: str
    """The set's."""
    unit: Unit
    """What it is a perplexity of."""
    figure: Literal["ppl", "word_ppl"]
    """Column of the frames of `wesar_sweep.analysis.evaluation_sets`."""


def measures_of(analysis: Analysis) -> list[Measure]:
    """The perplexities that tables show: one a set, and a second, a word, where a set has it.

    Sets are in the study's order.
    """
    both, order = with_words(analysis.outcomes), [VALIDATION, *analysis.study.evaluation.sets]
    names = evaluation_sets(analysis.outcomes)
    found: list[Measure] = []
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        found.append(Measure(name, set_unit(analysis.study, name), "ppl"))
        if name in both:
            found.append(Measure(name, "word", "word_ppl"))
    return found


def set_tables(analysis: Analysis, grid: Matrix) -> list[NamedTable]:
    """``paper-wikitext`` and so on: Table 9's layout, for each set but the validation set."""
    return [
        _set_table(analysis, grid, one)
        for one in measures_of(analysis)
        if one.name != VALIDATION and one.figure == "ppl"
    ]


def _set_table(analysis: Analysis, grid: Matrix, one: Measure) -> NamedTable:
    figures = analysis.cell_evaluations.filter(evaluation=one.name)
    ppl = dict(figures.select("trial", "ppl").iter_rows())
    lowest = figures["ppl"].min()

    def value(cell: MatrixCell) -> str:
        return number(ppl.get(cell.trial), "ppl") if cell.n else cell.remark

    def best(cell: MatrixCell) -> bool:
        return cell.n > 0 and lowest is not None and ppl.get(cell.trial) == lowest

    caption = (
        f"The layout of the paper's Table 9: perplexity a {one.unit} on the evaluation set "
        f"{one.name}, exp of the mean loss over seeds ({seeds_words(analysis)}); beneath it "
        "diverged/counted runs. Bold is the lowest mean. A run counts at most at the loss of a "
        "uniform guess, and a diverged run at that. "
        f"{divergence_words(analysis.study.divergence)}"
    )
    return NamedTable(
        f"paper-{one.name}",
        caption,
        paper_layout(analysis, grid, value=value, best=best),
        _set_frame(analysis, figures),
        section="loss",
        title=f"Perplexity a {one.unit} on {one.name}",
    )


def _set_frame(analysis: Analysis, figures: pl.DataFrame) -> pl.DataFrame:
    """One row a (series, axis value): the knobs, k and n, and the figures with their intervals."""
    layout = analysis.layout
    along = () if layout.axis is None else (layout.axis,)
    placed = one_cell_a_place(analysis.cells, layout=layout)
    kept = placed.select("trial", *layout.series, *along, "n", "diverged")
    own = figures.drop("n", "diverged", "evaluation")
    return kept.join(own, on="trial", how="left", maintain_order="left").drop("trial")
