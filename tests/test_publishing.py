"""Publishing a study: equal reports from the folder alone, nothing private in it, refusals."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import wesar_sweep as ws
from wesar_sweep.cli import app
from wesar_sweep.errors import StoreError
from wesar_sweep.publishing import _Anonymous
from wesar_sweep.store.layout import StudyDirectory

STUDY = """
space: {method: [small, wesar], lr: [1e-3, 1e-1, 30.0]}
replicates: 3
model: {width: 16, depth: 1, heads: 2, context: 16}
training: {steps: 90, batch: 4, warmup: 4}
data: {source: text, paths: [private/own.txt], documents: line}
evaluation: {sequences: 8, every: 30}
probes: {every: 10}
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wesar_sweep", *words], capture_output=True, text=True, cwd=folder
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained study in `results/study`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "private").mkdir()
    lines = (f"{n} ships lit {n * 7 % 11} lamps on tide {n % 5} of the port" for n in range(900))
    (folder / "private/own.txt").write_text("\n".join(lines))
    (folder / "study.yaml").write_text(STUDY)
    done = command(folder, "run", "study.yaml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def published(trained: Path) -> Path:
    done = command(trained, "publish", "results/study", "--to", "kept/study")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "kept/study\n"
    assert "in all" in done.stderr
    return trained / "kept/study"


def test_what_lies_in_the_folder(published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        "study.yaml", "provenance.json", "driver.json", "workers",
        "outcomes.parquet", "curves.parquet", "evaluations.parquet", "probes.parquet",
        "report.html", "report.md",
    }  # fmt: skip
    assert not list(published.parent.glob(".*"))


def test_the_folder_alone_gives_the_report_that_lies_in_it(published: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    shutil.copytree(published, alone)
    for name in ("report.md", "report.html"):
        (alone / name).unlink()
    result = ws.open_result(alone)
    assert result.report(format="md").read_text() == (published / "report.md").read_text()
    assert "vegaEmbed" in result.report().read_text()


def test_its_figures_are_those_of_the_study(trained: Path, published: Path) -> None:
    study, copy = ws.open_result(trained / "results/study"), ws.open_result(published)
    assert copy.outcomes.drop("spikes", "paired_spikes").equals(
        study.outcomes.drop("spikes", "paired_spikes")
    )
    assert {"completed", "diverged"} == set(copy.outcomes["status"])
    before, after = study.tables(), copy.tables()
    assert before.keys() == after.keys()
    for name in ("matrix", "series", "cells", "paired", "cost", "cost-workers"):
        flat = [c for c, kind in before[name].schema.items() if not kind.is_nested()]
        kept = [c for c in flat if "spike" not in c]
        assert after[name].select(kept).equals(before[name].select(kept)), name
    a, b = study.curve(trial=0, seed=0), copy.curve(trial=0, seed=0)
    assert len(a.loss) == len(b.loss) and abs(a.loss / b.loss - 1).max() < 1e-3
    with pytest.raises(StoreError, match="trial 77"):
        copy.curve(trial=77, seed=0)


def test_it_compares_with_the_study_it_is_of(trained: Path, published: Path) -> None:
    found = ws.compare(trained / "results/study", published)
    assert set(found.cells["difference"].abs().to_list()) == {0.0}


def test_nothing_tells_of_the_place(trained: Path, published: Path) -> None:
    secrets = [str(trained), platform.node(), sys.executable, getpass.getuser() + "@"]
    tables = "".join(
        pl.read_parquet(path).write_json() for path in sorted(published.glob("*.parquet"))
    )
    texts = {
        str(path): path.read_text()
        for path in published.rglob("*")
        if path.is_file() and path.suffix != ".parquet"
    }
    for secret in secrets:
        found = [name for name, text in {**texts, "tables": tables}.items() if secret in text]
        # The report of a page holds scripts in which a short host name may stand by chance.
        assert [name for name in found if len(secret) > 3 or ".html" not in name] == [], secret
    provenance = texts[str(published / "provenance.json")]
    assert '"machine 1"' in provenance and '"wesar-sweep"' in provenance
    assert "paths: [private/own.txt]" in texts[str(published / "study.yaml")]
    # Control: the study itself does tell, on which machine each worker ran, too.
    told = json.loads((trained / "results/study/provenance.json").read_text())
    assert told["workers"]["w0"].keys() >= {"host", "boot", "commit"}
    assert str(trained) in (trained / "results/study/study.yaml").read_text()


def test_publishing_again_replaces_it(trained: Path, published: Path, tmp_path: Path) -> None:
    to = tmp_path / "twice"
    shutil.copytree(published, to)
    (to / "report.md").write_text("old")
    written = ws.publish(trained / "results/study", to=to)
    assert (to / "report.md").read_text() == (published / "report.md").read_text()
    assert set(written.sizes) >= {"study.yaml", "workers/w0.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["twice"]


def test_a_failure_leaves_what_was_there(
    trained: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "kept"
    shutil.copytree(published, to)

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("wesar_sweep.publishing.write_published", full)
    for place in (to, tmp_path / "new"):
        with pytest.raises(StoreError, match="disk is full"):
            ws.publish(trained / "results/study", to=place)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (to / "report.md").read_text() == (published / "report.md").read_text()


def refusal(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert isinstance(done.exception, StoreError), done.output
    return str(done.exception)


def test_refusals(trained: Path, published: Path, tmp_path: Path) -> None:
    study = str(trained / "results/study")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/own.txt").write_text("mine")
    assert "holds no published study" in refusal("publish", study, "--to", str(tmp_path / "full"))
    assert (tmp_path / "full/own.txt").read_text() == "mine"
    other = tmp_path / "other"
    shutil.copytree(published, other)
    text = (other / "study.yaml").read_text()
    (other / "study.yaml").write_text(text.replace("steps: 90", "steps: 91"))
    assert "another published study" in refusal("publish", study, "--to", str(other))
    half = tmp_path / "half"
    shutil.copytree(trained / "results/study", half)
    rows = (half / "outcomes/w0.jsonl").read_text().splitlines(keepends=True)
    (half / "outcomes/w0.jsonl").write_text("".join(rows[:5]))
    said = refusal("publish", str(half), "--to", str(tmp_path / "out"))
    assert "is not finished (5 of 18 runs" in said and "wesar-sweep resume" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["resume", "status", "cancel", "publish", "run", "fold"])
def test_nothing_can_be_done_to_a_published_study(
    published: Path, verb: str, tmp_path: Path
) -> None:
    words = {
        "publish": ["publish", str(published), "--to", str(tmp_path / "again")],
        "run": ["run", str(published / "study.yaml"), "--out", str(published)],
        "fold": ["fold", str(published), "--to", str(tmp_path / "model")],
    }.get(verb, [verb, str(published)])
    before = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert "is a published study" in refusal(*words)
    after = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert after == before


def test_a_published_study_can_be_trained_anew(published: Path, trained: Path) -> None:
    """Its study file is whole: in a folder that has the text it trains the same study."""
    done = command(trained, "run", "kept/study/study.yaml", "--out", "anew", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert StudyDirectory(published).study_file.exists()


def test_an_exported_table_does_not_make_a_study_published(trained: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(trained / "results/study", study)
    assert CliRunner().invoke(app, ["export", str(study), "--format", "parquet"]).exit_code == 0
    assert StudyDirectory(study).outcomes_table.exists()
    assert CliRunner().invoke(app, ["status", str(study), "--json"]).exit_code == 0
    # Nor may it be replaced by its own publication, database and all.
    assert "holds no published study" in refusal("publish", str(study), "--to", str(study))
    assert StudyDirectory(study).database_file.exists()


def test_the_table_of_a_published_study_is_not_overwritten_by_export(published: Path) -> None:
    before = StudyDirectory(published).outcomes_table.read_bytes()
    assert "own table" in refusal("export", str(published), "--format", "parquet")
    assert StudyDirectory(published).outcomes_table.read_bytes() == before


def test_what_others_put_into_the_folder_is_not_removed(
    trained: Path, published: Path, tmp_path: Path
) -> None:
    to = tmp_path / "kept"
    shutil.copytree(published, to)
    (to / "README.md").write_text("mine")
    said = refusal("publish", str(trained / "results/study"), "--to", str(to))
    assert "holds more than a published study (README.md)" in said
    assert (to / "README.md").read_text() == "mine"


def test_a_kill_between_the_renames_is_mended(
    trained: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "kept"
    shutil.copytree(published, to)
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name.endswith(".publishing"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        ws.publish(trained / "results/study", to=to)
    assert not to.exists()
    monkeypatch.undo()
    # The caches of the fixture that moves them went with the patch.
    ws.publish(trained / "results/study", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (to / "report.md").read_text() == (published / "report.md").read_text()


def test_a_link_stays_a_link(trained: Path, published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "real")
    (tmp_path / "real/report.md").write_text("old")
    (tmp_path / "link").symlink_to("real")
    ws.publish(trained / "results/study", to=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/report.md").read_text() == (published / "report.md").read_text()


def test_a_damaged_curve_is_not_published_away(trained: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(trained / "results/study", study)
    curve = StudyDirectory(study).curve_file(0, 0)
    curve.write_bytes(curve.read_bytes()[:200])
    said = refusal("publish", str(study), "--to", str(tmp_path / "out"))
    assert "cannot be published whole" in said and curve.name in said
    assert not (tmp_path / "out").exists()


def test_paths_and_hosts_are_taken_out_of_words_and_commands() -> None:
    anonymous = _Anonymous(Path("/home/alice/lab"), {"node7": "machine 1"})
    assert anonymous.text("OSError: '/home/alice/secret/cache.bin' on node7.example.org") == (
        "OSError: 'cache.bin' on machine 1"
    )
    assert anonymous.text("a.txt, /home/alice/lab/b.txt; validation /data/bob/c.txt") == (
        "a.txt, b.txt; validation c.txt"
    )
    kept = "loss 3/4 at step 5, see https://example.org/a/b and ./own/d.txt"
    assert anonymous.text(kept) == kept
    words = ["/usr/bin/python", "/x/bin/wesar-sweep", "run", "s.yaml", "--out=/home/alice/out"]
    facts = {"command": words, "resumed": {"t": ["python", "-c", "secret = 1"]}, "host": "node7"}
    found = anonymous.provenance(facts)
    assert found["command"] == ["wesar-sweep", "run", "s.yaml", "--out=out"]
    assert found["resumed"] == {"t": ["(from Python)"]} and found["host"] == "machine 1"


def test_machines_of_one_name_are_told_apart_by_their_boot(tmp_path: Path) -> None:
    workers = {
        "w0": {"host": "cloud", "boot": "aaaa"},
        "w1": {"host": "cloud", "boot": "bbbb"},
        "w2": {"host": "cloud", "boot": "aaaa"},
        "w3": {"host": "other"},
    }
    facts = {"host": "cloud", "workers": workers}
    found = _Anonymous.of(StudyDirectory(tmp_path), facts).provenance(facts)
    named = {name: one for name, one in found["workers"].items()}
    assert [one["host"] for one in named.values()] == [
        "machine 1", "machine 2", "machine 1", "machine 3",
    ]  # fmt: skip
    assert found["host"] == "machine 1" and "aaaa" not in str(found)
