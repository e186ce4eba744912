"""Which charts a study gets, each with what a reader must know: n, interval, rule, limits."""

from __future__ import annotations

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.config.space import values
from wesar_sweep.reports import charts, curve_charts
from wesar_sweep.reports.drawing import drawn_series
from wesar_sweep.reports.figure import (
    SECTIONS,
    Figure,
    Section,
    coverage_words,
    divergence_words,
    interval_words,
    seeds_words,
)
from wesar_sweep.reports.inside_figures import inside_figures
from wesar_sweep.reports.size_figures import size_figures
from wesar_sweep.reports.spike_figures import spike_figures

__all__ = [
    "SECTIONS",
    "Figure",
    "Section",
    "coverage_words",
    "divergence_words",
    "figures",
    "interval_words",
    "seeds_words",
]

ZOOM = 0.5
"""Nats above the best that the closer view of the loss shows."""


def figures(analysis: Analysis) -> list[Figure]:
    """All charts that this study has data for, in the order of the page."""
    found: list[Figure] = []
    if not analysis.seed_points.is_empty() and analysis.layout.axis is not None:
        found += _loss_figures(analysis)
    if _several(analysis) and int(analysis.lr_curves["diverged"].sum()) > 0:
        found.append(_divergence_map(analysis))
    if analysis.curves and not analysis.cells.is_empty() and drawn_series(analysis):
        found.append(_loss_curves(analysis))
    return [*found, *inside_figures(analysis), *spike_figures(analysis), *size_figures(analysis)]


def _several(analysis: Analysis) -> bool:
    return analysis.layout.gridded and analysis.layout.axis is not None and len(analysis.series) > 1


def _loss_figures(analysis: Analysis) -> list[Figure]:
    axis = axis_title(str(analysis.layout.axis))
    rule = divergence_words(analysis.study.divergence)
    seeds = seeds_words(analysis)
    if analysis.layout.gridded:
        what = (
            "Lines join cell means of the capped loss; bands are 95 % bootstrap intervals over "
            f"seeds ({interval_words(analysis)}). Small marks are seeds, moved sideways a little "
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
    return [first, second]


def _divergence_map(analysis: Analysis) -> Figure:
    axis = axis_title(str(analysis.layout.axis))
    n, k = int(analysis.cells["n"].sum()), int(analysis.cells["diverged"].sum())
    return Figure(
        name="divergence-map",
        section="loss",
        title="Where runs diverge",
        chart=charts.divergence_map(analysis),
        caption=(
            f"Diverged of counted runs in every cell ({seeds_words(analysis)}); the matrix above "
            f"has Wilson's interval of each. Empty places have no counted run. "
            f"{divergence_words(analysis.study.divergence)}"
        ),
        alt=f"Heat map of the divergence rate over series and {axis}: {k} of {n} runs diverged.",
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
