"""A tokenizer's file: its size is filled in when a study is loaded, or what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wesar_sweep.config import Study, load_study
from wesar_sweep.config.data import FileTokenizer
from wesar_sweep.config.load import anchored, dump_study, study_hash
from wesar_sweep.config.tokenizer_file import vocabulary_of
from wesar_sweep.errors import ConfigError

BPE: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 7, "content": "<|endoftext|>"}],
}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(content: object = BPE, name: str = "tokenizer.json") -> Path:
    file = Path(name)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def load(tokenizer: str) -> Study:
    Path("study.yaml").write_text(
        "space: {lr: [1e-3]}\n"
        f"data:\n  source: text\n  paths: [a.txt]\n  tokenizer: {{kind: file, {tokenizer}}}\n"
    )
    return load_study("study.yaml")


def error_of(tokenizer: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tokenizer)
    return str(caught.value)


def test_the_size_is_one_more_than_the_largest_id() -> None:
    assert vocabulary_of(write()) == 8
    assert vocabulary_of(write({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}})) == 2


def test_it_is_filled_in_and_may_be_rounded_up() -> None:
    write()
    assert load("path: tokenizer.json").data.vocabulary == 8
    assert load("path: tokenizer.json, vocabulary: 64").data.vocabulary == 64


def test_a_resolved_study_needs_the_file_no_more() -> None:
    file = write()
    resolved = dump_study(anchored(load("path: tokenizer.json"), Path.cwd()))
    Path("resolved.yaml").write_text(resolved)
    file.unlink()
    study = load_study("resolved.yaml")
    assert study.data.vocabulary == 8
    assert isinstance(study.data.tokenizer, FileTokenizer)
    assert study.data.tokenizer.path == str(file.resolve())


def test_where_it_lies_is_no_part_of_the_study() -> None:
    write()
    write(name="other.json")
    first, second = load("path: tokenizer.json"), load("path: other.json")
    assert study_hash(first) == study_hash(second)
    assert study_hash(first) != study_hash(load("path: other.json, vocabulary: 64"))


def test_fewer_rows_than_tokens() -> None:
    write()
    assert error_of("path: tokenizer.json, vocabulary: 7") == (
        "study.yaml:5:61: data.tokenizer.vocabulary: tokenizer.json has 8 tokens, and this leaves "
        "some without a row\n"
        "    value: 7\n"
        "    allowed: a whole number, at least 8\n"
        "    hint: remove it, or round up for a faster product"
    )


def test_files_that_are_none() -> None:
    assert error_of("path: missing.json") == (
        "study.yaml:5:33: data.tokenizer.path: there is no file missing.json\n"
        "    value: missing.json"
    )
    write("{")
    assert "this is no tokenizer: Expecting property name" in error_of("path: tokenizer.json")
    write({"model": {}})
    assert "this is no tokenizer: no vocabulary in tokenizer.json" in error_of(
        "path: tokenizer.json"
    )
    write({"model": {"vocab": {"a": 300_000}}})
    assert "has 300,001 tokens, and at most 262,144 are allowed" in error_of("path: tokenizer.json")


def test_kinds_and_keys_are_told() -> None:
    assert error_of("path: a.json, kinds: x").count("\n") >= 1
    with pytest.raises(ConfigError) as caught:
        Path("study.yaml").write_text(
            "space: {lr: [1e-3]}\ndata: {source: text, paths: [a.txt], tokenizer: {kind: bpee}}\n"
        )
        load_study("study.yaml")
    assert "data.tokenizer.kind" in str(caught.value)
    assert "allowed: bytes, bpe, file" in str(caught.value)
    assert "did you mean bpe?" in str(caught.value)
