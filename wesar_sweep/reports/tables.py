"""Tables as typed values: what stands where, before anything is rendered.

`Matrix` is the layout of Table 9 of the paper: series against lr. `Table` is a plain one of words;
Markdown, terminal and page each draw both in their own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import asked_places, axis_title, format_value
from wesar_sweep.analysis.balanced import balanced_mean
from wesar_sweep.analysis.cells import one_cell_a_place
from wesar_sweep.analysis.verdict import is_lower_bound, percent, setting

Metric = Literal["loss", "ppl", "bpb"]

METRICS: Mapping[Metric, str] = {
    "loss": "validation loss (nats a token)",
    "ppl": "perplexity",
    "bpb": "bits a byte",
}

SPIKES = "spikes"
"""What the page's matrix can show beside `METRICS`."""

Mark = Literal["best", "tied", ""]


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One place of the matrix."""

    figures: Mapping[str, Any] | None
    """A row of `Analysis.cells`; None where the cell has no outcome yet."""
    mark: Mark = ""
    shade: float = 0.0
    """From 0 (as good as the best cell) to 1 (no better than the initial loss)."""
    to_come: bool = False
    """Of a place without an outcome: whether the study may still train it."""

    @property
    def trial(self) -> int:
        """The cell's trial; only where there is an outcome."""
        assert self.figures is not None, "a place without an outcome has no trial"
        return int(self.figures["trial"])

    @property
    def n(self) -> int:
        """Runs that count."""
        return self.figures["n"] if self.figures else 0

    def value(self, metric: Metric) -> str:
        """The figure; a dash where there is none."""
        return "–" if not self.n or self.figures is None else number(self.figures[metric], metric)

    def interval(self, metric: Metric) -> str:
        """``1.313–1.323``; empty for a single seed."""
        if self.figures is None or self.figures[f"{metric}_low"] is None:
            return ""
        low, high = self.figures[f"{metric}_low"], self.figures[f"{metric}_high"]
        return f"{number(low, metric)}–{number(high, metric)}"

    @property
    def spikes(self) -> str:
        """``0.33``: raw spikes a run; a dash where none counts."""
        return _mean_words(self.figures and self.figures["spikes"])

    @property
    def paired_spikes(self) -> str:
        """``paired 0.00``: the same with hard batches taken out; empty where nothing is known."""
        if not self.n or self.figures is None:
            return ""
        return f"paired {_mean_words(self.figures['paired_spikes'])}"

    @property
    def divergence(self) -> str:
        """``1/3``: diverged of counted runs; empty where none counts."""
        return f"{self.figures['diverged']}/{self.n}" if self.figures and self.n else ""

    @property
    def divergence_interval(self) -> str:
        """``6–79 %``: Wilson's interval of the rate."""
        if not self.figures or not self.n:
            return ""
        low, high = self.figures["rate_low"], self.figures["rate_high"]
        return f"{low * 100:.0f}–{percent(high)}"

    @property
    def remark(self) -> str:
        """Runs beside n: ``1 failed, 2 pruned``; where there is nothing at all, why."""
        if self.figures is None:
            return "not run yet" if self.to_come else "not asked for"
        counts = [(self.figures[name], name) for name in ("failed", "pruned")]
        return ", ".join(f"{count} {name}" for count, name in counts if count)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Series against axis values."""

    axis: str
    """Heading of the columns; empty where the study has no axis."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    """(label of the series, its cells)."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of words."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    """Which columns are numbers, to be set flush right."""
    over: tuple[str, int] | None = None
    """A heading over all columns from that place on."""
    strong: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of words in bold."""


def number(value: float | None, metric: Metric = "loss") -> str:
    """A loss with 3 decimals, a perplexity with about 4 digits."""
    if value is None:
        return "–"
    if metric != "ppl":
        return f"{value:.3f}"
    if value < 1e6:
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def differences_words(row: Mapping[str, Any]) -> str:
    """``+0.003 to +0.019``; each seed's, ``+0.003, +0.019``, where a difference has no interval."""
    if row["difference_low"] is None:
        return ", ".join(f"{one:+.3f}" for one in row["differences"]) or "–"
    return f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}"


