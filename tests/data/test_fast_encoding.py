"""Ids of texts cut into pieces are the library's ids of the whole text, however it is windowed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    CHARACTERS,
    PRE_TOKENIZERS,
    TEXTS,
    TRAINING,
    byte_level,
    library_ids,
    reference,
)

from wesar_sweep.data import fast_encoding, piece_table
from wesar_sweep.data.bpe import LibraryTokenizer, tokenizer_of_json
from wesar_sweep.data.cut_rules import GPT_2
from wesar_sweep.data.fast_encoding import CutRule, PieceEncoder

FILES = {
    **{name: byte_level(name) for name in PRE_TOKENIZERS},
    "gpt-2 nfc": byte_level("gpt-2", nfc=True),
    "qwen-2 nfc": byte_level("qwen-2", nfc=True),
    "gpt-4o nfc": byte_level("gpt-4o", nfc=True),
    # As GPT-NeoX, with runs of spaces as tokens of their own.
    "spaces": byte_level("gpt-2", tokens=("  ", "    ", "語")),
    # As Qwen 2.5, with tokens that a rule would cut.
    "tools": byte_level("qwen-2", nfc=True, tokens=("<tool_call>", "word word", "don")),
}


def encoder_of(name: str, *, rule: CutRule | None = None) -> PieceEncoder:
    tokenizer = tokenizer_of_json(FILES[name], end_of_document=None, vocabulary=None)
    assert tokenizer.is_fast
    if rule is None:
        assert tokenizer._pieces is not None
        return tokenizer._pieces
    return PieceEncoder(tokenizer._encode_pieces, rule=rule, vocabulary=tokenizer.vocabulary)


ENCODERS = {name: encoder_of(name) for name in FILES}
REFERENCES = {name: reference(text) for name, text in FILES.items()}


def check(name: str, encoder: PieceEncoder, documents: list[str]) -> None:
    found = list(encoder.encode_documents(document.encode() for document in documents))
    assert [ids.dtype for ids in found] == [np.uint16] * len(documents)
    assert [ids.tolist() for ids in found] == [
        library_ids(REFERENCES[name], document) for document in documents
    ]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None)
@given(documents=st.lists(TEXTS, max_size=5))
def test_ids_are_the_librarys(name: str, documents: list[str]) -> None:
    check(name, ENCODERS[name], documents)


def test_control_a_wrong_rule_gives_other_ids() -> None:
    behind_spaces = CutRule(pairs=((b" ", b"adSt."),))
    encoder = encoder_of("gpt-2", rule=behind_spaces)

    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(text=TEXTS)
    def try_it(text: str) -> None:
        check("gpt-2", encoder, [text])

    with pytest.raises(AssertionError):
        try_it()


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fast_encoding, "WINDOW", 50)
    monkeypatch.setattr(fast_encoding, "LONGEST_KEPT", 30)
    yield


@pytest.mark.parametrize("name", ["gpt-2", "llama-3", "gpt-4o nfc", "spaces"])
@pytest.mark.usefixtures("small_window")
def test_windows_of_any_size_give_the_same(name: str) -> None:
    rng = np.random.default_rng(0)
    documents = [
        "".join(rng.choice(CHARACTERS, size=rng.integers(0, 80)).tolist()) for _ in range(60)
    ]
    # Without a place to cut, longer than a window and than what is kept.
    documents[7:7] = ["", "x" * 400, "", "語" * 70, " " * 200, "x" * 400]
    check(name, encoder_of(name, rule=ENCODERS[name]._rule), documents)


def test_long_documents_and_a_full_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoding, "WINDOW", 1000)
    monkeypatch.setattr(piece_table, "MOST_PIECES", 50)
    encoder = encoder_of("gpt-2", rule=GPT_2)
    check("gpt-2", encoder, ["".join(TRAINING), *TRAINING[:50]])
    assert len(encoder._table) < 1000


@pytest.mark.parametrize("bound", ["MOST_IDS", "MOST_BYTES"])
def test_long_pieces_fill_a_table_too(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Text with hardly a place to cut has few pieces, each of many ids."""
    monkeypatch.setattr(fast_encoding, "WINDOW", 2000)
    monkeypatch.setattr(piece_table, bound, 3000)
    encoder = encoder_of("gpt-2", rule=GPT_2)
    lines = ["語" * (100 + n) + "".join(chr(0x4E00 + n)) for n in range(60)]
    check("gpt-2", encoder, ["\n".join(lines)])
    assert len(encoder._table._long) < 40


def test_pieces_without_ids_take_no_place() -> None:
    def encode_pieces(pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The letters of a piece but the a; spaces and marks have none."""
        texts = [piece.strip(" .a") for piece in pieces]
        ids = np.array([ord(letter) for letter in "".join(texts)], np.uint8)
        return ids, np.array([len(text) for text in texts], np.int64)

    encoder = PieceEncoder(encode_pieces, rule=GPT_2, vocabulary=256)
    documents = [b"", b"a", b"bc a. def a..", b". . .", b"", b"x"]
    found = [bytes(ids) for ids in encoder.encode_documents(documents)]
    assert found == [b"", b"", b"bcdef", b"", b"", b"x"]


def test_what_is_no_utf8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        list(ENCODERS["gpt-2"].encode_documents([b"fine", b"not \xff fine"]))


def test_a_vocabulary_of_padding_widens_the_ids() -> None:
    wide = LibraryTokenizer(
        FILES["gpt-2"], end_of_document="<|endoftext|>", vocabulary=70_000, description=""
    )
    narrow = LibraryTokenizer(
        FILES["gpt-2"], end_of_document="<|endoftext|>", vocabulary=900, description=""
    )
    text = b"the same ids, only wider"
    assert wide.encode(text).dtype == np.uint32
    assert narrow.encode(text).dtype == np.uint16
    assert wide.encode(text).tolist() == narrow.encode(text).tolist()


def test_the_vocabularies_join_characters() -> None:
    # Else a wrong cut would go unseen.
    for text in FILES.values():
        vocabulary = json.loads(text)["model"]["vocab"]
        assert max(map(len, vocabulary)) > 5
        assert len(vocabulary) > 500
