"""What all charts share: the series they show, their look, and how data get into them.

Data travel as one record a run with its series as lists, which Vega-Lite takes apart: no chart has
more than Altair's 5,000 rows, and the page stays small. Numbers are rounded to `DIGITS` digits,
what is not finite is null and breaks the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.reports.theme import SeriesStyle, config, series_styles

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart

MAX_SERIES = 10
"""Series in one chart; where a study has more, those with the lowest loss."""

DIGITS = 5
LINE_DIGITS = 4
"""Of points along a line, finer than the 340 points of its height."""

HIDDEN = alt.VariableParameter(name="hidden", value=[])
"""Series that the page's reader switched off."""

PICKED = alt.VariableParameter(name="picked", value=-1)
"""The trial whose runs the reader picked in the matrix; -1 is none."""

IS_SHOWN = "indexof(hidden, datum.series) < 0"
"""Whether a record's series is switched on."""

IS_PICKED = "picked < 0 || datum.trial === picked"
"""Whether a record belongs to the picked trial, or none is picked."""


def drawn_series(analysis: Analysis) -> list[str]:
    """The series that charts show, in the order of the legend."""
    have = set(analysis.cells["series"].to_list())
    shown = [name for name in analysis.series if name in have]
    if len(shown) > MAX_SERIES:
        best = set(analysis.best_cells["series"].head(MAX_SERIES).to_list())
        shown = [name for name in shown if name in best]
    return shown


def styles(analysis: Analysis) -> dict[str, SeriesStyle]:
    """The look of every drawn series: the same in all charts of a study."""
    method = dict(analysis.cells.select("series", "method").rows())
    return series_styles(
        [(name, method[name]) for name in drawn_series(analysis)],
        methods=analysis.study.method_names,
    )


def series_encodings(
    look: dict[str, SeriesStyle], **legend_settings: Any
) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, mark and dash of the series, with one legend between them."""
    names, looks = list(look), list(look.values())

    def scale(values: list[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=values)

    # Without its own opacity the legend would be as faint as the band.
    legend = alt.Legend(symbolOpacity=1, symbolStrokeWidth=2, **legend_settings)
    return (
        alt.Color("series:N", scale=scale([s.colour for s in looks]), legend=legend),
        alt.Shape("series:N", scale=scale([s.shape for s in looks]), legend=legend),
        alt.StrokeDash("series:N", scale=scale([list(s.dash) for s in looks]), legend=legend),
    )


def tooltips(*fields: tuple[str, ...]) -> list[alt.Tooltip]:
    """Tooltips from (field, kind) or (field, kind, title)."""
    return [
        alt.Tooltip(f"{field}:{kind}", title=title[0] if title else axis_title(field))
        for field, kind, *title in fields
    ]


def columns(panels: int) -> int:
    """Panels beside each other: at most 3, and no row with one alone where that can be helped."""
    return 2 if panels == 4 else min(max(panels, 1), 3)


def log_scale(low: float, high: float) -> tuple[alt.Scale, alt.Axis]:
    """A logarithmic scale over these positive values, with a few round ticks and no more lines."""
    high = max(high, 1.1 * low)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    return scale, alt.Axis(values=log_ticks(low, high), format="~g", minExtent=42)


def log_ticks(low: float, high: float) -> list[float]:
    """At most six round values between two positive ones; with ends close by there may be none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = (float(f"{step * 10.0**power:g}") for power in powers for step in steps)
        ticks = [tick for tick in found if low <= tick <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def inline(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Records as a chart's own data."""
    # Our own plain records: to validate every number against the schema would take seconds.
    with debug_mode(False):
        return alt.InlineData(values=rows)


def rounded(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with `DIGITS` digits a number, `LINE_DIGITS` in a list; not finite ones are None."""
    return [{name: _plain(value, DIGITS) for name, value in row.items()} for row in rows]


def _plain(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(one, LINE_DIGITS) for one in value]
    return value


def choice(name: str, options: Sequence[str], *, value: str) -> alt.VariableParameter:
    """A parameter that the page's reader chooses from a list; elsewhere it stays at `value`."""
    if len(options) < 2:
        return alt.VariableParameter(name=name, value=value)
    bind = alt.BindRadioSelect(input="select", options=list(options), name=f"{name} ")
    return alt.VariableParameter(name=name, value=value, bind=bind)


def finish(chart: Any, *params: alt.VariableParameter) -> Chart:
    """The chart in the theme, with the parameters that the page sets and its own `params`."""
    chart.config = alt.Config.from_dict(config())
    chart.params = [HIDDEN, PICKED, *params]
    finished: Chart = chart
    return finished
