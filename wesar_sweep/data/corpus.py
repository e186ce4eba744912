"""The tokens a study trains and is judged on: sources, documents, and the held-out split.

Tokens are bytes, as numpy arrays; torch stays out of this file. What is wrong with the data is said
in the words of the study file, where the user can mend it.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config.data import Data, HuggingFaceData, StdlibData, SyntheticData, TextData
from wesar_sweep.data import synthetic
from wesar_sweep.data.documents import (
    END_OF_DOCUMENT,
    DocumentKind,
    cap_documents,
    hash_place,
    hold_out,
    split_documents,
)
from wesar_sweep.data.text_files import cut_text, find_files, read_text
from wesar_sweep.errors import ConfigError, Problem

STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
"""Folders of the standard library's that are left out: other people's packages, and tests."""

_READ_AHEAD = 4
"""With `max_bytes`, read so many times as much to choose documents from, and no more."""

Tokens = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Training and held-out tokens, and what they are."""

    train: Tokens
    """[tokens], uint8."""
    validation: Tokens
    """[tokens], uint8; shares no document with `train`."""
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
    entropy_rate: float | None = None
    """Nats a token that no model can go below in expectation; None where nobody knows."""
    end_of_document: int | None = None
    """The token that ends each document; None where nothing does."""


def load_corpus(data: Data, *, context: int) -> Corpus:
    """Read the data of a study.

    Args:
        data: The section ``data`` of the study.
        context: Tokens a sequence; either side of the split must hold one, and the token after it
            (training: two, since the data order shifts them by up to one).

    Returns:
        The corpus. Equal files and settings give an equal one, byte for byte.

    Raises:
        ConfigError: Missing, empty, unreadable, undecodable or too short; says what to do.
    """
    match data:
        case StdlibData():
            return _stdlib(data, context=context)
        case TextData():
            return _text(data, context=context)
        case SyntheticData():
            return _synthetic(data, context=context)
        case HuggingFaceData():
            raise NotImplementedError


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


_STDLIB_PIECES = 16
"""A file of the standard library is cut to this part of `max_bytes`."""


def _stdlib(data: StdlibData, *, context: int) -> Corpus:
    folder = Path(sysconfig.get_path("stdlib"))
    documents: list[bytes] = []
    for file in _python_files(folder):
        try:
            raw = file.read_bytes()
            raw.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            # A few files of the library are written in other encodings, to test the compiler.
            continue
        if b"\0" not in raw:
            documents += split_documents(raw, kind="file")
    if not documents:
        raise ConfigError(
            Problem(
                "this Python comes without the sources of its standard library "
                f"(looked in {folder})",
                path="data.source",
                hint="name text files of your own: data: {source: text, paths: [...]}",
            )
        )
    if data.max_bytes is not None:
        # No file may fill a small limit alone, or nothing is left to hold out.
        longest = data.max_bytes // _STDLIB_PIECES
        documents = [cut_text(document, longest) for document in documents]
    documents = cap_documents(documents, max_bytes=data.max_bytes)
    version = sysconfig.get_python_version()
    return _held_out_corpus(
        documents,
        share=data.held_out,
        context=context,
        key="data",
        description=f"sources of the standard library of Python {version}",
    )


