"""JSON Lines and Parquet: what is read, and what is wrong with files that are not right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from wesar_sweep.data.records import jsonl_records, parquet_records, record_reader
from wesar_sweep.errors import ConfigError

TEXTS = [
    "one",
    "two lines\nof text",
    "drei ² σ",
    "",
    None,
    "  \n",
    "zero\0byte",
    "half \ud800 pair",
]
READ = [b"one", b"two lines\nof text", "drei ² σ".encode(), b"zerobyte", b"half ? pair"]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(texts: list[str | None], field: str = "text") -> bytes:
    return "".join(json.dumps({"n": 1, field: text}) + "\n" for text in texts).encode()


def error_of(name: str, field: str = "text") -> str:
    reader = record_reader(Path(name))
    assert reader is not None
    with pytest.raises(ConfigError) as caught:
        list(reader(Path(name), field=field, key="data.paths"))
    return str(caught.value)


def test_what_reads_a_file_goes_by_its_suffix() -> None:
    for name in ("a.jsonl", "a.ndjson", "a.JSONL", "a.v2.jsonl.gz", "a.jsonl.zst"):
        assert record_reader(Path(name)) is jsonl_records, name
    for name in ("a.parquet", "a.parquet.gz"):
        assert record_reader(Path(name)) is parquet_records, name
    for name in ("a.txt", "a", "jsonl", "a.xz", "a.jsonl.txt"):
        assert record_reader(Path(name)) is None, name


def test_json_lines_plain_and_compressed() -> None:
    Path("a.jsonl").write_bytes(jsonl(TEXTS))
    Path("a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert list(jsonl_records(Path(name), field="text", key="data.paths")) == READ


def test_lines_longer_than_what_is_read_at_once() -> None:
    texts = ["x" * 3_000_000, "y", "z" * 1_500_000]
    Path("a.jsonl").write_bytes(jsonl([*texts]) + b"\n\n" + jsonl(["last"]).rstrip())
    found = list(jsonl_records(Path("a.jsonl"), field="text", key="data.paths"))
    assert found == [*(text.encode() for text in texts), b"last"]


def test_parquet_gives_what_json_lines_give() -> None:
    texts = [text for text in TEXTS if text is None or "\ud800" not in text]
    frame = pl.DataFrame({"n": range(len(texts)), "text": texts})
    frame.write_parquet("a.parquet", row_group_size=3)
    found = list(parquet_records(Path("a.parquet"), field="text", key="data.paths"))
    assert found == READ[:-1]


def test_an_empty_shard_gives_nothing() -> None:
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet("a.parquet")
    Path("a.jsonl").write_bytes(b"\n")
    assert not list(parquet_records(Path("a.parquet"), field="text", key="data.paths"))
    assert not list(jsonl_records(Path("a.jsonl"), field="text", key="data.paths"))


def test_many_records_keep_their_order() -> None:
    pl.DataFrame({"text": [f"text {n}" for n in range(10_000)]}).write_parquet(
        "a.parquet", row_group_size=1000
    )
    found = list(parquet_records(Path("a.parquet"), field="text", key="data.paths"))
    assert found == [f"text {n}".encode() for n in range(10_000)]


def test_a_truncated_parquet_file() -> None:
    pl.DataFrame({"text": ["a"] * 1000}).write_parquet("a.parquet")
    whole = Path("a.parquet").read_bytes()
    for size in (len(whole) - 10, len(whole) // 2, 3):
        Path("a.parquet").write_bytes(whole[:size])
        first, hint = error_of("a.parquet").split("\n")
        assert first.startswith("data.paths: a.parquet is not a whole Parquet file: ")
        assert hint == "    hint: make or fetch it again"


def test_a_parquet_file_with_a_flipped_page_is_no_text() -> None:
    pl.DataFrame({"text": [f"text number {n}" for n in range(5000)]}).write_parquet("a.parquet")
    whole = bytearray(Path("a.parquet").read_bytes())
    whole[20:60] = bytes(40)
    Path("a.parquet").write_bytes(whole)
    assert error_of("a.parquet").startswith("data.paths: a.parquet is not a whole Parquet file: ")


def test_a_file_that_was_cut_within_a_line() -> None:
    Path("a.jsonl").write_bytes(jsonl(["one", "two"])[:-5])
    assert error_of("a.jsonl") == (
        "data.paths: a.jsonl, line 2, is no JSON: Unterminated string starting at: line 1 column "
        "18 (char 17)\n"
        "    hint: if it is the last line the file was cut: make or fetch it again"
    )


def test_lines_that_are_no_records() -> None:
    Path("a.jsonl").write_bytes(jsonl(["one"]) + b"[1, 2]\n")
    assert error_of("a.jsonl") == (
        "data.paths: a.jsonl, line 2, is no JSON object\n"
        '    hint: each line is to be like {"text": "…"}'
    )
    Path("a.jsonl").write_bytes(jsonl(["one"]) + b'{"text": 3}\n')
    assert error_of("a.jsonl") == (
        "data.field: a.jsonl, line 2: field text holds no text, but 3\n    hint: name another field"
    )
    Path("a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert error_of("a.jsonl").startswith("data.paths: a.jsonl, line 1, is not UTF-8: ")


def test_a_field_that_is_not_there() -> None:
    Path("a.jsonl").write_bytes(jsonl(["one"], field="content"))
    pl.DataFrame({"n": [1], "content": ["one"]}).write_parquet("a.parquet")
    for name, where in (("a.jsonl", "a.jsonl, line 1"), ("a.parquet", "a.parquet")):
        assert error_of(name, field="contents") == (
            f"data.field: {where}: there is no field contents\n"
            "    allowed: n, content\n"
            "    hint: did you mean content?"
        )
    assert error_of("a.parquet", field="n") == (
        "data.field: a.parquet: field n holds no text, but Int64\n    hint: name another field"
    )
