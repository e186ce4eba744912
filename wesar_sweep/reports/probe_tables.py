"""Update ratios and norms in numbers: of each series at its best, and before and at its spikes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.matrix_probes import HISTORY, MIN_HISTORY
from wesar_sweep.analysis.spike_ratios import CONTROLS, FIGURES, LEAST_REACH, MIN_RUNS
from wesar_sweep.reports.chosen_runs import cell_words
from wesar_sweep.reports.figure import seeds_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table

# Heading, figure and what it is multiplied by.
_PROBES = (
    ("u: 1000·‖ΔW‖/‖W‖", "update_ratio_u", 1e3),
    ("w: 1000·‖ΔW‖/‖W‖", "update_ratio_w", 1e3),
    ("all: 1000·‖ΔW‖/‖W‖", "update_ratio", 1e3),
    ("unevenness", "unevenness", 1.0),
    ("u: growth of ‖W‖", "weight_growth_u", 1.0),
    ("w: growth of ‖W‖", "weight_growth_w", 1.0),
    ("u: growth of ‖W̄‖", "effective_growth_u", 1.0),
    ("w: growth of ‖W̄‖", "effective_growth_w", 1.0),
    ("largest over median", "largest_over_median", 1.0),
    ("largest over those before", "largest_jump", 1.0),
)


def probe_tables(analysis: Analysis) -> list[NamedTable]:
    """The table ``probes``; none where no run was probed."""
    frame = analysis.probe_statistics
    if frame.is_empty():
        return []
    probed = {row["trial"]: row for row in frame.iter_rows(named=True)}
    rows = []
    for cell in analysis.best_cells.iter_rows(named=True):
        if (row := probed.get(cell["trial"])) is not None:
            figures = (_figure(row, name, times=times) for _, name, times in _PROBES)
            rows.append((cell_words(cell, analysis), str(row["n"]), str(row["diverged"]), *figures))
    columns = ("series at its best", "n", "diverged", *(heading for heading, _, _ in _PROBES))
    table = Table(columns, tuple(rows), (False, *(True for _ in columns[1:])))
    caption = (
        "Figures 1, 3 and 9 of the paper in numbers, of the best cell of each series; as CSV "
        "of every cell. Each figure is a mean over the n seeds that completed, with Student's "
        f"95 % interval ({seeds_words(analysis)}); runs that diverged are counted and left out, so "
        "this does not say what went on in them. ‖ΔW‖/‖W‖: median update ratio over layers and "
        "over the probes after the warm-up, of up projection (u), down projection (w) and all "
        "matrices of the layers, without embedding and prediction; it moves with lr, so compare "
        "cells of equal lr, or the other columns. Unevenness: of these medians of q, k, v, o, u, w "
        "(and g), the largest over the smallest; 1 is uniform. Growth: the norm at the last probe "
        "over that at the first, mean over layers, of what the optimizer owns (‖W‖) and of what "
        "the model computes with (‖W̄‖); 1 is flat. Largest: the highest single update ratio of u "
        "or w, over its matrix' median in that run, which the schedule of lr raises as well, and "
        f"over the median of the {MIN_HISTORY} to {HISTORY} probes before it, which it hardly "
        "moves; the highest of many values is above 1 by chance, the more the longer and deeper "
        f"the runs.{_probed(analysis)}"
    )
    return [NamedTable("probes", caption, table, frame, "inside", "Update ratios and norms")]


def spike_ratio_tables(analysis: Analysis) -> list[NamedTable]:
    """The table ``spike-ratios``; none where no probed run has a spike."""
    frame = analysis.spike_ratios
    if not int(frame["spikes"].sum()):
        return []
    columns = ["series", "n", "spikes", "runs with any", "not probed"]
    for when in ("before", "at"):
        columns.append(f"probed {when}")
        columns += [f"u {when}", "u, control", f"w {when}", "w, control"]
    columns += ["of those at, inside", "control steps"]
    rows = tuple(_ratio_row(row) for row in frame.iter_rows(named=True))
    table = Table(tuple(columns), rows, (False, *(True for _ in columns[1:])))
    reach = max(2 * (analysis.study.probes.every or 0), LEAST_REACH)
    caption = (
        "Do update ratios jump where the loss does (the paper's Figures 1 and 2)? Spikes are "
        "paired ones, raw ones of runs that could not be paired, of the n completed and diverged "
        "runs that were probed. A figure is the update ratio of u or w over the median of the "
        f"{MIN_HISTORY} to {HISTORY} probes of that matrix before it, largest over layers, then "
        "the median over spikes: at the last probe before the spike, and at the first at its "
        f"start or after it, up to one interval after its peak. Control: the same at {CONTROLS} "
        f"random steps a spike of the same run, at most {HISTORY} probes away, over as many probes "
        "before them, and outside its spikes, raw or paired; not every spike has such steps. The "
        "largest of layers is above 1 by chance, and a falling lr lowers all: only what differs "
        "from the control counts. 95 % intervals are bootstraps over runs, as a run's spikes are "
        f"not independent; below {MIN_RUNS} runs with one there is none. That runs of one seed saw "
        "the same batches they do not know. Not probed, and left out: spikes without a probe "
        f"within {reach} steps before them, or with fewer than {MIN_HISTORY} finite ones before "
        "that since the warm-up. It cannot say what happened between probes: a shorter jump is "
        "mostly missed, and the probe at a spike may come after it (inside: before the loss had "
        "recovered). Nor does it say what caused a spike; at it, the update ratio follows the "
        "spike's own gradient."
        f"{_probed(analysis)}"
    )
    title = "Update ratios before and at spikes"
    return [NamedTable("spike-ratios", caption, table, frame, "spikes", title)]


def _ratio_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    words = [row["series"], str(row["n"]), str(row["spikes"]), str(row["runs"])]
    words.append(str(row["not_probed"]))
    for when in ("before", "at"):
        words.append(_in_runs(row[f"{when}_spikes"], row[f"{when}_runs"]))
        for name in FIGURES:
            if name.endswith(when):
                words += [_figure(row, name), _figure(row, f"control_{name}")]
    words += [str(row["at_inside"]), _in_runs(row["control_steps"], row["control_runs"])]
    return tuple(words)


def _in_runs(count: int, runs: int) -> str:
    return f"{count} in {runs} run{'' if runs == 1 else 's'}" if count else "0"


def _figure(row: Mapping[str, Any], name: str, *, times: float = 1.0) -> str:
    """``1.85 (1.20–2.41)``; a dash where there is none."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    words = _digits(value * times)
    return words if low is None else f"{words} ({_digits(low * times)}–{_digits(high * times)})"


def _digits(value: float) -> str:
    """Three significant digits, and the zeros that belong to them."""
    if not value:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def _probed(analysis: Analysis) -> str:
    every = analysis.study.probes.every
    return f" Probed every {every} steps." if every else ""