def _python_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        # Pruned here, since site-packages may hold a hundred times as many files as the library.
        folders[:] = [name for name in folders if name not in STDLIB_EXCLUDED]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _text(data: TextData, *, context: int) -> Corpus:
    files = find_files(data.paths, key="data.paths")
    described = ", ".join(data.paths)
    if data.validation is None:
        documents = cap_documents(
            _documents_of(files, kind=data.documents, key="data.paths", limit=data.max_bytes),
            max_bytes=data.max_bytes,
        )
        if not documents:
            raise ConfigError(Problem("the files hold nothing but blanks", path="data.paths"))
        if len(set(documents)) < 2:
            raise ConfigError(
                Problem(
                    f"the text holds only one document ({data.documents}), so none can be held out",
                    path="data.held_out",
                    hint="data.documents: paragraph, or data.validation: [...] with other files",
                )
            )
        return _held_out_corpus(
            documents, share=data.held_out, context=context, key="data", description=described
        )
    held_files = find_files(data.validation, key="data.validation")
    both = {file.resolve() for file in files} & {file.resolve() for file in held_files}
    if both:
        raise ConfigError(
            [
                Problem(
                    f"{file} is in data.paths too: the model would be judged on what it has seen",
                    path="data.validation",
                    hint="name each file in one of the two",
                )
                for file in held_files
                if file.resolve() in both
            ]
        )
    validation = _documents_of(held_files, kind=data.documents, key="data.validation", limit=None)
    held = set(validation)
    documents = _documents_of(files, kind=data.documents, key="data.paths", limit=data.max_bytes)
    train = [document for document in documents if document not in held]
    if documents and not train:
        raise ConfigError(
            Problem(
                "every document of data.paths is in the validation files too",
                path="data.validation",
                hint="name files with other text, or leave validation out and set held_out",
            )
        )
    return _corpus(
        cap_documents(train, max_bytes=data.max_bytes),
        validation,
        context=context,
        key="data",
        description=f"{described}; validation {', '.join(data.validation)}",
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
        sha256=_sha256(train, validation),
        description=f"Markov chain over {data.symbols} symbols, "
        f"entropy rate {chain.entropy_rate:.4f} nats a token",
        entropy_rate=chain.entropy_rate,
    )


def _documents_of(
    files: Sequence[Path], *, kind: DocumentKind, key: str, limit: int | None
) -> list[bytes]:
    """The documents of files, in the files' order; with a limit, of enough files to choose from."""
    most = None if limit is None else _READ_AHEAD * limit
    texts: dict[Path, bytes] = {}
    problems: list[Problem] = []
    total = 0
    # By a hash of the name, so that a limit does not mean the first files of the alphabet.
    for file in sorted(files, key=lambda file: hash_place(os.fsencode(file.name), purpose=b"read")):
        if most is not None and total >= most:
            break
        try:
            texts[file] = read_text(file, key=key, limit=most)
        except ConfigError as error:
            problems += error.problems
            continue
        total += len(texts[file])
    if problems:
        raise ConfigError(problems)
    return [
        document
        for file in files
        if file in texts
        for document in split_documents(texts[file], kind=kind)
    ]


def _held_out_corpus(
    documents: Sequence[bytes], *, share: float, context: int, key: str, description: str
) -> Corpus:
    held = hold_out(
        documents,
        share=share,
        validation_needed=validation_tokens_needed(context),
        train_needed=train_tokens_needed(context),
    )
    return _corpus(
        [document for document in documents if document not in held],
        [document for document in documents if document in held],
        context=context,
        key=key,
        description=description,
    )


def _corpus(
    train_documents: Sequence[bytes],
    validation_documents: Sequence[bytes],
    *,
    context: int,
    key: str,
    description: str,
) -> Corpus:
    train, validation = _tokens(train_documents), _tokens(validation_documents)
    _check_lengths(len(train), len(validation), context=context, key=key)
    return Corpus(
        train=train,
        validation=validation,
        train_documents=len(train_documents),
        validation_documents=len(validation_documents),
        vocabulary=256,
        bytes_per_token=1.0,
        sha256=_sha256(train, validation),
        description=description,
        end_of_document=END_OF_DOCUMENT[0],
    )


def _tokens(documents: Iterable[bytes]) -> Tokens:
    joined = b"".join(part for document in documents for part in (document, END_OF_DOCUMENT))
    # A copy, since numpy makes a view of immutable bytes read-only, which torch warns of.
    return np.frombuffer(joined, dtype=np.uint8).copy()


def _check_lengths(train: int, validation: int, *, context: int, key: str) -> None:
    sides = (
        ("training", train, train_tokens_needed(context)),
        ("validation", validation, validation_tokens_needed(context)),
    )
    problems = [
        Problem(
            f"too little {side} text: {have:,} bytes, and model.context {context} needs {need:,}",
            path=key,
            hint="give more text or more documents, or lower model.context",
        )
        for side, have, need in sides
        if have < need
    ]
    if problems:
        raise ConfigError(problems)


def _sha256(train: Tokens, validation: Tokens) -> str:
    digest = hashlib.sha256()
    for name, tokens in (("train", train), ("validation", validation)):
        digest.update(f"{name} {len(tokens)}\n".encode())
        digest.update(tokens.tobytes())
    return digest.hexdigest()
