"""Charts of training loss against steps, with the end of every diverged run marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.reports.drawing import (
    IS_PICKED,
    IS_SHOWN,
    Chart,
    drawn_series,
    finish,
    inline,
    rounded,
    series_encodings,
    styles,
    tooltips,
)
from wesar_sweep.store.frames import Key, curves_frame

MAX_PANELS = 12
MAX_CURVES = 500
POINTS = 32_000
"""Points of all loss curves together."""

PANEL_WIDTH, PANEL_HEIGHT = 250, 190
"""Of a panel of loss curves, in pixels."""

HEADROOM = 1.5
"""Loss curves are drawn to scale up to this many times the initial loss."""

LANES_PX = 32
"""Above that every series has a lane of its own, which says no more than: higher than the scale.
The lanes are as far apart as marks are wide, or as this height for all of them allows."""

MARK_PX = 8
"""The marks that end diverged runs keep this distance from each other where there is room."""

MARK_AREA = 45
"""Of a mark, in square pixels: about `MARK_PX` across."""

SHORT = 0.25
"""A panel whose runs all ended within this share of the longest run has a step axis of its own."""

SHORT_ROOM = 1.2
"""Such a panel goes on for this much of its steps, because many marks stand at its end."""


def loss_curves(analysis: Analysis) -> Chart:
    """Training loss of the runs against steps: a panel an axis value, a line a run."""
    look = styles(analysis)
    rows = _curve_rows(analysis, list(look))
    order = list(dict.fromkeys(row["panel"] for row in rows))
    band = _LossBand.of(rows, lanes=len(look))
    scale = alt.Scale(type="log", domain=[band.low, band.edge], nice=False)
    colour, _, dash = series_encodings(look)
    fade = alt.condition(IS_PICKED, alt.value(0.75), alt.value(0.06))
    tip = tooltips(("series", "N"), ("trial", "Q"), ("seed", "Q"), ("status", "N"), ("step", "Q"))
    values = band.ticks if len(band.ticks) > 1 else alt.Undefined
    y = alt.Y("loss:Q", title="training loss", scale=scale, axis=alt.Axis(values=values))
    x = alt.X(
        "step:Q",
        title="step",
        axis=alt.Axis(tickCount=4, tickMinStep=1),
        scale=alt.Scale(nice=False),
    )
    base = alt.Chart().transform_filter(IS_SHOWN).encode(x=x, y=y, color=colour, opacity=fade)
    lines = base.mark_line(strokeWidth=1.1, clip=True, invalid="break-paths-show-path-domains")
    lines = lines.encode(detail=["trial:N", "seed:N"], strokeDash=dash, tooltip=tip)
    lines = lines.transform_flatten(["step", "loss"])
    # A field and not a datum, with which Vega-Lite would draw every run in every panel.
    limit = alt.Chart().transform_filter("isValid(datum.limit)")
    limit = limit.mark_rule(strokeDash=[2, 3], color="#8b95a3", strokeWidth=0.8)
    limit = limit.encode(y=alt.Y("limit:Q", scale=scale))
    # Nothing is seen of it: it makes panels begin at 0 and end at one step.
    ends_at = alt.Chart().mark_point(opacity=0).encode(x="span:Q")
    # Marks of size 0 and no filter: a panel without a mark would have no extent.
    diverged = "datum.status == 'diverged'"
    ends = base.mark_point(shape="cross", angle=45, filled=True, stroke="white", strokeWidth=0.4)
    fade_ends = alt.condition(IS_PICKED, alt.value(1), alt.value(0.06))
    ends = ends.encode(
        x="end:Q",
        y=alt.Y("end_loss:Q", scale=scale),
        opacity=fade_ends,
        size=alt.condition(diverged, alt.value(MARK_AREA), alt.value(0)),
        tooltip=[*tip[:4], *tooltips(("ended", "Q", "ended after step"))],
    )
    keep = ("panel", "series", "trial", "seed", "status", "step", "span")
    marks = _end_marks(rows, band)
    first = {row["panel"]: row for row in reversed(rows)}
    records = [
        {
            **{name: row[name] for name in keep},
            "loss": [band.shown(loss, lane=row["lane"]) for loss in row["loss"]],
            **mark,
            **({"limit": band.top} if row is first[row["panel"]] else {}),
        }
        for row, mark in zip(rows, marks, strict=True)
    ]
    chart = alt.layer(limit, ends_at, lines, ends, data=inline(rounded(records)))
    chart = chart.properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    panels = chart.facet(facet=alt.Facet("panel:N", sort=order, title=None), columns=3)
    # Its own axis a panel: with a shared one, empty places of the last row would have one too.
    return finish(panels.resolve_axis(x="independent").resolve_scale(x="independent"))


def _curve_rows(analysis: Analysis, shown: list[str]) -> list[dict[str, Any]]:
    """The runs with their thinned curves, panels and lanes, in the order of the panels."""
    axis = analysis.layout.axis
    runs = _curve_runs(analysis, shown)
    kept = {key: analysis.curves[key] for key in runs.select("trial", "seed").rows()}
    per_run = max(24, min(240, POINTS // max(len(kept), 1)))
    frame = curves_frame(kept, points=per_run).join(runs, on=["trial", "seed"])
    rows = list(frame.iter_rows(named=True))
    if axis is not None:
        rows.sort(key=lambda row: row[axis])
    last = {id(row): row["step"][-1] if row["step"] else 0 for row in rows}
    longest = max(last.values(), default=1)
    by_panel: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        panel = row["series"]
        if axis is not None and analysis.layout.gridded:
            panel = f"{axis_title(axis)} {format_value(row[axis], knob=axis)}"
        by_panel.setdefault(panel, []).append(row)
        row["lane"] = shown.index(row["series"])
    for panel, members in by_panel.items():
        own = max(last[id(row)] for row in members)
        short = own < SHORT * longest
        for row in members:
            row["span"] = SHORT_ROOM * max(own, 1) if short else max(longest, 1)
            row["panel"] = f"{panel}, first {own + 1} steps" if short else panel
    return rows


@dataclass(frozen=True, slots=True)
class _LossBand:
    """The vertical axis of loss curves: a scale, and above it a lane a series."""

    low: float
    top: float
    """Where the scale ends and the lanes begin."""
    lanes: int

    @classmethod
    def of(cls, rows: list[dict[str, Any]], *, lanes: int) -> _LossBand:
        losses = [x for row in rows for x in row["loss"] if math.isfinite(x)]
        start = max((r["init_loss"] for r in rows if _finite(r["init_loss"])), default=None)
        low = max(0.97 * min(losses, default=0.1), 1e-3)
        top = HEADROOM * start if start is not None else max(losses, default=1.0)
        return cls(low, max(top, 1.1 * low), max(lanes, 1))

    @property
    def _lanes_px(self) -> float:
        return 2 * MARK_PX + self._lane_px * (self.lanes - 1)

    @property
    def _lane_px(self) -> float:
        return min(MARK_PX, LANES_PX / max(self.lanes - 1, 1))

    @property
    def _per_px(self) -> float:
        """What a pixel is in the logarithm of the loss."""
        return math.log(self.top / self.low) / (PANEL_HEIGHT - self._lanes_px)

    @property
    def edge(self) -> float:
        """The upper edge of the panel."""
        return self.top * math.exp(self._per_px * self._lanes_px)

    @property
    def ticks(self) -> list[float]:
        """Round losses on the scale; none among the lanes."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.top)) + 1)
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if self.top < 30 * self.low else (1, 3)
        found = (float(f"{step * 10.0**power:g}") for power in powers for step in steps)
        return [loss for loss in found if self.low <= loss <= self.top]

    def shown(self, loss: float, *, lane: int) -> float:
        """Where a loss is drawn: to scale, or in the lane of its series; NaN stays NaN."""
        if not loss > self.top:
            return loss
        return self.top * math.exp(self._per_px * (MARK_PX + self._lane_px * lane))

    def height_px(self, loss: float) -> float:
        """Pixels above the lower edge."""
        return math.log(max(loss, self.low) / self.low) / self._per_px

    def at_px(self, height: float) -> float:
        """The loss at that height."""
        return self.low * math.exp(height * self._per_px)


