"""Charts of final losses, as Altair objects that stand alone."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.config.knobs import Scalar
from wesar_sweep.reports.drawing import (
    IS_PICKED,
    IS_SHOWN,
    Chart,
    finish,
    inline,
    rounded,
    series_encodings,
    styles,
    tooltips,
)

_FIT = alt.AutoSizeParams(type="fit", contains="padding")


def loss_against_axis(
    analysis: Analysis, *, zoom: float | None = None, effective: bool = False
) -> Chart:
    """Loss against lr, one line a series with its interval, every seed as a mark.

    Args:
        analysis: A study with an axis.
        zoom: Show only this many nats above the lowest loss; None shows everything.
        effective: Draw against the effective lr; only where the axis is lr.
    """
    axis = analysis.layout.axis
    assert axis is not None, "a study without an axis has no such chart"
    look = styles(analysis)
    place = "effective_lr" if effective else axis
    points = rounded(_points(analysis, place, list(look)))
    x = _effective_x(points) if effective else _axis_x(analysis, axis)
    also = [("effective_lr", "Q", "effective lr")] if effective else []
    low = min((row["capped_loss"] for row in points), default=0.0)
    high = max((row["capped_loss"] for row in points), default=1.0)
    if zoom is None:
        scale = alt.Scale(type="log", domain=[low * 0.98, high * 1.03], nice=False)
    else:
        scale = alt.Scale(domain=[low - 0.04 * zoom, low + zoom], nice=False)
    y = alt.Y("loss:Q", title="validation loss (nats a token)", scale=scale)
    colour, shape, dash = series_encodings(look, symbolDash=[1, 0])
    seed_tip = tooltips(
        ("series", "N"),
        ("where", "N", axis_title(axis)),
        *also,
        ("seed", "Q"),
        ("capped_loss", "Q", "loss, capped"),
        ("status", "N"),
        ("reason", "N"),
    )
    marks = alt.Chart(inline(points)).transform_filter(IS_SHOWN)
    marks = marks.encode(
        x=x,
        y=alt.Y("capped_loss:Q", scale=scale, title="validation loss (nats a token)"),
        color=colour,
        tooltip=seed_tip,
    )
    layers: list[Any] = []
    if analysis.layout.gridded:
        cells = rounded(_lines(analysis, place, list(look)))
        base = alt.Chart(inline(cells)).transform_filter(IS_SHOWN).encode(color=colour)
        band = base.mark_area(clip=True, opacity=0.1).encode(
            x=x, y=alt.Y("loss_low:Q", scale=scale), y2="loss_high:Q", color=colour
        )
        line = base.mark_line(clip=True).encode(x=x, y=y, strokeDash=dash)
        dots = base.mark_point(clip=True, filled=True, size=70, opacity=1).encode(
            x=x,
            y=y,
            shape=shape,
            tooltip=tooltips(
                ("series", "N"),
                ("where", "N", axis_title(axis)),
                *also,
                ("loss", "Q"),
                ("interval", "N"),
                ("n", "Q", "seeds"),
                ("divergence", "N", "diverged"),
            ),
        )
        layers += [band, line, dots]
    seeds = marks.transform_filter("datum.status == 'completed'").mark_point(
        clip=True, filled=True, size=14 if analysis.layout.gridded else 40
    )
    lost = marks.transform_filter("datum.status == 'diverged'").mark_point(
        clip=True, filled=False, size=75, strokeWidth=1.6
    )
    seeds, lost = (
        part.encode(shape=shape, opacity=alt.condition(IS_PICKED, alt.value(0.9), alt.value(0.12)))
        for part in (seeds, lost)
    )
    chart = alt.layer(*layers, seeds, lost)
    return finish(chart.properties(width=640, height=340, autosize=_FIT))


def _points(analysis: Analysis, place: str, shown: list[str]) -> list[dict[str, Any]]:
    """Every counted run; those of different series moved apart a little along the axis."""
    axis = str(analysis.layout.axis)
    frame = analysis.seed_points.filter(pl.col("series").is_in(shown))
    names = ("series", "trial", "seed", "capped_loss", "status", "reason")
    rows = list(frame.select(*names, *dict.fromkeys((axis, place))).iter_rows(named=True))
    for row in rows:
        row["where"] = _axis_words(analysis, row[axis])
        row["at"] = _aside(analysis, row[place], shown.index(row["series"]), len(shown))
    return rows


def _aside(analysis: Analysis, value: float, index: int, count: int) -> float:
    if not analysis.layout.gridded or count < 2:
        return value
    share = index / (count - 1) - 0.5
    if analysis.layout.log:
        return float(value * 10 ** (0.10 * share))
    known = [float(str(v)) for v in analysis.layout.axis_values]
    return value + 0.1 * share * (min(np.diff(known)) if len(known) > 1 else 1.0)


def _lines(analysis: Analysis, place: str, shown: list[str]) -> list[dict[str, Any]]:
    axis = str(analysis.layout.axis)
    frame = analysis.lr_curves.filter(pl.col("series").is_in(shown))
    rows = []
    for row in frame.iter_rows(named=True):
        spread = "one seed: none"
        if row["loss_low"] is not None:
            spread = f"{row['loss_low']:.3f} to {row['loss_high']:.3f}"
        keep = ("series", axis, place, "loss", "loss_low", "loss_high", "n")
        rows.append(
            {
                **{name: row[name] for name in keep},
                "at": row[place],
                "where": _axis_words(analysis, row[axis]),
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
    settings: dict[str, Any] = {"labelExpr": label_expression(axis)}
    if analysis.layout.axis_values:
        settings["values"] = known
    scale = alt.Scale(type="log" if log else "linear", nice=False, zero=False)
    if known and log:
        scale = alt.Scale(type="log", nice=False, domain=[known[0] / 1.25, known[-1] * 1.25])
        settings.setdefault("values", decade_ticks(known[0], known[-1]))
    elif len(known) > 1:
        pad = 0.05 * (known[-1] - known[0])
        scale = alt.Scale(nice=False, zero=False, domain=[known[0] - pad, known[-1] + pad])
    return alt.X("at:Q", title=axis_title(axis), scale=scale, axis=alt.Axis(**settings))


def _effective_x(points: list[dict[str, Any]]) -> alt.X:
    found = [row["effective_lr"] for row in points]
    low, high = min(found) / 1.25, max(found) * 1.25
    return alt.X(
        "at:Q",
        title="effective lr (lr · initial gate of the median matrix)",
        scale=alt.Scale(type="log", nice=False, domain=[low, high]),
        axis=alt.Axis(labelExpr=label_expression("lr"), values=decade_ticks(low, high)),
    )


def decade_ticks(low: float, high: float) -> list[float]:
    """1 and 3 times every power of ten that a logarithmic axis spans."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{digit}e{power}") for power in decades for digit in (1, 3)]


def _axis_words(analysis: Analysis, value: Scalar) -> str:
    digits = None if analysis.layout.gridded else 3
    return format_value(value, knob=str(analysis.layout.axis), digits=digits)


def label_expression(axis: str) -> str:
    """Vega's expression for what `format_value` writes: 1e-2, 3 and 10, never 1e+1."""
    low, high = ("1", "1e4") if axis in ("lr", "sigma2") else ("1e-3", "1e6")
    plain = f"datum.value == 0 || (abs(datum.value) >= {low} && abs(datum.value) < {high})"
    exponent = "replace(format(datum.value, '~e'), 'e+', 'e')"
    return f"{plain} ? format(datum.value, '.15~g') : {exponent}"
