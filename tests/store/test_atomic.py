"""Atomic writes: the old file or the new one, and a full disk says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import write_atomically, write_folder_atomically, write_json


def test_it_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "facts.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": "é"})
    assert path.read_text() == '{\n  "b": "é"\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_atomically(path, b"old")
    (tmp_path / f".facts.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"facts\.json: No space left on device; the disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


DIES_WHILE_WRITING = """
import os, sys
from pathlib import Path
from wesar_sweep.store.atomic import write_atomically
def die(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), die)
"""


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_atomically(path, b"old")
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old"


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "facts.json", {"a": float("nan")})


def test_a_folder_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("1")

    path = tmp_path / "new" / "model"
    write_folder_atomically(path, fill)
    assert [file.name for file in path.iterdir()] == ["a"]
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    write_folder_atomically(Path("."), fill)
    assert (empty / "a").read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [empty, tmp_path / "new"]
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_not_put_over_files(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "mine").write_text("1")
    with pytest.raises(StoreError, match=r"cannot write .*model: Directory not empty"):
        write_folder_atomically(path, lambda folder: (folder / "a").touch())
    assert [file.name for file in path.iterdir()] == ["mine"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_filled_is_not_there(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "whole").write_text("1")
        (folder / "full").symlink_to("/dev/full")
        (folder / "full").write_text("x")

    with pytest.raises(StoreError, match=r"No space left on device; the disk is full"):
        write_folder_atomically(tmp_path / "model", fill)
    assert list(tmp_path.iterdir()) == []
