"""The stability map: divergence over lr and a second axis, with the boundary and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value, searched_knobs
from wesar_sweep.analysis.choice import choice, fixed_beforehand
from wesar_sweep.analysis.stability_boundary import second_axes
from wesar_sweep.analysis.verdict import percent
from wesar_sweep.config.study import Study
from wesar_sweep.reports.charts import decade_ticks, label_expression
from wesar_sweep.reports.drawing import IS_SHOWN, Chart, finish, inline, rounded, tooltips
from wesar_sweep.reports.tables import Table

ROW_HEIGHT = 34
INK = "#1d2430"
"""On the cells of a grid, which are light in both themes."""
MIDDLE = "#6b7a90"
"""On the bare page, light or dark."""

_ESTIMATE = (
    "The boundary is where isotonic regression passes one half: that the rate rises with lr is "
    "assumed, its shape is not, so it lies between two lr that were tried and no point between is "
    "a better guess. Its 95 % interval inverts exact binomial tests and ends at lr that were "
    "tried: "
)
_FIXED = (
    "it holds the truth at least so often for any rate that rises, if runs at different lr are "
    "independent; in simulations of 3 to 10 seeds in more than 99 % of studies. "
)
_CHOSEN = (
    "n or the lr was chosen by outcomes here, so that nothing guarantees how often it holds the "
    "truth; in simulations it was at least 97 % of studies, if runs at different lr are "
    "independent. "
)
_PRUNED = (
    "the pruner chose n by outcomes here, so that nothing guarantees how often it holds the truth, "
    "and no simulation says it. "
)
_SHARED = (
    "Seeds shared along the axis, each with a threshold of its own, can lower that to about 89 %. "
)
_PRICE = (
    "The price is width: from a clean "
    "jump it reaches one lr further on either side with 3 to 5 seeds, none with 6 or more."
)


def limits(study: Study) -> str:
    """What the boundary supposes and how often its interval holds, of a study chosen so."""
    promise = _FIXED if fixed_beforehand(study) else _CHOSEN if study.pruner is None else _PRUNED
    # Each value of a boundary search has seeds of its own.
    shared = _SHARED if study.pruner is None and choice(study) != "boundary" else ""
    return f"{_ESTIMATE}{promise}{shared}{_PRICE}"


def maps(analysis: Analysis) -> list[tuple[str, str | None]]:
    """(name, second axis) of every map that the study has data for; the series where none is."""
    axis = analysis.layout.axis
    if axis is None or not int(analysis.lr_curves["diverged"].sum()):
        return []
    first, *others = second_axes(analysis.study, analysis.layout) or (None,)
    return [("stability-map", first), *((f"stability-map-{knob}", knob) for knob in others)]


def stability_map(analysis: Analysis, *, across: str | None) -> Chart:
    """Divergence rate over the study's axis and another, with k/n; the boundary where that is lr.

    Args:
        analysis: A study with an axis.
        across: The second axis; None for the series.
    """
    axis = analysis.layout.axis
    assert axis is not None, "a study without an axis has no map"
    placed = analysis.stability_cells(across=across)
    gridded = analysis.layout.gridded
    places = [format_value(value, knob=axis) for value in analysis.layout.axis_values]
    records = [_cell(row, axis, across, gridded=gridded) for row in placed.iter_rows(named=True)]
    series = {record["row"]: record["series"] for record in records}
    for row in analysis.stability_boundary(across=across).iter_rows(named=True):
        at = {float(str(value)): place for place, value in enumerate(analysis.layout.axis_values)}
        label = _label(row, across)
        records += _boundary(row, label, at if gridded else None, series[label])
    found = [float(value) for value in placed[axis]]
    place = _place_axis(axis, places) if gridded else _lr_axis(analysis, axis, found)
    domain = _row_labels(placed, across)
    if across is None:
        domain = [name for name in analysis.series if name in domain]
    scale = alt.Scale(domain=domain)
    labels = alt.Axis(labelLimit=260, grid=False, ticks=False, labelPadding=6)
    y = alt.Y("row:N", scale=scale, title=None, axis=labels)

    base = alt.Chart().transform_filter(IS_SHOWN).encode(y=y)
    chart = alt.layer(
        *_cell_layers(base, place, axis, gridded=gridded),
        *_boundary_layers(base, place, scale, gridded=gridded),
        data=inline(rounded(records)),
    )
    height = ROW_HEIGHT * max(len(domain), 1) + 100
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return finish(chart.properties(width=640, height=height, autosize=fit))


def _label(row: Mapping[str, Any], across: str | None) -> str:
    """``wesar σ²=1e-3``: a row with its panel; one without a σ² is its panel alone."""
    if across is None:
        return str(row["row"])
    sign = " " if row["across_low"] != row["across_high"] else "="
    own = "" if row["row"] == "–" else f"{axis_title(across)}{sign}{row['row']}"
    return " ".join(filter(None, (row["panel"], own)))


def _row_labels(placed: pl.DataFrame, across: str | None) -> list[str]:
    """The rows of the map from the top, with an empty one between panels of several rows."""
    parts = [
        list(dict.fromkeys(_label(row, across) for row in part.iter_rows(named=True)))
        for _, part in placed.group_by(["panel"], maintain_order=True)
    ]
    found: list[str] = []
    for number, part in enumerate(parts):
        if number and max(len(part), len(parts[number - 1])) > 1:
            # Words of blanks are all seen as nothing, and differ.
            found.append(" " * number)
        found += part
    return found


def _cell(
    row: Mapping[str, Any], axis: str, across: str | None, *, gridded: bool
) -> dict[str, Any]:
    rate = f"{percent(row['rate_low'])} to {percent(row['rate_high'])}"
    middle = row["place"] if gridded else row[axis]
    sides = {"x": middle - 0.5, "x2": middle + 0.5} if gridded else {}
    return {
        "row": _label(row, across),
        **{name: row[name] for name in ("series", "rate", "trial")},
        "middle": middle,
        **sides,
        "where": format_value(row[axis], knob=axis, digits=None if gridded else 3),
        "words": f"{row['diverged']}/{row['n']}",
        "rate_interval": rate,
    }


def _boundary(
    row: Mapping[str, Any], label: str, at: Mapping[float, int] | None, series: str
) -> list[dict[str, Any]]:
    """The bracket's two ends, which are one edge between neighbours of a grid, and the interval."""
    common = {
        "row": label,
        "boundary": bracket_words(row),
        "interval": interval_words(row),
        "note": row["note"],
        # A row of several series stays when one of them is switched off.
        **({"series": series} if at is not None else {}),
    }
    records = []
    if row["lr_below"] is not None and row["lr_above"] is not None:
        low, high = row["lr_below"], row["lr_above"]
        ends = (low, high) if at is None else (at[low] + 0.5, at[high] - 0.5)
        records.append({**common, "kind": "bracket", "left": ends[0], "right": ends[1]})
    left, right = (
        lr if lr is None or at is None else at[lr] for lr in (row["lr_low"], row["lr_high"])
    )
    if left is not None or right is not None:
        records.append({**common, "kind": "interval", "left": left, "right": right})
    return records


