"""What varies in a study, as a reader looks at it: one axis, and series of everything else.

The axis is the learning rate where it is searched, else the first other number that is and that no
cell lacks. A *series* is one method with one value of every other searched knob, such as
``wesar σ²=4e-5``; so a knob that can be off has a series for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from wesar_sweep.config.knobs import Scalar, knob_table
from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.run import default_ffn_width
from wesar_sweep.config.space import Range, possible_values, values
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import KNOBS

SYMBOLS: Mapping[str, str] = {"sigma2": "σ²", "beta1": "β₁", "beta2": "β₂"}
"""Knobs that labels show by their symbol; all others by their YAML name."""

MAX_SERIES_VALUES = 24
"""A searched knob with more values than this is scattered, as a continuous one is."""

LEAST_FILLED = 0.5
"""Cells written out one by one are a matrix where they fill this share of its places."""

_ALWAYS_SCIENTIFIC = ("lr", "sigma2")


@dataclass(frozen=True, slots=True)
class Axes:
    """How the cells of a study lie."""

    axis: str | None
    """The knob along which a series runs, a number in every cell; None where there is none."""
    series: tuple[str, ...]
    """Knobs whose values name a series; ``method`` is always the first."""
    scattered: tuple[str, ...]
    """Searched knobs beside the axis with too many values for a series each."""
    gridded: bool
    """Whether the cells fill a matrix of series against axis values; else they are ranked."""
    axis_values: tuple[Scalar, ...]
    """The values of the axis that the study asks for, ascending; empty where continuous."""

    @property
    def log(self) -> bool:
        """Whether the axis is drawn in the logarithm: for positive numbers that vary threefold."""
        if self.axis is None:
            return False
        known = [float(v) for v in self.axis_values if isinstance(v, int | float)]
        wide = bool(known) and min(known) > 0 and max(known) >= 3 * min(known)
        return self.axis == "lr" or wide


def searched_knobs(study: Study) -> tuple[str, ...]:
    """The knobs of `space` that take more than one value, in the order of the file."""
    return tuple(
        knob
        for knob, parameter in study.space.items()
        if (listed := values(parameter, knob)) is None or len(set(listed)) > 1 or parameter.when
    )


def axes(study: Study) -> Axes:
    """How the cells of this study lie, from its space alone."""
    searched = searched_knobs(study)
    numeric = [knob for knob in searched if knob_table()[knob].numeric]
    # A condition makes a knob part of what tells series apart, as sigma2 does for WeSaR; and a
    # cell without a value has no place along an axis.
    free = [k for k in numeric if not study.space[k].when and not _can_be_null(study, k)]
    axis = "lr" if "lr" in numeric else (free[0] if free else None)
    axis = study.sampler.along if study.sampler.name == "boundary" else axis
    scattered = tuple(k for k in searched if k not in ("method", axis) and _scattered(study, k))
    series = ("method", *(k for k in searched if k not in ("method", axis, *scattered)))
    listed = () if axis is None else values(study.space[axis], axis)
    known = sorted({float(str(v)) for v in listed or ()})
    fills = True
    if study.sampler.name == "listed" and known:
        places = asked_places(study, series=series, axis=axis)
        known = sorted({value for _, value in places if value is not None})
        rows = len({label for label, _ in places})
        fills = len(places) >= LEAST_FILLED * rows * len(known)
    integer = axis is not None and knob_table()[axis].kind == "integer"
    return Axes(
        axis=axis,
        series=series,
        scattered=scattered,
        # A boundary search tries few of the values, and some again.
        gridded=study.sampler.name != "boundary"
        and fills
        and not scattered
        and listed is not None
        and len(known) <= MAX_SERIES_VALUES,
        axis_values=tuple(int(v) if integer else v for v in known),
    )


def _can_be_null(study: Study, knob: str) -> bool:
    """Whether a cell may have no value of a searched knob, because it is off or does not apply."""
    if None in (values(study.space[knob], knob) or ()):
        return True
    methods = possible_values(study, "method")
    return knob == "sigma2" and not all(study.method_parts(str(m)).uses_sigma2 for m in methods)


def _scattered(study: Study, knob: str) -> bool:
    parameter = study.space[knob]
    listed = values(parameter, knob)
    return listed is None or (isinstance(parameter, Range) and len(listed) > MAX_SERIES_VALUES)


def format_value(value: Scalar, *, knob: str = "", digits: int | None = None) -> str:
    """A knob's value as labels show it: 4e-05 is ``4e-5``, and an lr of 0.01 is ``1e-2``.

    Args:
        value: The value.
        knob: Its knob; lr and sigma2 are always written with an exponent.
        digits: Significant digits; None keeps all of them, so that labels stay distinct.
    """
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if digits is not None:
        value = float(f"{value:.{digits}g}")
    if knob not in _ALWAYS_SCIENTIFIC and (value == 0 or 1e-3 <= abs(value) < 1e6):
        return f"{value:.15g}"
    if value == 0 or 1 <= abs(value) < 1e4:
        return f"{value:.15g}"
    exponent = math.floor(math.log10(abs(value)))
    # 9.999…e-4 may round up to the next power.
    mantissa = float(f"{value / 10.0**exponent:.12g}")
    if abs(mantissa) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.12g}e{exponent}"


def series_label(knobs: Mapping[str, Scalar], names: tuple[str, ...]) -> str:
    """``wesar σ²=4e-5``: the method, then every other knob that has a value here."""
    parts = [str(knobs["method"])]
    for name in names:
        if name == "method" or (name == "sigma2" and knobs[name] is None):
            continue
        sign = SYMBOLS.get(name, name)
        parts.append(f"{sign}={format_value(knobs[name], knob=name)}")
    return " ".join(parts)


def axis_title(knob: str) -> str:
    """What an axis of a chart or the head of a column calls a knob: its YAML name."""
    return SYMBOLS.get(knob, knob)


def with_series(frame: pl.DataFrame, layout: Axes) -> pl.DataFrame:
    """The frame with a column ``series``; its rows need the columns ``Axes.series``."""
    named = frame.select(layout.series).unique(maintain_order=True)
    labels = [series_label(row, layout.series) for row in named.iter_rows(named=True)]
    named = named.with_columns(pl.Series("series", labels, dtype=pl.String))
    # By labels' own knobs, nulls equal; never by lr.
    return frame.join(named, on=list(layout.series), how="left", nulls_equal=True)


def expected_series(study: Study, layout: Axes) -> tuple[str, ...]:
    """The labels of all series that listed cells will have, in the file's order; else empty."""
    places = asked_places(study, series=layout.series, axis=layout.axis)
    return tuple(dict.fromkeys(label for label, _ in places))


def asked_places(
    study: Study, *, series: tuple[str, ...], axis: str | None
) -> dict[tuple[str, float | None], None]:
    """(label of the series, value of the axis) of every cell of a grid or a list, in its order.

    Args:
        study: Whose cells.
        series: The knobs that name a series.
        axis: The knob along it; without one every value is None.

    Returns:
        The places as keys; none where a sampler draws the cells or a boundary search asks for them.
    """
    fixed: dict[str, Scalar] = {
        "method": study.method,
        **dict(study.model),
        **dict(study.training),
    }
    places: dict[tuple[str, float | None], None] = {}
    for cell in listed_cells(study) or ():
        knobs = {**fixed, **cell}
        if not study.method_parts(str(knobs["method"])).uses_sigma2:
            knobs["sigma2"] = None
        if knobs["ffn_width"] is None:
            # Null stands for a width that follows from others, and outcomes name that width.
            width = int(str(knobs["width"]))
            knobs["ffn_width"] = default_ffn_width(str(knobs["ffn"]), width)
        value = None if axis is None or knobs[axis] is None else float(str(knobs[axis]))
        places.setdefault((series_label(knobs, series), value))
    return places


assert set(SYMBOLS) <= set(KNOBS)
