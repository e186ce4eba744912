"""Every table of a study by its name, as words for people and as a frame for programs."""

from __future__ import annotations

import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import format_value
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.reports import boundary, replicates, stability_map
from wesar_sweep.reports.cost_figures import cost_tables
from wesar_sweep.reports.figure import divergence_words, interval_words, seeds_words
from wesar_sweep.reports.finished_table import finished_tables
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.paired_table import paired_tables
from wesar_sweep.reports.paper_layout import paper_layout
from wesar_sweep.reports.paper_tables import paper_tables
from wesar_sweep.reports.probe_tables import probe_tables
from wesar_sweep.reports.search_figures import search_tables
from wesar_sweep.reports.set_tables import set_tables
from wesar_sweep.reports.size_figures import size_tables
from wesar_sweep.reports.spike_figures import spike_tables
from wesar_sweep.reports.tables import (
    METRICS,
    Matrix,
    Metric,
    Table,
    all_runs_table,
    best_cells_table,
    csv_frame,
    matrix,
    matrix_table,
    series_table,
)

__all__ = ["NamedTable", "tables"]


def tables(analysis: Analysis, *, metric: Metric | None = None) -> list[NamedTable]:
    """All tables that this study has data for.

    Args:
        analysis: The study.
        metric: What matrix and paper show; default the loss there and the perplexity here.
    """
    found: list[NamedTable] = []
    grid = matrix(analysis)
    if grid is not None and not analysis.cells.is_empty():
        shown = metric or "loss"
        caption = (
            f"{METRICS[shown].capitalize()} with Student's 95 % interval over seeds "
            f"({seeds_words(analysis)}), then diverged/counted runs with Wilson's 95 % interval."
        )
        table = matrix_table(grid, metric=shown)
        found.append(NamedTable("matrix", caption, table, _matrix_frame(grid, shown)))
        shown = metric or "ppl"
        caption = (
            f"{METRICS[shown].capitalize()}, mean over seeds ({seeds_words(analysis)}), diverged "
            "runs counted at min(final, initial) loss; beneath it diverged/counted runs. Bold is "
            "the lowest mean."
        )
        table = paper_table(analysis, grid, metric=shown)
        found.append(NamedTable("paper", caption, table, _paper_frame(analysis)))
        found += set_tables(analysis, grid)
    if not analysis.best_cells.is_empty():
        found.append(
            NamedTable(
                "series", _series_words(analysis), series_table(analysis), _series_frame(analysis)
            )
        )
        caption = (
            "Every cell with a counted run, best first; 95 % intervals: Student's over seeds for "
            "the loss, Wilson's for the divergence rate."
        )
        ranked = best_cells_table(analysis, count=None)
        found.append(NamedTable("cells", caption, ranked, csv_frame(analysis)))
    if not analysis.boundary.is_empty():
        title, caption = "Boundary of each series", boundary.table_caption(analysis)
        shown_rows, frame = boundary.boundary_table(analysis), analysis.boundary
        found.append(NamedTable("boundary", caption, shown_rows, frame, "loss", title))
    if not analysis.further_seeds.is_empty():
        title, caption = "Where further seeds went", replicates.summary(analysis)
        shown_cells = replicates.further_seeds_table(analysis)
        frame = replicates.further_seeds_frame(analysis)
        found.append(NamedTable("further-seeds", caption, shown_cells, frame, "loss", title))
    for _, across in stability_map.maps(analysis)[:1] if analysis.layout.axis == "lr" else []:
        found.append(
            NamedTable(
                "stability-boundary",
                f"{stability_map.table_caption(seeds_words(analysis))} "
                f"{divergence_words(analysis.study.divergence)}",
                stability_map.boundary_table(analysis, across=across),
                analysis.stability_boundary(across=across),
                section="loss",
                title="The boundary of stability",
            )
        )
    if not analysis.outcomes.is_empty():
        caption = "Every run and how it ended."
        found.append(NamedTable("runs", caption, all_runs_table(analysis), analysis.outcomes))
    return [
        *found,
        *paired_tables(analysis),
        *probe_tables(analysis),
        *spike_tables(analysis),
        *size_tables(analysis),
        *paper_tables(analysis),
        *finished_tables(analysis),
        *search_tables(analysis),
        *cost_tables(analysis),
    ]


