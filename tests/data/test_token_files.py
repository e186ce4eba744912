"""Token files: made once, read by all, never wrong: damage, full disks and eight at once."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wesar_sweep.config.data import TextData
from wesar_sweep.data.corpus import Corpus, load_corpus
from wesar_sweep.data.token_files import file_facts
from wesar_sweep.errors import ConfigError, StoreError

PARAGRAPHS = [f"paragraph {n} says that {n * n} is a square, σ² too" for n in range(400)]


@pytest.fixture
def novel(tmp_path: Path) -> Path:
    file = tmp_path / "novel.txt"
    file.write_text("\n\n".join(PARAGRAPHS))
    return file


def data_of(file: Path, **options: object) -> TextData:
    named = {"source": "text", "paths": [str(file)], "documents": "paragraph"}
    return TextData.model_validate({**named, **options})


def load(file: Path, **options: object) -> Corpus:
    return load_corpus(data_of(file, **options), context=16)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "corpora").iterdir() if path.is_dir())


def test_an_entry_is_made_once_and_mapped(
    novel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(novel)
    assert isinstance(first.train, np.memmap) and not first.train.flags.writeable
    (entry,) = entries(cache)
    assert {path.name for path in entry.iterdir()} == {
        "manifest.json", "train.bin", "validation.bin", "tokenizer.json",
    }  # fmt: skip
    assert first.folder == entry
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["documents"]["train"] + manifest["documents"]["validation"] == 400
    assert manifest["tokens"]["train"] == len(first.train) == manifest["text_bytes"]["train"]
    # The control: were it made anew, this would fail.
    monkeypatch.setattr("wesar_sweep.data.prepare._make", None)
    second = load(novel)
    assert second.sha256 == first.sha256 and np.array_equal(second.train, first.train)
    with pytest.raises(TypeError):
        load(novel, held_out=0.2)


def test_the_entry_goes_by_content_and_not_by_place(novel: Path, cache: Path) -> None:
    before = load(novel)
    moved = novel.with_name("moved.txt")
    shutil.move(novel, moved)
    assert load(moved).sha256 == before.sha256
    assert len(entries(cache)) == 1
    moved.write_text(moved.read_text() + "\n\none more")
    assert load(moved).sha256 != before.sha256
    assert len(entries(cache)) == 2


def test_a_large_file_is_hashed_once(
    novel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wesar_sweep.data.token_files._REMEMBERED_BYTES", 10)
    first = file_facts([novel])
    assert len(list((cache / "files").iterdir())) == 1
    real = "wesar_sweep.data.token_files._sha256_of"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, None)
        assert file_facts([novel]) == first
        # As long as it was, and yet another.
        novel.write_text(novel.read_text()[::-1])
        os.utime(novel, ns=(0, 0))
        with pytest.raises(TypeError):
            file_facts([novel])
    assert file_facts([novel]) != first


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_entry_is_made_anew(
    novel: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    # A copy: who has mapped a file that is then cut short dies of it.
    train = np.array(load(novel).train)
    sha256 = load(novel).sha256
    file = entries(cache)[0] / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    match damage:
        case "flipped":
            flipped = bytes([whole[middle] ^ 1])
            file.write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
        case "cut":
            file.write_bytes(whole[:middle])
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    after = load(novel)
    assert after.sha256 == sha256
    assert np.array_equal(after.train, train)
    assert file.read_bytes() == whole or name == "manifest.json"
    assert "making it anew" in caplog.text or name == "manifest.json"
    assert [path.name for path in (cache / "corpora").glob(".*")] == []


CHILD = """
import hashlib, sys
from pathlib import Path
from wesar_sweep.config.data import TextData
from wesar_sweep.data import prepare
from wesar_sweep.data.corpus import load_corpus
made = []
real = prepare._make
def make(*args, **kwargs):
    made.append(1)
    return real(*args, **kwargs)
