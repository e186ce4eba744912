"""Charts of what was probed inside a run: update ratios of a layer and norms, a panel a series.

Each series is shown by one run of its best cell: its first seed that completed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.chosen_runs import cell_words, one_run, settings
from wesar_sweep.reports.drawing import (
    IS_SHOWN,
    Chart,
    choice,
    columns,
    finish,
    inline,
    rounded,
    tooltips,
)
from wesar_sweep.reports.theme import ROLE_COLOURS
from wesar_sweep.store.frames import Key, probes_frame

ROLE_WORDS: Mapping[str, str] = {
    "u": "up projection (u)",
    "w": "down projection (w)",
    "g": "gate projection (g)",
    "q": "queries (q)",
    "k": "keys (k)",
    "v": "values (v)",
    "o": "attention output (o)",
}
"""The matrices of a layer by role, in the order of the legend."""

POINTS = 24_000
"""Update ratios of all layers, matrices and runs together."""

MAX_LAYERS = 12
"""Layers that a reader can choose from; of more, as many spread evenly with first and last."""


def update_ratios_of_a_layer(analysis: Analysis, *, layer: int | None = None) -> Chart:
    """Update ratio ‖ΔW‖/‖W‖ of every matrix of one layer, in the best cell of each series.

    Source: Figure 9 of arXiv 2410.05052.

    Args:
        analysis: A study with probes.
        layer: The layer that is shown, from 0; default the middle one. The page offers the others.

    Raises:
        ValueError: No run that is drawn has that layer.
    """
    layers = layers_of(analysis, "update_ratio")
    if not layers:
        raise ValueError("no run of this study has probes of a layer: see probes.every")
    layer = middle_layer(layers) if layer is None else layer
    if layer not in layers:
        raise ValueError(f"layer must be one of {', '.join(map(str, layers))}, not {layer}")
    places = np.unique(np.linspace(0, len(layers) - 1, MAX_LAYERS).round().astype(int))
    offered = sorted({layer, *(layers[place] for place in places)})
    frame = _probes(analysis, "update_ratio", tuple(ROLE_WORDS))
    frame = frame.filter(pl.col("layer").is_in(offered))
    frame = _every_nth(frame, most=max(16, min(80, POINTS // max(frame.height, 1))))
    roles = [role for role in ROLE_WORDS if role in set(frame["role"])]
    records = []
    for (panel, at), part in frame.group_by(["panel", "layer"], maintain_order=True):
        first = part.row(0, named=True)
        record = {"panel": panel, "layer": str(at)}
        record |= {name: first[name] for name in ("series", "seed", "step")}
        records.append(record | dict(part.select("role", "value").rows()))
    chart = _panels(rounded(records))
    chart = (
        chart.transform_filter("datum.layer === layer")
        .transform_flatten(["step", *roles])
        .transform_fold([*roles], as_=["role", "value"])
        # A ratio of 0 has no place on a logarithmic axis.
        .transform_filter("isValid(datum.value) && datum.value > 0")
        .transform_calculate(matrix=f"({_words_of(roles)})[datum.role]")
        .encode(
            **_axes("update ratio ‖ΔW‖/‖W‖"),
            color=alt.Color("matrix:N", scale=role_scale(roles)),
            tooltip=tooltips(
                ("matrix", "N"), ("layer", "N"), ("seed", "Q"), ("step", "Q"), ("value", "Q")
            ),
        )
    )
    title = alt.TitleParams(
        text=alt.ExprRef(f"'layer ' + layer + ' of {max(layers) + 1}, counted from 0'")
    )
    panels = _facet(analysis, chart, records).properties(title=title)
    return finish(panels, choice("layer", [str(one) for one in offered], value=str(layer)))


def norms(analysis: Analysis, *, roles: Sequence[str] = ("u", "w")) -> Chart:
    """Norms ‖W‖ (what the optimizer owns) and ‖W̄‖ (what the model computes with), mean of layers.

    Source: Figure 3 of arXiv 2410.05052.

    Args:
        analysis: A study with probes.
        roles: Which matrices, by the last part of their labels.
    """
    kinds = {"weight_norm": "‖W‖", "effective_norm": "‖W̄‖"}
    records: list[dict[str, Any]] = []
    for probe, kind in kinds.items():
        frame = _every_nth(_probes(analysis, probe, roles), most=80)
        for (panel, role), part in frame.group_by(["panel", "role"], maintain_order=True):
            values = np.array(part["value"].to_list(), dtype=np.float64).mean(axis=0)
            first = part.row(0, named=True)
            record = {name: first[name] for name in ("series", "seed", "step")}
            record |= {"panel": panel, "matrix": ROLE_WORDS[str(role)], "kind": kind}
            records.append({**record, "value": values.tolist()})
    dashes = alt.Scale(domain=list(kinds.values()), range=[[1, 0], [4, 3]])
    chart = _panels(rounded(records)).transform_flatten(["step", "value"])
    # A norm of 0 has no place on a logarithmic axis.
    chart = chart.transform_filter("datum.value === null || datum.value > 0").encode(
        **_axes("norm"),
        color=alt.Color("matrix:N", scale=role_scale(roles)),
        strokeDash=alt.StrokeDash("kind:N", scale=dashes),
        tooltip=tooltips(
            ("matrix", "N"), ("kind", "N"), ("seed", "Q"), ("step", "Q"), ("value", "Q")
        ),
    )
    return finish(_facet(analysis, chart, records))


def probe_range(
    analysis: Analysis, probe: str, *, roles: Sequence[str] = ("u", "w")
) -> tuple[int, float, float]:
    """How many runs are drawn of a probe, its least and its largest finite value (NaN if none)."""
    frame = _probes(analysis, probe, roles)
    drawn = frame["value"].explode()
    finite = drawn.filter(drawn.is_finite()).to_list() or [math.nan]
    return frame.select("trial", "seed").unique().height, min(finite), max(finite)


def layers_of(analysis: Analysis, probe: str, key: Key | None = None) -> list[int]:
    """The layers that a run's probe has, ascending; without a key those of all drawn runs."""
    keys = [key] if key is not None else list(_best_runs(analysis))
    labels = {label for one in keys for label in analysis.curves[one].probe_axes.get(probe, ())}
    return sorted({int(p[1]) for label in labels if len(p := label.split(".")) > 1})


