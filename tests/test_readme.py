"""What the README shows is true: its study files validate, its error text is what is printed."""

import re
import subprocess
import sys
from pathlib import Path

from wesar_sweep.config import load_study

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


def test_the_study_explained_key_by_key_is_valid(tmp_path):
    study, *parts = blocks("yaml")
    (data,) = (part for part in parts if part.startswith("data:"))
    (sets,) = (part for part in parts if part.startswith("evaluation:"))
    (tmp_path / "study.yaml").write_text(study)
    loaded = load_study(tmp_path / "study.yaml")
    assert loaded.method_parts("gpt2_wesar").init == "gpt2"
    (tmp_path / "text.yaml").write_text("space: {lr: [1e-3]}\n" + data)
    assert load_study(tmp_path / "text.yaml").data.source == "text"
    (tmp_path / "sets.yaml").write_text("space: {lr: [1e-3]}\n" + sets)
    judged = load_study(tmp_path / "sets.yaml").evaluation.sets
    assert [one.kind for one in judged.values()] == ["wikitext", "lambada", "text"]


def test_the_error_shown_is_the_error_printed(tmp_path):
    text = "space:\n  lr: {low: 1e-3, high: 1e-4, log: true, points: 5}\n  methd: [he, wesar]\n"
    (tmp_path / "study.yaml").write_text(text + "training:\n  stepz: 200\n")
    words = [sys.executable, "-m", "wesar_sweep", "run", "study.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    shown = next(block for block in blocks("") if "study.yaml:2:13" in block)
    printed = done.stderr.strip().splitlines()
    for line, real in zip(shown.strip().splitlines(), printed, strict=True):
        assert real.startswith(line.rstrip(" …")), (line, real)


def test_commands_and_files_it_names_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / path).exists(), path
    for name in re.findall(r"wesar-sweep run (search_spaces/[\w.]+)", README):
        assert (root / name).exists(), name
    commands = set(re.findall(r"^\| `wesar-sweep (\w+)", README, flags=re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "wesar_sweep", "--help"], capture_output=True, text=True
    )
    assert all(command in done.stdout for command in commands) and len(commands) == 17


def test_the_makefile_has_the_targets_it_names():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"`?make (run|test|bench)\b", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
