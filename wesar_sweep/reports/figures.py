"""Which charts a study gets, each with what a reader must know: n, interval, rule, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.analysis.intervals import (
    CONFIDENCE,
    DRAWS,
    EXACT_SEEDS,
    GENERATOR_SEED,
    bootstrap_coverage_bound,
)
from wesar_sweep.analysis.verdict import percent
from wesar_sweep.config.space import values
from wesar_sweep.config.study import Divergence
from wesar_sweep.reports import (
    boundary,
    charts,
    curve_charts,
    effective_lr,
    probe_charts,
    stability_map,
)
from wesar_sweep.reports.drawing import Chart, drawn_series

ZOOM = 0.5
"""Nats above the best that the closer view of the loss shows."""


Section = Literal["loss", "inside", "spikes", "size", "search", "cost"]
SECTIONS: Mapping[Section, str] = {
    "loss": "Loss and divergence",
    "inside": "Inside the runs",
    "spikes": "Spikes",
    "size": "Size",
    "search": "Search",
    "cost": "Cost",
}
"""The parts of the page that hold figures, in its order, with their headings."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its words."""

    name: str
    """Such as ``loss-against-axis``: its anchor in the page and its name for exports."""
    section: Section
    """Where the page shows it."""
    title: str
    chart: Chart
    caption: str
    alt: str
    """What a reader who cannot see the chart would be told."""
    choice: str = ""
    """The word of the section's switch under which the page shows it; empty: always."""


def figures(analysis: Analysis) -> list[Figure]:
    """All charts that this study has data for, in the order of the page."""
    found: list[Figure] = []
    if analysis.boundary["boundary"].count():
        found.append(_boundary(analysis))
    if not analysis.seed_points.is_empty() and analysis.layout.axis is not None:
        found += _loss_figures(analysis)
    found += [_stability_map(analysis, *one) for one in stability_map.maps(analysis)]
    if analysis.curves and not analysis.cells.is_empty() and drawn_series(analysis):
        found.append(_loss_curves(analysis))
    if ratios := _probe_range(analysis, "update_ratio"):
        found.append(_update_ratios(analysis, ratios))
    if norms := _probe_range(analysis, "weight_norm"):
        found.append(_norms(analysis, norms))
    # Imported here: their words build on this module's.
    from wesar_sweep.reports.cost_figures import cost_figures
    from wesar_sweep.reports.search_figures import search_figures

    return [*found, *search_figures(analysis), *cost_figures(analysis)]


def _boundary(analysis: Analysis) -> Figure:
    return Figure(
        name="boundary",
        section="loss",
        title="Where runs begin to diverge",
        chart=boundary.boundary_chart(analysis),
        caption=f"{boundary.caption(analysis)} {divergence_words(analysis.study.divergence)}",
        alt=boundary.alt_text(analysis),
    )


def seeds_words(analysis: Analysis) -> str:
    """``n = 3 seeds a cell``, or the range where cells differ."""
    counts = analysis.cells["n"].to_list()
    if not counts:
        return "no cell has ended yet"
    low, high = min(counts), max(counts)
    span = f"{low}" if low == high else f"{low} to {high}"
    return f"n = {span} seed{'' if high == 1 else 's'} a cell"


def divergence_words(rule: Divergence) -> str:
    """The rule by name, with its parameters, in one sentence."""
    return (
        f"Divergence rule {rule.rule} (window {rule.window} steps, patience {rule.patience} steps, "
        f"margin {rule.margin:g} nats, delta {rule.delta:g} nats)."
    )


def _loss_figures(analysis: Analysis) -> list[Figure]:
    axis = axis_title(str(analysis.layout.axis))
    rule = divergence_words(analysis.study.divergence)
    seeds = seeds_words(analysis)
    if analysis.layout.gridded:
        what = (
            "Lines join cell means of the capped loss; bands are 95 % Student intervals over "
            f"seeds ({seeds}). Small marks are seeds, moved sideways a little "
            "so that they do not hide each other. Open marks are diverged runs, drawn and "
            "counted at their initial loss where the final one is missing, not finite or "
            f"higher. {rule}"
        )
    else:
        what = (
            f"Each mark is one run ({seeds}); {axis} was sampled, so no line is drawn. Open marks "
            f"are diverged runs, at their capped loss. {rule}"
        )
    shown = drawn_series(analysis)
    if len(shown) < len(set(analysis.cells["series"])):
        what += f" Shown are the {len(shown)} series with the lowest loss."
    runs = int(analysis.cells["n"].sum())
    best = f"{runs} runs, {seeds}. {analysis.verdict.best}"
    first = Figure(
        name="loss-against-axis",
        section="loss",
        title=f"Loss against {axis}",
        chart=charts.loss_against_axis(analysis),
        caption=what,
        alt=f"Validation loss against {axis}, one line a series. {best}",
    )
    second = Figure(
        name="loss-near-best",
        section="loss",
        title=f"The same, within {ZOOM:g} nats of the best",
        chart=charts.loss_against_axis(analysis, zoom=ZOOM),
        caption=f"The lower part of the figure before; lines leave it above. {rule}",
        alt=f"Validation loss against {axis}, near the lowest loss. {best}",
    )
    if not analysis.shows_effective_lr:
        return [first, second]
    gates = effective_lr.gates_words(analysis, shown)
    third = Figure(
        name="loss-against-effective-lr",
        section="loss",
        title="Loss against effective lr",
        chart=charts.loss_against_axis(analysis, effective=True),
        caption=f"{effective_lr.DEFINITION} {gates} {effective_lr.READING} "
        f"{effective_lr.LIMITS} {what}",
        alt=f"Validation loss against effective lr, one line a series. {gates} {best}",
        choice=effective_lr.NAME,
    )
    fourth = Figure(
        name="loss-near-best-effective-lr",
        section="loss",
        title=second.title,
        chart=charts.loss_against_axis(analysis, zoom=ZOOM, effective=True),
        caption=second.caption,
        alt=f"Validation loss against effective lr, near the lowest loss. {gates} {best}",
        choice=effective_lr.NAME,
    )
    return [replace(first, choice="lr"), replace(second, choice="lr"), third, fourth]


