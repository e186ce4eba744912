"""The worst spikes of a study, each with what was probed around the moment.

The other runs that saw the same batches stand faintly behind: where they rise too, the batch was
hard; where they do not, the spike is the run's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.run_spikes import same_batches
from wesar_sweep.reports.chosen_runs import cell_words
from wesar_sweep.reports.drawing import (
    IS_SHOWN,
    Chart,
    finish,
    inline,
    log_scale,
    rounded,
    styles,
    tooltips,
)
from wesar_sweep.store.frames import Key, decimate
from wesar_sweep.store.rows import Curve

OTHERS = 6
"""Runs shown behind a spike: those with the nearest loss just before it."""

POINTS = 200
"""Points of a curve in a panel, which is as many pixels wide; its highs and lows are kept."""

PROBES = 3
"""Probed steps that are seen on each side of a spike, at the least."""

Points = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a panel shows."""

    title: str
    probe: str | None = None
    """Its largest value over matrices or layers; None: a series of every step."""
    log: bool = False

    def points(self, curve: Curve) -> Points:
        """Its steps and values; none where the run has no such probe."""
        if self.probe is None:
            series = curve.grad_norm if self.log else curve.loss
            return np.arange(len(series)), series.astype(np.float64)
        if self.probe not in curve.probes or not curve.probes[self.probe].size:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        return curve.probe_step, curve.probes[self.probe].max(axis=1).astype(np.float64)


QUANTITIES = (
    Quantity("training loss"),
    Quantity("gradient norm", log=True),
    Quantity("largest update ratio", probe="update_ratio", log=True),
    Quantity("largest attention logit", probe="max_attention_logit"),
)


def worst_spikes(analysis: Analysis) -> Chart:
    """A row of panels a spike: loss, gradient norm, update ratio and attention logit around it.

    Args:
        analysis: A study with a spike.
    """
    rows = analysis.worst_spikes.to_dicts()
    known = [q for q in QUANTITIES if any(len(q.points(analysis.curves[_key(r)])[0]) for r in rows)]
    groups = list(same_batches(analysis.raw_outcomes, analysis.curves))
    cells = {row["trial"]: row for row in analysis.cells.iter_rows(named=True)}
    look = styles(analysis)
    panels = []
    for row in rows:
        key, cell = _key(row), cells[row["trial"]]
        first, last = _around(row, analysis)
        group = next(group for group in groups if key in group)
        others = _nearest(key, group, analysis, first=first, start=row["start"])
        style = look.get(cell["series"])
        for place, quantity in enumerate(known):
            words: Any = ["", str(row["rank"])]
            if place == 0:
                where = f"seed {row['seed']}, step {row['start']}"
                words = [f"{row['rank']}: {cell_words(cell, analysis)}", where]
            panel = _panel(
                quantity,
                row=row,
                own=analysis.curves[key],
                others={one: analysis.curves[one] for one in others},
                series=cell["series"],
                colour=style.colour if style else "#6b7280",
                steps=(first, last),
            )
            title = alt.TitleParams(text=words, subtitle=quantity.title)
            panels.append(panel.properties(title=title))
    return finish(alt.concat(*panels, columns=len(known)))


def _key(row: Mapping[str, Any]) -> Key:
    return row["trial"], row["seed"]


