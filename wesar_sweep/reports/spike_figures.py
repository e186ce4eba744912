"""The section of spikes: how many each series has, and the worst of them looked at closely."""

from __future__ import annotations

import math
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.run_spikes import NEAR, SHARED_BY
from wesar_sweep.analysis.spike_statistics import KINDS
from wesar_sweep.reports import spike_charts
from wesar_sweep.reports.chosen_runs import cell_words
from wesar_sweep.reports.figure import Figure, seeds_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.paper_charts import recovery_words
from wesar_sweep.reports.probe_tables import spike_ratio_tables
from wesar_sweep.reports.tables import Table
from wesar_sweep.stability.spike_score import OLMO_2_SIGMA, OLMO_2_WINDOW
from wesar_sweep.stability.spikes import MIN_PAIRED_RUNS


def spike_figures(analysis: Analysis) -> list[Figure]:
    """The gallery; none where no run has a spike."""
    worst = analysis.worst_spikes
    if worst.is_empty():
        return []
    top = worst.row(0, named=True)
    every = analysis.study.probes.every
    probed = f" Probes are of every {every} steps." if every else " Nothing was probed."
    found = Figure(
        name="worst-spikes",
        section="spikes",
        title="The worst spikes, from near",
        chart=spike_charts.worst_spikes(analysis),
        caption=(
            "A row a spike of the table above: the run in colour, red lines at the start of the "
            "spike (solid) and where it had recovered (dotted). Grey behind it are the "
            f"{spike_charts.OTHERS} runs of the same seed and batches whose loss before it was "
            "nearest: if they rise too, the batch was hard. Update ratio and attention logit are "
            f"the largest over matrices and layers.{probed} What is above or below the run's own "
            f"range is not drawn. One run each (n = 1, no interval). {_rule(analysis)}"
        ),
        alt=(
            f"Loss, gradient norm and probes around {worst.height} spikes. The worst is "
            f"{_height(top['height'])} nats high, at step {top['start']} of trial {top['trial']}, "
            f"seed {top['seed']}."
        ),
    )
    return [found]


def spike_tables(analysis: Analysis) -> list[NamedTable]:
    """How many spikes each series has, update ratios there, the worst; none without a curve."""
    statistics = analysis.spike_statistics
    if statistics.is_empty():
        return []
    window = int(statistics["olmo_2_window"][0])
    shorter = (
        "" if window == OLMO_2_WINDOW else f" (the paper's is {OLMO_2_WINDOW:,}: runs are short)"
    )
    none = "" if not analysis.run_spikes.events.is_empty() else " No run has a spike by this rule."
    unpaired = int((statistics["raw_n"] - statistics["paired_n"]).sum())
    left = f" {unpaired} runs could not be paired." if unpaired else ""
    caption = (
        f"{_rule(analysis)}{none} Raw spikes count hard batches too; paired ones are of the loss "
        f"minus the median over the runs that saw the same batch, of which it takes "
        f"{MIN_PAIRED_RUNS}.{left} The median does not take all of a hard batch out, which a run "
        "that trains badly feels more: lone spikes are the paired ones at which fewer than "
        f"{SHARED_BY} other runs of the same batches have one within {NEAR} steps. n counts "
        "completed and diverged runs; a run is mostly not a "
        "replicate of another here, so runs with any are counted and not taken as a rate. Spikes a "
        "thousand steps that were trained are over the seeds that every cell of the series has, "
        "with Student's 95 % interval "
        f"({seeds_words(analysis)}); none where these are equal. Height in nats "
        "and steps to recover are medians over spikes; one that never recovered is longer than any "
        "that did. OLMo-2 spike score (arXiv 2501.00656, §3.2): percentage of values at least "
        f"{OLMO_2_SIGMA:g} standard deviations from the mean of the {window:,} before{shorter}, "
        "mean over the runs that are longer, of the loss and of the gradient norm."
    )
    rows = tuple(_row(row) for row in statistics.iter_rows(named=True))
    columns = ["series", "n", "raw spikes a thousand steps", "runs with any"]
    columns += ["n paired", "paired spikes a thousand steps", "runs with any"]
    columns += ["lone spikes a thousand steps", "runs with any", "lone in completed runs"]
    columns += ["height, raw / paired / lone"]
    columns += ["steps to recover, raw / paired / lone", f"OLMo-2 spike score (window {window:,})"]
    table = Table(tuple(columns), rows, (False, *(True for _ in columns[1:])))
    found = [
        NamedTable(
            "spikes", caption, table, statistics, section="spikes", title="Spikes of each series"
        ),
        *spike_ratio_tables(analysis),
    ]
    return found if analysis.worst_spikes.is_empty() else [*found, _worst(analysis)]


