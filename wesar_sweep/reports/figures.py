"""Which charts a study gets, each with what a reader must know: n, interval, rule, limits."""

from __future__ import annotations

from dataclasses import replace

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.analysis.choice import placed_words
from wesar_sweep.config.space import values
from wesar_sweep.reports import boundary, charts, curve_charts, effective_lr, stability_map
from wesar_sweep.reports.cost_figures import cost_figures
from wesar_sweep.reports.drawing import drawn_series
from wesar_sweep.reports.figure import Figure, divergence_words, seeds_words
from wesar_sweep.reports.inside_figures import inside_figures
from wesar_sweep.reports.search_figures import search_figures
from wesar_sweep.reports.size_figures import size_figures
from wesar_sweep.reports.spike_figures import spike_figures

ZOOM = 0.5
"""Nats above the best that the closer view of the loss shows."""


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
    return [
        *found,
        *inside_figures(analysis),
        *spike_figures(analysis),
        *size_figures(analysis),
        *search_figures(analysis),
        *cost_figures(analysis),
    ]


def _boundary(analysis: Analysis) -> Figure:
    return Figure(
        name="boundary",
        section="loss",
        title="Where runs begin to diverge",
        chart=boundary.boundary_chart(analysis),
        caption=f"{boundary.caption(analysis)} {divergence_words(analysis.study.divergence)}",
        alt=boundary.alt_text(analysis),
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
        placed = placed_words(analysis.study)
        what = (
            f"Each mark is one run ({seeds}); {axis} {placed}, so no line is drawn. "
            f"Open marks are diverged runs, at their capped loss. {rule}"
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
