"""The documents of a study's data: from which files or data set, in which order, on which side.

Documents are read from disk each time that they are asked for, so that a corpus may be larger than
memory; only a number a document is kept between two readings (`documents.DocumentTable`).
"""

from __future__ import annotations

import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wesar_sweep.config.data import HuggingFaceData, StdlibData, TextData
from wesar_sweep.data.documents import (
    DocumentKind,
    DocumentTable,
    cap_documents,
    content_hash,
    hash_place,
    hold_out,
    split_documents,
    stream_documents,
)
from wesar_sweep.data.records import record_reader
from wesar_sweep.data.text_files import cut_text, find_files, read_text, stream_text
from wesar_sweep.errors import ConfigError, Problem

STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)
"""Folders of the standard library's that are left out: other people's packages, and tests."""

LONGEST_DOCUMENT = 1 << 30
"""Bytes of a text file that is one document: it is kept in memory."""

_READ_AHEAD = 4
"""With `max_bytes`, read so many times as much to choose documents from, and no more."""
_STDLIB_PIECES = 16
"""A file of the standard library is cut to this part of `max_bytes`."""

Side = bool
"""Whether a document is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitText:
    """The documents of both sides, to be read as often as one likes."""

    read: Callable[[], Iterator[tuple[Side, bytes]]]
    """Side and text of every document; of each side in its order."""
    documents: dict[Side, int]
    text_bytes: dict[Side, int]
    """Of text, with an end of one byte for each document."""
    description: str
    """What it is, in one line for people."""

    def training(self) -> Iterator[bytes]:
        """The documents to train on."""
        return (document for held, document in self.read() if not held)


@dataclass(frozen=True, slots=True)
class Needs:
    """Fewest bytes of either side of a split."""

    train: int
    validation: int


def describe(data: StdlibData | TextData | HuggingFaceData) -> str:
    """Where the text comes from, in one line for people."""
    match data:
        case StdlibData():
            return f"sources of the standard library of Python {sysconfig.get_python_version()}"
        case TextData():
            held = f"; validation {', '.join(data.validation)}" if data.validation else ""
            return f"{', '.join(data.paths)}{held}"
        case HuggingFaceData():
            return ", ".join(part for part in (data.name, data.subset, data.split) if part)


def split_text(data: StdlibData | TextData, *, needs: Needs) -> SplitText:
    """Find the documents of a study's data and divide them; reads them all once.

    Args:
        data: Where they come from.
        needs: What the split is to give, where it can.

    Raises:
        ConfigError: Missing, empty, unreadable or undecodable; says what to do.
    """
    if isinstance(data, StdlibData):
        return _stdlib(data, needs=needs)
    if data.validation is None:
        return _held_out(data, needs=needs)
    return _own_validation(data)


def split_documents_of(
    documents: Iterable[bytes], *, share: float, needs: Needs, description: str
) -> SplitText:
    """Divide documents by their content.

    Args:
        documents: All of them, to be iterated over as often as asked.
        share: Share of the bytes to hold out.
        needs: What the split is to give, where it can.
        description: What they are.
    """
    table = DocumentTable.of(documents)
    held_D = hold_out(
        table, share=share, validation_needed=needs.validation, train_needed=needs.train
    )

    def read() -> Iterator[tuple[Side, bytes]]:
        left = iter(documents)
        for held in held_D:
            document = next(left, None)
            if document is None:
                raise changed()
            yield bool(held), document
        if next(left, None) is not None:
            raise changed()

    return SplitText(
        read=read,
        documents={side: int((held_D == side).sum()) for side in (False, True)},
        text_bytes={side: int(table.bytes_D[held_D == side].sum()) for side in (False, True)},
        description=description,
    )


def changed() -> ConfigError:
    """What to say of text that is not what it was a moment ago."""
    hint = "run again once nothing writes to it any more"
    return ConfigError(Problem("the text has changed while it was read", path="data", hint=hint))


@dataclass(frozen=True, slots=True)
class FileDocuments:
    """The documents of files, in the files' order, read anew each time."""

    files: tuple[Path, ...]
    kind: DocumentKind
    field: str
    key: str

    def __iter__(self) -> Iterator[bytes]:
        """Read them; every unreadable file is named in one error."""
        problems: list[Problem] = []
        for file in self.files:
            try:
                yield from self.of(file)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def of(self, file: Path) -> Iterator[bytes]:
        """The documents of one of them."""
        reader = record_reader(file)
        if reader is not None:
            yield from reader(file, field=self.field, key=self.key)
            return
        pieces = stream_text(file, key=self.key)
        if self.kind == "file":
            pieces = self._short_enough(pieces, file)
        yield from stream_documents(pieces, kind=self.kind)

    def _short_enough(self, pieces: Iterator[bytes], file: Path) -> Iterator[bytes]:
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > LONGEST_DOCUMENT:
                message = f"{file} has more than {LONGEST_DOCUMENT:,} bytes, too long a document"
                hint = "set data.documents: paragraph, or cut it into several files"
                raise ConfigError(Problem(message, path=self.key, hint=hint))
            yield piece


