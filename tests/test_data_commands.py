"""`wesar-sweep data prepare` and `data inspect`: what they say, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """
space: {lr: [1e-3]}
model: {width: 16, depth: 1, heads: 2, context: 16}
training: {steps: 200, batch: 8, warmup: 4}
data:
  source: text
  paths: [train.jsonl]
  field: story
  tokenizer: {kind: bpe, vocabulary: 300}
evaluation:
  sets:
    last: {kind: lambada, paths: [lambada.txt]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stories = (f"ship {n} lit {n * 7 % 11} lamps on tide {n % 5} of the port" for n in range(300))
    lines = (json.dumps({"story": story}) for story in stories)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "lambada.txt").write_text("she lit the lamp because it was dark\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wesar_sweep", "data", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=120,
    )


def test_what_a_study_trains_on(folder: Path) -> None:
    done = command(folder, "inspect", "study.yaml")
    assert done.returncode == 0, done.stderr
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert found["source"] == "train.jsonl"
    assert found["tokenizer"] == "BPE of 300 tokens; vocabulary 300"
    assert found["train"].endswith(" tokens") and "documents" in found["train"]
    assert found["epochs"].endswith("in a run: it repeats its text")
    assert found["begins"].startswith("'ship 0 lit 0 lamps")
    assert found["set"].startswith("last: lambada, 1 documents, ")
    again = command(folder, "prepare", "study.yaml", "--json")
    facts = json.loads(again.stdout)
    assert facts["sha256"] == found["sha256"]
    assert facts["train"]["documents"] + facts["validation"]["documents"] == 300
    assert facts["epochs"]["most"] == pytest.approx(
        200 * 8 / ((facts["train"]["tokens"] - 16) // 16)
    )
    assert Path(facts["folder"], "manifest.json").exists()


def test_sets_are_read_beforehand_too(folder: Path) -> None:
    (folder / "lambada.txt").write_bytes(b"caf\xe9 au lait\n")
    done = command(folder, "prepare", "study.yaml")
    assert done.returncode == 2
    assert "evaluation.sets.last.paths: lambada.txt is not UTF-8 text: byte 0xe9" in done.stderr


def test_bytes_need_no_folder(folder: Path) -> None:
    (folder / "study.yaml").write_text("space: {lr: [1e-3]}\n")
    done = command(folder, "inspect", "study.yaml")
    assert "prepared in  memory: nothing is kept on disk" in done.stdout
    assert "bytes; vocabulary 256" in done.stdout
