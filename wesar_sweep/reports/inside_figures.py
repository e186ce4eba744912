"""The figures of what went on inside runs, after Figures 1, 2, 3 and 9 of arXiv 2410.05052."""

from __future__ import annotations

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import paper_charts, probe_charts
from wesar_sweep.reports.chosen_runs import AT_BEST, settings
from wesar_sweep.reports.figure import Figure, seeds_words

ONE_RUN = (
    "one run a series: the first seed of its best cell that completed, else the first (n = 1, no "
    "interval)"
)


def inside_figures(analysis: Analysis) -> list[Figure]:
    """Those that this study has data for."""
    found: list[Figure] = []
    options = settings(analysis)
    ratios = _range_words(analysis, "update_ratio", "update ratio")
    if options and ratios:
        found.append(_loss_and_update_ratios(analysis, ratios))
    if options:
        found.append(_loss_together(analysis))
    if ratios:
        found.append(_update_ratios_of_a_layer(analysis, ratios))
    if norms := _range_words(analysis, "weight_norm", "‖W‖"):
        found.append(_norms(analysis, norms))
    return found


def _loss_and_update_ratios(analysis: Analysis, ratios: str) -> Figure:
    rule = analysis.study.spikes
    spikes = analysis.spikes
    raw, paired = (int(spikes[name].sum()) for name in ("spikes", "paired_spikes"))
    return Figure(
        name="loss-and-update-ratios",
        section="inside",
        title="Loss and update ratios",
        chart=paper_charts.loss_and_update_ratios(analysis),
        caption=(
            f"The paper's Figure 1: training loss above ‖ΔW‖/‖W‖ of the up and the down projection "
            f"of the last layer; {ONE_RUN}, or the run at a chosen setting. Marks are spikes by "
            f"rule {rule.rule} (window {rule.window} steps, z {rule.z:g}, least jump "
            f"{rule.min_jump:g} nats): circles those of the loss minus the median over the runs "
            "that saw the same batches, which are the run's own; triangles alone may be a hard "
            "batch. Loss above 1.5 times that at the start is drawn at the upper edge."
            + _probe_rule(analysis)
        ),
        alt=(
            f"Training loss with spikes above update ratios, a pair of panels a series. {ratios} "
            f"In all runs {raw} raw and {paired} paired spikes."
        ),
    )


def _loss_together(analysis: Analysis) -> Figure:
    return Figure(
        name="loss-together",
        section="inside",
        title="Loss of all series together",
        chart=paper_charts.loss_together(analysis),
        caption=(
            f"The paper's Figure 2: training loss, {AT_BEST} or all at a chosen setting; steps on "
            f"a log axis, so that the start is seen. Thick lines are medians over seeds "
            f"({seeds_words(analysis)}; no interval), averaged over stretches of steps; a run that "
            "ended early counts as infinite there, so a median ends where half of its runs have. "
            f"Thin lines are seeds, at most {paper_charts.MAX_SEEDS} a cell, unsmoothed. Loss "
            "above 1.5 times that at the start is drawn at the upper edge."
        ),
        alt=f"Training loss against step on a log axis, one line a series. {analysis.verdict.best}",
    )


def _update_ratios_of_a_layer(analysis: Analysis, ratios: str) -> Figure:
    return Figure(
        name="update-ratios-of-a-layer",
        section="inside",
        title="Update ratios of every matrix of a layer",
        chart=probe_charts.update_ratios_of_a_layer(analysis),
        caption=(
            "The paper's Figure 9: ‖ΔW‖/‖W‖ of the parameter that the optimizer owns, of all "
            f"matrices of the middle layer or a chosen one; {ONE_RUN}. Embedding and prediction "
            "belong to no layer and are left out." + _probe_rule(analysis)
        ),
        alt=f"Update ratio against step of each matrix of a layer, one panel a series. {ratios}",
    )


def _norms(analysis: Analysis, norms: str) -> Figure:
    return Figure(
        name="norms",
        section="inside",
        title="Norms of up and down projection",
        chart=probe_charts.norms(analysis),
        caption=(
            "The paper's Figure 3: ‖W‖ is of the parameter that the optimizer owns (solid), ‖W̄‖ of "
            "the effective weight that the model computes with (dashed); Frobenius norms, mean "
            f"over layers; {ONE_RUN}. Without a reparametrization the two are equal."
            + _probe_rule(analysis)
        ),
        alt=f"Norms against step of the up and down projections, one panel a series. {norms}",
    )


def _probe_rule(analysis: Analysis) -> str:
    every = analysis.study.probes.every
    return f" Probed every {every} steps." if every else ""


def _range_words(analysis: Analysis, probe: str, what: str) -> str:
    """What a probe's chart holds, in words; empty where no run has the probe."""
    runs, low, high = probe_charts.probe_range(analysis, probe)
    return f"{runs} runs, {what} from {low:.3g} to {high:.3g}." if runs else ""
