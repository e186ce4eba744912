"""The table of what pruning hid: cells that a pruner had ended, trained to the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import series_label
from wesar_sweep.analysis.finished import Finished
from wesar_sweep.analysis.paired import MIN_MARKED_SEEDS
from wesar_sweep.analysis.rank_correlation import LEAST_POINTS
from wesar_sweep.analysis.verdict import hidden_words, setting
from wesar_sweep.config.run import make_run
from wesar_sweep.reports.figure import seeds_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table, differences_words, number


def finished_tables(analysis: Analysis) -> list[NamedTable]:
    """One row a finished cell, best first; none where the study finishes no search."""
    found = analysis.finished
    if found is None or found.cells.is_empty():
        return []
    table = Table(
        columns=(
            "cell",
            "pruned at step",
            "loss then (nats)",
            "runs then",
            "final loss",
            "95 % interval",
            "n",
            "minus search's best",
            "95 % interval, or each seed",
            "pairs",
        ),
        rows=tuple(_row(analysis, row) for row in found.cells.iter_rows(named=True)),
        numeric=(False, *(True,) * 9),
    )
    caption = f"{summary(analysis, found)} {_limits(found)}"
    title = "What pruning hid"
    return [NamedTable("finished", caption, table, found.cells, "search", title)]


def summary(analysis: Analysis, found: Finished) -> str:
    """The answer: how many ended below the search's best, and whether the early losses told."""
    search, many = found.search, found.cells.height
    best, drawn = search.best, len(search.cells)
    sample = f"{'the' if many == drawn else f'{many} of the'} {drawn}"
    if drawn < search.pruned:
        sample += f" drawn at random (seed {search.seed}) from the {search.pruned}"
    spread = "no interval"
    if best.loss_low is not None and best.loss_high is not None:
        spread = f"95 % interval {number(best.loss_low)} to {number(best.loss_high)}"
    told = hidden_words(found)
    told = told[0].upper() + told[1:]
    if (found.cells["pairs"] >= MIN_MARKED_SEEDS).any():
        told += (
            f"; of {found.clearly_below or 'none'} the whole interval of the difference is below 0"
        )
    words = (
        f"{told}. They are {sample} settings that the pruner of {search.study} had ended; "
        f"that best, trained to the end there, is {_best_words(analysis, found)} with a loss of "
        f"{number(best.loss)} ({spread}, n = {len(best.seeds)}). Final losses are means over seeds "
        f"({seeds_words(analysis)}) of min(final, initial) loss with Student's 95 % interval, "
        f"differences are taken seed by seed, with that interval from {MIN_MARKED_SEEDS} seeds on."
    )
    return " ".join([words, *_method_words(found), _correlation_words(found)])


def _method_words(found: Finished) -> list[str]:
    """Of each method what the search had kept and what it had ended, where there are several."""
    if not found.by_method:
        return []
    told = "; ".join(
        f"{one.method} {number(one.kept)} and {number(one.finished)} "
        f"({', '.join(f'{x:+.3f}' for x in one.differences) or 'no seed in common'})"
        for one in found.by_method
    )
    return [
        f"The best cell of each method that the search had kept, and the best one finished (the "
        f"latter minus the former, seed by seed): {told}. Where the latter is lower, the search "
        "shows a method worse than it is."
    ]


def _correlation_words(found: Finished) -> str:
    tau = found.correlation
    if tau is None:
        return (
            "No rank correlation is given of the loss at pruning and the final one: it takes at "
            f"least {LEAST_POINTS} cells whose losses differ."
        )
    spread = "no interval"
    if tau.interval is not None:
        spread = (
            f"95 % interval {tau.interval.low:+.2f} to {tau.interval.high:+.2f}, a bootstrap over "
            f"cells, n = {tau.n}"
        )
    words = f"Kendall's tau-b of the loss at pruning and the final one is {tau.tau:+.2f} ({spread})"
    steps = found.pruning_steps
    if len(steps) > 1:
        words += (
            f"; they were ended at {len(steps)} different steps, from {steps[0]} to {steps[-1]}, "
            "and earlier losses are higher ones, so that it mixes when a cell was ended with how "
            "well it did"
        )
    if (found.cells["pruned_n"] < found.cells["n"]).any():
        words += "; some losses at pruning are of fewer runs than the final ones"
    return f"{words}."


def _limits(found: Finished) -> str:
    """What all that cannot say."""
    words = (
        "Read with it: the search's best is the least of many noisy means, so it looks better than "
        "it is and the share is rather too low; single cells fall below it by chance, too, and "
        "nothing is corrected for how many were finished. The share is of the pruned settings of "
        "this one search: it does not say what its sampler would have asked for had it been told "
        "their final losses, nor what was gained by the time that pruning saved."
    )
    if found.all:
        words += " All of them were finished, so what is unsure comes from the seeds alone."
    return words


def _best_words(analysis: Analysis, found: Finished) -> str:
    study, layout = analysis.study, analysis.layout
    best = found.search.best
    knobs = make_run(study, best.trial, study.first_seed, best.params).columns()
    row: dict[str, Any] = {**knobs, "series": series_label(knobs, layout.series)}
    return setting(row, study=study, layout=layout)


def _row(analysis: Analysis, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        setting(dict(row), study=analysis.study, layout=analysis.layout),
        f"{row['pruned_at']}",
        number(row["pruned_loss"]),
        f"{row['pruned_n']}",
        number(row["loss"]),
        "–"
        if row["loss_low"] is None
        else f"{number(row['loss_low'])} to {number(row['loss_high'])}",
        f"{row['n']}",
        "–" if row["difference"] is None else f"{row['difference']:+.3f}",
        differences_words(row),
        f"{row['pairs']}",
    )