def matrix(analysis: Analysis) -> Matrix | None:
    """The study as a matrix; None where its cells do not fill one (use `best_cells_table`)."""
    layout = analysis.layout
    if not layout.gridded:
        return None
    placed = one_cell_a_place(analysis.cells, layout=layout)
    found = {(row["series"], row["place"]): row for row in placed.iter_rows(named=True)}
    losses = analysis.cells["loss"]
    low, start = losses.min(), analysis.cells["start_loss"].mean()
    partial = analysis.completeness.partial
    places = asked_places(analysis.study, series=layout.series, axis=layout.axis) if partial else {}

    def cell(series: str, place: int) -> MatrixCell:
        row = found.get((series, place))
        if row is None:
            value = layout.axis_values[place] if layout.axis_values else None
            # A sampler may ask for any place while it goes on.
            return MatrixCell(None, to_come=partial and (not places or (series, value) in places))
        return MatrixCell(row, analysis.ties.mark(row["trial"]), _shade(row["loss"], low, start))

    names = layout.axis_values or (None,)
    axis = layout.axis or ""
    columns = tuple(format_value(v, knob=axis) if layout.axis else "all runs" for v in names)
    return Matrix(
        axis=axis_title(axis) if axis else "",
        columns=columns,
        rows=tuple(
            (series, tuple(cell(series, place) for place in range(len(columns))))
            for series in analysis.series
        ),
    )


def _shade(loss: float | None, low: Any, start: Any) -> float:
    if loss is None or low is None or start is None or not start > low:
        return 0.0
    # The square root spreads out the small differences among the good cells.
    return float(min(max((loss - low) / (start - low), 0.0), 1.0) ** 0.5)


def best_cells_table(analysis: Analysis, *, count: int | None = 15) -> Table:
    """The best cells in order, whatever the sampler chose; None counts all that have a loss."""
    rows = []
    found = analysis.ranked if count is None else analysis.ranked.head(count)
    for rank, row in enumerate(found.iter_rows(named=True), start=1):
        cell = MatrixCell(row, analysis.ties.mark(row["trial"]))
        rows.append(
            (
                str(rank),
                setting(row, study=analysis.study, layout=analysis.layout),
                str(row["trial"]),
                cell.value("loss"),
                cell.interval("loss") or "one seed",
                cell.value("ppl"),
                f"{cell.divergence} ({cell.divergence_interval})",
                ", ".join([*_mark(cell), *([cell.remark] if cell.remark else [])]),
            )
        )
    return Table(
        columns=(
            "rank",
            "setting",
            "trial",
            "loss",
            "95 % interval",
            "perplexity",
            "diverged (95 %)",
            "mark",
        ),
        rows=tuple(rows),
        numeric=(True, False, True, True, True, True, True, False),
    )


def matrix_table(found: Matrix, *, metric: Metric = "loss", intervals: bool = True) -> Table:
    """The matrix as words, a cell such as ``1.317 (1.313–1.323) 0/3 (0–56 %) best``."""

    def words(cell: MatrixCell) -> str:
        if not cell.n:
            return cell.remark
        parts = [cell.value(metric)]
        if intervals and cell.interval(metric):
            parts.append(f"({cell.interval(metric)})")
        parts.append(cell.divergence)
        if intervals:
            parts.append(f"({cell.divergence_interval})")
        return " ".join([*parts, *([cell.remark] if cell.remark else []), *_mark(cell)])

    rows = tuple((label, *(words(cell) for cell in cells)) for label, cells in found.rows)
    head = f"{found.axis} =" if found.axis else "series"
    return Table((head, *found.columns), rows, (False, *(True for _ in found.columns)))


def _mark(cell: MatrixCell) -> list[str]:
    return [cell.mark] if cell.mark else []


def series_table(analysis: Analysis) -> Table:
    """Every series in one line: its best cell, basin, largest stable lr, LR sensitivity, spikes."""
    with_lr = analysis.layout.axis == "lr" and analysis.layout.gridded
    columns = ["series", "best loss", "diverged"]
    basins = _by_series(analysis.basin_width())
    stable = _by_series(analysis.largest_stable_lr())
    sensitivity = _by_series(analysis.lr_sensitivity())
    if analysis.layout.axis is not None:
        columns.insert(1, f"best {axis_title(analysis.layout.axis)}")
    if analysis.shows_effective_lr:
        columns.insert(2, "best effective lr")
    if with_lr:
        columns += ["basin width (decades)", "largest stable lr", "LR sensitivity"]
    shifts = analysis.layout.gridded and analysis.shows_effective_lr
    if shifts:
        shared = _by_series(analysis.effective_lr_sensitivity())
        columns.append("LR sensitivity at equal effective lr")
    columns.append("spikes a run, raw / paired")
    rows = []
    for best in analysis.best_cells.iter_rows(named=True):
        name, cell = best["series"], MatrixCell(best)
        own = analysis.cells.filter(pl.col("series") == name)
        # No interval: cells have rates of their own, so that their sum is no binomial.
        runs, diverged = int(own["n"].sum()), int(own["diverged"].sum())
        loss = " ".join(filter(None, [cell.value("loss"), _bracket(cell.interval("loss"))]))
        loss += f", {best['pruned']} pruned" if best["pruned"] else ""
        row = [name, loss, f"{diverged}/{runs}" if runs else "–"]
        if analysis.layout.axis is not None:
            row.insert(1, _axis_value(best, analysis))
        if analysis.shows_effective_lr:
            row.insert(2, format_value(best["effective_lr"], knob="lr", digits=2))
        if with_lr:
            row += [
                _basin_words(basins[name]),
                _stable_words(stable[name]),
                _sensitivity_words(sensitivity[name]),
            ]
        if shifts:
            row.append(_sensitivity_words({"incomplete": False, **shared[name]}))
        row.append(
            " / ".join(_spikes(analysis, name, kind) for kind in ("spikes", "paired_spikes"))
        )
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows), (False, *(True for _ in columns[1:])))


