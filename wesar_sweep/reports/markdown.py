"""The report as Markdown: verdict, tables and words, without charts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.verdict import ties_words
from wesar_sweep.reports import asked
from wesar_sweep.reports.figure import SECTIONS, divergence_words, seeds_words
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import (
    METRICS,
    Metric,
    Table,
    best_cells_table,
    matrix,
    matrix_table,
    series_table,
)
from wesar_sweep.store.beat import Beat
from wesar_sweep.store.drive import Drive

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def render(
    analysis: Analysis,
    *,
    provenance: Mapping[str, Any],
    beats: Sequence[Beat] = (),
    drive: Drive | None = None,
    metric: Metric = "loss",
) -> str:
    """The report as GitHub-flavoured Markdown.

    Args:
        analysis: The study.
        provenance: What `wesar_sweep.store.provenance` knows; may be empty.
        beats: The last sign of life of every worker; says where the time went.
        drive: The newest call; says how an unfinished study came to stop.
        metric: What the cells of the matrix show.
    """
    study, counts = analysis.study, analysis.completeness
    grid = matrix(analysis)
    lines = [f"# {escape(study.title or study.name)}", ""]
    if study.question:
        lines += [escape(study.question), ""]
    if counts.partial:
        lines += [
            f"> **This study is not finished:** {counts.ended} of {counts.expected} runs have "
            "ended; every figure is of those alone." + escape(asked.stopped(drive)),
            "",
        ]
    lines += [f"{place}. {escape(s)}" for place, s in enumerate(analysis.verdict.sentences, 1)]
    lines += [
        "",
        f"Runs: {counts.completed} completed, {counts.diverged} diverged, "
        f"{counts.pruned + counts.spared} pruned, {counts.failed} failed "
        f"(pruned and failed ones are in no figure).",
        "",
        "## Every cell" if grid else "## Best cells",
        "",
        table(matrix_table(grid, metric=metric) if grid else best_cells_table(analysis)),
        "",
        f"{METRICS[metric].capitalize()} with Student's 95 % interval over seeds "
        f"({seeds_words(analysis)}), then diverged/counted runs with Wilson's 95 % interval. "
        f"Best is the lowest mean. {ties_words(analysis.ties)} "
        f"{divergence_words(study.divergence)}",
        "",
    ]
    series = series_table(analysis)
    if series.rows:
        lines += ["## Robustness of each series", "", table(series), ""]
    named = tables(analysis)
    for section, heading in SECTIONS.items():
        shown = [one for one in named if one.section == section]
        lines += [f"## {heading}", ""] if shown else []
        for one in shown:
            lines += [f"### {escape(one.title)}", "", table(one.table), "", escape(one.caption), ""]
    for title, facts in (
        (
            "What was asked",
            asked.question(study, provenance=provenance),
        ),
        ("How each figure is computed, and what it cannot say", asked.methods_and_limits(analysis)),
        ("Where it comes from", asked.provenance(provenance, beats=beats)),
    ):
        lines += [f"## {title}", ""]
        lines += [f"- **{escape(name)}**: {escape(value)}" for name, value in facts]
        lines.append("")
    return "\n".join(lines)


def table(found: Table) -> str:
    """A table in GitHub's pipes; one without rows is a sentence."""
    if not found.rows:
        return "No cell has a run that counts yet."
    rule = ["---:" if numeric else "---" for numeric in found.numeric]
    over, first = found.over or ("", 0)
    head = [
        escape(f"{over} {word}" if over and place >= first else word)
        for place, word in enumerate(found.columns)
    ]
    rows = [
        [f"**{escape(word)}**" if (y, x) in found.strong else escape(word) for x, word in row]
        for y, row in ((y, enumerate(row)) for y, row in enumerate(found.rows))
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
