import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from invented_study import invent, lr_study, write_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.errors import ConfigError, StoreError
from wesar_sweep.reports import FORMATS, write
from wesar_sweep.reports.asked import provenance
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.html import render
from wesar_sweep.store.beat import Beat
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.layout import StudyDirectory


class Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[str] = []
        self.data: dict[str, str] = {}
        self.headings: list[tuple[str, str]] = []
        self.shown: list[str] = []
        self.ids: list[str] = []
        self.meta: dict[str, str] = {}
        self._open = ""
        self._script = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.fetched += [
            found[name] for name in ("src", "href", "srcset", "data", "action") if name in found
        ]
        assert not any(name.startswith("on") for name in found), found
        if "id" in found:
            self.ids.append(found["id"])
        if "http-equiv" in found:
            self.meta[found["http-equiv"]] = found["content"]
        self._open = tag
        if tag == "script":
            self._script = found.get("id", "")
            if self._script:
                self.data[self._script] = ""
            else:
                self.scripts.append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            if self._script:
                self.data[self._script] += data
            else:
                self.scripts[-1] += data
        elif self._open in ("h1", "h2", "h3"):
            self.headings[-1] = (self._open, self.headings[-1][1] + data)
        elif self._open != "style":
            self.shown.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture(scope="module")
def report(directory: StudyDirectory) -> str:
    path = write(directory)
    assert path == directory.report_file
    return path.read_text()


@pytest.fixture(scope="module")
def page(report: str) -> Page:
    return Page(report)


def test_nothing_is_requested_from_anywhere(report: str, page: Page) -> None:
    assert [one for one in page.fetched if not one.startswith("#")] == ["data:,"]
    style = re.findall(r"<style>(.*?)</style>", report, re.S)
    assert len(style) == 1 and not re.search(r"url\(|@import|http", style[0])
    assert "default-src 'none'" in page.meta["Content-Security-Policy"]
    assert "unsafe-eval" not in page.meta["Content-Security-Policy"]
    assert "http" not in "".join(page.data.values())


def test_scripts_are_two_known_ones_with_vega_once(report: str, page: Page) -> None:
    assert len(page.scripts) == 2
    # A word of Vega-Embed's own, once a bundle.
    assert report.count("View Compiled Vega") == 1
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.meta["Content-Security-Policy"]


def test_a_hostile_title_is_shown_and_not_run(report: str, page: Page) -> None:
    assert page.headings[0] == (
        "h1",
        'Which <script>alert("x")</script> & σ² trains {{ 7*7 }} stably?',
    )
    assert "<script>alert" not in report
    assert not any("alert(" in script for script in page.scripts[1:])
    assert any("run </script><b>" in text for text in page.shown)


def test_hostile_text_cannot_end_a_specification() -> None:
    study = lr_study(
        methods={"mine": {"init": "he"}}, space={"method": ["he", "mine"], "lr": [1e-3, 1e-2]}
    )
    outcomes, curves = invent(study)
    frame = outcomes_frame(outcomes)
    evil = frame.with_columns(
        reason=frame["reason"].fill_null("") + "</script><script>alert(1)</script>",
    )
    text = render(Analysis(study, evil, curves), provenance={}, bundle="/* none */")
    assert "<script>alert(1)" not in text
    page = Page(text)
    assert len(page.scripts) == 2
    assert any("alert(1)" in json.dumps(json.loads(spec)) for spec in page.data.values())


def test_specifications_are_json_and_every_chart_has_one(
    directory: StudyDirectory, report: str, page: Page
) -> None:
    wanted = re.findall(r'data-spec="spec-([^"]+)"', report)
    assert set(wanted) == {figure.name for figure in figures(Analysis.read(directory))}
    assert sorted([*(f"spec-{name}" for name in wanted), "runs"]) == sorted(page.data)
    for name, text in page.data.items():
        assert "<" not in text
        assert name == "runs" or json.loads(text)["description"]
    assert len(page.ids) == len(set(page.ids))


def test_headings_descend_one_level_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    titles = [text for _, text in page.headings]
    for title in ("Verdict", "Every cell", "What was asked", "Where it comes from"):
        assert title in titles


def test_provenance_verdict_and_rules_are_said(report: str, directory: StudyDirectory) -> None:
    for words in (
        "commit 0123456789ab with uncommitted changes",
        "torch 2.13.0",
        "device cpu",
        "ab" * 32,
        "Divergence rule v1 (window 20 steps, patience 50 steps, margin 0.05 nats, "
        "delta 0.5 nats).",
        "Spike rule v1 (window 64 steps, z 6, least jump 0.3 nats).",
        "3 a cell, seeds 0 to 2",
        "300 steps × 8 sequences × 64 tokens = 153,600 tokens",
        "0 of 3 still allows a true rate of 56 %",
    ):
        assert words in report, words
    for sentence in Analysis.read(directory).verdict.sentences:
        assert sentence.partition(": ")[2] in report