prepare._make = make
data = TextData(source="text", paths=(sys.argv[1],), documents="paragraph")
corpus = load_corpus(data, context=16)
print(len(made), hashlib.sha256(corpus.train.tobytes()).hexdigest(), corpus.folder)
"""


def child(novel: Path, code: str = CHILD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(novel)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_at_once_one_does_the_work(novel: Path, cache: Path) -> None:
    # Long enough to be under way when the last of them starts.
    novel.write_text("\n\n".join(f"{n} {text}" for n in range(100) for text in PARAGRAPHS))
    children = [child(novel) for _ in range(8)]
    lines = []
    for one in children:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, err
        lines.append(out.split())
    assert sorted(line[0] for line in lines) == ["0"] * 7 + ["1"]
    assert len({tuple(line[1:]) for line in lines}) == 1
    assert len(entries(cache)) == 1


def test_who_is_killed_at_work_leaves_it_to_the_next(novel: Path, cache: Path) -> None:
    slow = CHILD.replace(
        "    return real(", "    import time; time.sleep(60)\n    return real("
    ).replace("made.append(1)", "print('at work', flush=True)")
    first = child(novel, slow)
    assert first.stdout is not None and first.stdout.readline() == "at work\n"
    second = child(novel)
    time.sleep(0.5)
    name = next((cache / "corpora").glob("*.lock")).stem
    litter = cache / "corpora" / f".{name}.{platform.node()}.1.tmp"
    litter.mkdir()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert out.split()[0] == "1"
    assert not litter.exists()


def test_a_full_disk_says_so_and_leaves_nothing_half_made(novel: Path, cache: Path) -> None:
    # A limit on the length of files is met as a full disk is: a write fails half way.
    limited = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))\n" + CHILD
    )
    out, err = child(novel, limited).communicate(timeout=60)
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("wesar_sweep.errors.StoreError: cannot write tokens to ")
    assert "File too large" in last and "WESAR_CACHE=FOLDER" in last
    assert entries(cache) == []
    assert not list((cache / "corpora").glob(".*.tmp"))
    assert load(novel).train_documents > 300
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_cache_that_cannot_be_written_to(
    novel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WESAR_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="Not a directory"):
        load(novel)


def test_text_that_changes_while_it_is_read(novel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wesar_sweep.data import prepare

    real = prepare.make_tokenizer

    def meanwhile(*args: object, **kwargs: object) -> object:
        novel.write_text("\n\n".join(PARAGRAPHS[:200]))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "make_tokenizer", meanwhile)
    with pytest.raises(ConfigError, match="changed while it was read"):
        load(novel)


def test_text_that_changes_and_is_as_long_as_before(
    novel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wesar_sweep.data import prepare

    real = prepare._encode

    def meanwhile(*args: object, **kwargs: object) -> object:
        novel.write_text("\n\n".join(reversed(PARAGRAPHS)))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "_encode", meanwhile)
    with pytest.raises(ConfigError, match="changed while it was read"):
        load(novel)


def test_a_worker_finds_the_tokens_without_their_text(novel: Path, cache: Path) -> None:
    first = load(novel)
    assert first.prepared_as is not None
    data = data_of(novel)
    novel.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        load_corpus(data, context=16)
    again = load_corpus(data, context=16, prepared_as=first.prepared_as)
    assert again.sha256 == first.sha256
    # What is not in this machine's cache is made of the text after all.
    shutil.rmtree(entries(cache)[0])
    with pytest.raises(ConfigError, match="does not exist"):
        load_corpus(data, context=16, prepared_as=first.prepared_as)


def test_names_count_where_they_decide_what_is_read(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} {text}" for text in PARAGRAPHS))
    everything = load(folder)
    some = load(folder, max_bytes=10_000)
    (folder / "c.txt").rename(folder / "ca.txt")
    assert load(folder).sha256 == everything.sha256
    assert len(entries(cache)) == 2
    # Which files are read under a limit goes by their names: another entry, whatever is in it.
    load(folder, max_bytes=10_000)
    assert len(entries(cache)) == 3
    (folder / "ca.txt").rename(folder / "c.txt")
    assert load(folder, max_bytes=10_000).sha256 == some.sha256


def test_blank_lines_count_towards_what_is_read_for_a_limit(tmp_path: Path) -> None:
    """As they did before documents were streamed: an older study is to find its corpus again."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abcdefgh":
        (folder / f"{name}.txt").write_text(("\n" * 40).join(f"{name} {t}" for t in PARAGRAPHS))
    corpus = load(folder, max_bytes=10_000)
    assert corpus.sha256.startswith("9f5c819087416038")


def test_a_split_with_files_of_its_own_does_not_go_by_the_context(
    novel: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "held.txt").write_text("\n\n".join(f"held out: {text}" for text in PARAGRAPHS))
    data = data_of(novel, validation=[str(tmp_path / "held.txt")])
    for context in (16, 32):
        load_corpus(data, context=context)
    assert len(entries(cache)) == 1


def test_the_description_is_of_the_study_at_hand(novel: Path, tmp_path: Path) -> None:
    load(novel)
    copy = tmp_path / "copy.txt"
    shutil.copy(novel, copy)
    assert load(copy).description == str(copy)


def test_few_documents_leave_tokens_enough_to_judge_on(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(30):
        text = " ".join(f"text {n} has {k} words and more of {k * n}" for k in range(40))
        (folder / f"{n:02}.txt").write_text(text)
    data = TextData(
        source="text", paths=(str(folder),), held_out=0.02,
        tokenizer={"kind": "bpe", "vocabulary": 300},  # type: ignore[arg-type]
    )  # fmt: skip
    corpus = load_corpus(data, context=256)
    assert len(corpus.validation) >= 257 and len(corpus.train) >= 512
    assert corpus.tokenizer is not None
    read = corpus.tokenizer.token_bytes()[corpus.validation].sum()
    assert read / len(corpus.validation) == pytest.approx(corpus.bytes_per_token)
