"""Corpora: what is read, how it is split, and that equal settings give equal bytes."""

from __future__ import annotations

import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wesar_sweep.config.data import StdlibData, SyntheticData, TextData
from wesar_sweep.data.corpus import Corpus, load_corpus
from wesar_sweep.data.documents import (
    END_OF_DOCUMENT,
    DocumentTable,
    cap_documents,
    hold_out,
    split_documents,
)
from wesar_sweep.errors import ConfigError

WORDS = ["the", "loss", "of", "a", "run", "that", "learns", "goes", "down", "until", "it", "breaks"]


def text_of(seed: int, *, size: int = 400) -> str:
    rng = np.random.default_rng(seed)
    return f"document {seed}: " + " ".join(rng.choice(WORDS, size // 5))


def documents_in(tokens: np.ndarray) -> list[bytes]:
    assert tokens[-1] == 0, "every document ends with a zero byte"
    return tokens.tobytes().split(END_OF_DOCUMENT)[:-1]


def write_files(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:03}.txt").write_text(text_of(seed))
    return folder


def text(paths: list[Path | str], **options: object) -> TextData:
    named = {"source": "text", "paths": [str(path) for path in paths]}
    return TextData.model_validate({**named, **options})


@pytest.fixture(scope="module")
def stdlib() -> Corpus:
    return load_corpus(StdlibData(), context=64)


def test_the_standard_library_is_real_text_split_by_documents(stdlib: Corpus) -> None:
    assert stdlib.train.dtype == stdlib.validation.dtype == np.uint8
    assert stdlib.vocabulary == 256 and stdlib.bytes_per_token == 1.0
    assert stdlib.entropy_rate is None
    train, validation = documents_in(stdlib.train), documents_in(stdlib.validation)
    assert (len(train), len(validation)) == (stdlib.train_documents, stdlib.validation_documents)
    assert not set(train) & set(validation)
    total = len(stdlib.train) + len(stdlib.validation)
    assert total <= 8_000_000
    assert 0.05 < len(stdlib.validation) / total < 0.2
    library = {file.read_bytes() for file in Path(sysconfig.get_path("stdlib")).glob("*.py")}
    assert len(library & {*train, *validation}) > 50
    assert any(b"def " in document for document in validation)


def test_the_standard_library_is_the_same_each_time_and_quick_to_read(stdlib: Corpus) -> None:
    begun = time.perf_counter()
    again = load_corpus(StdlibData(), context=64)
    assert time.perf_counter() - begun < 1.5
    assert again.sha256 == stdlib.sha256
    assert np.array_equal(again.train, stdlib.train)


def test_a_limit_is_kept_and_spread_over_the_library() -> None:
    small = load_corpus(StdlibData(max_bytes=300_000), context=64)
    assert 295_000 < len(small.train) + len(small.validation) <= 300_000
    documents = {*documents_in(small.train), *documents_in(small.validation)}
    everything = load_corpus(StdlibData(max_bytes=None), context=64)
    whole = {*documents_in(everything.train), *documents_in(everything.validation)}
    for piece in documents - whole:
        assert any(document.startswith(piece.rstrip()) for document in whole)
    assert len(documents) > 5
    assert small.sha256 != everything.sha256


@pytest.mark.parametrize("max_bytes", [10_000, 50_000, 100_000])
def test_a_small_limit_leaves_something_to_hold_out(max_bytes: int) -> None:
    small = load_corpus(StdlibData(max_bytes=max_bytes), context=64)
    assert 65 <= len(small.validation) < len(small.train) <= max_bytes


def test_other_peoples_packages_and_tests_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, 0)
    for folder in ("", "json", "site-packages/theirs", "test", "unittest/test", "__pycache__"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "module.py").write_text(f"# {folder}\n" + text_of(len(folder)))
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = load_corpus(StdlibData(), context=8)
    documents = documents_in(corpus.train) + documents_in(corpus.validation)
    assert sorted(document.split(b"\n")[0] for document in documents) == [b"# ", b"# json"]


def test_a_python_without_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "python313.zip"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(missing))
    with pytest.raises(ConfigError) as caught:
        load_corpus(StdlibData(), context=8)
    assert str(caught.value) == (
        "data.source: this Python comes without the sources of its standard library "
        f"(looked in {missing})\n"
        "    hint: name text files of your own: data: {source: text, paths: [...]}"
    )


