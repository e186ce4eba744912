"""The section of sizes: do best learning rate, basin and largest stable lr move with the model?"""

from __future__ import annotations

from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.basin import TOLERANCE
from wesar_sweep.analysis.sizes import size_knobs
from wesar_sweep.analysis.verdict import percent
from wesar_sweep.reports import size_charts
from wesar_sweep.reports.figure import Figure, divergence_words, interval_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.size_trend_table import size_trend_tables
from wesar_sweep.reports.tables import Table, number


def size_figures(analysis: Analysis) -> list[Figure]:
    """Best lr, basin and largest stable lr against size; none without a size beside lr."""
    known = analysis.sizes.filter(analysis.sizes["best_lr"].is_not_null())
    if known.is_empty():
        return []
    knob, others = size_charts.across(analysis)
    cut = ""
    if others and (most := analysis.sizes.select(others).n_unique()) > size_charts.MAX_PANELS:
        cut = f" {size_charts.MAX_PANELS} of {most} columns are shown."
    lows, highs = known["best_lr"].min(), known["best_lr"].max()
    low, high = (format_value(float(str(lr)), knob="lr", digits=3) for lr in (lows, highs))
    figure = Figure(
        name="size",
        section="size",
        title=f"Best lr, basin width and largest stable lr against {axis_title(knob)}",
        chart=size_charts.size(analysis),
        caption=(
            f"{_words(analysis)} Open marks are best lr at an edge, basins that may be wider and "
            "largest stable lr that may be higher; a size at which even the lowest lr is not "
            f"stable has no mark in the last row. Lines are moved apart a little.{cut}"
        ),
        alt=(
            f"Best lr, basin width and largest stable lr against {axis_title(knob)}, one line a "
            f"method: {known.height} best lr from {low} to {high}."
        ),
    )
    return [figure]


def size_tables(analysis: Analysis) -> list[NamedTable]:
    """The same in numbers, and how steeply they move."""
    frame = analysis.sizes
    if frame.is_empty():
        return []
    knobs = size_knobs(analysis.layout)
    columns = ("series", *map(axis_title, knobs), "parameters", "best lr", "loss there")
    columns = (*columns, "basin width (decades)", "largest stable lr", "seeds", "remark")
    rows = tuple(
        (
            row["line"],
            *(str(row[knob]) for knob in knobs),
            f"{row['parameters']:,}",
            _best(row),
            number(row["best_loss"]),
            _basin(row),
            _stable(row),
            str(row["n_seeds"]),
            _remark(row),
        )
        for row in frame.iter_rows(named=True)
    )
    numeric = (False, *(True for _ in columns[1:-1]), False)
    caption = _words(analysis)
    table = Table(columns, rows, numeric)
    found = NamedTable("size", caption, table, frame, section="size", title="Every size")
    return [found, *size_trend_tables(analysis)]


def _words(analysis: Analysis) -> str:
    return (
        "Best lr is the lr of the grid with the least mean loss over seeds, diverged runs counted "
        "at min(final, initial) loss; it is no finer than the grid, and at an edge of it the true "
        f"best may lie beyond. Basin width is within {TOLERANCE:g} nats of each one's own best; ≥ "
        "marks a lower bound. The largest stable lr is the highest up to which no counted run "
        "diverged; it is no finer than the grid either, and with few seeds often too high: the "
        "rate there may be up to what stands beside it, the upper end of Wilson's 95 % interval. "
        "The other intervals are 95 % bootstraps over seeds, resampled together at "
        f"every lr ({interval_words(analysis)}, a bound for the mean of a symmetric loss, not for "
        "a best lr that is picked from a grid: of such an lr they can be a single value). Each "
        "point is of the trained size alone: nothing is extrapolated to other sizes, and steps and "
        f"batch are those of the study. {divergence_words(analysis.study.divergence)}"
    )


def _best(row: dict[str, Any]) -> str:
    if row["best_lr"] is None:
        return "–"
    sign = "≤ " if row["at_low_edge"] else "≥ " if row["at_high_edge"] else ""
    value, low, high = (
        None if row[name] is None else format_value(row[name], knob="lr", digits=3)
        for name in ("best_lr", "best_lr_low", "best_lr_high")
    )
    return f"{sign}{value}" if low is None else f"{sign}{value} ({low}–{high})"


def _basin(row: dict[str, Any]) -> str:
    if row["basin_width"] is None:
        return "–"
    sign = "≥ " if row["basin_is_lower_bound"] else ""
    low, high = row["basin_width_low"], row["basin_width_high"]
    spread = "" if low is None else f" ({low:.2f}–{high:.2f})"
    return f"{sign}{row['basin_width']:.2f}{spread}"


def _stable(row: dict[str, Any]) -> str:
    if row["stable_lr"] is None:
        return "none" if row["n_lr"] else "–"
    sign = "≥ " if row["stable_lr_is_lower_bound"] else ""
    rate = percent(row["stable_lr_rate_high"])
    runs = f"{row['stable_lr_diverged']}/{row['stable_lr_n']}"
    return f"{sign}{format_value(row['stable_lr'], knob='lr', digits=3)} ({runs}, rate ≤ {rate})"


def _remark(row: dict[str, Any]) -> str:
    edges = [name for name in ("low", "high") if row[f"at_{name}_edge"]]
    words = [f"best at the {' and '.join(edges)} edge"] if edges else []
    if row["n_lr"] and row["stable_lr"] is None:
        words.append("the lowest lr is not stable")
    return "; ".join(filter(None, [*words, row["note"]]))
