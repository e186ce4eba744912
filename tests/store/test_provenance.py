"""Provenance: what it knows, what it does not import, and that workers do not undo each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store import provenance
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import (
    collect_provenance,
    merge_provenance,
    read_provenance,
    require_same_sets,
    write_provenance,
)


def git(*arguments: str, folder: Path) -> str:
    identity = {
        f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **identity},
    ).stdout.strip()


def test_the_commit_of_a_copy_without_git(tmp_path: Path) -> None:
    """A container or a copied package is no repository: a variable says what it was made of."""
    shutil.copytree(
        Path(provenance.__file__).parents[1],
        tmp_path / "wesar_sweep",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    code = (
        "from wesar_sweep.store.provenance import collect_provenance as c; import json; "
        "print(json.dumps(c(study_hash='h')['project']))"
    )

    def project(**told: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), **told},
        )
        return dict(json.loads(done.stdout))

    assert project()["commit"] is None
    told = project(WESAR_COMMIT="abc123")
    assert (told["commit"], told["dirty"]) == ("abc123", None)


def test_where_git_knows_the_commit_nobody_needs_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    known = collect_provenance(study_hash="h")["project"]
    if known["commit"] is None:
        pytest.skip("this source is no repository")
    monkeypatch.setenv("WESAR_COMMIT", "abc123")
    assert collect_provenance(study_hash="h")["project"] == known


def test_the_working_directorys_commit_and_dirty_flag(tmp_path: Path) -> None:
    git("init", "-q", folder=tmp_path)
    (tmp_path / "study.yaml").write_text("a")
    git("add", ".", folder=tmp_path)
    git("commit", "-q", "-m", "x", folder=tmp_path)
    clean = collect_provenance(study_hash="h", working_directory=tmp_path)["working_directory"]
    assert clean["commit"] == git("rev-parse", "HEAD", folder=tmp_path)
    assert clean["dirty"] is False
    (tmp_path / "study.yaml").write_text("b")
    assert collect_provenance(study_hash="h", working_directory=tmp_path)["working_directory"][
        "dirty"
    ]


def test_without_a_repository_the_commit_is_none(tmp_path: Path) -> None:
    facts = collect_provenance(study_hash="h", command=["x"], working_directory=tmp_path)
    assert facts["working_directory"] == {"path": str(tmp_path), "commit": None, "dirty": None}
    assert facts["libraries"]["numpy"] == metadata.version("numpy")
    assert (facts["study_hash"], facts["command"]) == ("h", ["x"])
    assert facts["cores"] >= 1
    json.dumps(facts, allow_nan=False)


def test_versions_are_read_without_importing() -> None:
    code = (
        "import sys\nfrom wesar_sweep.store.provenance import collect_provenance\n"
        "facts = collect_provenance(study_hash='h')\nassert 'optuna' in facts['libraries']\n"
        "heavy = {'torch', 'optuna', 'polars', 'altair', 'submitit', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_merging_goes_into_mappings_and_keeps_the_rest(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    assert read_provenance(directory) == {}
    write_provenance(directory, facts={"study_hash": "h", "libraries": {"numpy": "2"}})
    merge_provenance(directory, facts={"libraries": {"torch": "2.13.0"}, "device": "cpu"})
    assert read_provenance(directory) == {
        "study_hash": "h",
        "libraries": {"numpy": "2", "torch": "2.13.0"},
        "device": "cpu",
    }


MERGES = """
import sys
from pathlib import Path
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import merge_provenance
sys.stdin.readline()
for turn in range(30):
    merge_provenance(
        StudyDirectory(Path(sys.argv[1])), facts={"workers": {f"{sys.argv[2]}.{turn}": True}}
    )
"""


def test_workers_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", MERGES, str(tmp_path), str(worker)], stdin=subprocess.PIPE
        )
        for worker in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
    assert [worker.wait(timeout=30) for worker in workers] == [0, 0, 0]
    assert len(read_provenance(StudyDirectory(tmp_path))["workers"]) == 90


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_an_error(tmp_path: Path, text: str) -> None:
    directory = StudyDirectory(tmp_path)
    directory.provenance_file.write_text(text)
    with pytest.raises(StoreError, match=r"provenance\.json: it is not"):
        read_provenance(directory)


def test_other_evaluation_sets_are_refused_by_name(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    now = {"wiki": "a" * 64, "novels": "b" * 64}
    require_same_sets(directory, sha256=now)
    facts = {name: {"sha256": sha256, "kind": "text"} for name, sha256 in now.items()}
    write_provenance(directory, facts={"evaluation_sets": facts})
    require_same_sets(directory, sha256=now)
    require_same_sets(directory, sha256={"another": "c" * 64})
    with pytest.raises(
        StoreError, match=r"novels \(sha256 cccccccccccc, then bbbbbbbbbbbb\)"
    ) as no:
        require_same_sets(directory, sha256=now | {"novels": "c" * 64})
    assert "wiki" not in str(no.value)
