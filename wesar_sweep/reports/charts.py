"""Charts of losses and divergence, as Altair objects that stand alone: notebook, paper, report."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.verdict import percent
from wesar_sweep.reports.drawing import (
    Chart,
    finish,
    inline,
    rounded,
    series_encodings,
    styles,
    tooltips,
)
from wesar_sweep.store.frames import curves_frame

MAX_PANELS = 12
MAX_CURVES = 500
POINTS = 40_000
"""Points of all loss curves together."""

_FIT = alt.AutoSizeParams(type="fit", contains="padding")


def loss_against_axis(analysis: Analysis, *, zoom: float | None = None) -> Chart:
    """Loss against lr, one line a series with its interval, every seed as a mark.

    Args:
        analysis: A study with an axis.
        zoom: Show only this many nats above the lowest loss; None shows everything.
    """
    axis = analysis.layout.axis
    assert axis is not None, "a study without an axis has no such chart"
    look = styles(analysis)
    points = rounded(_points(analysis, axis, list(look)))
    x = _axis_x(analysis, axis)
    low = min((row["capped_loss"] for row in points), default=0.0)
    high = max((row["capped_loss"] for row in points), default=1.0)
    if zoom is None:
        scale = alt.Scale(type="log", domain=[low * 0.98, high * 1.03], nice=False)
    else:
        scale = alt.Scale(domain=[low - 0.04 * zoom, low + zoom], nice=False)
    y = alt.Y("loss:Q", title="validation loss (nats a token)", scale=scale)
    colour, shape, dash = series_encodings(look, symbolDash=[1, 0])
    picked = alt.selection_point(fields=["series"], bind="legend")
    fade = alt.condition(picked, alt.value(1), alt.value(0.12))
    seed_tip = tooltips(
        ("series", "N"),
        (axis, "Q"),
        ("seed", "Q"),
        ("capped_loss", "Q", "loss, capped"),
        ("status", "N"),
        ("reason", "N"),
    )
    marks = alt.Chart(inline(points)).encode(
        x=x,
        y=alt.Y("capped_loss:Q", scale=scale, title="validation loss (nats a token)"),
        color=colour,
        tooltip=seed_tip,
    )
    layers: list[Any] = []
    if analysis.layout.gridded:
        cells = rounded(_lines(analysis, axis, list(look)))
        base = alt.Chart(inline(cells)).encode(color=colour)
        band = base.mark_area(clip=True, opacity=0.1).encode(
            x=x, y=alt.Y("loss_low:Q", scale=scale), y2="loss_high:Q", color=colour
        )
        line = base.mark_line(clip=True).encode(x=x, y=y, strokeDash=dash, opacity=fade)
        dots = base.mark_point(clip=True, filled=True, size=70, opacity=1).encode(
            x=x,
            y=y,
            shape=shape,
            opacity=fade,
            tooltip=tooltips(
                ("series", "N"),
                (axis, "Q"),
                ("loss", "Q"),
                ("interval", "N"),
                ("n", "Q", "seeds"),
                ("divergence", "N", "diverged"),
            ),
        )
        layers += [band, line, dots]
    seeds = marks.transform_filter("datum.status == 'completed'").mark_point(
        clip=True, filled=True, size=14 if analysis.layout.gridded else 40, opacity=0.55
    )
    lost = marks.transform_filter("datum.status == 'diverged'").mark_point(
        clip=True, filled=False, size=75, strokeWidth=1.6, opacity=0.9
    )
    seeds, lost = (part.encode(opacity=fade, shape=shape) for part in (seeds, lost))
    chart = alt.layer(*layers, seeds, lost).add_params(picked)
    return finish(chart.properties(width=640, height=340, autosize=_FIT))


def divergence_map(analysis: Analysis) -> Chart:
    """Divergence rate as a heat map of series against the axis, with k/n in every cell."""
    axis = analysis.layout.axis
    assert axis is not None and analysis.layout.gridded, "only a grid has a map"
    rows = [
        {
            "series": row["series"],
            "at": format_value(row[axis], knob=axis),
            "rate": row["rate"],
            "words": f"{row['diverged']}/{row['n']}",
            "interval": f"{percent(row['rate_low'])} to {percent(row['rate_high'])}",
        }
        for row in analysis.lr_curves.iter_rows(named=True)
    ]
    order = [format_value(value, knob=axis) for value in analysis.layout.axis_values]
    names = [name for name in analysis.series if any(row["series"] == name for row in rows)]
    base = alt.Chart(inline(rounded(rows))).encode(
        x=alt.X(
            "at:N",
            sort=order,
            title=axis_title(axis),
            axis=alt.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=8),
        ),
        y=alt.Y("series:N", sort=names, title=None, axis=alt.Axis(labelLimit=260)),
        tooltip=tooltips(
            ("series", "N"),
            ("at", "N", axis_title(axis)),
            ("words", "N", "diverged"),
            ("interval", "N", "95 % interval of the rate"),
        ),
    )
    scale = alt.Scale(domain=[0, 1], range=["#e3ebf3", "#f3c79b", "#c2500f"], interpolate="rgb")
    legend = alt.Legend(title="divergence rate", format="%", gradientLength=110, titleOrient="left")
    cells = base.mark_rect(stroke="#8b95a3", strokeWidth=0.5).encode(
        color=alt.Color("rate:Q", scale=scale, legend=legend)
    )
    words = base.mark_text(fontSize=12).encode(
        text="words:N",
        color=alt.condition("datum.rate > 0.8", alt.value("white"), alt.value("#1d2430")),
    )
    height = 32 * max(len(names), 1) + 100
    return finish(alt.layer(cells, words).properties(width=640, height=height, autosize=_FIT))


def loss_curves(analysis: Analysis) -> Chart:
    """Training loss of the runs against steps: a panel an axis value, a line a run."""
    look = styles(analysis)
    axis = analysis.layout.axis
    runs = _curve_runs(analysis, list(look))
    kept = {key: analysis.curves[key] for key in runs.select("trial", "seed").rows()}
    per_run = max(24, min(240, POINTS // max(len(kept), 1)))
    frame = curves_frame(kept, points=per_run).join(runs, on=["trial", "seed"])
    rows = []
    for row in frame.iter_rows(named=True):
        panel = row["series"]
        if axis is not None and analysis.layout.gridded:
            panel = f"{axis_title(axis)} {format_value(row[axis], knob=axis)}"
        rows.append({**row, "panel": panel})
    if axis is not None:
        rows.sort(key=lambda row: row[axis])
    order = list(dict.fromkeys(row["panel"] for row in rows))
    longest = max((row["step"][-1] for row in rows if row["step"]), default=1)
    losses = [x for r in rows for x in r["loss"] if math.isfinite(x)]
    start = max((r["init_loss"] for r in rows if _finite(r["init_loss"])), default=None)
    low = min(losses, default=0.1)
    top = 1.15 * start if start is not None else max(losses, default=1.0)
    scale = alt.Scale(type="log", domain=[max(low * 0.97, 1e-3), max(top, low * 1.1)], nice=False)
    colour, _, dash = series_encodings(look)
    picked = alt.selection_point(fields=["series"], bind="legend")
    fade = alt.condition(picked, alt.value(0.75), alt.value(0.06))
    keep = ("panel", "series", "trial", "seed", "status", "step", "loss")
    tip = tooltips(("series", "N"), ("trial", "Q"), ("seed", "Q"), ("status", "N"), ("step", "Q"))
    base = alt.Chart().encode(
        x=alt.X(
            "step:Q",
            title="step",
            axis=alt.Axis(tickCount=4),
            scale=alt.Scale(domain=[0, longest], nice=False),
        ),
        y=alt.Y("loss:Q", title="training loss", scale=scale),
        color=colour,
        opacity=fade,
    )
    lines = base.mark_line(strokeWidth=1.1, clip=True, invalid="break-paths-show-path-domains")
    lines = lines.encode(detail=["trial:N", "seed:N"], strokeDash=dash, tooltip=tip)
    lines = lines.transform_flatten(["step", "loss"]).add_params(picked)
    ends = base.transform_filter("datum.status == 'diverged'").mark_point(
        shape="cross", angle=45, size=55, clip=True, filled=True
    )
    ends = ends.encode(x="end:Q", y=alt.Y("end_loss:Q", scale=scale), tooltip=tip[:4])
    records = [{**{k: r[k] for k in keep}, **_end(r, top)} for r in rows]
    chart = alt.layer(lines, ends, data=inline(rounded(records)))
    chart = chart.properties(width=250, height=170)
    panels = chart.facet(facet=alt.Facet("panel:N", sort=order, title=None), columns=3)
    # Its own axis a panel: with a shared one, empty places of the last row would have one too.
    return finish(panels.resolve_axis(x="independent"))


def _curve_runs(analysis: Analysis, shown: list[str]) -> pl.DataFrame:
    """The runs whose loss curves are drawn: of `MAX_PANELS` axis values, `MAX_CURVES` in all."""
    axis = analysis.layout.axis
    have = pl.DataFrame(
        sorted(analysis.curves), schema={"trial": pl.Int64, "seed": pl.Int64}, orient="row"
    )
    extra = [] if axis is None else [axis]
    runs = (
        analysis.outcomes.filter(pl.col("status") != "failed")
        .select("trial", "seed", "status", "init_loss", *extra)
        .join(have, on=["trial", "seed"])
        .join(analysis.cells.select("trial", "series"), on="trial")
        .filter(pl.col("series").is_in(shown))
    )
    if axis is not None and analysis.layout.gridded:
        values = runs[axis].unique().sort()
        if len(values) > MAX_PANELS:
            places = np.unique(np.linspace(0, len(values) - 1, MAX_PANELS).round().astype(int))
            runs = runs.filter(pl.col(axis).is_in(values[places.tolist()].to_list()))
    if runs.height > MAX_CURVES:
        # Whole cells are left out from the worse end, so that no cell shows a part of its seeds.
        order = [*analysis.ranked["trial"].to_list()]
        rank = {trial: place for place, trial in enumerate(order)}
        ranks = [rank.get(trial, len(order)) for trial in runs["trial"]]
        runs = runs.with_columns(pl.Series("rank", ranks)).sort("rank", "seed")
        runs = runs.head(MAX_CURVES).drop("rank")
    return runs.sort("trial", "seed")


def _end(row: dict[str, Any], top: float) -> dict[str, Any]:
    """Where a diverged run's line ends, kept inside the panel."""
    if row["status"] != "diverged":
        return {}
    finite = [x for x in row["loss"] if math.isfinite(x)]
    last = finite[-1] if finite else top
    return {"end": row["step"][-1] if row["step"] else 0, "end_loss": min(last, top)}


