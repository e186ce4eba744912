"""Best learning rate, basin width and largest stable lr against the size of the model."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.sizes import size_knobs
from wesar_sweep.reports.drawing import Chart, finish, inline, rounded, tooltips
from wesar_sweep.reports.theme import SeriesStyle, series_styles

MAX_PANELS = 4
"""Values of the other size knobs that have panels of their own; of more, the first ones."""

_BOUNDS = {
    "best_lr": ("at_low_edge", "at_high_edge"),
    "basin_width": ("basin_is_lower_bound",),
    "stable_lr": ("stable_lr_is_lower_bound",),
}
"""Figure -> the columns of `Analysis.sizes` that say that the grid cuts it off."""

_SPREAD_FACTS = (("low", "Q", "95 % from"), ("high", "Q", "to"), ("n", "Q", "seeds"))
_STABLE_FACTS = (
    ("diverged", "Q", "diverged there"),
    ("n", "Q", "of runs"),
    ("rate_high", "Q", "rate there at most (95 %)"),
    ("next", "Q", "next lr tried"),
)


def size(analysis: Analysis) -> Chart:
    """Best lr, basin width, largest stable lr against the size knob with most values.

    One row of panels each, beneath each other; a column for every value of the other size knobs.

    Args:
        analysis: A study that searches lr and a size.
    """
    knob, others = across(analysis)
    frame = analysis.sizes
    panels = panel_values(analysis)
    lines = frame.select("line", "method").unique(maintain_order=True).rows()
    look = series_styles([*lines], methods=analysis.study.method_names)
    known = [float(str(value)) for value in analysis.layout.axis_values]
    lr_scale = alt.Scale(type="log", domain=[known[0] / 1.4, known[-1] * 1.4], nice=False)
    lr_axis = alt.Axis(values=known, minExtent=42, labelExpr=_labels(known), labelOverlap="greedy")
    top = max((float(v) for v in frame["basin_width_high"].drop_nulls()), default=0.0)
    top = max(top, float(frame["basin_width"].drop_nulls().max() or 0.1))  # type: ignore[arg-type]
    widths = alt.Scale(domain=[0, 1.08 * top], nice=False), alt.Axis(tickCount=4, minExtent=42)
    charts = []
    for figure, title, scale in (
        ("best_lr", "best lr", (lr_scale, lr_axis)),
        ("basin_width", "basin width (decades)", widths),
        ("stable_lr", "largest stable lr", (lr_scale, lr_axis)),
    ):
        for values_of in panels:
            part = frame
            for name, value in zip(others, values_of, strict=True):
                part = part.filter(pl.col(name) == value)
            words = ", ".join(
                f"{axis_title(n)} {v}" for n, v in zip(others, values_of, strict=True)
            )
            panel = _panel(part, knob=knob, figure=figure, title=title, scale=scale, look=look)
            charts.append(panel.properties(title=words) if words else panel)
    chart = alt.concat(*charts, columns=len(panels))
    return finish(chart.resolve_scale(color="shared", shape="shared", strokeDash="shared"))


def across(analysis: Analysis) -> tuple[str, tuple[str, ...]]:
    """The size knob along which lines run, and the others."""
    knobs = size_knobs(analysis.layout)
    most = max(knobs, key=lambda knob: analysis.sizes[knob].n_unique())
    return most, tuple(knob for knob in knobs if knob != most)


def panel_values(analysis: Analysis) -> list[tuple[Any, ...]]:
    """The values of the other size knobs, one tuple a column of panels."""
    others = across(analysis)[1]
    if not others:
        return [()]
    return analysis.sizes.select(others).unique().sort(others).rows()[:MAX_PANELS]


def _panel(
    part: pl.DataFrame,
    *,
    knob: str,
    figure: str,
    title: str,
    scale: tuple[alt.Scale, alt.Axis],
    look: dict[str, SeriesStyle],
) -> alt.LayerChart:
    edge = "edge" if figure == "best_lr" else "bound"
    rows = [
        {
            "line": row["line"],
            "size": row[knob],
            "at": row[knob] * _aside(list(look).index(row["line"]), len(look)),
            "parameters": row["parameters"],
            "value": row[figure],
            edge: any(row[flag] for flag in _BOUNDS[figure]),
            **_spread(row, figure),
        }
        for row in part.iter_rows(named=True)
        if row[figure] is not None
    ]
    known = sorted(set(part[knob].to_list()))
    names, looks = list(look), list(look.values())
    colours = alt.Scale(domain=names, range=[s.colour for s in looks])
    colour = alt.Color("line:N", scale=colours)
    shape = alt.Shape("line:N", scale=alt.Scale(domain=names, range=[s.shape for s in looks]))
    dash = alt.StrokeDash(
        "line:N", scale=alt.Scale(domain=names, range=[list(s.dash) for s in looks])
    )
    domain = [known[0] / 1.25, known[-1] * 1.25] if known else [1, 2]
    x = alt.X(
        "at:Q",
        title=axis_title(knob),
        scale=alt.Scale(type="log", base=2, domain=domain, nice=False),
        axis=alt.Axis(values=known, format="d"),
    )
    y = alt.Y("value:Q", title=title, scale=scale[0], axis=scale[1])
    base = alt.Chart(inline(rounded(rows))).encode(x=x, color=colour)
    spread = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.4, opacity=0.6)
    marks = base.mark_point(size=60, opacity=1, strokeWidth=1.6).encode(
        y=y,
        shape=shape,
        # An open mark is cut off by the grid.
        fillOpacity=alt.condition(f"datum.{edge}", alt.value(0), alt.value(1)),
        fill=alt.Fill("line:N", scale=colours),
        tooltip=tooltips(
            ("line", "N", "series"),
            ("size", "Q", axis_title(knob)),
            ("parameters", "Q"),
            ("value", "Q", title),
            (edge, "N", "at an edge of lr" if edge == "edge" else "lower bound"),
            *(_STABLE_FACTS if figure == "stable_lr" else _SPREAD_FACTS),
        ),
    )
    layers = [
        base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash),
        spread.encode(y=alt.Y("low:Q", scale=scale[0]), y2="high:Q"),
        marks,
    ]
    return alt.LayerChart(layer=layers, width=250, height=170)


def _spread(row: dict[str, Any], figure: str) -> dict[str, Any]:
    if figure != "stable_lr":
        return {"low": row[f"{figure}_low"], "high": row[f"{figure}_high"], "n": row["n_seeds"]}
    # Its interval is of the rate there, not of an lr: a bar along this axis would mean another.
    return {
        "low": None,
        "high": None,
        "n": row["stable_lr_n"],
        "diverged": row["stable_lr_diverged"],
        "rate_high": row["stable_lr_rate_high"],
        "next": row["stable_lr_next"],
    }


def _aside(place: int, count: int) -> float:
    """A factor by which lines are moved apart along a logarithmic axis, so that all are seen."""
    return float(1.06 ** (place - (count - 1) / 2))


def _labels(known: list[float]) -> str:
    """Vega's expression for the words of an lr."""
    labels = {f"{value:g}": format_value(value, knob="lr", digits=3) for value in known}
    return f"({json.dumps(labels)})[format(datum.value, '~g')]"
