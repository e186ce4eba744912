"""One look for every chart: colours, marks and the settings of Vega-Lite.

Colours are chosen in OKLCH so that each can be told from a white and from a near-black page (a
contrast of at least 3 to 1 on both). A method keeps its colour in every chart of every study;
neighbours also differ in lightness, dash and mark, so that no colour is needed to read a chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Lightness, chroma and hue (degrees) in OKLCH.
_METHODS: Mapping[str, tuple[float, float, float]] = {
    "wesar": (0.56, 0.17, 258),
    "he": (0.68, 0.15, 60),
    "small": (0.60, 0.13, 160),
    "xavier": (0.56, 0.19, 25),
    "gpt2": (0.60, 0.18, 310),
    "weight_norm": (0.64, 0.11, 205),
    "sigma_reparam": (0.65, 0.19, 350),
    "residual_scaling": (0.65, 0.13, 105),
    "scaled_embed": (0.52, 0.12, 285),
    "embed_norm": (0.53, 0.08, 130),
}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "stroke")
_DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (9, 3, 2, 3), (12, 3))

ROLE_COLOURS: Mapping[str, str] = {
    "u": "#2f7dd1",
    "w": "#d1600f",
    "q": "#2c9a6c",
    "k": "#b04fc4",
    "v": "#9a8210",
    "o": "#d6455d",
    "g": "#5b8f9e",
}
"""Matrices by role: u, w and g of the feed-forward part, q, k, v and o of attention."""


@dataclass(frozen=True, slots=True)
class SeriesStyle:
    """How one series looks in every chart of a report."""

    colour: str
    shape: str
    dash: tuple[int, ...]


def colour(lightness: float, chroma: float, hue: float) -> str:
    """An sRGB colour ``#rrggbb`` from OKLCH (hue in degrees); clipped to what a screen can show."""
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    encoded = (
        12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055
        for x in (min(max(x, 0.0), 1.0) for x in linear)
    )
    return "#" + "".join(f"{round(255 * x):02x}" for x in encoded)


def series_styles(
    series: Sequence[tuple[str, str]], *, methods: Sequence[str] = ()
) -> dict[str, SeriesStyle]:
    """The look of every series.

    Args:
        series: (label, method) in the order of the legend.
        methods: The study's own methods in their order; they take the colours that no built-in
            method of that study needs.

    Returns:
        By label. Series of one method share its hue and differ in lightness, dash and mark; where a
        study has one method alone, its series take different hues.
    """
    parts = _method_colours([method for _, method in series], methods)
    by_method: dict[str, list[str]] = {}
    for label, method in series:
        by_method.setdefault(method, []).append(label)
    alone = len(by_method) == 1
    styles: dict[str, SeriesStyle] = {}
    for index, (label, method) in enumerate(series):
        place = by_method[method].index(label)
        if alone and len(series) > 1:
            base = list(_METHODS.values())[place % len(_METHODS)]
        else:
            base = _variant(parts[method], place, len(by_method[method]))
        styles[label] = SeriesStyle(
            colour=colour(*base),
            shape=_SHAPES[index % len(_SHAPES)],
            dash=_DASHES[place % len(_DASHES)],
        )
    return styles


def _method_colours(
    used: Sequence[str], methods: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    free = [name for name in _METHODS if name not in used]
    own = [name for name in dict.fromkeys([*methods, *used]) if name not in _METHODS]
    spare = {
        name: _METHODS[free[index % len(free)] if free else "embed_norm"]
        for index, name in enumerate(own)
    }
    return {**_METHODS, **spare}


def _variant(
    base: tuple[float, float, float], place: int, count: int
) -> tuple[float, float, float]:
    if count == 1:
        return base
    share = place / (count - 1) - 0.5
    lightness = min(max(base[0] + 0.14 * share, 0.52), 0.69)
    return (lightness, base[1], base[2] + 44 * share)


Theme = Literal["light", "dark"]


def paper(theme: Theme) -> str:
    """The colour behind a chart that is a file of its own: the report's page in that theme."""
    return "#ffffff" if theme == "light" else "#12161c"


def config(theme: Theme = "light", *, background: str = "transparent") -> dict[str, Any]:
    """The settings that every chart carries.

    Args:
        theme: In the report every chart is light; its CSS recolours text and lines on dark screens.
        background: The colour behind the chart.
    """
    ink, faint = ("#1d2430", "#d9dee6") if theme == "light" else ("#e6eaf0", "#313a46")
    return {
        "background": background,
        "font": FONT,
        "view": {"stroke": "transparent", "continuousWidth": 640, "continuousHeight": 340},
        "axis": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "gridColor": faint,
            "domainColor": "#8b95a3",
            "tickColor": "#8b95a3",
            "labelOverlap": "greedy",
        },
        "legend": {
            "orient": "top",
            "title": None,
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "labelLimit": 320,
            "symbolSize": 90,
            "columns": 4,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12},
        "title": {
            "color": ink,
            "subtitleColor": ink,
            "fontSize": 12,
            "fontWeight": "normal",
            "anchor": "start",
        },
        "line": {"strokeWidth": 2},
        "text": {"color": ink},
    }
