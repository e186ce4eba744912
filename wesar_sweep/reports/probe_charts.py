"""Charts of what was probed inside a run: update ratios and norms, a panel a series.

Each series is shown by one run of its best cell: its first seed that completed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.verdict import setting
from wesar_sweep.reports.drawing import (
    IS_SHOWN,
    Chart,
    drawn_series,
    finish,
    inline,
    rounded,
    tooltips,
)
from wesar_sweep.reports.theme import ROLE_COLOURS
from wesar_sweep.store.frames import probes_frame


def update_ratios(analysis: Analysis, *, roles: Sequence[str] = ("u", "w")) -> Chart:
    """Update ratio ‖ΔW‖/‖W‖ of up (u) and down (w) projection in the best cell of each series.

    Args:
        analysis: The study.
        roles: Which matrices, by the last part of their labels.
    """
    rows = [
        {**row, "role": row["role"], "kind": ""}
        for row in _probes(analysis, "update_ratio", roles).iter_rows(named=True)
    ]
    return _probe_chart(analysis, rows, title="update ratio ‖ΔW‖/‖W‖", roles=roles, kinds=("",))


def norms(analysis: Analysis, *, roles: Sequence[str] = ("u", "w")) -> Chart:
    """Norms ‖W‖ (what the optimizer owns) and ‖W̄‖ (what the model computes with), mean of layers.

    Args:
        analysis: The study.
        roles: Which matrices, by the last part of their labels.
    """
    kinds = {"weight_norm": "‖W‖", "effective_norm": "‖W̄‖"}
    rows = []
    for probe, kind in kinds.items():
        frame = _probes(analysis, probe, roles)
        for (panel, role), part in frame.group_by(["panel", "role"], maintain_order=True):
            values = np.array(part["value"].to_list(), dtype=np.float64).mean(axis=0)
            first = part.row(0, named=True)
            rows.append(
                {**first, "panel": panel, "role": role, "kind": kind, "value": values.tolist()}
            )
    return _probe_chart(analysis, rows, title="norm", roles=roles, kinds=tuple(kinds.values()))


def probe_range(
    analysis: Analysis, probe: str, *, roles: Sequence[str] = ("u", "w")
) -> tuple[int, float, float]:
    """How many runs are drawn of a probe, its least and its largest finite value (NaN if none)."""
    frame = _probes(analysis, probe, roles)
    drawn = frame["value"].explode()
    finite = drawn.filter(drawn.is_finite()).to_list() or [math.nan]
    return frame.select("trial", "seed").unique().height, min(finite), max(finite)


def _probes(analysis: Analysis, probe: str, roles: Sequence[str]) -> pl.DataFrame:
    """The probe in the first completed seed (else the first) of each series' best cell."""
    chosen: dict[str, tuple[int, int]] = {}
    panels: dict[tuple[int, int], tuple[str, str]] = {}
    shown = drawn_series(analysis)
    for cell in analysis.best_cells.iter_rows(named=True):
        if cell["series"] not in shown:
            continue
        good = [seed for seed in cell["seeds"] if seed not in cell["diverged_seeds"]]
        for seed in [*good, *cell["seeds"]]:
            if (cell["trial"], seed) in analysis.curves:
                chosen[cell["series"]] = (cell["trial"], seed)
                name = setting(cell, study=analysis.study, layout=analysis.layout)
                panels[cell["trial"], seed] = (name, cell["series"])
                break
    keys = [chosen[name] for name in shown if name in chosen]
    # All layers of a run must share their steps: probes are few, so none is left out below this.
    frame = probes_frame({key: analysis.curves[key] for key in keys}, probe=probe, roles=roles)
    frame = _every_nth(frame, most=80)
    named = [panels[trial, seed] for trial, seed in frame.select("trial", "seed").rows()]
    return frame.with_columns(
        pl.Series("panel", [panel for panel, _ in named], dtype=pl.String),
        pl.Series("series", [series for _, series in named], dtype=pl.String),
    )


def _every_nth(frame: pl.DataFrame, *, most: int) -> pl.DataFrame:
    lengths = frame["step"].list.len()
    longest = int(lengths.max() or 0)  # type: ignore[arg-type]
    every = max(1, math.ceil(longest / most))
    return frame.with_columns(pl.col("step", "value").list.gather_every(every))


def _probe_chart(
    analysis: Analysis,
    rows: list[dict[str, Any]],
    *,
    title: str,
    roles: Sequence[str],
    kinds: Sequence[str],
) -> Chart:
    words = {"u": "up projection (u)", "w": "down projection (w)"}
    labels = [words.get(role, role) for role in roles]
    colours = [ROLE_COLOURS.get(role, "#6b7280") for role in roles]
    keep = ("panel", "series", "label", "layer", "kind", "step", "value", "seed")
    records = [
        {**{k: row[k] for k in keep}, "role": words.get(row["role"], row["role"])} for row in rows
    ]
    names = [
        setting(cell, study=analysis.study, layout=analysis.layout)
        for cell in analysis.best_cells.iter_rows(named=True)
    ]
    order = [name for name in names if any(row["panel"] == name for row in rows)]
    encodings: dict[str, Any] = {
        "x": alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4)),
        "y": alt.Y(
            "value:Q",
            title=title,
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(format="~g", tickCount=5),
        ),
        "color": alt.Color("role:N", scale=alt.Scale(domain=labels, range=colours)),
        "detail": ["label:N", "kind:N"],
        "tooltip": tooltips(("label", "N", "matrix"), ("seed", "Q"), ("step", "Q"), ("value", "Q")),
    }
    if len(kinds) > 1:
        dashes = alt.Scale(domain=list(kinds), range=[[1, 0], [4, 3]])
        encodings["strokeDash"] = alt.StrokeDash("kind:N", scale=dashes)
    chart = (
        alt.Chart(inline(rounded(records)))
        .transform_filter(IS_SHOWN)
        .mark_line(strokeWidth=1.5, opacity=0.85, invalid="break-paths-show-path-domains")
        .transform_flatten(["step", "value"])
        # A norm or ratio of 0 has no place on a logarithmic axis.
        .transform_filter("datum.value === null || datum.value > 0")
        .encode(**encodings)
        .properties(width=250, height=170)
    )
    panels = chart.facet(facet=alt.Facet("panel:N", sort=order, title=None), columns=3)
    # Its own axis a panel: with a shared one, empty places of the last row would have one too.
    return finish(panels.resolve_axis(x="independent"))
