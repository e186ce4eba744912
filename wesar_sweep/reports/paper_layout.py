"""The layout of Table 9 of the paper: method and σ² down, lr across, k/n beneath the figure."""

from __future__ import annotations

from collections.abc import Callable

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.reports.tables import Matrix, MatrixCell, Table


def paper_layout(
    analysis: Analysis,
    grid: Matrix,
    *,
    value: Callable[[MatrixCell], str],
    best: Callable[[MatrixCell], bool],
) -> Table:
    """A table of that layout.

    Args:
        analysis: The study.
        grid: Its matrix.
        value: The words for a cell.
        best: Whether they are set in bold.
    """
    knobs = analysis.layout.series
    known = {
        row["series"]: tuple(_knob_words(row, knob) for knob in knobs)
        for row in analysis.cells.unique("series").iter_rows(named=True)
    }
    rows: list[tuple[str, ...]] = []
    strong: set[tuple[int, int]] = set()
    for label, cells in grid.rows:
        # A series without any outcome has no row of knobs yet, only its label.
        stub = known.get(label, (label, *("" for _ in knobs[1:])))
        strong |= {
            (len(rows), len(knobs) + place) for place, cell in enumerate(cells) if best(cell)
        }
        rows.append((*stub, *map(value, cells)))
        rows.append((*("" for _ in knobs), *(cell.divergence for cell in cells)))
    return Table(
        columns=(*map(axis_title, knobs), *grid.columns),
        rows=tuple(rows),
        numeric=(*(False for _ in knobs), *(True for _ in grid.columns)),
        over=(grid.axis, len(knobs)) if grid.axis else None,
        strong=frozenset(strong),
    )


def _knob_words(row: dict[str, object], knob: str) -> str:
    value = row[knob]
    if knob == "sigma2" and value is None:
        return "–"
    return format_value(value, knob=knob)  # type: ignore[arg-type]
