"""The table of series compared seed by seed, each at its own best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.paired import MIN_BOOTSTRAP_SEEDS
from wesar_sweep.reports.figure import divergence_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table, differences_words

MOST_SERIES = 6
"""Series of which people see every pair; the numbers hold all."""


def paired_tables(analysis: Analysis) -> list[NamedTable]:
    """The comparison of every two series; none where there is but one."""
    frame = analysis.pairwise
    if frame.is_empty():
        return []
    shown = set(analysis.best_cells["series"].head(MOST_SERIES))
    rows = [row for row in frame.iter_rows(named=True) if {row["a"], row["b"]} <= shown]
    table = Table(
        columns=("a", "b", "b − a (nats)", "95 % interval, or each seed", "sign test p", "seeds"),
        rows=tuple(_row(row) for row in rows),
        numeric=(False, False, True, True, True, True),
    )
    left = "" if len(shown) == len(analysis.best_cells) else f" The best {MOST_SERIES} are shown."
    caption = (
        "Capped loss of b minus that of a, seed by seed, each series at the setting with its "
        "lowest mean: above 0 where a is better. Runs of one seed saw the same tokens; pairs that "
        f"did not are left out. From {MIN_BOOTSTRAP_SEEDS} seeds on with a bootstrap interval over "
        "seeds; below, all differences are listed, and the sign test is exact (with 3 seeds its p "
        "is 0.25 at the least). Each series is taken at its best, which favours those with more "
        f"settings, and nothing is corrected for the number of pairs.{left} "
        f"{divergence_words(analysis.study.divergence)}"
    )
    return [NamedTable("paired", caption, table, frame, "loss", "Series compared seed by seed")]


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if not row["n"]:
        many = row["refused"]
        seeds = f"{many} seed{'' if many == 1 else 's'}"
        why = f"{seeds} in common, of other batches" if many else "no seed in common"
        return (row["a"], row["b"], "–", why, "–", "0")
    difference, p = f"{row['difference']:+.3f}", f"{row['sign_test_p']:.2g}"
    return (row["a"], row["b"], difference, differences_words(row), p, str(row["n"]))