def test_files_keep_their_order_and_their_bytes(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "books", 40)
    corpus = load_corpus(text([folder]), context=16)
    train, validation = documents_in(corpus.train), documents_in(corpus.validation)
    files = [file.read_bytes() for file in sorted(folder.iterdir())]
    assert [file for file in files if file in set(train)] == train
    assert Counter(train + validation) == Counter(files)
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert 0.05 <= share <= 0.2


def test_adding_a_file_moves_no_other(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "books", 200)
    before = load_corpus(text([folder]), context=16)
    write_files(folder, 20, first=200)
    after = load_corpus(text([folder]), context=16)
    assert set(documents_in(before.train)) < set(documents_in(after.train))
    assert set(documents_in(before.validation)) <= set(documents_in(after.validation))


def test_copies_of_a_document_are_never_on_both_sides(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "books", 60)
    write_files(tmp_path / "copies", 60)
    corpus = load_corpus(text([folder, tmp_path / "copies"]), context=16)
    train, validation = documents_in(corpus.train), documents_in(corpus.validation)
    assert len(train) + len(validation) == 120
    assert not set(train) & set(validation)
    # The control: a split by the names of the files, which differ, would have parted some copies.
    by_index = {document for index, document in enumerate(train + validation) if index % 10 == 0}
    assert by_index & {doc for index, doc in enumerate(train + validation) if index % 10 != 0}


def test_paragraphs_and_lines_are_documents_too(tmp_path: Path) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_text("\n\n".join(text_of(seed) for seed in range(60)) + "\n")
    for documents in ("paragraph", "line"):
        corpus = load_corpus(text([novel], documents=documents), context=16)
        assert corpus.train_documents + corpus.validation_documents == 60
        assert 1 <= corpus.validation_documents <= 15


def test_splitting_keeps_indentation_and_drops_blanks() -> None:
    prose = b"\n\n  one\n  more\n \t\n\n   two\r\n\r\nthree\n\n"
    assert split_documents(prose, kind="paragraph") == [b"  one\n  more", b"   two", b"three"]
    assert split_documents(b"a\n\n  b \r\nc", kind="line") == [b"a", b"  b ", b"c"]
    assert split_documents(b"a\n\nb\n", kind="file") == [b"a\n\nb\n"]
    assert split_documents(b" \n\t\n", kind="file") == []


def test_validation_files_of_their_own(tmp_path: Path) -> None:
    train, validation = write_files(tmp_path / "t", 5), write_files(tmp_path / "v", 2, first=4)
    corpus = load_corpus(text([train], validation=[str(validation)]), context=16)
    assert documents_in(corpus.validation) == [text_of(4).encode(), text_of(5).encode()]
    kept = [text_of(seed).encode() for seed in range(4)]
    assert documents_in(corpus.train) == kept, "the copy of document 4 is not trained on"