def _series_words(analysis: Analysis) -> str:
    words = (
        "Robustness of each series. 95 % intervals: Student's over seeds for the loss "
        f"({seeds_words(analysis)})"
    )
    if analysis.layout.axis == "lr" and analysis.layout.gridded:
        words += (
            ", Wilson's for the rate at the largest stable lr, bootstraps over seeds for basin and "
            f"LR sensitivity ({interval_words(analysis)}); ≥ marks a lower bound"
        )
    return f"{words}. {_shared_words(analysis)}{divergence_words(analysis.study.divergence)}"


def _shared_words(analysis: Analysis) -> str:
    """What LR sensitivity at equal effective lr is, and over which range; empty without it."""
    if not (analysis.layout.gridded and analysis.shows_effective_lr):
        return ""
    row = analysis.effective_lr_sensitivity().row(0, named=True)
    low, high = (row[f"effective_lr_{end}"] for end in ("min", "max"))
    if low is None:
        return "The series share no range of effective lr, so sensitivity is of lr alone. "
    ends = " to ".join(format_value(end, knob="lr", digits=2) for end in (low, high))
    return (
        f"LR sensitivity at equal effective lr is over the range that every complete series covers "
        f"({ends}), interpolated between grid points: methods that shift lr alone are equal in it, "
        "up to what their grids leave open. "
    )


def paper_table(analysis: Analysis, grid: Matrix, *, metric: Metric) -> Table:
    """The layout of Table 9 of the paper, on the validation set."""
    return paper_layout(
        analysis,
        grid,
        value=lambda cell: cell.value(metric) if cell.n else cell.remark,
        best=lambda cell: cell.mark == "best",
    )


def _matrix_frame(grid: Matrix, metric: Metric) -> pl.DataFrame:
    """series, then a column an axis value; null where no run counts."""
    schema = {"series": pl.String(), **dict.fromkeys(grid.columns, pl.Float64())}
    rows = [
        (label, *(cell.figures[metric] if cell.figures else None for cell in cells))
        for label, cells in grid.rows
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _paper_frame(analysis: Analysis) -> pl.DataFrame:
    """One row a (series, axis value): the knobs, every metric with its interval, k and n."""
    layout = analysis.layout
    along = () if layout.axis is None else (layout.axis,)
    figures = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")]
    placed = one_cell_a_place(analysis.cells, layout=layout)
    return placed.select(*layout.series, *along, "n", "diverged", *figures)


def _series_frame(analysis: Analysis) -> pl.DataFrame:
    """One row a series: its best cell's figures, then basin, largest stable lr and sensitivity."""
    along = () if analysis.layout.axis is None else (analysis.layout.axis,)
    if analysis.shows_effective_lr:
        along = (*along, "initial_gate", "effective_lr")
    frame = analysis.best_cells.select(
        "series",
        "method",
        *(pl.col(name).alias(f"best_{name}") for name in (*along, "trial", "n", "diverged")),
        *(pl.col(f"loss{end}").alias(f"best_loss{end}") for end in ("", "_low", "_high")),
    )
    effective = []
    if analysis.shows_effective_lr and analysis.layout.gridded:
        effective = [("at_effective_lr", analysis.effective_lr_sensitivity())]
    for figure, part in (
        ("basin", analysis.basin_width()),
        ("stable", analysis.largest_stable_lr()),
        ("sensitivity", analysis.lr_sensitivity()),
        *effective,
    ):
        named = part.drop("method").rename(
            {
                name: f"{figure}_{name.removeprefix(f'{figure}_')}"
                for name in part.columns
                if name not in ("series", "method")
            }
        )
        frame = frame.join(named, on="series", how="left")
    return frame
