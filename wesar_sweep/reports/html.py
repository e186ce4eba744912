"""The report as one HTML file that opens offline, on any screen, for as long as browsers do.

The page asks for nothing outside itself: Vega is embedded once, charts are specifications before
it, and a Content-Security-Policy forbids every request and every script but the page's own two. All
text of the user's is escaped by the template engine, and in the specifications as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.choice import chosen_words
from wesar_sweep.analysis.verdict import ties_words
from wesar_sweep.reports import asked
from wesar_sweep.reports.curve_charts import drawn_runs
from wesar_sweep.reports.drawing import drawn_series
from wesar_sweep.reports.figure import SECTIONS, Figure, seeds_words
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import (
    METRICS,
    SPIKES,
    Table,
    best_cells_table,
    matrix,
    run_table,
    series_table,
)
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.beat import Beat, read_beats
from wesar_sweep.store.drive import Drive, read_drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import read_provenance

LISTED_RUNS = 40
"""Diverged and failed runs named one by one."""


def write_report(
    directory: StudyDirectory, *, out: Path | None = None, analysis: Analysis | None = None
) -> Path:
    """Write the report of a study, finished or not; a reader never sees half of one.

    Args:
        directory: The study's directory.
        out: The file; default ``report.html`` in it.
        analysis: The study, where the caller has read it already.

    Returns:
        The file.

    Raises:
        StoreError: The results cannot be read, or the file cannot be written.
        ConfigError: The study file cannot be read.
    """
    path = out or directory.report_file
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The bundle takes seconds to make and needs nothing of the study.
        bundle = pool.submit(vega_bundle)
        analysis = analysis or Analysis.read(directory)
        text = render(
            analysis,
            provenance=read_provenance(directory),
            beats=read_beats(directory),
            drive=read_drive(directory),
            bundle=bundle.result(),
        )
    write_atomically(path, text.encode())
    return path


def render(
    analysis: Analysis,
    *,
    provenance: Mapping[str, Any],
    beats: Sequence[Beat] = (),
    drive: Drive | None = None,
    bundle: str | None = None,
) -> str:
    """The page as text.

    Args:
        analysis: The study.
        provenance: What `wesar_sweep.store.provenance` knows; may be empty.
        beats: The last sign of life of every worker; says where the time went.
        drive: The newest call; says how an unfinished study came to stop.
        bundle: `vega_bundle()`; made here where it is None.
    """
    drawn = figures(analysis)
    scripts = [bundle or vega_bundle(), _asset("page.js")] if drawn else [_asset("page.js")]
    study = analysis.study
    grid = matrix(analysis)
    template = _templates().get_template("page.html.j2")
    return template.render(
        title=study.title or study.name,
        name=study.name,
        question=study.question,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        css=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_csp_hash(script) for script in scripts],
        verdict=analysis.verdict.sentences,
        completeness=analysis.completeness,
        stopped=asked.stopped(drive),
        unreadable=analysis.unreadable,
        cells=analysis.cells.height,
        tokens=f"{int(analysis.outcomes['tokens'].sum()):,}",
        series_count=len(analysis.series),
        seeds=seeds_words(analysis),
        ties=ties_words(analysis.ties),
        chosen=chosen_words(analysis.study),
        matrix=grid,
        metrics={**METRICS, SPIKES: "spikes a run"},
        ranked=None if grid else best_cells_table(analysis),
        series=series_table(analysis),
        sections=_sections(drawn, tables(analysis)),
        specs=[(figure.name, _spec(figure)) for figure in drawn],
        switches=drawn_series(analysis),
        ranked_trials=None if grid else analysis.ranked["trial"].to_list(),
        runs=_json(_runs(analysis)),
        diverged=run_table(analysis, status="diverged", count=LISTED_RUNS),
        failed=run_table(analysis, status="failed", count=LISTED_RUNS),
        listed=LISTED_RUNS,
        asked=asked.question(study, provenance=provenance),
        provenance=asked.provenance(provenance, beats=beats),
        methods=asked.methods_and_limits(analysis),
    )


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without dependencies (0.9 MB)."""
    # Imported late: it starts a JavaScript engine.
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # An HTML parser ends a script at this text, wherever it stands.
    return script.replace("</script", "<\\/script")


def _sections(
    drawn: Sequence[Figure], named: Sequence[NamedTable]
) -> list[tuple[str, str, list[NamedTable], list[Figure]]]:
    """The parts of the page that have something to show: name, heading, tables, figures."""
    found: list[tuple[str, str, list[NamedTable], list[Figure]]] = []
    for name, heading in SECTIONS.items():
        shown = [table for table in named if table.section == name]
        charts = [figure for figure in drawn if figure.section == name]
        if shown or charts:
            found.append((name, heading, shown, charts))
    return found


def _spec(figure: Figure) -> Markup:
    spec = figure.chart.to_dict(validate=False)
    # The page says that it is Vega-Lite; the address would be the only one in the page's data.
    spec.pop("$schema", None)
    spec["description"] = figure.alt
    return _json(spec)


def _runs(analysis: Analysis) -> dict[int, list[tuple[int, str, float | None, int, str, bool]]]:
    """What the page shows of a picked cell, by trial.

    Returns:
        Of each run seed, status, final loss in nats a token (None where it is missing or not
        finite), steps trained, reason, and whether its loss curve is drawn.
    """
    drawn = drawn_runs(analysis)
    found: dict[int, list[tuple[int, str, float | None, int, str, bool]]] = {}
    names = ("trial", "seed", "status", "val_loss", "steps_trained", "reason")
    for trial, seed, status, loss, steps, reason in (
        analysis.outcomes.select(names).sort("trial", "seed").rows()
    ):
        final = None if loss is None or not math.isfinite(loss) else round(loss, 4)
        row = (seed, status, final, steps, reason or "", (trial, seed) in drawn)
        found.setdefault(trial, []).append(row)
    return found


def _json(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends one."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("wesar_sweep.reports") / "page" / name).read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wesar_sweep.reports", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda value: isinstance(value, Table)
    return environment