def _end_marks(rows: list[dict[str, Any]], band: _LossBand) -> list[dict[str, Any]]:
    """Where each diverged run's end is marked: whole inside the panel, none upon another.

    A mark that would cover another is moved sideways by a few pixels, then down.
    """
    taken: dict[str, list[tuple[float, float]]] = {}
    marks: list[dict[str, Any]] = []
    for row in rows:
        if row["status"] != "diverged":
            marks.append({"end": row["span"], "end_loss": band.low})
            continue
        end = row["step"][-1] if row["step"] else 0
        finite = [x for x in row["loss"] if math.isfinite(x)]
        loss = band.shown(finite[-1] if finite else math.inf, lane=row["lane"])
        x, y = PANEL_WIDTH * end / row["span"], band.height_px(loss)
        others = taken.setdefault(row["panel"], [])
        x, y = _free_place(x, y, others)
        others.append((x, y))
        place = {"end": x * row["span"] / PANEL_WIDTH, "end_loss": band.at_px(y)}
        marks.append({**place, "ended": end})
    return marks


def _free_place(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """The nearest place in pixels that no other mark covers; the place itself if all are."""
    half = MARK_PX / 2
    for down in range(4):
        for aside in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5):
            at = x + MARK_PX * aside, max(y - MARK_PX * down, half)
            inside = half <= at[0] <= PANEL_WIDTH - half or aside == 0
            apart = (max(abs(at[0] - a), abs(at[1] - b)) >= MARK_PX - 0.5 for a, b in taken)
            if inside and all(apart):
                return at
    return x, y


def drawn_runs(analysis: Analysis) -> set[Key]:
    """The (trial, seed) whose loss curves `loss_curves` draws."""
    if analysis.cells.is_empty():
        return set()
    runs = _curve_runs(analysis, drawn_series(analysis))
    return set(runs.select("trial", "seed").rows())


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


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
