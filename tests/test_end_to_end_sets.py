"""Evaluation sets as users have them: from the study file to the report, on tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wesar_sweep.store.curves import read_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes

STUDY = """
title: Judged on further text
space:
  width: [8, 12]
  lr: [1e-2, 1e4]
  method: [he, wesar]
replicates: 1
model: {depth: 1, heads: 2, context: 16}
training: {steps: 20, batch: 4, warmup: 4}
data: {source: text, paths: [train.txt], documents: line}
evaluation:
  sequences: 4
  sets:
    wiki: {kind: wikitext, paths: [wiki.txt], stride: 8, every: 10}
    last_words: {kind: lambada, paths: [lambada.txt]}
    tales: {kind: text, paths: [tales.jsonl], field: story, limit: 2}
divergence: {window: 4, patience: 8}
"""
WIKI = (
    " = Harbour lights = \n \n A harbour light ( or leading light ) shows the way in , at 1 @.@ 5 "
    "miles . \n \n = = Use = = \n \n Ships follow it . \n \n = Low tides = \n \n At a low tide "
    "the water 's edge is far out . \n"
)
LAMBADA = "she lit the lamp because it was dark\nthe ship came in with the tide\n"
TALES = [{"story": "A lamp and a ship met."}, {"story": "The tide was out."}, {"story": "Never."}]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    lines = (f"ship {n} lit {n * 7 % 11} lamps on tide {n % 5}" for n in range(200))
    (folder / "train.txt").write_text("\n".join(lines))
    (folder / "wiki.txt").write_text(WIKI)
    (folder / "lambada.txt").write_text(LAMBADA)
    (folder / "tales.jsonl").write_text("".join(json.dumps(tale) + "\n" for tale in TALES))
    (folder / "study.yaml").write_text(STUDY)
    (folder / "inline.yaml").write_text("launcher: inline\n")
    return folder


def command(folder, *words, code=0):
    source = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-m", "wesar_sweep", *words],
        capture_output=True, text=True, timeout=120, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def directory(files) -> StudyDirectory:
    command(files, "run", "study.yaml", "--on", "inline.yaml", "--out", "out")
    return StudyDirectory(files / "out")


def test_every_completed_run_is_judged_on_every_set(directory):
    outcomes = read_outcomes(directory)
    assert {row.status for row in outcomes} == {"completed", "diverged"}
    for row in outcomes:
        if row.status == "diverged":
            assert row.evaluations == {}
            continue
        assert list(row.evaluations) == ["wiki", "last_words", "tales"]
        figures = row.evaluations
        assert set(figures["wiki"]) == {"loss", "chance", "word_ppl", "bpb"}
        assert set(figures["last_words"]) == {"loss", "chance", "accuracy"}
        assert set(figures["tales"]) == {"loss", "chance", "bpb"}
        # Letters are learnt first: below a uniform guess after twenty steps.
        assert 1 < figures["tales"]["loss"] < figures["tales"]["chance"]
        curve = read_curve(directory, row.trial, row.seed)
        assert curve.set_step["wiki"].tolist() == [10, 20]
        assert curve.set_figures["wiki.loss"][-1] == np.float32(figures["wiki"]["loss"])


def test_the_report_holds_table_5_with_every_set(directory, files):
    provenance = json.loads(directory.provenance_file.read_text())["evaluation_sets"]
    assert list(provenance) == ["wiki", "last_words", "tales"]
    assert provenance["wiki"]["documents"] == provenance["tales"]["documents"] == 2
    assert provenance["last_words"]["normalisation"] == "word"
    assert provenance["wiki"]["stride"] == 8
    page = directory.report_file.read_text()
    for unit in ("validation, a token", "wiki, a token", "wiki, a word", "last_words, a word",
                 "tales, a token"):  # fmt: skip
        assert f": {unit}" in page
    assert "evaluation set last_words" in page and provenance["tales"]["sha256"][:12] in page
    command(files, "report", "out", "--table", "all", "--format", "md")
    table = (directory.root / "tables" / "table-5.md").read_text()
    assert "last\\_words, a word" in table and "| he |" in table
    for name in ("wiki", "last_words", "tales"):
        assert "0/1" in (directory.root / "tables" / f"paper-{name}.md").read_text()


def test_a_set_that_has_changed_is_refused(directory, files):
    (files / "lambada.txt").write_text(LAMBADA.replace("tide", "moon"))
    done = command(files, "resume", "out", code=2)
    assert "evaluation sets have changed" in done.stderr and "last_words (sha256" in done.stderr
    (files / "lambada.txt").write_text(LAMBADA)