def _axis_value(row: Mapping[str, Any], analysis: Analysis) -> str:
    axis = analysis.layout.axis
    assert axis is not None
    return format_value(row[axis], knob=axis, digits=None if analysis.layout.gridded else 3)


def _by_series(frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["series"]: row for row in frame.iter_rows(named=True)}


def _bracket(text: str) -> str:
    return f"({text})" if text else ""


def _basin_words(row: Mapping[str, Any]) -> str:
    if row["width"] is None:
        return row["note"] or "–"
    sign = "≥ " if is_lower_bound(row) else ""
    if row["width_low"] is None:
        return f"{sign}{row['width']:.2f}"
    return f"{sign}{row['width']:.2f} ({row['width_low']:.2f}–{row['width_high']:.2f})"


def _stable_words(row: Mapping[str, Any]) -> str:
    if row["lr"] is None:
        return "none"
    sign = "≥ " if row["at_edge"] or row["lost_above"] else ""
    return f"{sign}{format_value(row['lr'], knob='lr')} (rate ≤ {percent(row['rate_high'])})"


def _sensitivity_words(row: Mapping[str, Any]) -> str:
    if row["sensitivity"] is None:
        return "incomplete" if row["incomplete"] else "–"
    if row["sensitivity_low"] is None:
        return number(row["sensitivity"])
    spread = f"{number(row['sensitivity_low'])}–{number(row['sensitivity_high'])}"
    return f"{number(row['sensitivity'])} ({spread})"


def _mean_words(mean: Any) -> str:
    return f"{mean:.2f}" if isinstance(mean, float) else "–"


def _spikes(analysis: Analysis, series: str, kind: str) -> str:
    trials = analysis.cells.filter(pl.col("series") == series)["trial"].to_list()
    counted = analysis.outcomes.filter(
        pl.col("trial").is_in(trials) & pl.col("status").is_in(["completed", "diverged"])
    ).drop_nulls(kind)
    return _mean_words(balanced_mean(counted, kind, cell="trial"))


def csv_frame(analysis: Analysis) -> pl.DataFrame:
    """The cells for a spreadsheet: one row a cell with its figures and mark, lists left out."""
    cells = analysis.cells
    flat = [name for name, kind in cells.schema.items() if kind.base_type() is not pl.List]
    marks = [analysis.ties.mark(trial) for trial in cells["trial"]]
    return cells.select(flat).with_columns(pl.Series("mark", marks, dtype=pl.String))


def run_table(analysis: Analysis, *, status: str, count: int = 40) -> Table:
    """Runs of one status with step and reason, at most `count`."""
    runs = analysis.outcomes.filter(pl.col("status") == status)
    return _run_table(runs.sort("trial", "seed").head(count), analysis, ("reason",))


def all_runs_table(analysis: Analysis) -> Table:
    """Every run with how it ended."""
    runs = analysis.outcomes.sort("trial", "seed")
    return _run_table(runs, analysis, ("status", "val_loss", "reason"))


def _run_table(runs: pl.DataFrame, analysis: Analysis, facts: Sequence[str]) -> Table:
    runs = runs.join(analysis.cells.select("trial", "series"), on="trial", how="left")
    axis = analysis.layout.axis

    def words(row: Mapping[str, Any], name: str) -> str:
        if name == axis:
            return _axis_value(row, analysis)
        return number(row[name]) if name == "val_loss" else str(row[name])

    columns = ("series", *(() if axis is None else (axis,)), "trial", "seed", "steps_trained")
    columns = (*columns, *facts)
    return Table(
        columns=tuple(axis_title(name).replace("_", " ") for name in columns),
        rows=tuple(
            tuple(words(row, name) for name in columns) for row in runs.iter_rows(named=True)
        ),
        numeric=tuple(name not in ("series", "status", "reason") for name in columns),
    )
