"""Text to token ids and back: what every tokenizer of a study can do.

Bytes are here; byte-level BPE and the user's own files are in `wesar_sweep.data.bpe`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[Any]
"""Token ids, [tokens]: uint8, uint16 or uint32, the narrowest that holds the vocabulary."""


class Tokenizer(Protocol):
    """Turns text into token ids; the same text always into the same."""

    @property
    def vocabulary(self) -> int:
        """Ids are in [0, vocabulary)."""

    @property
    def end_of_document(self) -> int:
        """Id of the token that follows each document, and that no document holds."""

    @property
    def sha256(self) -> str:
        """Hash of all that decides which ids a text becomes."""

    @property
    def description(self) -> str:
        """What it is, in a few words for people."""

    def encode(self, text: bytes) -> Ids:
        """Ids of a UTF-8 text, without the end of the document or any other special token."""

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """The same of each document, in order; faster than one at a time where they are short."""

    def decode(self, ids: Ids) -> str:
        """The text of some ids; what is no UTF-8, such as half of a character, is shown as �."""

    def token_bytes(self) -> NDArray[np.int64]:
        """Bytes of text that each token stands for, [vocabulary]; 1 for the end of a document."""

    def to_json(self) -> str:
        """The same tokenizer as a `tokenizer.json` of Hugging Face's `tokenizers`."""


def id_type(vocabulary: int) -> np.dtype[Any]:
    """The narrowest type of ids in [0, vocabulary)."""
    return np.min_scalar_type(vocabulary - 1)


@dataclass(frozen=True)
class ByteTokenizer:
    """Tokens are the bytes of the text, and 0, which text has none of, ends a document."""

    @property
    def vocabulary(self) -> int:
        """256."""
        return 256

    @property
    def end_of_document(self) -> int:
        """0."""
        return 0

    @property
    def sha256(self) -> str:
        """Hash of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def description(self) -> str:
        """What it is, in a few words for people."""
        return "bytes"

    def encode(self, text: bytes) -> Ids:
        """The bytes themselves: [bytes] uint8, read-only, without a copy."""
        return np.frombuffer(text, np.uint8)

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """The bytes of each document."""
        return map(self.encode, documents)

    def decode(self, ids: Ids) -> str:
        """The text of some ids; what is no UTF-8, such as half of a character, is shown as �."""
        return np.asarray(ids, np.uint8).tobytes().decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """1 each."""
        return np.ones(256, np.int64)

    def to_json(self) -> str:
        """A byte-level BPE without merges whose ids are the values of the bytes."""
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        document: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {character: byte for byte, character in enumerate(byte_characters())},
                "merges": [],
            },
        }
        return json.dumps(document, ensure_ascii=False)


def byte_characters() -> str:
    """The 256 characters by which byte-level vocabularies spell the bytes, in the bytes' order.

    Printable bytes of Latin-1 stand for themselves, the others for characters from U+0100 on, as in
    GPT-2's `encoder.py`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))