@dataclass(frozen=True, slots=True)
class _Across:
    """The horizontal axis, and the ends of its scale, to which open intervals reach."""

    x: alt.X
    scale: alt.Scale
    low: float
    high: float


def _place_axis(axis: str, places: list[str]) -> _Across:
    words = ", ".join(f"'{word}'" for word in places)
    ends = (-0.5, len(places) - 0.5)
    scale = alt.Scale(domain=list(ends), nice=False, zero=False)
    labels = alt.Axis(
        labelExpr=f"[{words}][datum.value]",
        values=list(range(len(places))),
        grid=False,
        labelOverlap="greedy",
        labelSeparation=8,
    )
    return _Across(
        alt.X("middle:Q", title=axis_title(axis), scale=scale, axis=labels), scale, *ends
    )


def _lr_axis(analysis: Analysis, axis: str, found: list[float]) -> _Across:
    log = analysis.layout.log
    pad = 1.25 if log else 1.02
    ends = (min(found) / pad, max(found) * pad)
    scale = alt.Scale(type="log" if log else "linear", nice=False, domain=list(ends))
    ticks = decade_ticks(*ends) if log else alt.Undefined
    labels = alt.Axis(values=ticks, labelExpr=label_expression(axis))
    return _Across(
        alt.X("middle:Q", title=axis_title(axis), scale=scale, axis=labels), scale, *ends
    )


