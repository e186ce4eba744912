"""Outcomes for other programs: one row a run, paired spikes among the columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from wesar_sweep.store.atomic import write_atomically

ExportFormat = Literal["csv", "json", "parquet"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)


def export_outcomes(outcomes: pl.DataFrame, *, path: Path, format: ExportFormat) -> None:
    """Write the outcomes of a study.

    A loss that is not finite is ``NaN`` in CSV and Parquet and null in JSON, which has no word for
    it; the columns ``status`` and ``reason`` say why.

    Args:
        outcomes: `wesar_sweep.analysis.Analysis.outcomes`.
        path: The file; replaced in one piece.
        format: One of `EXPORT_FORMATS`.

    Raises:
        StoreError: The file cannot be written.
    """
    buffer = io.BytesIO()
    match format:
        case "csv":
            outcomes.write_csv(buffer)
        case "json":
            outcomes.write_json(buffer)
        case "parquet":
            outcomes.write_parquet(buffer)
    write_atomically(path, buffer.getvalue())
