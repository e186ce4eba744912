"""The tokens a study trains and is judged on, as numpy arrays, whatever they come from.

What is wrong with the data is said in the words of the study file, where the user can mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wesar_sweep.config.data import (
    BytesTokenizer,
    Data,
    HuggingFaceData,
    StdlibData,
    SyntheticData,
    TextData,
)
from wesar_sweep.data import synthetic
from wesar_sweep.data.bpe import restored
from wesar_sweep.data.documents import END_OF_DOCUMENT
from wesar_sweep.data.prepare import prepared
from wesar_sweep.data.progress import Progress, quiet
from wesar_sweep.data.sources import Needs, SplitText, describe, split_text
from wesar_sweep.data.token_files import TokenFiles, corpus_hash, open_tokens
from wesar_sweep.data.tokenizer import ByteTokenizer, Ids, Tokenizer
from wesar_sweep.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Training and held-out tokens, and what they are."""

    train: Ids
    """[tokens]; read-only and mapped from a file where text was prepared."""
    validation: Ids
    """[tokens]; shares no document with `train`."""
    train_documents: int
    validation_documents: int
    vocabulary: int
    """Tokens are in [0, vocabulary)."""
    bytes_per_token: float
    """Bytes of text a token stands for; turns nats a token into bits a byte."""
    sha256: str
    """Over the exact tokens of both splits, in their order."""
    description: str
    """What it is, in one line for people."""
    tokenizer: Tokenizer | None = None
    """None where tokens stand for no text."""
    folder: Path | None = None
    """Where its token files lie; None where it is in memory alone."""
    prepared_as: str | None = None
    """Key of these files in the cache: with it they are found without their sources."""
    entropy_rate: float | None = None
    """Nats a token that no model can go below in expectation; None where nobody knows."""

    @property
    def end_of_document(self) -> int | None:
        """The token that ends each document; None where nothing does."""
        return None if self.tokenizer is None else self.tokenizer.end_of_document


def load_corpus(
    data: Data, *, context: int, progress: Progress = quiet, prepared_as: str | None = None
) -> Corpus:
    """Read the data of a study; text other than the standard library's bytes from token files.

    Args:
        data: The section ``data`` of the study.
        context: Tokens a sequence; either side of the split must hold one, and the token after it
            (training: two, since the data order shifts them by up to one).
        progress: Told of long work.
        prepared_as: `Corpus.prepared_as` of an earlier reading: where those files are in the cache
            the sources are not looked at, which a worker's machine may not even see.

    Returns:
        The corpus. Equal files and settings give an equal one, token for token.

    Raises:
        ConfigError: Missing, empty, unreadable, undecodable or too short; says what to do.
        StoreError: Tokens cannot be written to the cache, such as where the disk is full.
    """
    if isinstance(data, SyntheticData):
        return _synthetic(data, context=context)
    needs = Needs(train=train_tokens_needed(context), validation=validation_tokens_needed(context))
    if isinstance(data, StdlibData) and isinstance(data.tokenizer, BytesTokenizer):
        # Read in a second: not worth a file.
        return _in_memory(split_text(data, needs=needs), context=context)
    files = None if prepared_as is None else open_tokens(prepared_as)
    if files is None:
        files = prepared(data, needs=needs, progress=progress)
    return _of_files(files, data, context=context)


def document_end(corpus: Corpus, *, data: Data) -> int | None:
    """The token past which attention is not to look back; None: it may look anywhere.

    Args:
        corpus: Of the study.
        data: The section ``data`` of the study.

    Raises:
        ConfigError: Documents are to be told apart, and nothing ends them.
    """
    if data.mask_documents and corpus.end_of_document is None:
        raise ConfigError(
            Problem(
                "no token ends a document, so attention cannot be kept within one",
                path="data.mask_documents",
                hint="name the token with data.tokenizer.end_of_document, or leave it out",
            )
        )
    return corpus.end_of_document if data.mask_documents else None


def train_tokens_needed(context: int) -> int:
    """Fewest training tokens: one sequence, the shift of the data order, and the last target."""
    return 2 * context


def validation_tokens_needed(context: int) -> int:
    """Fewest held-out tokens: one sequence and its last target."""
    return context + 1


def _in_memory(split: SplitText, *, context: int) -> Corpus:
    sides: dict[bool, list[bytes]] = {False: [], True: []}
    for held, document in split.read():
        sides[held] += (document, END_OF_DOCUMENT)
    # Copies, since numpy makes a view of immutable bytes read-only, which torch warns of.
    train, validation = (
        np.frombuffer(b"".join(sides[held]), dtype=np.uint8).copy() for held in (False, True)
    )
    _check_lengths(len(train), len(validation), context=context, key="data")
    return Corpus(
        train=train,
        validation=validation,
        train_documents=split.documents[False],
        validation_documents=split.documents[True],
        vocabulary=256,
        bytes_per_token=1.0,
        sha256=corpus_hash(train, validation, tokenizer=None),
        description=split.description,
        tokenizer=ByteTokenizer(),
    )


def _of_files(
    files: TokenFiles, data: StdlibData | TextData | HuggingFaceData, *, context: int
) -> Corpus:
    manifest = files.manifest
    validation = manifest.tokens["validation"]
    unit = "bytes" if data.tokenizer.kind == "bytes" else "tokens"
    _check_lengths(manifest.tokens["train"], validation, context=context, key="data", unit=unit)
    return Corpus(
        train=files.train,
        validation=files.validation,
        train_documents=manifest.documents["train"],
        validation_documents=manifest.documents["validation"],
        vocabulary=data.vocabulary,
        bytes_per_token=manifest.text_bytes["validation"] / validation,
        sha256=manifest.sha256,
        # Not the manifest's: that is of whoever prepared the same text.
        description=describe(data),
        tokenizer=restored(data.tokenizer, files.tokenizer_json),
        folder=files.folder,
        prepared_as=manifest.key,
    )


def _synthetic(data: SyntheticData, *, context: int) -> Corpus:
    chain = synthetic.make_chain(data.symbols, concentration=data.concentration, seed=data.seed)
    held = round(data.length * data.held_out)
    _check_lengths(data.length - held, held, context=context, key="data.length")
    train = synthetic.draw(chain, length=data.length - held, seed=data.seed, stream=0)
    validation = synthetic.draw(chain, length=held, seed=data.seed, stream=1)
    return Corpus(
        train=train,
        validation=validation,
        train_documents=1,
        validation_documents=1,
        vocabulary=data.symbols,
        bytes_per_token=1.0,
        sha256=corpus_hash(train, validation, tokenizer=None),
        description=f"Markov chain over {data.symbols} symbols, "
        f"entropy rate {chain.entropy_rate:.4f} nats a token",
        entropy_rate=chain.entropy_rate,
    )


def _check_lengths(
    train: int, validation: int, *, context: int, key: str, unit: str = "bytes"
) -> None:
    sides = (
        ("training", train, train_tokens_needed(context)),
        ("validation", validation, validation_tokens_needed(context)),
    )
    problems = [
        Problem(
            f"too little {side} text: {have:,} {unit}, and model.context {context} needs {need:,}",
            path=key,
            hint="give more text or more documents, or lower model.context",
        )
        for side, have, need in sides
        if have < need
    ]
    if problems:
        raise ConfigError(problems)