def _around(row: Mapping[str, Any], analysis: Analysis) -> tuple[int, int]:
    """First and last step to show: half a window, and enough to see probes and the recovery."""
    least = max(analysis.study.spikes.window // 2, PROBES * (analysis.study.probes.every or 0))
    after = min(2 * (row["steps_to_recover"] or 0), 4 * least)
    end = len(analysis.curves[_key(row)].loss) - 1
    return max(0, row["start"] - least), max(1, min(end, row["start"] + max(least, after)))


def _nearest(
    key: Key, group: list[Key], analysis: Analysis, *, first: int, start: int
) -> list[Key]:
    """The runs of the same batches that lived at the spike, whose loss before it was nearest."""

    def level(one: Key) -> float:
        before = np.asarray(analysis.curves[one].loss[first : max(start, first + 1)])
        finite = before[np.isfinite(before)]
        return float(np.median(finite)) if len(finite) else math.inf

    own = level(key)
    live = [one for one in group if one != key and len(analysis.curves[one].loss) > start]
    return sorted(live, key=lambda one: (abs(level(one) - own), one))[:OTHERS]


def _panel(
    quantity: Quantity,
    *,
    row: Mapping[str, Any],
    own: Curve,
    others: Mapping[Key, Curve],
    series: str,
    colour: str,
    steps: tuple[int, int],
) -> alt.LayerChart:
    low, high = _range(_cut(quantity.points(own), steps)[1], log=quantity.log)
    records = []
    for (trial, seed), curve, mine in [
        *((one, curve, False) for one, curve in others.items()),
        (_key(row), own, True),
    ]:
        at, values = _cut(quantity.points(curve), steps)
        # What is off the scale breaks the line of another run; the run's own has nothing there.
        kept = decimate(values, points=POINTS)
        at, values = at[kept], values[kept]
        drawn = np.where((values >= low) & (values <= high), values, math.nan)
        record = {"series": series, "trial": trial, "seed": seed, "own": mine}
        records.append(record | {"step": at.tolist(), "value": drawn.tolist()})
    y_scale, y_axis = (
        alt.Scale(domain=[low, high], nice=False),
        alt.Axis(tickCount=4, format="~s", minExtent=42),
    )
    if quantity.log:
        y_scale, y_axis = log_scale(low, high)
    x = alt.Scale(domain=list(steps), nice=False)
    base = alt.Chart(inline(rounded(records))).transform_filter(IS_SHOWN)
    base = base.transform_flatten(["step", "value"]).encode(
        x=alt.X("step:Q", title="step", scale=x, axis=alt.Axis(tickCount=3, format="d")),
        y=alt.Y("value:Q", title=None, scale=y_scale, axis=y_axis),
        detail=["trial:Q", "seed:Q"],
        tooltip=tooltips(
            ("trial", "Q"), ("seed", "Q"), ("step", "Q"), ("value", "Q", quantity.title)
        ),
    )
    broken: Any = "break-paths-show-path-domains"
    behind = base.transform_filter("!datum.own").mark_line(
        strokeWidth=0.9, opacity=0.6, color="#8b95a3", invalid=broken, clip=True
    )
    dots = alt.OverlayMarkDef(size=14, color=colour) if quantity.probe else False
    front = base.transform_filter("datum.own").mark_line(
        strokeWidth=1.8, color=colour, invalid=broken, clip=True, point=dots
    )
    recovered = None if row["steps_to_recover"] is None else row["start"] + row["steps_to_recover"]
    moments = [{"series": series, "step": row["start"], "what": "start"}]
    if recovered is not None and recovered <= steps[1]:
        moments.append({"series": series, "step": recovered, "what": "recovered"})
    rules = (
        alt.Chart(inline(moments))
        .transform_filter(IS_SHOWN)
        .mark_rule(color="#d6293e", strokeWidth=1)
        .encode(
            x=alt.X("step:Q", scale=x),
            strokeDash=alt.StrokeDash(
                "what:N",
                scale=alt.Scale(domain=["start", "recovered"], range=[[1, 0], [3, 3]]),
                legend=alt.Legend(title=None),
            ),
        )
    )
    return alt.LayerChart(layer=[behind, rules, front], width=190, height=110)


def _cut(points: Points, steps: tuple[int, int]) -> Points:
    inside = (points[0] >= steps[0]) & (points[0] <= steps[1])
    return points[0][inside], points[1][inside]


def _range(values: NDArray[np.float64], *, log: bool) -> tuple[float, float]:
    """A scale on which the run's own values all have room."""
    usable = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(usable.min()), float(usable.max())) if len(usable) else (1.0, 2.0)
    if log:
        return low / 1.3, high * 1.3
    room = 0.12 * (high - low) or 0.1
    return low - room, high + room