def _cell_layers(base: alt.Chart, place: _Across, axis: str, *, gridded: bool) -> list[alt.Chart]:
    scale = alt.Scale(domain=[0, 1], range=["#e3ebf3", "#f3c79b", "#c2500f"], interpolate="rgb")
    legend = alt.Legend(title="divergence rate", format="%", gradientLength=110, titleOrient="left")
    cells = base.transform_filter("isValid(datum.words)").encode(
        tooltip=tooltips(
            ("series", "N"),
            ("where", "N", axis_title(axis)),
            ("words", "N", "diverged"),
            ("rate_interval", "N", "95 % interval of the rate"),
        )
    )
    colour = alt.Color("rate:Q", scale=scale, legend=legend)
    if not gridded:
        marks = cells.mark_circle(size=110, opacity=0.9, stroke="#8b95a3", strokeWidth=0.8)
        return [marks.encode(x=place.x, color=colour)]
    squares = cells.mark_rect(stroke="#8b95a3", strokeWidth=0.5)
    words = cells.mark_text(fontSize=12, dy=-4).encode(
        x=place.x,
        text="words:N",
        color=alt.condition("datum.rate > 0.8", alt.value("white"), alt.value(INK)),
    )
    return [squares.encode(x=alt.X("x:Q", scale=place.scale), x2="x2:Q", color=colour), words]


def _boundary_layers(
    base: alt.Chart, place: _Across, rows: alt.Scale, *, gridded: bool
) -> list[alt.Chart]:
    ink = INK if gridded else MIDDLE
    tip = tooltips(
        ("row", "N", "of"),
        ("boundary", "N", "half diverge"),
        ("interval", "N", "95 % interval"),
        ("note", "N"),
    )
    bracket = base.transform_filter("datum.kind == 'bracket'").encode(tooltip=tip)
    between = bracket.mark_rect(
        fill=ink, fillOpacity=0.15, stroke=ink, strokeWidth=2.5 if gridded else 1
    ).encode(x=alt.X("left:Q", scale=place.scale), x2="right:Q")
    below = alt.Y("row:N", scale=rows, bandPosition=0.82)
    spread = base.transform_filter("datum.kind == 'interval'")
    spread = spread.transform_calculate(
        from_=f"isValid(datum.left) ? datum.left : {place.low}",
        to=f"isValid(datum.right) ? datum.right : {place.high}",
    ).encode(y=below, tooltip=tip)
    halo = spread.mark_rule(color="white", strokeWidth=3.6, opacity=0.7 if gridded else 0)
    line = spread.mark_rule(color=ink, strokeWidth=1.6)
    ends = {"x": alt.X("from_:Q", scale=place.scale), "x2": "to:Q"}
    caps = [
        spread.transform_filter(f"isValid(datum.{end})")
        .mark_circle(color=ink, opacity=1, size=38, stroke="white", strokeWidth=0.8)
        .encode(x=alt.X(f"{end}:Q", scale=place.scale))
        for end in ("left", "right")
    ]
    return [halo.encode(**ends), line.encode(**ends), *caps, between]


def bracket_words(row: Mapping[str, Any]) -> str:
    """``between 1 and 3``: where the rate passes one half."""
    return _range_words(row["lr_below"], row["lr_above"], open="no lr tried tells")


def interval_words(row: Mapping[str, Any]) -> str:
    """``3e-1 to 10``, or ``above 3e-1`` where no lr that was tried bounds it."""
    words = _range_words(row["lr_low"], row["lr_high"], open="any lr")
    return words.removeprefix("between ").replace(" and ", " to ")


