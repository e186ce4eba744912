import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from invented_study import invent, lr_study, write_study
from rich.console import Console

import wesar_sweep as ws
from wesar_sweep.analysis.compare import Comparison
from wesar_sweep.reports import comparison as room


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole study, and one of another warm-up whose `he` is worse, half of it trained."""
    root = tmp_path_factory.mktemp("compare")
    study = lr_study(replicates=4)
    rows, _ = invent(study, with_curves=False)
    write_study(root / "a", study, rows, {})
    other = lr_study(replicates=4, training={"steps": 300, "warmup": 2})
    worse = [
        replace(row, val_loss=row.val_loss + 0.1)
        if row.hyperparameters["method"] == "he" and row.val_loss is not None
        else row
        for row in rows
    ]
    write_study(root / "b", other, worse[:96], {})
    return root / "a", root / "b"


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path]) -> Comparison:
    return ws.compare(*folders)


def drawn(comparison: Comparison, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(room.summary(comparison))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_says_what_differs_and_that_one_is_partial(
    found: Comparison, width: int
) -> None:
    text = drawn(found, width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    assert "B is not finished: 96 of 128 runs have ended" in flat
    assert re.search(r"training.warmup\s+20\s+2\s", text)
    k, m = found.different.height, found.tested.height
    assert k > 4
    assert f"{k} of {m} tested cells differ (Holm)" in flat
    assert f"chance alone shows about {0.05 * m:.1f}" in flat
    # No figure is broken over two lines.
    assert len(re.findall(r"[+−]0\.\d{3} to [+−]\d\.\d{3}", text)) >= room.SHOWN // 2


def test_markdown_holds_every_cell_and_json_every_number(found: Comparison, tmp_path: Path) -> None:
    room.write(found, format="md", out=tmp_path / "c.md")
    text = (tmp_path / "c.md").read_text()
    assert text.count("| he at lr") == 8
    assert "Only in A" in text and "σ²=1e-3" in text
    room.write(found, format="json", out=tmp_path / "c.json")
    facts = json.loads((tmp_path / "c.json").read_text())
    assert len(facts["cells"]) == found.cells.height
    assert facts["partial"]["b"] == {"partial": True, "ended": 96, "expected": 128}
    assert facts["overall"]["trained"]["p"] == found.overall.trained.p  # type: ignore[union-attr]


def test_the_command_prints_csv_and_ends_with_0_and_2(folders: tuple[Path, Path]) -> None:
    words = [sys.executable, "-m", "wesar_sweep", "compare", *map(str, folders)]
    done = subprocess.run([*words, "--format", "csv"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.startswith("method,sigma2,lr,setting,trial_a,trial_b") and len(rows) == 24
    words[-1] = str(folders[0] / "nothing")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"no study in {words[-1]}" in done.stderr


def test_a_study_beside_itself_is_the_same_to_the_last_bit(folders: tuple[Path, Path]) -> None:
    same = ws.compare(folders[0], folders[0])
    flat = " ".join(drawn(same, 100).split())
    assert "All 128 pairs of runs have the same loss to the last bit." in flat
    assert "Settings that differ" not in flat and "Provenance that differs" not in flat
    with pytest.raises(ws.ConfigError, match="no such format"):
        room.write(same, format="xml")


def test_other_tokens_are_said_to_make_nats_incomparable(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    data = {"source": "stdlib", "tokenizer": {"kind": "bpe", "vocabulary": 400}}
    study = lr_study(replicates=4, data=data)
    write_study(tmp_path / "bpe", study, invent(study, with_curves=False)[0], {})
    words = " ".join(room.cautions(ws.compare(folders[0], tmp_path / "bpe")))
    assert "Their tokens are not the same, so nats a token are not comparable" in words
    # The control: equal tokens, of another corpus or not, are nothing to warn of.
    assert "tokens are not the same" not in " ".join(room.cautions(ws.compare(*folders)))
