"""The verdict and the matrix for a terminal, by rich; what does not fit is folded."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.tables import (
    METRICS,
    Matrix,
    MatrixCell,
    Metric,
    Table,
    best_cells_table,
    matrix,
)

NARROW = 8
"""More columns than this make the matrix stand on its side: series across, axis down."""


def summary(analysis: Analysis, *, metric: Metric = "loss") -> RenderableType:
    """Verdict and matrix (or best cells), to be printed by a rich console.

    Args:
        analysis: The study.
        metric: What the cells of the matrix show.
    """
    parts: list[RenderableType] = []
    counts = analysis.completeness
    if counts.partial:
        words = f"Not finished: {counts.ended} of {counts.expected_runs} runs have ended."
        parts.append(Text(words, style="yellow"))
    grid = matrix(analysis)
    if grid is not None:
        parts.append(_matrix(grid, metric))
        parts.append(Text(f"{METRICS[metric]}, diverged/runs; * best, ~ tied", style="dim"))
    else:
        parts.append(_plain(best_cells_table(analysis, count=10)))
    parts += [Text(f"• {sentence}") for sentence in analysis.verdict.sentences]
    return Group(*parts)


def print_summary(
    analysis: Analysis, *, console: Console | None = None, metric: Metric = "loss"
) -> None:
    """Print `summary`.

    Args:
        analysis: The study.
        console: Default one on standard output.
        metric: What the cells of the matrix show.
    """
    (console or Console()).print(summary(analysis, metric=metric))


def _matrix(grid: Matrix, metric: Metric) -> RichTable:
    # Text, never markup: a method's name may hold brackets.
    on_side = len(grid.columns) > NARROW and len(grid.rows) < len(grid.columns)
    head = [label for label, _ in grid.rows] if on_side else list(grid.columns)
    drawn = RichTable(pad_edge=False)
    drawn.add_column(Text(grid.axis if on_side or not grid.axis else f"{grid.axis} ="))
    for name in head:
        drawn.add_column(Text(name), justify="right")
    if on_side:
        for place, column in enumerate(grid.columns):
            drawn.add_row(Text(column), *(_words(row[place], metric) for _, row in grid.rows))
    else:
        for label, row in grid.rows:
            drawn.add_row(Text(label), *(_words(cell, metric) for cell in row))
    return drawn


def _words(cell: MatrixCell, metric: Metric) -> Text:
    if not cell.n or cell.figures is None:
        return Text("…" if cell.figures is None else cell.remark, style="dim")
    sign = {"best": "*", "tied": "~"}.get(cell.mark, "")
    style = "bold green" if cell.mark == "best" else "green" if cell.mark == "tied" else ""
    text = Text(f"{sign}{cell.value(metric)}", style=style)
    text.append(f" {cell.divergence}", style="bold red" if cell.figures["diverged"] else "dim")
    return text


def _plain(found: Table) -> RichTable:
    drawn = RichTable(pad_edge=False)
    for name, numeric in zip(found.columns, found.numeric, strict=True):
        drawn.add_column(Text(name), justify="right" if numeric else "left")
    for row in found.rows:
        drawn.add_row(*(Text(word) for word in row))
    return drawn
