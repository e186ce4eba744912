"""The published reference studies: their reports come out of their data anew, and so does every
figure that `results/README.md` and the README quote."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest

import wesar_sweep as ws
from wesar_sweep.config import load_study, study_hash
from wesar_sweep.reports import markdown
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.layout import StudyDirectory

ROOT = Path(__file__).parents[1]
if not (ROOT / "results/reference").exists() and not (ROOT / ".git").exists():
    pytest.skip("a source distribution has no published studies", allow_module_level=True)

PUBLISHED = sorted(path.parent for path in ROOT.glob("results/reference/*/outcomes.parquet"))
FINDINGS = (ROOT / "results/README.md").read_text(encoding="utf-8")
IN_BRIEF = (ROOT / "README.md").read_text(encoding="utf-8").split("## ")
"""Sections; one of them says the findings in brief."""

QUOTED = re.compile(r"[−+]?[\d.]+(?:e-?\d+)? \([−+]?[\d.]+(?:–| to )[−+]?[\d.]+(?: %)?\)")
"""A figure with its interval: ``1.09 (1.02–1.15)``, ``−0.07 (−0.09 to −0.05)``."""

MOST_HTML_BYTES = 3_000_000
MOST_PARQUET_BYTES = 25_000_000


LINK = re.compile(r"\((?:results/)?reference/([\w-]+)/report\.md\)")


def blocks() -> list[str]:
    """Each paragraph, bullet and row of a table of the findings, on one line."""
    (brief,) = [section for section in IN_BRIEF if section.startswith("What it has found")]
    parts = re.split(r"\n\n|\n(?=\| |\* |#)", f"{FINDINGS}\n\n{brief}")
    return [" ".join(part.split()) for part in parts]


def quotes() -> Iterator[tuple[str, str]]:
    """Each quoted figure and the study that it is of: the next one named, or else the last one.

    Within a block; the study is empty where the block names none.
    """
    for text in blocks():
        links = [(match.start(), match[1]) for match in LINK.finditer(text)]
        for match in QUOTED.finditer(text):
            after = [name for place, name in links if place > match.start()]
            yield match[0], after[0] if after else links[-1][1] if links else ""


def spellings(quote: str) -> list[str]:
    """How a report may write a figure that the findings quote."""
    value, _, rest = quote.partition(" (")
    low, high = re.split("–| to ", rest.removesuffix(")"), maxsplit=1)
    return [
        f"{value} ({low}–{high})",
        f"{value} ({low} to {high})",
        f"| {value} | {low}–{high} |",
        f"{value} nats a token (95 % interval {low} to {high}",
        f"{value} (95 % interval {low} to {high}",
    ]


def numbers(named: Sequence[NamedTable]) -> Iterator[str]:
    """Every figure with an interval of the tables' frames: they have rows that no page shows."""
    for frame in (table.frame for table in named):
        for name in frame.columns:
            ends = [f"{name}_low", f"{name}_high"]
            if set(ends) <= set(frame.columns) and frame[name].dtype.is_numeric():
                for row in frame.select(name, *ends).drop_nulls().iter_rows():
                    for form in (".2f", ".3f"):
                        value, low, high = (format(number, form) for number in row)
                        yield f"{value} ({low}–{high})"


def test_they_are_there() -> None:
    assert {path.name for path in PUBLISHED} >= {
        "depth",
        "search",
        "search-finished",
        "spikes",
        "table6",
        "table6-step-time",
        "table9-130m",
        "table9-proxy",
        "width",
    }
    sizes = [path.stat().st_size for path in ROOT.glob("results/reference/*/*.parquet")]
    assert sum(sizes) <= MOST_PARQUET_BYTES


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_its_report_comes_out_of_its_data(folder: Path, tmp_path: Path) -> None:
    """All of one study in one test: reading it takes most of the time."""
    result = ws.open_result(folder)
    asked = ROOT / f"search_spaces/reference/{folder.name}.yaml"
    if asked.exists():
        assert study_hash(load_study(asked)) == study_hash(result.study), "another question now"
    else:
        assert result.study.finishes is not None
    analysis = result.analysis
    assert not analysis.unreadable and not analysis.completeness.partial
    written = result.report(format="md", out=tmp_path / "report.md").read_text(encoding="utf-8")
    assert written == (folder / "report.md").read_text(encoding="utf-8"), (
        "the report is not that of the data: if the analysis was changed on purpose, write both "
        "reports anew (wesar-sweep report DIR, and with --format md) and mind results/README.md"
    )
    page = (folder / "report.html").read_bytes()
    assert len(page) <= MOST_HTML_BYTES
    assert analysis.verdict.best.split(" nats")[0] in page.decode()
    named = tables(analysis)
    every = "\n".join([written, *(markdown.table(one.table) for one in named), *numbers(named)])
    missing = [
        quote
        for quote, study in quotes()
        if study == folder.name and not any(one in every for one in spellings(quote))
    ]
    assert missing == [], "the findings quote what the study does not say"
    counted = pl.DataFrame(analysis.raw_outcomes.group_by("status").len())
    runs = dict(counted.rows())
    cost = analysis.cost
    row = next(text for text in blocks() if text.startswith(f"| {folder.name} | "))
    occupancy = "" if cost.occupancy is None else f"{cost.occupancy:.1%}".replace("%", " %")
    assert [cell.strip() for cell in row.split("|")[2:7]] == [
        f"{analysis.raw_outcomes.height}",
        f"{runs.get('diverged', 0)}",
        f"{runs['pruned']}" if "pruned" in runs else "–",
        f"{cost.total.device_hours:.3g}",
        occupancy,
    ]
    resumed = ("not", "once", "twice")[cost.accounts.calls - 1]
    assert row.split("|")[7].strip().startswith(resumed)


def test_every_figure_of_the_findings_is_of_a_study_that_is_there() -> None:
    """So that each is looked for in that study, and none is passed over."""
    names = {path.name for path in PUBLISHED}
    found = list(quotes())
    assert [quote for quote, study in found if study not in names] == []
    assert set(LINK.findall(FINDINGS)) == {study for _, study in found}
    assert len(found) > 60


def test_control_a_figure_that_is_not_there_is_noticed() -> None:
    report = "| he | 1.54 (1.53–1.54) | 1.33 |"
    assert any(one in report for one in spellings("1.54 (1.53–1.54)"))
    assert not any(one in report for one in spellings("1.54 (1.53–1.55)"))


def test_control_another_outcome_is_another_report(tmp_path: Path) -> None:
    folder = ROOT / "results/reference/table6-step-time"
    shutil.copytree(folder, copy := tmp_path / "copy")
    table = StudyDirectory(copy).outcomes_table
    frame = pl.read_parquet(table)
    frame.with_columns(val_loss=pl.col("val_loss") + 0.01 * (pl.col("trial") == 1)).write_parquet(
        table
    )
    written = ws.open_result(copy).report(format="md", out=tmp_path / "report.md")
    assert written.read_text(encoding="utf-8") != (folder / "report.md").read_text(encoding="utf-8")


def test_nothing_tells_of_a_place() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|mnt|Users)/")
    files = [
        path
        for path in (ROOT / "results/reference").rglob("*")
        if path.suffix in (".json", ".yaml", ".md", ".spent")
    ]
    assert len(files) > 20
    assert [str(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []
