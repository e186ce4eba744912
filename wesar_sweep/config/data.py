"""The text of a study: where it comes from, how it becomes tokens, what is held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.knobs import Positive

MOST_VOCABULARY = 262_144
"""Largest vocabulary: token ids and the rows of an embedding are tested up to here."""

HELD_OUT = "Share of the bytes kept for validation, by whole documents."
MAX_BYTES = "Read no more than this; null means all."
FIELD = "Field of JSON Lines and Parquet files that holds the text."

Fraction = Annotated[float, Field(gt=0, lt=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
MaxBytes = Annotated[int, Field(ge=10_000)] | None


class BytesTokenizer(Frozen):
    """Tokens are bytes: nothing to train, and the same on every machine."""

    kind: Literal["bytes"] = "bytes"

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 256


class BpeTokenizer(Frozen):
    """Byte-level BPE, trained once on the training documents."""

    kind: Literal["bpe"]
    vocabulary: Annotated[int, Field(ge=257, le=MOST_VOCABULARY)] = Field(
        default=8192, description="Tokens: 256 bytes, the end of a document, and merges."
    )

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.vocabulary


class FileTokenizer(Frozen):
    """A `tokenizer.json` of Hugging Face's, such as Llama's or GPT-2's."""

    kind: Literal["file"]
    path: str = Field(description="The file, relative to the working directory.")
    vocabulary: Annotated[int, Field(ge=2, le=MOST_VOCABULARY)] | None = Field(
        default=None,
        description="Rows of the embedding; default the tokenizer's size. More is padding.",
    )
    end_of_document: str | None = Field(
        default=None,
        description="The token that ends each document; default the first of the usual ones that "
        "the tokenizer has.",
    )

    @property
    def size(self) -> int:
        """Number of tokens, known once the study is loaded."""
        assert self.vocabulary is not None, "loading a study fills it in"
        return self.vocabulary


Tokenizer = Annotated[BytesTokenizer | BpeTokenizer | FileTokenizer, Field(discriminator="kind")]


class _Documents(Frozen):
    """What all sources of real text share."""

    source: str
    tokenizer: Tokenizer = Field(
        default=BytesTokenizer(), description="How text becomes tokens: bytes, bpe or file."
    )
    mask_documents: bool = Field(
        default=False,
        description="Whether attention is kept from crossing the end of a document.",
    )
    held_out: Fraction = Field(default=0.1, description=HELD_OUT)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.tokenizer.size


class StdlibData(_Documents):
    """Python sources of the running interpreter's standard library: real text on every machine."""

    source: Literal["stdlib"] = "stdlib"
    max_bytes: MaxBytes = Field(default=8_000_000, description=MAX_BYTES)


class TextData(_Documents):
    """Files of the user's: text, JSON Lines (.jsonl) or Parquet; plain, gz, bz2, xz or zst."""

    source: Literal["text"]
    paths: Texts = Field(description="Files, folders or globs, relative to the working directory.")
    field: str = Field(default="text", description=FIELD)
    documents: Literal["file", "paragraph", "line"] = Field(
        default="file",
        description="What a document of a text file is; of the other kinds it is a record. The "
        "held-out split shares none with training.",
    )
    validation: Texts | None = Field(
        default=None, description="Files for validation alone; then held_out does not apply."
    )
    max_bytes: MaxBytes = Field(default=None, description=MAX_BYTES)


class HuggingFaceData(_Documents):
    """A data set by Hugging Face's `datasets`, streamed until the budget is reached."""

    source: Literal["huggingface"]
    name: str = Field(
        description="Name on the hub, such as tiiuae/falcon-refinedweb, or a local folder."
    )
    subset: str | None = Field(
        default=None, description="Which of the data set's configurations, where it has several."
    )
    split: str = Field(default="train", description="Which of its splits.")
    revision: str | None = Field(
        default=None, description="Commit or tag on the hub; pin it to have the same text again."
    )
    field: str = Field(default="text", description="Field of a record that holds the text.")
    tokens: Annotated[int, Field(ge=10_000)] = Field(
        description="Stop once there are so many tokens, training and validation together."
    )


class SyntheticData(Frozen):
    """A Markov chain over bytes with a known entropy rate: no model can go below it."""

    source: Literal["synthetic"]
    symbols: Annotated[int, Field(ge=2, le=256)] = Field(
        default=16, description="States of the chain."
    )
    concentration: Positive = Field(
        default=0.3, description="Dirichlet parameter of the rows; small is predictable."
    )
    length: Annotated[int, Field(ge=10_000)] = Field(default=1_000_000, description="Tokens drawn.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Seed of the chain and its text."
    )
    held_out: Fraction = Field(default=0.1, description=HELD_OUT)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the chain's symbols."""
        return self.symbols

    @property
    def mask_documents(self) -> bool:
        """Never: it is one document."""
        return False


Data = Annotated[
    StdlibData | TextData | HuggingFaceData | SyntheticData, Field(discriminator="source")
]
