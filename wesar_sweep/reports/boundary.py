"""What the report shows of a boundary search: where runs begin to diverge, how sure, how cheap."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.boundary import MEASURED
from wesar_sweep.analysis.intervals import wilson
from wesar_sweep.analysis.verdict import boundary_words, percent
from wesar_sweep.config.boundary import BoundarySearch, boundary_search
from wesar_sweep.reports.charts import decade_ticks, label_expression
from wesar_sweep.reports.drawing import IS_SHOWN, Chart, finish, inline, rounded, tooltips
from wesar_sweep.reports.tables import Table
from wesar_sweep.reports.theme import ROLE_COLOURS
from wesar_sweep.stability.boundary import BEYOND, NARROW

_FIT = alt.AutoSizeParams(type="fit", contains="padding")


def searched(analysis: Analysis) -> BoundarySearch:
    """The search of a study that has one."""
    found = boundary_search(analysis.study)
    assert found is not None, "only a boundary search has boundaries"
    return found


def boundary_chart(analysis: Analysis) -> Chart:
    """Every series a row: the boundary with its interval, and each value that was tried."""
    search = searched(analysis)
    names = [row["series"] for row in _drawn(analysis).iter_rows(named=True)]
    every = rounded(_intervals(analysis))
    intervals = [row for row in every if row["ended"] not in BEYOND]
    beyond = [_arrow(row, search) for row in every if row["ended"] in BEYOND]
    tried = rounded(_tried(analysis, search, names))
    known = [*search.values, *(row[end] for row in intervals for end in ("from", "to"))]
    known += [row["outside"] for row in beyond]
    ends = [min(known), max(known)]
    # Vega warns of `zero` on a logarithmic scale.
    kind: dict[str, Any] = {"type": "log"} if search.log else {"type": "linear", "zero": False}
    scale = alt.Scale(**kind, nice=False, domain=ends)
    title = axis_title(search.along)
    x: dict[str, Any] = {"scale": scale, "title": title}
    ticks = alt.Axis(**_ticks(search, ends))
    y = alt.Y("series:N", sort=names, title=None, axis=alt.Axis(labelLimit=260))
    base = alt.Chart(inline(intervals)).transform_filter(IS_SHOWN).encode(y=y)
    tip = tooltips(
        ("series", "N"),
        ("words", "N", f"boundary ({title})"),
        ("ended", "N", "ended"),
        ("cells", "Q", "values tried"),
        ("runs", "Q"),
    )
    bar = base.mark_bar(height=18, opacity=0.35, cornerRadius=2, color=ROLE_COLOURS["u"]).encode(
        x=alt.X("from:Q", axis=ticks, **x), x2="to:Q", tooltip=tip
    )
    tick = base.mark_tick(thickness=3, size=26, color=ROLE_COLOURS["u"]).encode(
        x=alt.X("boundary:Q", axis=ticks, **x), tooltip=tip
    )
    legend = alt.Legend(title="diverged", format="%", gradientLength=110, titleOrient="left")
    colours = alt.Scale(domain=[0, 1], range=["#e3ebf3", "#f3c79b", "#c2500f"], interpolate="rgb")
    marks = (
        alt.Chart(inline(tried))
        .transform_filter(IS_SHOWN)
        .mark_point(filled=True, size=50, opacity=1, stroke="#4d5866", strokeWidth=0.8)
        .encode(
            x=alt.X("at:Q", axis=ticks, **x),
            y=y,
            fill=alt.Fill("rate:Q", scale=colours, legend=legend),
            tooltip=tooltips(
                ("series", "N"),
                ("where", "N", title),
                ("words", "N", "diverged"),
                ("interval", "N", "95 % interval of the rate"),
            ),
        )
    )
    arrow = (
        alt.Chart(inline(beyond))
        .transform_filter(IS_SHOWN)
        .mark_point(filled=True, size=160, opacity=1, color=ROLE_COLOURS["u"])
        .encode(
            x=alt.X("at:Q", axis=ticks, **x),
            y=y,
            shape=alt.Shape("way:N", scale=None, legend=None),
            tooltip=tip,
        )
    )
    height = 34 * max(len(names), 1) + 90
    chart = alt.layer(bar, marks, tick, arrow).properties(width=640, height=height, autosize=_FIT)
    return finish(chart)


def _ticks(search: BoundarySearch, ends: list[float]) -> dict[str, Any]:
    """Where an axis is logarithmic, 1 and 3 of every decade; lr as labels everywhere show it."""
    ticks: dict[str, Any] = {}
    if search.along in ("lr", "sigma2"):
        ticks["labelExpr"] = label_expression(search.along)
    if search.log:
        ticks["values"] = [mark for mark in decade_ticks(*ends) if ends[0] <= mark <= ends[1]]
    return ticks


def caption(analysis: Analysis) -> str:
    """What the figure shows, on how many runs it stands, and by which rule."""
    search, study = searched(analysis), analysis.study
    runs = int(analysis.boundary["runs"].sum())
    unit = "decades" if search.log else f"of {axis_title(search.along)}"
    return (
        "The line is the boundary, where half of the seeds diverge; the bar its 95 % interval "
        "(credible, of a logistic rate); an arrow a boundary beyond the values. "
        f"Each mark is a value, each time tried with {study.least_replicates} seeds of its "
        f"own, more orange where more of them diverged: {runs} runs in all. A series ends "
        f"when its interval is at most {search.resolution:.3g} {unit} wide, or after "
        f"{search.most} values. {saving(analysis)}"
    )


def alt_text(analysis: Analysis) -> str:
    """The boundaries in words."""
    known = analysis.boundary.filter(pl.col("boundary").is_not_null())
    words = [
        f"{row['series']} {boundary_words(row)}" for row in known.head(6).iter_rows(named=True)
    ]
    more = f", and {known.height - 6} more" if known.height > 6 else ""
    along = axis_title(searched(analysis).along)
    return f"Boundary of {along} with 95 % interval, a row a series: {'; '.join(words)}{more}."


def saving(analysis: Analysis) -> str:
    """How many runs a grid of the same resolution would have taken."""
    search, found = searched(analysis), analysis.boundary
    seeds = analysis.study.least_replicates
    partial = analysis.completeness.partial
    reached = found.filter(pl.col("ended").is_in([NARROW, *BEYOND]))
    told = found if partial else reached
    runs, grid = int(told["runs"].sum()), int(told["grid_runs"].sum())
    words = "A grid of the same resolution "
    words += f"({search.grid_values} values, {seeds} seeds) has {grid} runs"
    if partial:
        return f"{words}; the search has trained {runs} so far."
    missed = found.height - reached.height
    if not reached.height:
        return "No series reached the resolution, so no grid is compared."
    share = percent(1 - runs / grid) if runs < grid else "none"
    if not missed:
        return f"{words}; the search trained {runs} and saved {share} of them."
    return (
        f"For the {reached.height} of {found.height} series that reached the resolution or ended "
        f"beyond the values: {words[0].lower()}{words[1:]}; the search trained {runs} and saved "
        f"{share} of them. The other {missed} did not reach it."
    )


def boundary_table(analysis: Analysis) -> Table:
    """Every series: boundary, interval, the largest value that was seen stable, runs, the end."""
    search = searched(analysis)
    along = axis_title(search.along)
    rows = tuple(
        (
            row["series"],
            boundary_words(row) if row["boundary"] is not None else "–",
            _stable(row, search.along),
            str(row["cells"]),
            f"{row['diverged']}/{row['n']}",
            str(row["grid_runs"]),
            row["ended"] or "goes on",
        )
        for row in analysis.boundary.iter_rows(named=True)
    )
    heads = (
        "series",
        f"boundary {along} (95 %)",
        f"largest stable {along} seen (rate at most)",
        "values tried",
        "diverged/counted runs",
        "runs of a grid",
        "why it ended",
    )
    return Table(heads, rows, (False, True, True, True, True, True, False))


def table_caption(analysis: Analysis) -> str:
    """The definition, and what the interval rests on."""
    return (
        f"Boundary: half of the seeds diverge there (posterior median, 95 % credible interval). "
        "Largest stable seen: no run diverged at it nor below it; 0 of the counted runs at it, and "
        "in brackets the rate that the upper end of Wilson's 95 % interval still allows. "
        f"{saving(analysis)}"
    )


def method(analysis: Analysis) -> list[tuple[str, str]]:
    """How boundaries are found and what was measured of their intervals; else empty."""
    if analysis.study.sampler.name != "boundary":
        return []
    search = searched(analysis)
    along = axis_title(search.along)
    words = (
        f"For each series {along} is searched for the value at which half of the seeds diverge. "
        f"The divergence rate is taken to be logistic in {'log10 ' if search.log else ''}{along}, "
        "with 2 % of odd results; boundary and slope have a flat prior, over the values and a "
        "quarter of their range beyond, and over log slope. The next value is the one that is "
        "expected to tell most of the boundary. Each value has seeds of its own, for the same ones "
        "would share their luck at every value. A rate that is not monotone is not seen, and an "
        "interval that reaches beyond the values rests on the prior there. "
    )
    words += _measured()
    return [("Boundary", words)]


def _measured() -> str:
    low, high = MEASURED[0], MEASURED[-1]
    return (
        "On invented truths (4 decades, resolution 0.2, 3 seeds, at most 12 values) the 95 % "
        f"interval held the boundary in {100 * low.coverage:.0f} % of searches at a steep slope "
        f"({low.slope:g} decades) and {100 * high.coverage:.0f} % at a shallow one "
        f"({high.slope:g}), with {low.runs:.0f} and {high.runs:.0f} runs and a mean width of "
        f"{low.width:.2f} and {high.width:.2f} decades; a grid of {low.grid_runs:.0f} runs had "
        f"{low.grid_width:.2f} and {high.grid_width:.2f}."
    )


def _stable(row: dict[str, Any], along: str) -> str:
    if row["stable"] is None:
        return "none"
    spread = wilson(0, row["stable_n"])
    assert spread is not None, "a value without a counted run is not seen stable"
    return f"{_value(row['stable'], along)}: 0/{row['stable_n']} (≤ {percent(spread.high)})"


def _value(value: float, knob: str) -> str:
    return format_value(value, knob=knob, digits=2)


def _drawn(analysis: Analysis) -> pl.DataFrame:
    return analysis.boundary.filter(pl.col("boundary").is_not_null()).head(_MOST_ROWS)


_MOST_ROWS = 40


def _intervals(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "series": row["series"],
            "boundary": row["boundary"],
            "from": row["low"],
            "to": row["high"],
            "words": boundary_words(row),
            "ended": row["ended"] or "goes on",
            "cells": row["cells"],
            "runs": row["runs"],
        }
        for row in _drawn(analysis).iter_rows(named=True)
    ]


def _arrow(row: dict[str, Any], search: BoundarySearch) -> dict[str, Any]:
    """A boundary beyond the values, as an arrow outside of them: no run says how far it is."""
    first, last = (search.place(value) for value in (search.values[0], search.values[-1]))
    below = row["ended"] == BEYOND[0]
    aside = 0.025 * (last - first)
    at, outside = (search.value(first - far if below else last + far) for far in (aside, 2 * aside))
    way = "triangle-left" if below else "triangle-right"
    return {**row, "at": at, "outside": outside, "way": way}


def _tried(analysis: Analysis, search: BoundarySearch, names: list[str]) -> list[dict[str, Any]]:
    """One row a (series, value), repetitions of a value taken together."""
    found = (
        analysis.cells.filter(pl.col("series").is_in(names) & (pl.col("n") > 0))
        .group_by("series", search.along, maintain_order=True)
        .agg(pl.col("n").sum(), pl.col("diverged").sum())
    )
    rows = []
    for series, at, n, diverged in found.rows():
        spread = wilson(diverged, n)
        assert spread is not None, "n is above 0"
        rows.append(
            {
                "series": series,
                "at": at,
                "where": _value(at, search.along),
                "rate": diverged / n,
                "words": f"{diverged}/{n}",
                "interval": f"{percent(spread.low)} to {percent(spread.high)}",
            }
        )
    return rows
