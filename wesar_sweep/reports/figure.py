"""What a figure is: a chart with what a reader must know, and the words that figures share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.intervals import (
    CONFIDENCE,
    DRAWS,
    EXACT_SEEDS,
    GENERATOR_SEED,
    bootstrap_coverage_bound,
)
from wesar_sweep.analysis.verdict import percent
from wesar_sweep.config.study import Divergence
from wesar_sweep.reports.drawing import Chart

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


def seeds_words(analysis: Analysis) -> str:
    """``n = 3 seeds a cell``, or the range where cells differ."""
    counts = analysis.cells["n"].to_list()
    if not counts:
        return "no cell has ended yet"
    low, high = min(counts), max(counts)
    span = f"{low}" if low == high else f"{low} to {high}"
    return f"n = {span} seed{'' if high == 1 else 's'} a cell"


def interval_words(analysis: Analysis) -> str:
    """How many seeds a bootstrap interval stands on, and what it can cover with so few."""
    counts = [int(n) for n in analysis.cells["n"].to_list() if n >= 2]
    bound = bootstrap_coverage_bound(min(counts)) if counts else 1.0
    words = seeds_words(analysis)
    if bound >= CONFIDENCE:
        return words
    return f"{words}, with which it covers at most {percent(bound)}"


def divergence_words(rule: Divergence) -> str:
    """The rule by name, with its parameters, in one sentence."""
    return (
        f"Divergence rule {rule.rule} (window {rule.window} steps, patience {rule.patience} steps, "
        f"margin {rule.margin:g} nats, delta {rule.delta:g} nats)."
    )


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
