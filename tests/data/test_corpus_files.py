"""Text files: every kind that is read, and the complete text of every error."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from wesar_sweep.config.data import TextData
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.data.text_files import cut_text, find_files, read_text
from wesar_sweep.errors import ConfigError

TEXT = "\n\n".join(f"paragraph {i} of a text, ² and σ in it" for i in range(100)).encode()

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def error_of(paths: list[str], **options: object) -> str:
    named = {"source": "text", "paths": paths, "documents": "paragraph"}
    with pytest.raises(ConfigError) as caught:
        load_corpus(TextData.model_validate({**named, **options}), context=16)
    return str(caught.value)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_text(suffix: str) -> None:
    file = Path(f"novel{suffix}")
    file.write_bytes(COMPRESS[suffix](TEXT))
    assert read_text(file, key="data.paths") == TEXT
    assert read_text(file, key="data.paths", limit=100) == TEXT[:100]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_archives_of_several_members_are_read_to_the_end(suffix: str) -> None:
    file = Path(f"novel{suffix}")
    file.write_bytes(COMPRESS[suffix](TEXT) + COMPRESS[suffix](b"the end"))
    assert read_text(file, key="data.paths") == TEXT + b"the end"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "not compressed", "flipped"])
def test_a_damaged_archive(suffix: str, damage: str) -> None:
    whole = COMPRESS[suffix](TEXT)
    middle = len(whole) // 2
    data = {
        "cut": whole[:middle],
        "not compressed": b"plain text under a wrong name",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
    }[damage]
    Path(f"novel{suffix}").write_bytes(data)
    if suffix == ".zst" and damage == "flipped":
        # Zstandard frames need not carry a checksum; what comes out may only be wrong text.
        return
    message = error_of([f"novel{suffix}"])
    first, hint = message.split("\n")
    assert first.startswith(f"data.paths: novel{suffix} is not a whole {suffix[1:]} file: ")
    assert hint == (
        "    hint: make or fetch it again; if it is not compressed, take the suffix "
        f"{suffix} from its name"
    )


def test_zstandard_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("Python 3.14 and later read Zstandard by themselves")
    Path("novel.zst").write_bytes(zstandard.compress(TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert error_of(["novel.zst"]) == (
        "data.paths: novel.zst needs the package zstandard, which is not installed\n"
        "    hint: pip install 'wesar-sweep[zstd]', or Python 3.14 or later"
    )


def test_folders_globs_and_files_each_once_in_order() -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", ".hidden/d.txt", "deep/.e.txt", "deep/empty.txt"):
        Path("books", name).parent.mkdir(parents=True, exist_ok=True)
        Path("books", name).write_text("" if "empty" in name else name)
    Path("link").symlink_to("books/a.txt")
    found = [str(file) for file in find_files(["books"], key="data.paths")]
    assert found == ["books/a.txt", "books/b.txt", "books/deep/c.txt"]
    found = [
        str(file)
        for file in find_files(["books/b.txt", "books/**/*.txt", "link"], key="data.paths")
    ]
    assert found == ["books/b.txt", "books/a.txt", "books/deep/c.txt"]
    assert [str(file) for file in find_files(["books/d*"], key="data.paths")] == [
        "books/deep/c.txt"
    ], "a folder that a glob matches stands for its files"


def test_a_name_with_brackets_is_a_name_first() -> None:
    Path("novel [1].txt").write_bytes(TEXT)
    assert find_files(["novel [1].txt"], key="data.paths") == [Path("novel [1].txt")]


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("novel.txt").write_bytes(TEXT)
    assert find_files(["~/novel.txt"], key="data.paths") == [tmp_path / "novel.txt"]


def test_a_missing_file_with_the_nearest_name() -> None:
    Path("novels").mkdir()
    Path("novels/emma.txt").write_bytes(TEXT)
    assert error_of(["novels/ema.txt"]) == (
        "data.paths.0: novels/ema.txt does not exist\n    hint: did you mean novels/emma.txt?"
    )
    assert error_of(["novel/emma.txt"]) == (
        "data.paths.0: novel/emma.txt does not exist\n    hint: did you mean novels?"
    )
    assert error_of(["qqq.txt"]) == (
        "data.paths.0: qqq.txt does not exist\n"
        f"    hint: paths are relative to the working directory, {Path.cwd()}"
    )


def test_a_glob_without_a_match() -> None:
    assert error_of(["novels/*.txt"]) == (
        "data.paths.0: no file matches novels/*.txt\n"
        f"    hint: paths are relative to the working directory, {Path.cwd()}"
    )


def test_all_wrong_paths_at_once() -> None:
    Path("empty.txt").touch()
    Path("folder/.git").mkdir(parents=True)
    Path("folder/.git/config").write_text("hidden")
    Path("blank").mkdir()
    Path("blank/a.txt").touch()
    Path("blank/b.txt").touch()
    assert error_of(["empty.txt", "folder", "blank", "blank/*.txt", "*.pdf"]).split("\n") == [
        "data.paths.0: empty.txt is empty",
        "data.paths.1: the folder folder has no files in it",
        "    hint: files and folders whose names begin with a dot are passed over",
        "data.paths.2: the folder blank has no text in it: all 2 files are empty",
        "data.paths.3: blank/*.txt has no text in it: all 2 files are empty",
        "data.paths.4: no file matches *.pdf",
        f"    hint: paths are relative to the working directory, {Path.cwd()}",
    ]


def test_nothing_but_blanks() -> None:
    Path("blank.txt").write_text("\n \n\t\n")
    assert error_of(["blank.txt"]) == "data.paths: the files hold nothing but blanks"


def test_every_undecodable_file_is_named_with_its_offset() -> None:
    Path("latin.txt").write_bytes(b"a caf\xe9 in Paris")
    Path("utf16.txt").write_bytes("plain words".encode("utf-16-le"))
    lines = error_of(["latin.txt", "utf16.txt"]).split("\n")
    assert sorted(lines) == sorted(
        [
            "data.paths: latin.txt is not UTF-8 text: byte 0xe9 at offset 5",
            "    hint: convert it, for example with `iconv -f latin1 -t utf-8 latin.txt`; "
            "or leave it out, for example by a glob such as folder/**/*.txt",
            "data.paths: utf16.txt is not text: zero byte at offset 1",
            "    hint: if it is UTF-16, convert it with `iconv -f utf-16 -t utf-8 utf16.txt`",
        ]
    )


def test_a_byte_order_mark_is_no_text() -> None:
    Path("windows.txt").write_bytes(b"\xef\xbb\xbf" + TEXT)
    assert read_text(Path("windows.txt"), key="data.paths") == TEXT


@pytest.mark.parametrize("name", ["books.tar.gz", "books.tgz", "books.zip", "books.TAR"])
def test_an_archive_of_files(name: str) -> None:
    Path(name).write_bytes(b"whatever")
    assert error_of([name]) == (
        f"data.paths: {name} is an archive of files\n"
        "    allowed: text, plain or compressed one file at a time: gz, bz2, xz, zst\n"
        "    hint: unpack it and name the folder"
    )


def test_a_file_that_cannot_be_read() -> None:
    # Readable by its permissions, and yet the first page of a process is mapped nowhere.
    with pytest.raises(ConfigError) as caught:
        read_text(Path("/proc/self/mem"), key="data.paths")
    assert str(caught.value) == "data.paths: /proc/self/mem cannot be read: Input/output error"


def test_one_document_cannot_be_split() -> None:
    Path("novel.txt").write_bytes(TEXT)
    assert error_of(["novel.txt"], documents="file") == (
        "data.held_out: the text holds only one document (file), so none can be held out\n"
        "    hint: data.documents: paragraph, or data.validation: [...] with other files"
    )


def test_too_little_text_says_how_much_is_needed() -> None:
    Path("short.txt").write_text("one\n\ntwo\n\nthree")
    assert error_of(["short.txt"]).split("\n") == [
        "data: too little training text: 14 bytes, and model.context 16 needs 32",
        "    hint: give more text or more documents, or lower model.context",
        "data: too little validation text: 0 bytes, and model.context 16 needs 17",
        "    hint: give more text or more documents, or lower model.context",
    ]


def test_a_validation_file_that_is_trained_on() -> None:
    Path("novels").mkdir()
    Path("novels/emma.txt").write_bytes(TEXT)
    assert error_of(["novels"], validation=["novels/emma.txt"]) == (
        "data.validation: novels/emma.txt is in data.paths too: "
        "the model would be judged on what it has seen\n"
        "    hint: name each file in one of the two"
    )
    Path("copy.txt").write_bytes(TEXT)
    assert error_of(["novels"], validation=["copy.txt"]) == (
        "data.validation: every document of data.paths is in the validation files too\n"
        "    hint: name files with other text, or leave validation out and set held_out"
    )


def test_wrong_validation_paths_are_named_as_such() -> None:
    Path("emma.txt").write_bytes(TEXT)
    assert error_of(["emma.txt"], validation=["emily.txt"]) == (
        "data.validation.0: emily.txt does not exist\n    hint: did you mean emma.txt?"
    )


def test_text_is_cut_between_characters() -> None:
    text = "aσ한𝄞".encode()
    assert [len(cut_text(text, limit)) for limit in range(len(text) + 2)] == (
        [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]
    )
