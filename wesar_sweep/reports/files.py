"""Single figures and tables of a study as files, for papers and talks; made offline."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import altair as alt

from wesar_sweep.analysis import Analysis
from wesar_sweep.errors import ConfigError, Problem
from wesar_sweep.reports import latex, markdown
from wesar_sweep.reports.figure import Figure
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import METRICS, Metric
from wesar_sweep.reports.theme import Theme, config, paper
from wesar_sweep.store.atomic import write_atomically

FigureFormat = Literal["svg", "png", "pdf"]
TableFormat = Literal["md", "latex", "csv"]

ALL = "all"
"""The name that stands for every figure, or every table."""

PNG_SCALE = 2.0
"""Pixels of a PNG a pixel of the chart."""


def write_figures(
    analysis: Analysis, *, name: str, out: Path, format: str = "svg", theme: Theme = "light"
) -> Path:
    """Write one figure, or every one, and return the path of what was written.

    Args:
        analysis: The study.
        name: A figure's name, or `ALL`.
        out: The file; for `ALL` the folder, in which files are called ``<name>.<format>``.
        format: ``svg``, ``png`` or ``pdf``.
        theme: ``light`` or ``dark``.

    Raises:
        ConfigError: This study has no such figure, or there is no such format or theme.
        StoreError: A file cannot be written.
    """
    _checked("figure format", format, get_args(FigureFormat))
    _checked("theme", theme, get_args(Theme))
    found = {figure.name: figure for figure in figures(analysis)}
    if name != ALL:
        _checked("figure in this study", name, tuple(found))
        write_atomically(out, _drawn(found[name], format, theme))
        return out
    for figure in found.values():
        write_atomically(out / f"{figure.name}.{format}", _drawn(figure, format, theme))
    return out


WITH_METRIC = ("matrix", "paper")
"""The tables that show what is asked for; the others have figures of their own."""


def write_tables(
    analysis: Analysis, *, name: str, out: Path, format: str = "md", metric: Metric | None = None
) -> Path:
    """Write one table, or every one, and return the path of what was written.

    Args:
        analysis: The study.
        name: A table's name, or `ALL`.
        out: The file; for `ALL` the folder, in which files are called by table and format. Beside
            LaTeX tables lies ``all.tex``, a whole document of them.
        format: ``md``, ``latex`` or ``csv`` (the numbers behind the table, unrounded).
        metric: What the matrix shows; see `named_tables.tables`.

    Raises:
        ConfigError: This study has no such table, there is no such format or metric, or the table
            takes none.
        StoreError: A file cannot be written.
    """
    _checked("table format", format, get_args(TableFormat))
    if metric is not None:
        _checked("metric", metric, tuple(METRICS))
    found = {table.name: table for table in tables(analysis, metric=metric)}
    if metric is not None and name in found and name not in (*WITH_METRIC, ALL):
        raise ConfigError(
            Problem(
                f"the table {name} has figures of its own, and takes no metric",
                path="metric",
                value=metric,
                allowed=f"with {' and '.join(WITH_METRIC)} alone",
            )
        )
    if name != ALL:
        _checked("table in this study", name, tuple(found))
        write_atomically(out, _WRITTEN[format](found[name]).encode())
        return out
    for table in found.values():
        write_atomically(out / f"{table.name}.{suffix(format)}", _WRITTEN[format](table).encode())
    if format == "latex":
        write_atomically(out / f"{ALL}.tex", latex.document(tuple(found)).encode())
    return out


def suffix(format: str) -> str:
    """The ending of a file's name, without the dot."""
    return "tex" if format == "latex" else format


def _checked(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        names = ", ".join(allowed) or "none: no run has ended"
        raise ConfigError(Problem(f"there is no such {what}", value=repr(value), allowed=names))


def _drawn(figure: Figure, format: str, theme: Theme) -> bytes:
    chart = figure.chart.copy(deep=False)
    chart.config = alt.Config.from_dict(config(theme, background=paper(theme)))
    buffer = io.StringIO() if format == "svg" else io.BytesIO()
    scale = PNG_SCALE if format == "png" else 1.0
    chart.save(buffer, format=format, engine="vl-convert", scale_factor=scale)  # type: ignore[arg-type]
    drawn = buffer.getvalue()
    return drawn.encode() if isinstance(drawn, str) else drawn


def _markdown(table: NamedTable) -> str:
    return f"{markdown.table(table.table)}\n\n{markdown.escape(table.caption)}\n"


def _latex(table: NamedTable) -> str:
    return latex.table(table.table, name=table.name, caption=table.caption)


def _csv(table: NamedTable) -> str:
    flat = [name for name, kind in table.frame.schema.items() if not kind.is_nested()]
    return table.frame.select(flat).write_csv()


_WRITTEN: dict[str, Callable[[NamedTable], str]] = {
    "md": _markdown,
    "latex": _latex,
    "csv": _csv,
}
