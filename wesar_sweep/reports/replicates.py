"""What the report says of adaptive replicates: the rule, where seeds went, and what it costs."""

from __future__ import annotations

import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.replicates import falsely_apart, fixed_coverage, stopped_coverage
from wesar_sweep.analysis.verdict import percent, setting
from wesar_sweep.config.replicates import AdaptiveReplicates
from wesar_sweep.reports.tables import MatrixCell, Table

LISTED_CELLS = 40
"""Cells in the table for people, those with the most further seeds; the frame has all."""


STOPPED = (
    "Where seeds are added until two methods are told apart, their 95 % Student interval at the "
    "stop held the true difference in 82 % and the best cell's own loss in 93.4 % of cases "
    "(simulated: equal normal losses, 3 to 12 seeds)."
)
"""What a stop by `told_apart` does to intervals of the loss."""


def rule_words(adaptive: AdaptiveReplicates) -> str:
    """When a cell gets further seeds, and how many at most."""
    conditions = []
    if adaptive.until.divergence_halfwidth is not None:
        bound = adaptive.until.divergence_halfwidth
        conditions.append(
            f"until half the width of Wilson's interval of its divergence rate is at most {bound:g}"
        )
    if adaptive.until.told_apart:
        conditions.append(
            "until the best cell of every other method can be told apart from the best of all"
        )
    return f"up to {adaptive.max} a cell, {' and '.join(conditions)}"


def summary(analysis: Analysis) -> str:
    """How many further seeds were asked for, where and why; for a study with adaptive replicates.

    An example: ``54 further seeds in 9 of 44 cells: 40 to narrow …, 14 to tell two methods apart``.
    """
    adaptive, found = analysis.study.adaptive, analysis.further_seeds
    assert adaptive is not None, "only adaptive replicates add seeds"
    cells = analysis.cells.height
    if found.is_empty():
        return f"No cell of {cells} was given more than {adaptive.min} seeds."
    sums = found.select("further", "for_width", "for_telling", "missing").sum().row(0)
    further, for_width, for_telling, missing = (int(one) for one in sums)
    why = []
    if for_width:
        why.append(f"{for_width} to narrow the interval of a divergence rate")
    if for_telling:
        why.append(f"{for_telling} to tell two methods apart")
    full = found.filter((pl.col("seeds") == adaptive.max) & (pl.col("missing") == 0)).height
    words = (
        f"{further} further seed{'' if further == 1 else 's'} in {found.height} of {cells} cells"
    )
    words += f" beyond the {adaptive.min} of every cell: {', '.join(why)}."
    if missing:
        words += f" {missing} of them {'is' if missing == 1 else 'are'} still to come."
    if full:
        words += f" {full} cell{'' if full == 1 else 's'} reached the {adaptive.max} seeds allowed."
    if found.height > LISTED_CELLS:
        words += f" The {LISTED_CELLS} cells with the most are listed."
    return words


def further_seeds_table(analysis: Analysis) -> Table:
    """The first `LISTED_CELLS` cells that got further seeds, with the interval and the reason."""
    rows = []
    for row in further_seeds_frame(analysis).head(LISTED_CELLS).iter_rows(named=True):
        cell = MatrixCell(row)
        why = [
            f"{row[name]} {words}"
            for name, words in (("for_width", "for the width"), ("for_telling", "to tell apart"))
            if row[name]
        ]
        rows.append(
            (
                setting(row, study=analysis.study, layout=analysis.layout),
                str(row["seeds"]),
                ", ".join(why),
                f"{cell.divergence} ({cell.divergence_interval})" if cell.n else "–",
                f"{row['halfwidth']:.2f}",
                row["ended"],
            )
        )
    heads = ("setting", "seeds", "further seeds", "diverged (95 %)", "half-width", "why it ended")
    return Table(heads, tuple(rows), (False, True, False, True, True, False))


def further_seeds_frame(analysis: Analysis) -> pl.DataFrame:
    """`Analysis.further_seeds` with the settings and figures of the cells; lists left out."""
    cells = analysis.cells
    flat = [name for name, kind in cells.schema.items() if kind.base_type() is not pl.List]
    return analysis.further_seeds.join(
        cells.select(flat), on="trial", how="left", maintain_order="left"
    )


def method(analysis: Analysis) -> list[tuple[str, str]]:
    """How seeds were added and what that does to the intervals; empty for a fixed number."""
    adaptive = analysis.study.adaptive
    if adaptive is None:
        return []
    words = [f"Every cell got {adaptive.min} seeds, then further ones {rule_words(adaptive)}."]
    words.append(summary(analysis))
    if adaptive.until.divergence_halfwidth is not None:
        stopped, fixed = stopped_coverage(adaptive), fixed_coverage(adaptive.max)
        words.append(
            "An interval at which one stops is no longer of a number of seeds that was settled "
            "before. Of true rates from 1 to 99 % Wilson's interval of a cell that stops by this "
            f"rule holds {100 * stopped.mean:.1f} % on average and {100 * stopped.worst:.1f} % at "
            f"the worst rate, with {stopped.seeds:.1f} seeds on average; {adaptive.max} seeds for "
            f"every cell would hold {100 * fixed.mean:.1f} and {100 * fixed.worst:.1f} % "
            "(computed, not simulated)."
        )
    if adaptive.until.told_apart:
        falsely = falsely_apart(adaptive.min, adaptive.max)
        words.append(
            "Each further seed is another chance to find a difference that is not there: two "
            "methods of equal normal losses are told apart at some number of seeds up to "
            f"{adaptive.max} in {percent(falsely)} of cases (simulated), not in 5 %. That "
            "supposes that no run diverges: one diverged run of one method alone counts as a "
            "difference, and with true rates of 5, 10 and 20 % equal methods were told apart at 3 "
            f"seeds in 28, 43 and 58 % of cases (simulated). {STOPPED}"
        )
    words.append("Seeds are added by the results alone, not by who trained them or when.")
    return [("Adaptive replicates", " ".join(words))]
