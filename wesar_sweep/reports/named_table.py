"""What a named table is: words for people, and the numbers behind them for programs."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from wesar_sweep.reports.figure import Section
from wesar_sweep.reports.tables import Table


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table with its words."""

    name: str
    """Such as ``matrix``: its name for exports."""
    caption: str
    table: Table
    """As people read it, rounded."""
    frame: pl.DataFrame
    """The numbers behind it, unrounded, under their YAML names."""
    section: Section | None = None
    """Where the page shows it, under `title`; None: in a place of its own, or not at all."""
    title: str = ""