def _range_words(low: float | None, high: float | None, *, open: str) -> str:
    ends = [None if lr is None else format_value(lr, knob="lr", digits=3) for lr in (low, high)]
    if low is None and high is None:
        return open
    if high is None:
        return f"above {ends[0]}"
    return f"below {ends[1]}" if low is None else f"between {ends[0]} and {ends[1]}"


def caption(analysis: Analysis, *, across: str | None, seeds: str) -> str:
    """How to read the map, and what it cannot say."""
    layout = analysis.layout
    if layout.gridded:
        words = f"Diverged of counted runs in every cell ({seeds}); empty places have none."
    else:
        words = f"Each mark is a cell, shaded by its rate of divergence ({seeds})."
        searched = [k for k in searched_knobs(analysis.study) if k not in ("method", layout.axis)]
        others = [axis_title(knob) for knob in searched if knob != across]
        words += f" Over {', '.join(others)} cells are pooled." if others else ""
    words += _choice_words(analysis.study)
    if analysis.study.pruner is not None:
        words += " Pruned runs count nowhere, and more of those may have been about to diverge."
    boundary = analysis.stability_boundary(across=across)
    if boundary.is_empty():
        return words
    second = second_axes(analysis.study, layout) or (None,)
    first = across == second[0]
    said = limits(analysis.study) if first else "More is said of them under the map before."
    between = "bar" if layout.gridded else "box"
    words += (
        f" The thick {between} is where half of the runs diverge, the line below it its 95 % "
        f"interval, open where it has no end. "
        f"{said}"
    )
    broken = boundary.filter(pl.col("fall_from_lr").is_not_null())
    if broken.height:
        told = "; ".join(
            f"{_label(row, across)}: {row['note']}" for row in broken.iter_rows(named=True)
        )
        words += f" Not rising everywhere: {told}."
    return words


def _choice_words(study: Study) -> str:
    how = choice(study)
    if how in ("grid", "listed", "indifferent") and study.finishes is None:
        return ""
    words = " Where runs are was chosen by earlier outcomes, not beforehand"
    if how == "outcomes" and "val_loss" in study.objectives:
        words += ": a sampler that seeks low losses leaves out where runs diverge"
    return f"{words}; intervals promise less than they say."


def alt_text(analysis: Analysis, *, across: str | None) -> str:
    """The map in words: runs and the boundary of every row."""
    n, k = int(analysis.cells["n"].sum()), int(analysis.cells["diverged"].sum())
    axis = axis_title(str(analysis.layout.axis))
    what = "series" if across is None else axis_title(across)
    told = "; ".join(
        f"{_label(row, across)}: {bracket_words(row)} (95 % interval {interval_words(row)})"
        for row in analysis.stability_boundary(across=across).iter_rows(named=True)
    )
    words = f"Map of the divergence rate over {axis} and {what}: {k} of {n} runs diverged."
    return f"{words} Half of the runs diverge at lr, {told}." if told else words


def table_caption(seeds: str) -> str:
    """What the table holds; the map's caption and the report's methods say more."""
    return (
        f"Between which lr the divergence rate passes one half ({seeds}), by isotonic regression, "
        "with an exact 95 % interval that ends at lr that were tried. Both suppose that the rate "
        "rises with lr."
    )


def boundary_table(analysis: Analysis, *, across: str | None) -> Table:
    """Every row of the map in words."""
    boundary = analysis.stability_boundary(across=across)
    with_panel = boundary["panel"].n_unique() > 1
    rows = [
        (
            *((row["panel"],) if with_panel else ()),
            row["row"],
            bracket_words(row),
            interval_words(row),
            f"{row['diverged']}/{row['n']}",
            str(row["n_lr"]),
            row["note"],
        )
        for row in boundary.iter_rows(named=True)
    ]
    second = "series" if across is None else axis_title(across)
    columns = (*(("method",) if with_panel else ()), second, "half of the runs diverge at lr")
    columns = (*columns, "95 % interval", "diverged", "lr tried", "note")
    words = len(columns) - 3
    return Table(columns, tuple(rows), (*(False for _ in range(words)), True, True, False))