def _points(analysis: Analysis, axis: str, shown: list[str]) -> list[dict[str, Any]]:
    """Every counted run; those of different series moved apart a little along the axis."""
    frame = analysis.seed_points.filter(pl.col("series").is_in(shown))
    names = ("series", "trial", "seed", "capped_loss", "status", "reason", axis)
    rows = [dict(zip(names, row, strict=True)) for row in frame.select(names).rows()]
    for row in rows:
        row["at"] = _aside(analysis, row[axis], shown.index(row["series"]), len(shown))
    return rows


def _aside(analysis: Analysis, value: float, index: int, count: int) -> float:
    if not analysis.layout.gridded or count < 2:
        return value
    share = index / (count - 1) - 0.5
    if analysis.layout.log:
        return float(value * 10 ** (0.10 * share))
    known = [float(str(v)) for v in analysis.layout.axis_values]
    return value + 0.1 * share * (min(np.diff(known)) if len(known) > 1 else 1.0)


def _lines(analysis: Analysis, axis: str, shown: list[str]) -> list[dict[str, Any]]:
    frame = analysis.lr_curves.filter(pl.col("series").is_in(shown))
    rows = []
    for row in frame.iter_rows(named=True):
        spread = "one seed: none"
        if row["loss_low"] is not None:
            spread = f"{row['loss_low']:.3f} to {row['loss_high']:.3f}"
        keep = ("series", axis, "loss", "loss_low", "loss_high", "n")
        rows.append(
            {
                **{name: row[name] for name in keep},
                "at": row[axis],
                "interval": spread,
                "divergence": f"{row['diverged']}/{row['n']}",
            }
        )
    return rows


def _axis_x(analysis: Analysis, axis: str) -> alt.X:
    known = [float(str(value)) for value in analysis.layout.axis_values]
    if not known:
        found = [float(value) for value in analysis.cells[axis].drop_nulls()]
        known = [min(found), max(found)] if found else []
    log = analysis.layout.log
    scientific = axis in ("lr", "sigma2")
    settings: dict[str, Any] = {"format": "~g"}
    if scientific:
        # As `format_value` writes it: 3, not 3e+0.
        settings = {"labelExpr": "replace(format(datum.value, '~e'), 'e+0', '')"}
    if analysis.layout.axis_values:
        settings["values"] = known
    scale = alt.Scale(type="log" if log else "linear", nice=False, zero=False)
    if known and log:
        scale = alt.Scale(type="log", nice=False, domain=[known[0] / 1.25, known[-1] * 1.25])
    elif len(known) > 1:
        pad = 0.05 * (known[-1] - known[0])
        scale = alt.Scale(nice=False, zero=False, domain=[known[0] - pad, known[-1] + pad])
    return alt.X("at:Q", title=axis_title(axis), scale=scale, axis=alt.Axis(**settings))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