def middle_layer(layers: Sequence[int]) -> int:
    """The layer in the middle; of two the upper."""
    return layers[len(layers) // 2] if layers else 0


def role_scale(roles: Sequence[str]) -> alt.Scale:
    """Colours of the matrices."""
    return alt.Scale(
        domain=[ROLE_WORDS[role] for role in roles], range=[ROLE_COLOURS[role] for role in roles]
    )


def _best_runs(analysis: Analysis) -> dict[Key, tuple[str, str]]:
    """(trial, seed) -> (panel, series) of the run that shows each series at its best."""
    options = settings(analysis)
    found = {}
    for name, cell in (options[0].cells if options else {}).items():
        key = one_run(cell, analysis)
        assert key is not None, "settings have a run for each of their cells"
        found[key] = (cell_words(cell, analysis), name)
    return found


def _probes(analysis: Analysis, probe: str, roles: Sequence[str]) -> pl.DataFrame:
    """`probes_frame` of the runs at their best, with ``panel`` and ``series``."""
    panels = _best_runs(analysis)
    frame = probes_frame({key: analysis.curves[key] for key in panels}, probe=probe, roles=roles)
    named = [panels[trial, seed] for trial, seed in frame.select("trial", "seed").rows()]
    return frame.with_columns(
        pl.Series("panel", [panel for panel, _ in named], dtype=pl.String),
        pl.Series("series", [series for _, series in named], dtype=pl.String),
    )


def _every_nth(frame: pl.DataFrame, *, most: int) -> pl.DataFrame:
    """Thinned alike, because all matrices of a run share their steps."""
    lengths = frame["step"].list.len()
    longest = int(lengths.max() or 0)  # type: ignore[arg-type]
    every = max(1, math.ceil(longest / most))
    return frame.with_columns(pl.col("step", "value").list.gather_every(every))


def _words_of(roles: Sequence[str]) -> str:
    return "{" + ", ".join(f"{role}: '{ROLE_WORDS[role]}'" for role in roles) + "}"


def _axes(title: str) -> dict[str, Any]:
    return {
        "x": alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4)),
        "y": alt.Y(
            "value:Q",
            title=title,
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(format="~g", tickCount=5),
        ),
    }


def _panels(records: list[dict[str, Any]]) -> alt.Chart:
    chart: alt.Chart = (
        alt.Chart(inline(records))
        .transform_filter(IS_SHOWN)
        .mark_line(strokeWidth=1.5, opacity=0.85, invalid="break-paths-show-path-domains")
        .properties(width=250, height=170)
    )
    return chart


def _facet(analysis: Analysis, chart: alt.Chart, records: list[dict[str, Any]]) -> alt.FacetChart:
    drawn = {record["panel"] for record in records}
    # As the loss ranks them: the best series first.
    order = [cell_words(cell, analysis) for cell in analysis.best_cells.iter_rows(named=True)]
    sort = [panel for panel in order if panel in drawn]
    panels: alt.FacetChart = chart.facet(
        facet=alt.Facet("panel:N", sort=sort, title=None), columns=columns(len(sort))
    )
    # Its own axis a panel: with a shared one, empty places of the last row would have one too.
    panels = panels.resolve_axis(x="independent")
    return panels