@pytest.mark.parametrize("sizes", [(5000, 300), (9000, 100, 100, 100), (3000, 3000), (400,) * 5])
def test_few_or_unequal_documents_still_give_two_sides(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    for seed, size in enumerate(sizes):
        (tmp_path / f"{seed}.txt").write_text(text_of(seed, size=size))
    corpus = load_corpus(text([tmp_path]), context=64)
    assert len(corpus.validation) >= 65 and len(corpus.train) >= 128
    if len(set(sizes)) > 1:
        assert len(corpus.train) > len(corpus.validation), "the long one is trained on"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=2, max_size=40),
    share=st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9]),
    context=st.sampled_from([8, 64, 300]),
)
# The shortest, which comes first, leaves no room for the only one that is long enough.
@example(sizes=[86, 298, 508], share=0.01, context=300)
@example(sizes=[86, 298, 508], share=0.9, context=300)
def test_both_sides_are_long_enough_wherever_one_document_can_do_it(
    sizes: list[int], share: float, context: int
) -> None:
    documents = [f"{index}:".encode() + b"x" * size for index, size in enumerate(sizes)]
    lengths = [len(document) + 1 for document in documents]
    table = DocumentTable.of(documents)
    held = hold_out(table, share=share, validation_needed=context + 1, train_needed=2 * context)
    held_bytes = int(table.bytes_D[held].sum())
    left = sum(lengths) - held_bytes
    if any(n >= context + 1 and sum(lengths) - n >= 2 * context for n in lengths):
        assert left >= 2 * context
        assert held_bytes >= context + 1
    again = hold_out(table, share=share, validation_needed=context + 1, train_needed=2 * context)
    assert np.array_equal(again, held)


def test_the_share_held_out_is_the_one_asked_for() -> None:
    documents = [text_of(seed).encode() for seed in range(3000)]
    for share in (0.02, 0.1, 0.5):
        table = DocumentTable.of(documents)
        held = hold_out(table, share=share, validation_needed=65, train_needed=128)
        held_share = table.bytes_D[held].sum() / table.bytes_D.sum()
        assert held_share == pytest.approx(share, rel=0.25)


def test_capped_documents_are_whole_but_for_the_last() -> None:
    documents = [text_of(seed).encode() for seed in range(50)] * 2
    kept = cap_documents(documents, max_bytes=10_000)
    assert sum(len(document) + 1 for document in kept) <= 10_000
    assert len(set(kept) - set(documents)) <= 1
    for piece in set(kept) - set(documents):
        assert not any(document.startswith(piece) for document in kept if document != piece)
    assert cap_documents(documents, max_bytes=None) == documents
    order = [documents.index(document) for document in kept if document in documents]
    assert order[: len(set(order))] == sorted(set(order)), "the order is the corpus's"


def test_a_cut_falls_between_characters() -> None:
    for limit in range(10, 20):
        (piece,) = cap_documents(["σ²×∘ 한글 text".encode() * 9], max_bytes=limit)
        piece.decode()
        assert len(piece) < limit


def test_a_limit_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "books", 200)
    (folder / "zz-not-utf8.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError):
        load_corpus(text([folder]), context=16)
    corpus = load_corpus(text([folder], max_bytes=10_000), context=16)
    assert 9_000 < len(corpus.train) + len(corpus.validation) <= 10_000


def test_the_hash_is_over_both_sides_and_their_order(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "books", 20)
    data = text([folder])
    corpus = load_corpus(data, context=16)
    assert load_corpus(data, context=16).sha256 == corpus.sha256
    names = sorted(str(file) for file in folder.iterdir())
    assert load_corpus(text([*names]), context=16).sha256 == corpus.sha256
    assert load_corpus(text([*reversed(names)]), context=16).sha256 != corpus.sha256
    other = load_corpus(text([folder], held_out=0.4), context=16)
    assert other.sha256 != corpus.sha256


def test_the_hash_knows_where_training_ends(tmp_path: Path) -> None:
    a, b, c = (str(write_files(tmp_path / name, 1, first=i)) for i, name in enumerate("abc"))
    early = load_corpus(text([a], validation=[b, c]), context=16)
    late = load_corpus(text([a, b], validation=[c]), context=16)
    assert [*early.train, *early.validation] == [*late.train, *late.validation]
    assert early.sha256 != late.sha256


def test_synthetic_text_too_short_for_the_context() -> None:
    with pytest.raises(ConfigError) as caught:
        load_corpus(SyntheticData(source="synthetic", length=10_000), context=1024)
    assert str(caught.value) == (
        "data.length: too little validation text: 1,000 bytes, and model.context 1024 needs 1,025\n"
        "    hint: give more text or more documents, or lower model.context"
    )
