"""`storage check`: what was found of a database, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from wesar_sweep.studies.storage_check import CELLS, StorageFacts


def show(facts: StorageFacts) -> None:
    """Print the facts, then whether the storage is fit and why not."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _lines(facts):
        table.add_row(name, text)
    console = Console()
    console.print(table)
    if facts.fit:
        console.print("fit: studies may be kept here")
    for problem in facts.problems:
        console.print(f"not fit: {problem}", markup=False, highlight=False)


def _lines(facts: StorageFacts) -> list[tuple[str, str]]:
    lines = [("storage", facts.storage)]
    if facts.version is not None:
        lines.append(("version", facts.version))
    if facts.encrypted is not None:
        lines.append(("connection", "encrypted (TLS)" if facts.encrypted else "not encrypted"))
    if facts.round_trip_ms is not None:
        lines.append(("round trip", f"{facts.round_trip_ms:.2f} ms"))
    if facts.commit_ms is not None:
        lines.append(("write and commit", f"{facts.commit_ms:.1f} ms"))
    if facts.asks_a_second is not None:
        asks = f"{facts.taken} of {CELLS} queued trials by {facts.takers} processes at once"
        lines.append(("concurrent asks", f"{asks}, {facts.asks_a_second:.0f} a second"))
    if facts.free_mb is not None:
        lines.append(("free on the disk", f"{facts.free_mb:,} MB"))
    if facts.database_mb is not None:
        lines.append(("size of the database", f"{facts.database_mb:,} MB"))
    if facts.free_connections is not None:
        lines.append(("free connections", f"{facts.free_connections}, two a worker"))
    return lines