def _stability_map(analysis: Analysis, name: str, across: str | None) -> Figure:
    seeds, rule = seeds_words(analysis), divergence_words(analysis.study.divergence)
    second = "" if across is None else f", by {axis_title(across)}"
    return Figure(
        name=name,
        section="loss",
        title=f"Where runs diverge{second}",
        chart=stability_map.stability_map(analysis, across=across),
        caption=f"{stability_map.caption(analysis, across=across, seeds=seeds)} {rule}",
        alt=stability_map.alt_text(analysis, across=across),
    )


def _loss_curves(analysis: Analysis) -> Figure:
    axis = analysis.layout.axis
    by = f"One panel a value of {axis_title(axis)}" if axis else "One panel a series"
    left_out = ""
    if axis is not None and analysis.layout.gridded:
        listed = values(analysis.study.space[axis], axis) or ()
        if len(set(listed)) > curve_charts.MAX_PANELS:
            left_out = f" {curve_charts.MAX_PANELS} of its {len(set(listed))} values are shown."
    if not analysis.layout.gridded:
        by = "One panel a series"
    if len(analysis.curves) > curve_charts.MAX_CURVES:
        left_out += f" Of {len(analysis.curves)} runs at most {curve_charts.MAX_CURVES} are shown."
    return Figure(
        name="loss-curves",
        section="loss",
        title="Training loss",
        chart=curve_charts.loss_curves(analysis),
        caption=(
            f"{by}, one line a run, unsmoothed; long runs are thinned so that the highest and the "
            f"lowest value of every stretch stay: no spike is lost. A cross ends a diverged run; "
            f"crosses that would hide each other are moved aside a little. "
            f"Runs with one seed see the same batches: a bump in all of them is a hard batch. "
            f"Above the dotted line there is no scale: higher values run along a lane of their "
            f"series. A panel whose runs all ended early says so and has its own step axis."
            f"{left_out}"
        ),
        alt=(
            f"Training loss against step of {len(curve_charts.drawn_runs(analysis))} runs. "
            f"{analysis.verdict.best}"
        ),
    )


def _update_ratios(analysis: Analysis, ratios: str) -> Figure:
    return Figure(
        name="update-ratios",
        section="inside",
        title="Update ratios of up and down projection",
        chart=probe_charts.update_ratios(analysis),
        caption=(
            "‖ΔW‖/‖W‖ of the parameter that the optimizer owns, one line a layer, in the best cell "
            "of each series: one run, its first seed that completed (n = 1, no interval)."
            + _probe_rule(analysis)
        ),
        alt=(
            "Update ratio against step of the up and down projections, one panel a series. "
            + ratios
        ),
    )


def _norms(analysis: Analysis, norms: str) -> Figure:
    return Figure(
        name="norms",
        section="inside",
        title="Norms of up and down projection",
        chart=probe_charts.norms(analysis),
        caption=(
            "‖W‖ is of the parameter that the optimizer owns (solid), ‖W̄‖ of the effective weight "
            "that the model computes with (dashed); Frobenius norms, mean over layers, the same "
            "runs as above (n = 1, no interval). Without a reparametrization the two are equal."
            + _probe_rule(analysis)
        ),
        alt=("Norms against step of the up and down projections, one panel a series. " + norms),
    )


def _probe_rule(analysis: Analysis) -> str:
    every = analysis.study.probes.every
    return f" Probed every {every} steps." if every else ""


def _probe_range(analysis: Analysis, probe: str) -> str:
    """What a probe's chart holds, in words; empty where no run has the probe."""
    runs, low, high = probe_charts.probe_range(analysis, probe)
    if not runs:
        return ""
    what = {"update_ratio": "update ratio", "weight_norm": "‖W‖"}[probe]
    return f"{runs} runs, {what} from {low:.3g} to {high:.3g}."


def bootstrap_words(n: int) -> str:
    """How a bootstrap over so few seeds is made, and what it can promise at most."""
    if n < 2:
        return "With one seed a cell there is none."
    words = (
        f"An expanded percentile bootstrap: every resample is enumerated up to {EXACT_SEEDS} "
        f"seeds, above that {DRAWS:,} are drawn with generator seed {GENERATOR_SEED}."
    )
    bound = bootstrap_coverage_bound(n)
    if bound >= CONFIDENCE:
        return words
    return (
        f"{words} With {n} seeds it can cover the truth in at most about {percent(bound)} of "
        "cases, because it cannot leave the range of the seeds: read it as that range."
    )