def source_files(data: TextData) -> dict[str, list[Path]]:
    """The files of either key, ``paths`` and ``validation``.

    Raises:
        ConfigError: Paths that name nothing, or a file that both name.
    """
    files = {"paths": find_files(data.paths, key="data.paths")}
    if data.validation is None:
        return files
    files["validation"] = find_files(data.validation, key="data.validation")
    both = {f.resolve() for f in files["paths"]} & {f.resolve() for f in files["validation"]}
    if both:
        raise ConfigError(
            [
                Problem(
                    f"{file} is in data.paths too: the model would be judged on what it has seen",
                    path="data.validation",
                    hint="name each file in one of the two",
                )
                for file in files["validation"]
                if file.resolve() in both
            ]
        )
    return files


def _held_out(data: TextData, *, needs: Needs) -> SplitText:
    documents = _training_documents(data, source_files(data)["paths"])
    split = split_documents_of(
        documents, share=data.held_out, needs=needs, description=describe(data)
    )
    if not sum(split.documents.values()):
        raise ConfigError(Problem("the files hold nothing but blanks", path="data.paths"))
    if not split.documents[True] and len(set(itertools.islice(documents, 2))) < 2:
        raise ConfigError(
            Problem(
                f"the text holds only one document ({data.documents}), so none can be held out",
                path="data.held_out",
                hint="data.documents: paragraph, or data.validation: [...] with other files",
            )
        )
    return split


def _own_validation(data: TextData) -> SplitText:
    assert data.validation is not None
    files = source_files(data)
    validation = FileDocuments(
        tuple(files["validation"]), data.documents, data.field, "data.validation"
    )
    # Copies are not trained on; the limit counts what is left.
    held = DocumentTable.of(validation)
    held_places = {int(place) for place in held.place_D}

    def not_held(documents: Iterable[bytes]) -> Iterator[bytes]:
        for document in documents:
            if content_hash(document, purpose=b"split") not in held_places:
                yield document

    source = _training_documents(data, files["paths"], keep=not_held)
    table = DocumentTable.of(not_held(source))
    if not len(table) and any(True for _ in source):
        raise ConfigError(
            Problem(
                "every document of data.paths is in the validation files too",
                path="data.validation",
                hint="name files with other text, or leave validation out and set held_out",
            )
        )

    def read() -> Iterator[tuple[Side, bytes]]:
        yield from ((True, document) for document in validation)
        yield from ((False, document) for document in not_held(source))

    return SplitText(
        read=read,
        documents={False: len(table), True: len(held)},
        text_bytes={False: int(table.bytes_D.sum()), True: int(held.bytes_D.sum())},
        description=describe(data),
    )


def _training_documents(
    data: TextData,
    files: Sequence[Path],
    *,
    keep: Callable[[Iterable[bytes]], Iterable[bytes]] = iter,
) -> Iterable[bytes]:
    """The documents of `data.paths`; with a limit, of enough files to choose from, in memory."""
    source = FileDocuments(tuple(files), data.documents, data.field, "data.paths")
    if data.max_bytes is None:
        return source
    most = _READ_AHEAD * data.max_bytes
    found: dict[Path, list[bytes]] = {}
    problems: list[Problem] = []
    total = 0
    # By a hash of the name, so that a limit does not mean the first files of the alphabet.
    for file in sorted(files, key=lambda file: hash_place(os.fsencode(file.name), purpose=b"read")):
        if total >= most:
            break
        try:
            found[file], size = _some_of(source, file, most=most)
        except ConfigError as error:
            problems += error.problems
            continue
        total += size
    if problems:
        raise ConfigError(problems)
    documents = [document for file in files for document in found.get(file, ())]
    return cap_documents(list(keep(documents)), max_bytes=data.max_bytes)


def _some_of(source: FileDocuments, file: Path, *, most: int) -> tuple[list[bytes], int]:
    """Documents from the beginning of a file, and the bytes read: about `most`."""
    if record_reader(file) is None:
        text = read_text(file, key=source.key, limit=most)
        return split_documents(text, kind=source.kind), len(text)
    found: list[bytes] = []
    total = 0
    for document in source.of(file):
        found.append(document)
        total += len(document)
        if total >= most:
            break
    return found, total


def _stdlib(data: StdlibData, *, needs: Needs) -> SplitText:
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
    return split_documents_of(
        cap_documents(documents, max_bytes=data.max_bytes),
        share=data.held_out,
        needs=needs,
        description=describe(data),
    )


def _python_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        # Pruned here, since site-packages may hold a hundred times as many files as the library.
        folders[:] = [name for name in folders if name not in STDLIB_EXCLUDED]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found)


def sample(documents: Iterable[bytes], *, bytes_of_all: int, limit: int) -> Iterator[bytes]:
    """Pieces of documents, spread over all of them, of about `limit` bytes together.

    Args:
        documents: All of them.
        bytes_of_all: Their bytes.
        limit: Bytes wanted; where there are no more all are taken.
    """
    if bytes_of_all <= limit:
        yield from documents
        return
    share = limit / bytes_of_all
    for document in documents:
        for piece in _pieces_of(document):
            if hash_place(piece, purpose=b"sample") < share:
                yield piece


def _pieces_of(document: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    begin = 0
    while begin < len(document):
        # One byte more, to see whether a character ends there.
        piece = cut_text(document[begin : begin + size + 1], size)
        yield piece
        begin += len(piece)