def _worst(analysis: Analysis) -> NamedTable:
    worst = analysis.worst_spikes
    cells = {row["trial"]: row for row in analysis.cells.iter_rows(named=True)}
    rows = tuple(
        (
            str(row["rank"]),
            cell_words(cells[row["trial"]], analysis),
            str(row["seed"]),
            row["kind"],
            str(row["start"]),
            _height(row["height"]),
            recovery_words(row["steps_to_recover"]),
            row["status"],
        )
        for row in worst.iter_rows(named=True)
    )
    columns = ("rank", "run", "seed", "kind", "step", "height (nats)", "recovered", "the run")
    numeric = (True, False, True, False, True, True, False, False)
    lost = analysis.run_spikes.events.join(
        analysis.raw_outcomes.filter(status="diverged").select("trial", "seed"),
        on=["trial", "seed"],
    ).height
    caption = (
        "The highest spike of a run, of at most five runs; paired where the run could be paired. "
        "Runs that completed come first, because the last spike of a diverged run is its end: "
        f"diverged runs have {lost} of the {analysis.run_spikes.events.height} spikes, raw and "
        f"paired. {_rule(analysis)}"
    )
    return NamedTable(
        "worst-spikes",
        caption,
        Table(columns, rows, numeric),
        worst,
        section="spikes",
        title="The worst spikes",
    )


def _rule(analysis: Analysis) -> str:
    rule = analysis.study.spikes
    return (
        f"Spike rule {rule.rule} (window {rule.window} steps, z {rule.z:g}, least jump "
        f"{rule.min_jump:g} nats)."
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    words = [row["series"]]
    for kind in KINDS:
        # As many can be judged for lone spikes as for paired ones.
        words += [str(row[f"{kind}_n"])] * (kind != "lone")
        known = bool(row[f"{kind}_n"])
        words.append(_rate(row, kind) if known else "–")
        words.append(f"{row[f'{kind}_runs']}/{row[f'{kind}_n']}" if known else "–")
    words.append(str(row["lone_in_completed"]) if row["lone_n"] else "–")
    words.append(" / ".join(_height(row[f"{kind}_height"]) for kind in KINDS))
    words.append(" / ".join(_steps(row[f"{kind}_recovery"]) for kind in KINDS))
    scores = [row["olmo_2_loss"], row["olmo_2_grad_norm"]]
    words.append("–" if None in scores else " / ".join(f"{score:.2f} %" for score in scores))
    return tuple(words)


def _rate(row: dict[str, Any], kind: str) -> str:
    mean, low, high = (row[f"{kind}_per_thousand{end}"] for end in ("", "_low", "_high"))
    if mean is None:
        return "–"
    return f"{mean:.2f}" if low is None else f"{mean:.2f} ({low:.2f}–{high:.2f})"


def _height(height: float | None) -> str:
    if height is None:
        return "–"
    if not math.isfinite(height):
        return "not finite"
    return f"{height:.3g}" if height < 1000 else f"{height:,.0f}"


def _steps(steps: float | None) -> str:
    if steps is None:
        return "–"
    return f"{steps:g}" if math.isfinite(steps) else "never"
