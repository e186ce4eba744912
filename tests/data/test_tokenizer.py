"""Bytes as tokens, and the same bytes by Hugging Face's library from the exported file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from wesar_sweep.data.tokenizer import ByteTokenizer, byte_characters, id_type

TOKENIZER = ByteTokenizer()
EXPORTED = Tokenizer.from_str(TOKENIZER.to_json())


@given(st.text())
def test_the_exported_file_gives_the_bytes_of_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text.encode())
    assert ids.dtype == np.uint8
    assert ids.tobytes() == text.encode()
    assert EXPORTED.encode(text).ids == ids.tolist()
    assert TOKENIZER.decode(ids) == EXPORTED.decode(ids.tolist()) == text


def test_every_byte_is_spelled_as_the_library_does() -> None:
    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert EXPORTED.get_vocab_size() == len(byte_characters()) == TOKENIZER.vocabulary


def test_half_a_character_is_shown_as_such() -> None:
    ids = TOKENIZER.encode("aé".encode())
    assert TOKENIZER.decode(ids[:2]) == "a\N{REPLACEMENT CHARACTER}"


def test_the_hash_and_the_end_of_documents_stay() -> None:
    # Golden: stored token files carry it. Another value makes all of them be written anew.
    assert TOKENIZER.sha256[:16] == "76d8728397d978ef"
    assert TOKENIZER.end_of_document == 0
    assert TOKENIZER.description == "bytes"


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocabulary: int, name: str) -> None:
    assert id_type(vocabulary) == np.dtype(name)
