"""The verdict and the matrix for a terminal, by rich; what does not fit is folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.verdict import setting
from wesar_sweep.reports.tables import METRICS, Matrix, MatrixCell, Metric, matrix

NARROW = 8
"""More columns than this make the matrix stand on its side: series across, axis down."""

BEST_CELLS = 10
"""Cells listed where there is no matrix."""

MAX_WORD = 16
"""A word in a column's head that is longer is folded."""

COLUMN_GAP = 3
"""What a column takes beside its content: a padding on both sides and a line."""

BORDERS = 2
"""What a table takes beside its columns: its outer lines, less the paddings it lacks there."""


def summary(analysis: Analysis, *, metric: Metric = "loss") -> RenderableType:
    """Verdict and matrix (or best cells), to be printed by a rich console.

    Args:
        analysis: The study.
        metric: What the cells of the matrix show.
    """
    parts: list[RenderableType] = []
    counts = analysis.completeness
    if counts.partial:
        words = f"Not finished: {counts.ended} of {counts.expected} runs have ended."
        parts.append(Text(words, style="yellow"))
    grid = matrix(analysis)
    if grid is not None:
        parts.append(_Blocks(grid, metric))
        unit = METRICS[metric]
    else:
        parts.append(_best_cells(analysis))
        unit = METRICS["loss"]
    marks = "* best, ~ tied" if analysis.ties.marked else "* best"
    parts.append(Text(f"{unit}, diverged/runs; {marks}", style="dim"))
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


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The matrix in as many tables, one below the other, as the width asks for."""

    grid: Matrix
    metric: Metric

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = self.grid
        on_side = len(grid.columns) > NARROW and len(grid.rows) < len(grid.columns)
        heads = [label for label, _ in grid.rows] if on_side else list(grid.columns)
        cells = [[_words(cell, self.metric) for cell in row] for _, row in grid.rows]
        names = list(grid.columns) if on_side else [label for label, _ in grid.rows]
        rows = [list(row) for row in zip(*cells, strict=True)] if on_side else cells
        corner = grid.axis if on_side or not grid.axis else f"{grid.axis} ="
        first = min(max(map(cell_len, [corner, *names])), options.max_width // 3)
        widths = [
            max([*(row[place].cell_len for row in rows), min(_longest_word(head), MAX_WORD)])
            for place, head in enumerate(heads)
        ]
        for places in _blocks(widths, first=first, width=options.max_width):
            drawn = RichTable(pad_edge=False)
            # Text, never markup: a method's name may hold brackets.
            drawn.add_column(Text(corner), width=first, overflow="fold")
            for place in places:
                drawn.add_column(
                    Text(heads[place]), width=widths[place], justify="right", overflow="fold"
                )
            for name, row in zip(names, rows, strict=True):
                drawn.add_row(Text(name), *(row[place] for place in places))
            yield drawn


def _blocks(widths: list[int], *, first: int, width: int) -> Iterator[list[int]]:
    """Which columns stand side by side; each block has the first column and at least one other."""
    room = width - first - BORDERS
    block: list[int] = []
    left = room
    for place, wide in enumerate(widths):
        if block and wide + COLUMN_GAP > left:
            yield block
            block, left = [], room
        block.append(place)
        left -= wide + COLUMN_GAP
    if block:
        yield block


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _words(cell: MatrixCell, metric: Metric) -> Text:
    if not cell.n or cell.figures is None:
        empty = "…" if cell.to_come else "–"
        return Text(empty if cell.figures is None else cell.remark, style="dim")
    return Text.assemble(_value(cell, metric), " ", _divergence(cell))


def _value(cell: MatrixCell, metric: Metric) -> Text:
    sign = {"best": "*", "tied": "~"}.get(cell.mark, "")
    style = "bold green" if cell.mark == "best" else "green" if cell.mark == "tied" else ""
    return Text(f"{sign}{cell.value(metric)}", style=style)


def _divergence(cell: MatrixCell) -> Text:
    lost = cell.figures is not None and cell.figures["diverged"]
    return Text(cell.divergence, style="bold red" if lost else "dim")


def _best_cells(analysis: Analysis) -> RichTable:
    """The best cells: figures never cut or broken, the setting folded into what is left."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("rank", justify="right", no_wrap=True)
    drawn.add_column("setting", overflow="fold", ratio=1)
    for name in ("trial", "loss", "95 % interval", "diverged"):
        drawn.add_column(name, justify="right", no_wrap=True)
    found = analysis.ranked.head(BEST_CELLS).iter_rows(named=True)
    for rank, row in enumerate(found, start=1):
        cell = MatrixCell(row, analysis.ties.mark(row["trial"]))
        words = setting(row, study=analysis.study, layout=analysis.layout)
        drawn.add_row(
            str(rank),
            Text(f"{words} ({cell.remark})" if cell.remark else words),
            str(row["trial"]),
            _value(cell, "loss"),
            cell.interval("loss") or "one seed",
            _divergence(cell),
        )
    return drawn
