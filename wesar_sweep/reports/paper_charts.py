"""Charts of training as the paper draws it (arXiv 2410.05052).

Its Figure 1 has the loss above update ratios, its Figure 2 the losses of methods together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.chosen_runs import cell_words, one_run, settings
from wesar_sweep.reports.curve_charts import HEADROOM
from wesar_sweep.reports.drawing import (
    IS_SHOWN,
    Chart,
    choice,
    columns,
    finish,
    inline,
    log_scale,
    log_ticks,
    rounded,
    series_encodings,
    styles,
    tooltips,
)
from wesar_sweep.reports.probe_charts import ROLE_WORDS, layers_of, role_scale
from wesar_sweep.store.frames import Key, decimate, probes_frame

POINTS = 12_000
"""Points of all lines together that are not shown at first."""

LINE_POINTS = 160
"""Points of a line that is shown at first."""

MAX_SEEDS = 4
"""Seeds of a cell drawn as thin lines of their own."""

STRETCHES = 50
"""Of the step axis, over each of which a median is averaged."""

SPIKE_MARKS = {"raw spike": ("triangle-down", "#8b95a3"), "paired spike": ("circle", "#d6293e")}
"""Shape and colour."""

IS_SETTING = "datum.setting === setting"

_LINE: dict[str, Any] = {"clip": True, "invalid": "break-paths-show-path-domains"}

Records = list[dict[str, Any]]


def loss_and_update_ratios(
    analysis: Analysis, *, layer: int | None = None, trials: Sequence[int] | None = None
) -> Chart:
    """Loss with its spikes above the update ratios of one layer, a pair of panels a series.

    Args:
        analysis: A study with curves.
        layer: Whose up and down projections; default the last, as in the paper.
        trials: Cells to show; default the best of each series, and any value of the axis by choice.
    """
    options = settings(analysis, trials=trials)
    top = _top(analysis)
    most = _points(sum(len(option.cells) for option in options[1:]))
    titles: dict[str, dict[str, str]] = {}
    losses: Records = []
    spikes: Records = []
    ratios: Records = []
    for place, option in enumerate(options):
        points = LINE_POINTS if place == 0 else most
        for name, cell in option.cells.items():
            key = one_run(cell, analysis)
            assert key is not None, "settings have a run for each of their cells"
            words = f"{cell_words(cell, analysis)}, seed {key[1]}"
            titles.setdefault(name, {})[option.name] = words
            common = {"setting": option.name, "series": name, "seed": key[1]}
            losses.append(common | _loss(key, analysis, points=points, top=top))
            spikes += [common | row for row in _spikes(key, analysis, top=top)]
            found = _ratios(key, analysis, layer=layer, points=points // 2)
            ratios += [common | row for row in found]
    longest = max((row["step"][-1] for row in losses if row["step"]), default=1)
    steps = alt.Scale(domain=[0, max(longest, 1)], nice=False)
    loss_axis = log_scale(0.97 * _least(losses, "loss"), top)
    ratio_axis = _ratio_axis(ratios, [option.name for option in options])
    look = styles(analysis)
    panels = []
    for name in (name for name in look if name in titles):
        of, at, ratio = (
            [r for r in rows if r["series"] == name] for rows in (losses, spikes, ratios)
        )
        by_setting = {option.name: f"{name}: no run" for option in options} | titles[name]
        title = alt.TitleParams(text=alt.ExprRef(f"({json.dumps(by_setting)})[setting]"))
        above = _loss_panel(of, at, colour=look[name].colour, steps=steps, losses_axis=loss_axis)
        below = _ratio_panel(ratio, steps=steps, ratios_axis=ratio_axis)
        panels.append(alt.vconcat(above.properties(title=title), below, spacing=6))
    chart = alt.concat(*panels, columns=columns(len(panels))).resolve_scale(
        color="shared", shape="shared"
    )
    names = [option.name for option in options]
    return finish(chart, choice("setting", names, value=names[0]))


def loss_together(analysis: Analysis, *, at: str | None = None) -> Chart:
    """The losses of all series in one panel: the median over seeds, and thin lines of seeds.

    A run that ended early counts as infinite from there on, so a median ends where half of the runs
    have: no run is dropped from it.

    Args:
        analysis: A study with curves.
        at: The setting that is shown at first, such as ``lr 1e-3``; default each at its best.

    Raises:
        ValueError: There is no such setting.
    """
    options = settings(analysis)
    names = [option.name for option in options]
    if at not in (None, *names):
        raise ValueError(f"at must be one of {', '.join(names)}, not {at}")
    seeds = (min(cell["n"], MAX_SEEDS) for option in options[1:] for cell in option.cells.values())
    most, top = _points(sum(seeds)), _top(analysis)
    records: Records = []
    for place, option in enumerate(options):
        points = LINE_POINTS if place == 0 else most
        for name, cell in option.cells.items():
            common = {"setting": option.name, "series": name, "n": cell["n"]}
            lines = _seed_lines(cell, analysis, points=points, top=top)
            records += [common | line for line in lines]
    longest = max((row["step"][-1] for row in records if row["step"]), default=2)
    scale, axis = log_scale(0.97 * _least(records, "loss"), top)
    colour, _, dash = series_encodings(styles(analysis))
    base = (
        alt.Chart(inline(rounded(records)))
        .transform_filter(IS_SHOWN)
        .transform_filter(IS_SETTING)
        .transform_flatten(["step", "loss"])
        .encode(
            x=alt.X(
                "step:Q",
                title="step, counted from 1",
                scale=alt.Scale(type="log", domain=[1, max(longest, 2)], nice=False),
            ),
            y=alt.Y("loss:Q", title="training loss", scale=scale, axis=axis),
            color=colour,
            detail=["seed:N"],
            tooltip=tooltips(
                ("series", "N"), ("seed", "N"), ("n", "Q", "seeds"), ("step", "Q"), ("loss", "Q")
            ),
        )
    )
    median = "datum.seed === 'median'"
    thin = base.transform_filter(f"!({median})")
    thick = base.transform_filter(median).encode(strokeDash=dash)
    chart = alt.layer(
        thin.mark_line(strokeWidth=0.8, opacity=0.4, **_LINE),
        thick.mark_line(strokeWidth=2.2, **_LINE),
    ).properties(width=640, height=340, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    return finish(chart, choice("setting", names, value=at or names[0]))


def recovery_words(steps: int | None) -> str:
    """``after 3 steps``; a spike without a recovery lasts to the end of its run."""
    return "never" if steps is None else f"after {steps} step{'' if steps == 1 else 's'}"


def _points(lines: int) -> int:
    return max(24, min(LINE_POINTS, POINTS // max(lines, 1)))


def _top(analysis: Analysis) -> float:
    """The upper edge of a loss axis."""
    start = analysis.cells["start_loss"].max()
    return HEADROOM * (start if isinstance(start, float) else 1.0)


def _least(rows: Iterable[dict[str, Any]], name: str) -> float:
    found = (value for row in rows for value in row[name] if 0 < value < math.inf)
    return min(found, default=1.0)


def _loss(key: Key, analysis: Analysis, *, points: int, top: float) -> dict[str, Any]:
    loss_S = np.asarray(analysis.curves[key].loss, dtype=np.float64)
    kept = decimate(loss_S, points=points)
    # What is above the scale runs along its edge, +inf too; NaN breaks the line.
    return {"step": kept.tolist(), "loss": np.minimum(loss_S[kept], top).tolist()}


def _spikes(key: Key, analysis: Analysis, *, top: float) -> Records:
    loss_S = analysis.curves[key].loss
    own = (pl.col("trial") == key[0]) & (pl.col("seed") == key[1])
    return [
        {
            "step": row["peak"],
            # NaN, the loss that blew up, compares false and so is drawn at the edge.
            "loss": loss if (loss := float(loss_S[row["peak"]])) < top else top,
            "mark": f"{row['kind']} spike",
            "height": row["height"],
            "recovery": recovery_words(row["steps_to_recover"]),
        }
        for row in analysis.run_spikes.events.filter(own).iter_rows(named=True)
    ]


def _ratios(key: Key, analysis: Analysis, *, layer: int | None, points: int) -> Records:
    layers = layers_of(analysis, "update_ratio", key)
    chosen = max(layers, default=0) if layer is None else layer
    frame = probes_frame({key: analysis.curves[key]}, probe="update_ratio", roles=("u", "w"))
    found = []
    for row in frame.filter(pl.col("layer") == chosen).iter_rows(named=True):
        every = max(1, math.ceil(len(row["step"]) / points))
        record = {"matrix": ROLE_WORDS[row["role"]], "layer": chosen}
        found.append(record | {"step": row["step"][::every], "ratio": row["value"][::every]})
    return found


def _loss_panel(
    losses: Records,
    spikes: Records,
    *,
    colour: str,
    steps: alt.Scale,
    losses_axis: tuple[alt.Scale, alt.Axis],
) -> alt.LayerChart:
    scale, axis = losses_axis
    y = alt.Y("loss:Q", title="training loss", scale=scale, axis=axis)
    x = alt.X("step:Q", title=None, scale=steps, axis=alt.Axis(labels=False, tickCount=4))
    shapes, colours = zip(*SPIKE_MARKS.values(), strict=True)
    lines = (
        _shown(losses)
        .transform_flatten(["step", "loss"])
        .mark_line(strokeWidth=1.2, color=colour, **_LINE)
        .encode(
            tooltip=tooltips(("series", "N"), ("seed", "Q"), ("step", "Q"), ("loss", "Q")), x=x, y=y
        )
    )
    marks = (
        _shown(spikes)
        .mark_point(strokeWidth=1.6, size=70, opacity=1)
        .encode(
            x=x,
            y=y,
            shape=alt.Shape("mark:N", scale=alt.Scale(domain=list(SPIKE_MARKS), range=shapes)),
            stroke=alt.Stroke("mark:N", scale=alt.Scale(domain=list(SPIKE_MARKS), range=colours)),
            tooltip=tooltips(
                ("mark", "N", "kind"),
                ("seed", "Q"),
                ("step", "Q"),
                ("height", "Q", "height (nats)"),
                ("recovery", "N", "recovered"),
            ),
        )
    )
    return alt.LayerChart(layer=[lines, marks], width=250, height=130)


def _ratio_panel(
    ratios: Records, *, steps: alt.Scale, ratios_axis: tuple[alt.Scale, alt.Axis]
) -> alt.Chart:
    scale, axis = ratios_axis
    found: alt.Chart = (
        _shown(ratios)
        .transform_flatten(["step", "ratio"])
        # A ratio of 0 has no place on a logarithmic axis.
        .transform_filter("datum.ratio === null || datum.ratio > 0")
        .mark_line(strokeWidth=1.4, **_LINE)
        .encode(
            x=alt.X("step:Q", title="step", scale=steps, axis=alt.Axis(tickCount=4)),
            y=alt.Y("ratio:Q", title="update ratio", scale=scale, axis=axis),
            color=alt.Color("matrix:N", scale=role_scale(("u", "w"))),
            tooltip=tooltips(("matrix", "N"), ("layer", "Q"), ("step", "Q"), ("ratio", "Q")),
        )
        .properties(width=250, height=110)
    )
    return found


def _ratio_axis(ratios: Records, names: Sequence[str]) -> tuple[alt.Scale, alt.Axis]:
    """A scale that all panels share, and that fits the setting that is shown."""
    lows, highs, ticks = {}, {}, {}
    for name in names:
        drawn = [value for row in ratios if row["setting"] == name for value in row["ratio"]]
        positive = [value for value in drawn if 0 < value < math.inf] or [1e-3]
        lows[name], highs[name] = 0.9 * min(positive), 1.1 * max(positive)
        ticks[name] = log_ticks(lows[name], highs[name])
    low, high, values = (
        alt.ExprRef(f"({json.dumps(found)})[setting]") for found in (lows, highs, ticks)
    )
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return scale, alt.Axis(values=values, format="~g", minExtent=42)


def _shown(rows: Records) -> alt.Chart:
    chart: alt.Chart = alt.Chart(inline(rounded(rows))).transform_filter(IS_SHOWN)
    return chart.transform_filter(IS_SETTING)


def _seed_lines(cell: Mapping[str, Any], analysis: Analysis, *, points: int, top: float) -> Records:
    """The median over the seeds of a cell, averaged over stretches, then its first seeds."""
    keys = [key for seed in cell["seeds"] if (key := (cell["trial"], seed)) in analysis.curves]
    curves = [analysis.curves[key].loss for key in keys]
    loss_nS = np.full((len(curves), max(map(len, curves), default=0)), math.inf)
    for row, loss in zip(loss_nS, curves, strict=True):
        row[: len(loss)] = np.where(np.isfinite(loss), loss, math.inf)
    at, mean = _averaged(np.median(loss_nS, axis=0), top=top)
    found: Records = [{"seed": "median", "step": at, "loss": mean}]
    for (_, seed), loss in list(zip(keys, curves, strict=True))[:MAX_SEEDS]:
        line = np.asarray(loss, dtype=np.float64)
        kept = decimate(line, points=points, log=True)
        found.append(
            {"seed": str(seed), "step": (kept + 1).tolist(), "loss": _drawn(line[kept], top)}
        )
    return found


def _averaged(loss_S: NDArray[np.float64], *, top: float) -> tuple[list[float], list[float]]:
    """Means over stretches of a logarithmic axis; a stretch with an infinite loss ends the line."""
    edges = np.unique(np.geomspace(1, len(loss_S) + 1, STRETCHES + 1).astype(np.int64) - 1)
    starts, ends = edges[:-1], edges[1:]
    if not len(starts):
        return [], []
    mean = np.add.reduceat(loss_S, starts) / (ends - starts)
    middle = np.sqrt((starts + 1.0) * ends)
    return middle.tolist(), _drawn(mean, top)


def _drawn(loss: NDArray[np.float64], top: float) -> list[float]:
    shown: list[float] = np.where(np.isfinite(loss), np.minimum(loss, top), math.nan).tolist()
    return shown
