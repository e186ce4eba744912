"""Data sets by the library `datasets`, from local Parquet and JSON Lines: the hub's own code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from wesar_sweep.config import parse_study, study_hash
from wesar_sweep.config.data import HuggingFaceData, TextData
from wesar_sweep.config.load import anchored
from wesar_sweep.data.corpus import Corpus, load_corpus
from wesar_sweep.errors import ConfigError

TEXTS = [f"record {n} says that {n * n} is a square, σ² too. " * 3 for n in range(400)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture(params=["parquet", "jsonl"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        texts = TEXTS[100 * shard : 100 * (shard + 1)]
        file = folder / f"part-{shard}.{request.param}"
        if request.param == "parquet":
            pl.DataFrame({"content": texts, "n": range(100)}).write_parquet(file)
        else:
            file.write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    return folder


def load(folder: Path | str, **options: object) -> Corpus:
    named = {"source": "huggingface", "name": str(folder), "field": "content", "tokens": 20_000}
    return load_corpus(HuggingFaceData.model_validate({**named, **options}), context=16)


def test_streamed_until_the_budget_is_reached(folder: Path) -> None:
    corpus = load(folder)
    tokens = len(corpus.train) + len(corpus.validation)
    longest = max(map(len, TEXTS)) + 10
    assert 20_000 <= tokens <= 20_000 + longest
    found = sorted((corpus.train.tobytes() + corpus.validation.tobytes()).split(b"\0")[:-1])
    count = corpus.train_documents + corpus.validation_documents
    assert found == sorted([b"", *(text.encode() for text in TEXTS[:count])])[1:]
    assert corpus.description == f"{folder}, train"
    assert corpus.folder is not None
    assert not list(corpus.folder.glob("*.spool"))


def test_all_of_it_is_what_the_same_files_give_as_text(folder: Path) -> None:
    corpus = load(folder, tokens=10_000_000)
    data = TextData(source="text", paths=(str(folder),), field="content")
    assert corpus.sha256 == load_corpus(data, context=16).sha256


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, field="contents")
    assert "there is no field contents" in str(caught.value)
    assert "did you mean content?" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(folder, split="test")
    with pytest.raises(ConfigError, match="nobody/nothing cannot be read"):
        load("nobody/nothing")


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'wesar-sweep\[hf\]'"):
        load(folder)


def test_the_names_of_files_count(folder: Path) -> None:
    """By them the library tells splits apart."""
    for place, file in enumerate(sorted(folder.iterdir())):
        file.rename(file.with_name(f"train-{place}{file.suffix}"))
    everything = load(folder, tokens=10_000_000)
    first = sorted(folder.iterdir())[0]
    first.rename(first.with_name(f"test-0{first.suffix}"))
    fewer = load(folder, tokens=10_000_000)
    assert fewer.sha256 != everything.sha256
    assert fewer.train_documents + fewer.validation_documents == 300


def test_a_folder_is_found_by_its_content_and_the_study_by_its_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    data = {"source": "huggingface", "name": folder.name, "field": "content", "tokens": 20_000}
    study = parse_study({"space": {"lr": [1e-3]}, "data": data})
    assert study_hash(anchored(study, Path.cwd())) == study_hash(study)
    assert load(folder.name).folder == load(folder).folder


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as caught:
        load("./nowhere")
    assert str(caught.value) == (
        "data.name: there is no folder ./nowhere\n"
        "    hint: a data set of the hub is called OWNER/NAME"
    )
