"""Text to token ids and back: what every tokenizer of a study can do.

Bytes are here; byte-level BPE and the user's own files are in `wesar_sweep.data.bpe`.
"""

from __future__ import annotations

import hashlib
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

    def decode(self, ids: Ids) -> str:
        """The text of some ids; what is no UTF-8, such as half of a character, is shown as �."""

    def to_json(self) -> str:
        """The same tokenizer as a `tokenizer.json` of Hugging Face's `tokenizers`."""


def id_type(vocabulary: int) -> np.dtype[Any]:
    """The narrowest type of ids in [0, vocabulary)."""
    return np.min_scalar_type(vocabulary - 1)


class ByteTokenizer:
    """Ids are the bytes of the text; the zero byte, which no text holds, ends a document."""

    vocabulary = 256
    end_of_document = 0
    description = "bytes"

    @property
    def sha256(self) -> str:
        """Hash of all that decides which ids a text becomes."""
        return hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: bytes) -> Ids:
        """The bytes themselves, [bytes] uint8."""
        # A copy, since numpy makes a view of immutable bytes read-only, which torch warns of.
        return np.frombuffer(text, dtype=np.uint8).copy()

    def decode(self, ids: Ids) -> str:
        """The text of some ids; what is no UTF-8, such as half of a character, is shown as �."""
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Not yet: written with the tokenizers that merge bytes."""
        raise NotImplementedError
