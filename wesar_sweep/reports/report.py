"""One verb for every format: read a study's directory, write one file, return its path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from wesar_sweep.analysis import Analysis
from wesar_sweep.errors import ConfigError, Problem, StoreError
from wesar_sweep.reports import html, markdown
from wesar_sweep.reports.tables import csv_frame
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.drive import read_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import read_provenance

Format = Literal["html", "md", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What `write` can write; the format is also the file's suffix."""


def write(
    directory: StudyDirectory,
    *,
    format: str = "html",
    out: Path | None = None,
    analysis: Analysis | None = None,
) -> Path:
    """Write the report of a study, finished or not, and return the file.

    Args:
        directory: The study's directory.
        format: One of `FORMATS`: ``html`` is the whole report, ``md`` the same without charts,
            ``csv`` the cells, one a row.
        out: The file; default ``report.<format>`` in the directory.
        analysis: The study, where the caller has read it already; read here where it is None.

    Raises:
        ConfigError: There is no such format, or the study file cannot be read.
        StoreError: There is no study, it cannot be read, or the file cannot be written.
    """
    if format not in FORMATS:
        problem = Problem(
            "there is no such report format", value=repr(format), allowed=", ".join(FORMATS)
        )
        raise ConfigError(problem)
    if not directory.study_file.exists():
        raise StoreError(f"no study in {directory.root}: expected {directory.study_file}")
    if format == "html":
        return html.write_report(directory, out=out, analysis=analysis)
    path = out or directory.report_file.with_suffix(f".{format}")
    analysis = analysis or Analysis.read(directory)
    if format == "md":
        text = markdown.render(
            analysis,
            provenance=read_provenance(directory),
            beats=read_beats(directory),
            drive=read_drive(directory),
        )
    else:
        text = csv_frame(analysis).write_csv()
    write_atomically(path, text.encode())
    return path
