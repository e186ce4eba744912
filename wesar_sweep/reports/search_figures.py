"""The section “Search” of a report: its charts with their words, and the table of importance."""

from __future__ import annotations

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title
from wesar_sweep.analysis.choice import choice
from wesar_sweep.analysis.importance import RESAMPLES
from wesar_sweep.analysis.search import dimensions
from wesar_sweep.analysis.significance import ALPHA
from wesar_sweep.reports import search_charts
from wesar_sweep.reports.figure import Figure
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table

_CROWDS = {
    "grid": "",
    "listed": "Where lines crowd says nothing of how good those cells are.",
    "indifferent": "Where lines crowd says nothing of how good those cells are.",
    "outcomes": "Where lines crowd, the sampler looked more often.",
    "boundary": "Where lines crowd runs begin to diverge: there the search looked more often.",
}
"""What many lines together mean, by how cells were chosen."""


def search_figures(analysis: Analysis) -> list[Figure]:
    """History, parallel coordinates and Pareto front of a search; of a grid only the last two.

    Cells that were written out have no history either: nobody asked for one after another.
    """
    found = []
    how = choice(analysis.study)
    several = analysis.search_history.height > 1
    if several and how not in ("grid", "listed"):
        found.append(_history(analysis))
    if several and how != "grid" and dimensions(analysis.search_history, study=analysis.study):
        found.append(_parallel_coordinates(analysis))
    if several and len(analysis.study.objectives) > 1:
        found.append(_pareto_front(analysis))
    if analysis.importance.height > 1:
        found.append(_importance(analysis))
    return found


def search_tables(analysis: Analysis) -> list[NamedTable]:
    """The table of importance."""
    if analysis.importance.height < 2:
        return []
    total = float(analysis.importance["importance"].sum()) or 1.0
    rows = tuple(
        (
            axis_title(row["knob"]),
            f"{row['share']:.0%}",
            f"{row['share_low']:.0%} to {row['share_high']:.0%}",
            f"{row['chance'] / total:.0%}",
            f"{row['p_holm']:.2g}",
            "yes" if row["p_holm"] <= ALPHA else "not told apart",
        )
        for row in analysis.importance.iter_rows(named=True)
    )
    heads = ("knob", "share", "95 % of resamples", "by chance", "p (Holm)", "above chance")
    table = Table(heads, rows, (False, True, True, True, True, False))
    title = "Which knobs decide whether a cell is among the best"
    return [
        NamedTable(
            "importance", _importance_words(analysis), table, analysis.importance, "search", title
        )
    ]


def _history(analysis: Analysis) -> Figure:
    cells = analysis.search_history
    cut, lost = (int((cells[name] > 0).sum()) for name in ("pruned", "diverged"))
    last = cells["best"].drop_nulls()
    best = f"The best at the end is {last[-1]:.4g}." if len(last) else ""
    objective = analysis.study.objectives[0]
    name = search_charts.TITLES[objective]
    told = ", as the sampler was told" if choice(analysis.study) == "outcomes" else ""
    capped = ", counted at min(final, initial) loss" if objective == "val_loss" else ""
    return Figure(
        name="search-history",
        section="search",
        title="History of the search",
        chart=search_charts.history(analysis),
        caption=(
            f"Each mark is a cell: the mean over its runs of the {name}{told} "
            f"({_runs_words(analysis)}), in the order in which {analysis.study.sampler.name} asked "
            f"for it. Filled: no run diverged; open: at least one did{capped}; "
            "small crosses: cut short by the pruner, at the value where that happened. The line is "
            "the best so far, of cells that were not cut short; being the least of many noisy "
            f"means, it looks better than it is."
        ),
        alt=f"{name} against trial: {cells.height} cells, {lost} of which had a diverged run, "
        f"{cut} cut short. {best}",
    )


def _parallel_coordinates(analysis: Analysis) -> Figure:
    cells, most = analysis.search_history.height, search_charts.MAX_LINES
    left_out = f" Of {cells} cells {most} are drawn, the best half of those all." * (cells > most)
    return Figure(
        name="parallel-coordinates",
        section="search",
        title="All cells across the searched knobs",
        chart=search_charts.parallel_coordinates(analysis),
        caption=(
            f"One line a cell ({_runs_words(analysis)}), orange for the best and grey for the "
            "worst; the last axis is its rank, the best with its figure, cells that the pruner cut "
            "short behind the others. Dashed: at least one run diverged. “none”: the cell does "
            f"not have that knob. {_CROWDS[choice(analysis.study)]}{left_out}"
        ),
        alt=f"Parallel coordinates of {cells} cells. {analysis.verdict.best}",
    )


def _pareto_front(analysis: Analysis) -> Figure:
    front = int(analysis.search_history["on_front"].sum())
    names = " and ".join(search_charts.TITLES[name] for name in analysis.study.objectives)
    return Figure(
        name="pareto-front",
        section="search",
        title="Pareto front",
        chart=search_charts.pareto_front(analysis),
        caption=(
            f"Each mark is a cell, means over seeds ({_runs_words(analysis)}); filled are the "
            f"{front} that no other cell beats in one of {names} without losing in another. The "
            "means are noisy and no interval is drawn: with other seeds, cells near the front "
            f"would be on it."
        ),
        alt=f"{names} of {analysis.search_history.height} cells, {front} of them on the front.",
    )


def _importance(analysis: Analysis) -> Figure:
    first = analysis.importance.row(0, named=True)
    sure = analysis.importance.filter(analysis.importance["p_holm"] <= ALPHA)["knob"].to_list()
    told = f"Above chance: {', '.join(map(axis_title, sure)) or 'none'}."
    return Figure(
        name="importance",
        section="search",
        title="Importance of the knobs",
        chart=search_charts.importance(analysis),
        caption=(
            "Bars are the shares of the table above, lines the middle 95 % of resampled cells, "
            f"orange ticks what chance alone gives. {told}"
        ),
        alt=f"Importance of {analysis.importance.height} knobs; the first is "
        f"{axis_title(first['knob'])} with {first['share']:.0%}. {told}",
    )


def _importance_words(analysis: Analysis) -> str:
    row = analysis.importance.row(0, named=True)
    several = len(analysis.study.objectives) > 1
    best = "nearest the Pareto front" if several else "best"
    bias = (
        "On a grid every value was tried equally often."
        if analysis.study.sampler.name == "grid"
        else "It is measured against the cells that were tried, whatever values they crowd at: a "
        "knob that a search has narrowed counts for less, and knobs that moved together share what "
        "either does."
    )
    return (
        f"PED-ANOVA (arXiv 2304.10255, by Optuna): how differently the {row['best_cells']} {best} "
        f"of {row['cells']} cells lie along a knob than all of them; shares sum to 100 %. It does "
        "not say which value is good, nor how the loss far from the best depends on a knob. "
        f"{bias} "
        f"It is never 0 by chance: p counts how many of {row['shuffles']} shuffles of the cells’ "
        "losses give as much, adjusted for the number of knobs; the range is of "
        f"{RESAMPLES} bootstraps over cells ({_runs_words(analysis)})."
    )


def _runs_words(analysis: Analysis) -> str:
    """``n = 2 to 3 runs a cell``: those that the sampler was told of, pruned ones among them."""
    low, high = (int(getattr(analysis.search_history["n"], end)()) for end in ("min", "max"))
    span = f"{low}" if low == high else f"{low} to {high}"
    return f"n = {span} run{'' if high == 1 else 's'} a cell"