def test_what_a_worker_knows_is_laid_out_in_words() -> None:
    machine = {
        "host": "box",
        "device": "cuda",
        "device_name": "Some GPU",
        "versions": {"torch": "2.13.0", "cuda": "13.0"},
        "corpus_hash": "ab" * 32,
    }
    facts = {
        "python": "3.11.7",
        "libraries": {"numpy": "2.4.6"},
        "project": {"version": "1", "commit": "ef" * 20},
        "workers": {
            "w0": machine,
            "w1": {**machine, "commit": "ef" * 20},
            "w2": {**machine, "corpus_hash": "cd" * 32},
            "w3": {**machine, "commit": "12" * 20},
        },
        "corpus": {"description": "Some text", "sha256": "ab" * 32, "train_tokens": 7_308_451},
    }
    beats = [
        Beat(
            worker="w0",
            pid=1,
            host="box",
            runs_done=44,
            tokens=901_120,
            training_seconds=75.2,
            evaluation_seconds=2.11,
        )
    ]
    rows = dict(provenance(facts, beats=beats))
    words = "host box, device cuda (Some GPU), torch 2.13.0, cuda 13.0"
    assert rows["workers w0, w1"] == words
    assert rows["worker w2"] == f"{words}, corpus hash {'cd' * 32}"
    # Gone on with by another version than began the study.
    assert rows["worker w3"] == f"{words}, commit {'12' * 6}"
    assert rows["versions"] == "Python 3.11.7, numpy 2.4.6"
    assert rows["corpus"] == f"Some text, 7,308,451 tokens to train on, sha256 {'ab' * 32}"
    assert rows["time of worker w0"].startswith("1 min 15 s in training steps, 2.1 s in evaluat")
    assert not any("{" in value for value in rows.values())


def test_every_diverged_run_is_in_the_page(report: str, analysis: Analysis) -> None:
    k = int(analysis.cells["diverged"].sum())
    assert f"<b>{k}</b> diverged" in report
    assert report.count('class="k lost"') == int((analysis.cells["diverged"] > 0).sum())


def test_a_partial_study_says_so_and_a_whole_one_does_not(report: str, analysis: Analysis) -> None:
    assert "not finished" not in report
    part = Analysis(analysis.study, analysis.raw_outcomes.head(50))
    text = render(part, provenance={}, bundle="")
    assert "not finished" in text and "50 of 96 runs" in text
    assert text.count("not run yet") == 32 - 17


@pytest.mark.parametrize("kind", ["empty", "failed", "diverged", "one"])
def test_sorry_studies_have_a_page_too(analysis: Analysis, kind: str) -> None:
    frame = analysis.raw_outcomes
    if kind == "empty":
        frame = frame.clear()
    elif kind == "one":
        frame = frame.head(1)
    else:
        import polars as pl

        frame = frame.with_columns(status=pl.lit(kind), val_loss=pl.lit(None, dtype=pl.Float64))
    text = render(Analysis(analysis.study, frame), provenance={}, bundle="")
    for sentence in Analysis(analysis.study, frame).verdict.sentences:
        assert (sentence.partition(": ")[2] or sentence) in text
    assert ">nan<" not in text and ">None<" not in text


def test_a_damaged_curve_costs_that_curve_alone(tmp_path: Path) -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3, 1e-2]})
    directory = write_study(tmp_path, study, *invent(study))
    directory.curve_file(1, 2).write_bytes(b"not a curve")
    text = write(directory, out=tmp_path / "elsewhere.html").read_text()
    assert "1 curve file could not be read" in text
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


def test_formats(directory: StudyDirectory, tmp_path: Path) -> None:
    assert FORMATS == ("html", "md", "csv")
    for name in FORMATS[1:]:
        assert write(directory, format=name, out=tmp_path / f"x.{name}").stat().st_size > 1000
    with pytest.raises(ConfigError, match="no such report format"):
        write(directory, format="docx")
    with pytest.raises(StoreError, match="no study"):
        write(StudyDirectory(tmp_path / "nothing"))


def test_five_hundred_runs_fit_into_three_megabytes(many_runs: Analysis) -> None:
    assert many_runs.outcomes.height > 500
    text = render(many_runs, provenance={})
    assert len(text.encode()) < 3_000_000


def test_the_report_is_written_without_torch(directory: StudyDirectory, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from wesar_sweep.reports import write\n"
        "from wesar_sweep.store.layout import StudyDirectory\n"
        "write(StudyDirectory(Path(sys.argv[1])), out=Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    out = tmp_path / "light.html"
    subprocess.run([sys.executable, "-c", code, str(directory.root), str(out)], check=True)
    assert out.exists()
