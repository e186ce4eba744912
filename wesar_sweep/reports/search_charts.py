"""Charts of a search: history, importance, parallel coordinates, Pareto front."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.search import dimensions
from wesar_sweep.analysis.verdict import setting
from wesar_sweep.reports.drawing import (
    IS_PICKED,
    IS_SHOWN,
    Chart,
    finish,
    inline,
    rounded,
    tooltips,
)
from wesar_sweep.reports.theme import series_styles

TITLES = {
    "val_loss": "validation loss (nats a token)",
    "divergence_rate": "divergence rate",
    "spikes": "spikes a run",
}
"""What an axis calls an objective."""

MAX_POINTS = 1_000
"""Cells in the history; of more, every n-th and all that were the best so far."""

MAX_LINES = 300
"""Cells in the parallel coordinates; of more, the best half as many, and evenly of the others."""

_BEST, _WORST, _GREY = "#d1600f", "#8b95a3", "#8b95a3"
_OFF = -0.16
"""Where a cell stands along a knob that it does not have."""

_KEPT = ("trial", "series", "method", "diverged", "on_front")
_MARKS = ("none diverged", "some diverged", "cut short by the pruner")
_FIT = alt.AutoSizeParams(type="fit", contains="padding")


def history(analysis: Analysis) -> Chart:
    """The first objective of every cell in the order it was asked for, and the best so far."""
    objective = analysis.study.objectives[0]
    rows = rounded(_cells(analysis))
    best = analysis.search_history.select("trial", "best").drop_nulls()
    changes = best.filter(best["best"] != best["best"].shift(1, fill_value=np.inf))
    steps = rounded([*changes.rows(named=True), *best.tail(1).rows(named=True)])
    low = min((row[objective] for row in rows), default=0.0)
    high = max((row[objective] for row in rows), default=1.0)
    scale = (
        alt.Scale(type="log", domain=[low * 0.98, high * 1.03], nice=False)
        if low > 0
        else alt.Scale(zero=False)
    )
    ticks = alt.Axis(tickCount=6)
    y = alt.Y(f"{objective}:Q", title=TITLES[objective], scale=scale, axis=ticks)
    # Given, since where all series are switched off there is no extent to take it from.
    trials = alt.Scale(domain=[0, max(1, *(row["trial"] for row in rows))])
    x = alt.X("trial:Q", title="trial", axis=alt.Axis(tickMinStep=1, format="d"), scale=trials)
    line = (
        alt.Chart(inline(steps))
        .mark_line(interpolate="step-after", color=_GREY, strokeWidth=2)
        .encode(x=x, y=alt.Y("best:Q", title=TITLES[objective], scale=scale, axis=ticks))
    )
    base = (
        alt.Chart(inline(rows))
        .transform_filter(IS_SHOWN)
        .encode(
            x=x,
            y=y,
            color=_method_colour(analysis),
            opacity=alt.condition(IS_PICKED, alt.value(0.9), alt.value(0.12)),
            tooltip=_tips(analysis),
        )
    )
    whole = base.transform_filter("datum.mark === 0").mark_point(filled=True, size=55)
    lost = base.transform_filter("datum.mark === 1").mark_point(size=65, strokeWidth=1.6)
    cut = base.transform_filter("datum.mark === 2")
    cut = cut.mark_point(shape="cross", size=40, strokeWidth=1)
    # A layer without a mark would be a picture of nothing to a screen reader.
    have = {row["mark"] for row in rows}
    marks = [part for place, part in ((2, cut), (0, whole), (1, lost)) if place in have]
    chart = alt.layer(line, *marks)
    return finish(chart.properties(width=640, height=300, autosize=_FIT))


def importance(analysis: Analysis) -> Chart:
    """The share of every knob, with its spread over resampled cells, beside what chance gives."""
    total = float(analysis.importance["importance"].sum()) or 1.0
    rows = rounded(
        {
            "knob": axis_title(row["knob"]),
            **{name: row[name] for name in ("share", "share_low", "share_high", "p_holm")},
            "by_chance": row["chance"] / total,
        }
        for row in analysis.importance.iter_rows(named=True)
    )
    y = alt.Y("knob:N", sort=[row["knob"] for row in rows], title=None)
    percents = alt.Axis(format="%", tickCount=6)
    base = alt.Chart(inline(rows)).encode(
        y=y,
        tooltip=tooltips(
            ("knob", "N"),
            ("share", "Q", "share of importance"),
            ("share_low", "Q", "from"),
            ("share_high", "Q", "to"),
            ("by_chance", "Q", "the same by chance"),
            ("p_holm", "Q", "p (Holm)"),
        ),
    )
    x = alt.X("share:Q", title="share of importance", axis=percents)
    bars = base.mark_bar(color="#2f7dd1", opacity=0.45, height={"band": 0.55}).encode(x=x)
    spread = base.mark_rule(color="#2f7dd1", strokeWidth=2).encode(
        x=alt.X("share_low:Q", title="share of importance", axis=percents), x2="share_high:Q"
    )
    chance = base.mark_tick(color=_BEST, thickness=2.5, size=20).encode(x="by_chance:Q")
    return finish(
        alt.layer(bars, spread, chance).properties(
            width=640, height=max(60, 34 * len(rows)), autosize=_FIT
        )
    )


def parallel_coordinates(analysis: Analysis) -> Chart:
    """One line a cell through its value of every searched knob, coloured by its rank."""
    objective = analysis.study.objectives[0]
    knobs = dimensions(analysis.search_history, study=analysis.study)
    cells = _cells(analysis, thin=False)
    values_N = np.array([row[objective] for row in cells])
    # Cells that were cut short behind the others, as everywhere.
    order = np.lexsort((values_N, [row["mark"] == 2 for row in cells]))
    rank_N = np.empty(len(cells))
    rank_N[order] = np.linspace(0, 1, len(cells)) if len(cells) > 1 else 0
    names = [*(axis_title(one.knob) for one in knobs), "rank"]
    shown = _thinned(order)
    rows = []
    # The best are drawn last, above the others.
    for place in shown[::-1]:
        at = [one.places[place] for one in knobs]
        rows.append(
            {
                **cells[place],
                "rank": float(rank_N[place]),
                "strength": 0.95 if rank_N[place] < 0.1 else 0.4,
                "name": names,
                "at": [*(_OFF if one is None else one for one in at), float(rank_N[place])],
            }
        )
    x = alt.X(
        "name:N",
        sort=names,
        title=None,
        scale=alt.Scale(type="point", padding=0.35),
        axis=alt.Axis(orient="top", domain=False, ticks=False, labelAngle=0, labelFontSize=13),
    )
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[_OFF - 0.04, 1.04], nice=False))
    lines = (
        alt.Chart(inline(rounded(rows)))
        .transform_filter(IS_SHOWN)
        .mark_line(strokeWidth=1.4)
        .transform_flatten(["name", "at"])
        .encode(
            x=x,
            y=y,
            detail="trial:N",
            color=alt.Color(
                "rank:Q",
                scale=alt.Scale(domain=[0, 1], range=[_BEST, _WORST]),
                legend=None,
            ),
            opacity=alt.condition(
                IS_PICKED, alt.Opacity("strength:Q", scale=None, legend=None), alt.value(0.06)
            ),
            strokeDash=alt.condition("datum.diverged > 0", alt.value([5, 3]), alt.value([1, 0])),
            tooltip=_tips(analysis),
        )
    )
    ticks = []
    for one, name in zip(knobs, names, strict=False):
        ticks += [
            {"name": name, "at": at, "words": _tick(value, one.knob)} for at, value in one.ticks
        ]
        if any(place is None for place in one.places):
            ticks.append({"name": name, "at": _OFF, "words": "none"})
    last = len(order) - 1
    for place in sorted({round(share * last) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}):
        word = f"{place + 1}" if place else f"1 ({values_N[order[0]]:.4g})"
        ticks.append({"name": names[-1], "at": place / max(1, last), "words": word})
    axes = (
        alt.Chart(inline([{"name": name, "at": 0.0, "to": 1.0} for name in names]))
        .mark_rule(color=_GREY, strokeWidth=1.2)
        .encode(x=x, y=y, y2="to:Q")
    )
    labels = (
        alt.Chart(inline(rounded(ticks)))
        .mark_text(align="left", dx=6, fontSize=11, fontWeight="bold")
        .encode(x=x, y=y, text="words:N")
        .properties(name="ink")
    )
    return finish(
        alt.layer(lines, axes, labels).properties(
            width=max(640, 120 * len(names)), height=320, autosize=_FIT
        )
    )


def pareto_front(analysis: Analysis) -> Chart:
    """Every other objective against the first, a panel each; cells of the front are filled."""
    first, *others = analysis.study.objectives
    rows = rounded(
        {**row, "panel": TITLES[other], "first": row[first], "other": row[other]}
        for row in _cells(analysis)
        for other in others
    )
    base = (
        alt.Chart(inline(rows))
        .transform_filter(IS_SHOWN)
        .encode(
            x=alt.X("first:Q", title=TITLES[first], scale=alt.Scale(zero=False)),
            y=alt.Y("other:Q", title=None, scale=alt.Scale(zero=False)),
            color=_method_colour(analysis),
            tooltip=_tips(analysis),
        )
    )
    front = base.transform_filter("datum.on_front").mark_point(filled=True, size=80, opacity=1)
    rest = base.transform_filter("!datum.on_front").mark_point(size=40, opacity=0.6)
    width = 560 if len(others) == 1 else 290
    marks = [front] if all(row["on_front"] for row in rows) else [rest, front]
    panels = alt.layer(*marks).properties(width=width, height=260)
    faceted = panels.facet(facet=alt.Facet("panel:N", sort=[TITLES[o] for o in others], title=None))
    return finish(faceted.resolve_scale(y="independent"))


def _method_colour(analysis: Analysis) -> alt.Color:
    """The colour of the method: a search has too many series for one each."""
    used = analysis.search_history["method"].unique(maintain_order=True).to_list()
    look = series_styles([(name, name) for name in used], methods=analysis.study.method_names)
    scale = alt.Scale(domain=used, range=[look[name].colour for name in used])
    # Without its own opacity the legend would be as faint as a mark that is not picked.
    legend = alt.Legend(symbolOpacity=1, symbolType="circle", symbolStrokeWidth=2)
    return alt.Color("method:N", scale=scale, legend=legend if len(used) > 1 else None)


def _cells(analysis: Analysis, *, thin: bool = True) -> list[dict[str, Any]]:
    """One record a cell: series, setting in words, objectives, counts, and how it is marked."""
    series = dict(analysis.cells.select("trial", "series").rows())
    found = analysis.search_history
    if thin and found.height > MAX_POINTS:
        improved = (found["best"] < found["best"].shift(1, fill_value=np.inf)).fill_null(False)
        nth = np.arange(found.height) % -(-found.height // MAX_POINTS) == 0
        found = found.filter(improved.to_numpy() | nth)
    rows = []
    for row in found.iter_rows(named=True):
        named = row | {"series": series[row["trial"]]}
        record: dict[str, Any] = {name: row[name] for name in analysis.study.objectives}
        rows.append(
            record
            | {
                **{name: named[name] for name in _KEPT},
                "setting": setting(named, study=analysis.study, layout=analysis.layout),
                "runs": f"{row['diverged']}/{row['n']}",
                "mark": 2 if row["pruned"] else 1 if row["diverged"] else 0,
                "how": _MARKS[2 if row["pruned"] else 1 if row["diverged"] else 0],
            }
        )
    return rows


def _tips(analysis: Analysis) -> list[alt.Tooltip]:
    objectives = [(name, "Q", TITLES[name]) for name in analysis.study.objectives]
    return tooltips(
        ("setting", "N"),
        ("trial", "Q"),
        *objectives,
        ("runs", "N", "diverged"),
        ("how", "N", "runs"),
    )


def _tick(value: Any, knob: str) -> str:
    return format_value(value, knob=knob, digits=3)


def _thinned(order: np.ndarray[Any, np.dtype[np.intp]]) -> list[int]:
    """The places that are drawn, best first."""
    if len(order) <= MAX_LINES:
        return [int(place) for place in order]
    best = MAX_LINES // 2
    others = np.linspace(best, len(order) - 1, MAX_LINES - best).astype(int)
    return [int(place) for place in (*order[:best], *order[others])]
