"""The table of slopes: how best lr, basin and largest stable lr move with the size of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.analysis.size_trend import MIN_SIZES
from wesar_sweep.analysis.sizes import size_knobs
from wesar_sweep.reports.figure import divergence_words, interval_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table

_NAMES: Mapping[str, str] = {
    "best_lr": "best lr",
    "best_effective_lr": "best effective lr",
    "basin_width": "basin width",
    "stable_lr": "largest stable lr",
}


def size_trend_tables(analysis: Analysis) -> list[NamedTable]:
    """The slopes; none where no size knob has as many values as a slope needs."""
    frame = analysis.size_trend
    if frame.is_empty():
        return []
    knobs = size_knobs(analysis.layout)
    held = len(knobs) > 1
    columns = ("series", "against", *(("at",) if held else ()), "figure")
    columns = (*columns, "slope (decades a decade)", "resolved to", "sizes", "seeds", "remark")
    rows = tuple(
        (
            row["line"],
            axis_title(row["against"]),
            *((_held(row, knobs),) if held else ()),
            _NAMES[row["figure"]],
            _slope(row),
            "–" if row["resolution"] is None else f"{row['resolution']:.2f}",
            _sizes(row),
            str(row["n_seeds"]),
            row["note"],
        )
        for row in frame.iter_rows(named=True)
    )
    words = columns.index("figure") + 1
    numeric = tuple(words <= place < len(columns) - 1 for place in range(len(columns)))
    return [
        NamedTable(
            "size-trend",
            _caption(analysis),
            Table(columns, rows, numeric),
            frame,
            section="size",
            title="How they move with size",
        )
    ]


def _caption(analysis: Analysis) -> str:
    return (
        "Slope of the least-squares line through log10 of best lr, best effective lr and largest "
        "stable lr, and through basin width, against log10 of the size: 0 is what transfers, −1 "
        "what falls as 1/size. Effective lr is lr · α₀, α₀ being the gate of the median weight "
        "matrix at the start, the embedding left out. Intervals are 95 % bootstraps over seeds, "
        f"resampled together at every lr and every size ({interval_words(analysis)}). A largest "
        "stable lr is one of the grid, which cannot show a slope finer than its spacing over the "
        "range of sizes, given as “resolved to”; that is added to the interval at each end. The "
        "best lr is taken between grid points here, at the least of the parabola through the "
        "lowest mean and its neighbours in log lr, which errs where the loss is steeper on one "
        "side: its interval is of seeds alone and may be much too narrow. The basin lies between "
        "grid points as far as the loss is linear there. Sizes at which the grid only bounds a "
        "figure, or there is none, are left out, because a slope through bounds is drawn towards "
        "0; fewer than "
        f"{MIN_SIZES} sizes give none. For the largest stable lr a resample can leave out a seed "
        "that diverged but add none, so that resampled limits lie at or above those found. A "
        "straight line is assumed, not tested, and nothing is extrapolated to other sizes. "
        f"{divergence_words(analysis.study.divergence)}"
    )


def _slope(row: Mapping[str, Any]) -> str:
    if row["slope"] is None:
        return "–"
    if row["slope_low"] is None:
        return _signed(row)
    return f"{_signed(row)} ({_signed(row, '_low')} to {_signed(row, '_high')})"


def _signed(row: Mapping[str, Any], end: str = "") -> str:
    # A slope that rounds to nothing has no sign.
    return f"{round(row[f'slope{end}'], 2) + 0.0:.2f}".replace("-", "−")


def _sizes(row: Mapping[str, Any]) -> str:
    if not row["n_sizes"]:
        return "0"
    return f"{row['n_sizes']} ({row['smallest']}–{row['largest']})"


def _held(row: Mapping[str, Any], knobs: tuple[str, ...]) -> str:
    return ", ".join(f"{axis_title(k)} {row[k]}" for k in knobs if k != row["against"])
