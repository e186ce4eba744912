"""Documents: what one is, which are kept under a limit, and which are held out.

A *document* is a file, a paragraph or a line. Every document ends with one zero byte (text has
none), so that a model can learn where it ends. What becomes of it goes by a hash of its content:

- documents of equal content lie on the same side of the split, so the sides share none, wherever a
  copy came from;
- adding or removing a document leaves the others on their side, unless documents are so few or so
  unequal that the split must be made by hand (`hold_out`).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.data.text_files import cut_text

END_OF_DOCUMENT = b"\0"

_BLANK_LINES = re.compile(rb"(?:\r?\n[ \t]*)+\r?\n")

DocumentKind = Literal["file", "paragraph", "line"]


def split_documents(text: bytes, *, kind: DocumentKind) -> list[bytes]:
    """The documents in the text of a file; blank ones are dropped, the others kept to the byte."""
    match kind:
        case "file":
            documents = [text]
        case "paragraph":
            documents = [part.strip(b"\r\n") for part in _BLANK_LINES.split(text)]
        case "line":
            documents = text.splitlines()
    return [document for document in documents if document.strip()]


def stream_documents(pieces: Iterable[bytes], *, kind: DocumentKind) -> Iterator[bytes]:
    """What `split_documents` gives, of a text in pieces; no more than one document is kept."""
    if kind == "file":
        yield from split_documents(b"".join(pieces), kind=kind)
        return
    rest = bytearray()
    # Up to here nothing that ends a document was found: it is not looked at again.
    searched = 0
    for piece in pieces:
        rest += piece
        cut = _last_end(rest, searched, kind=kind)
        if cut:
            yield from split_documents(bytes(rest[:cut]), kind=kind)
            del rest[:cut]
            searched = 0
        searched = max(0, _end_of_words(rest, searched) - 1)
    yield from split_documents(bytes(rest), kind=kind)


def _last_end(text: bytearray, begin: int, *, kind: DocumentKind) -> int:
    """Where the last document begins that more text may still change; 0: the first.

    Args:
        text: What is not yet given out.
        begin: No document ends before here.
        kind: What a document is.
    """
    if kind == "line":
        return text.rfind(b"\n", begin) + 1
    # Blank lines may go on in the next piece, unless something else has begun after them.
    end = _end_of_words(text, begin)
    ends = [found.end() for found in _BLANK_LINES.finditer(text, begin) if found.end() < end]
    return ends[-1] if ends else 0


def _end_of_words(text: bytearray, begin: int) -> int:
    """Where the blanks at the end of a text begin, looking no further back than `begin`."""
    return begin + len(text[begin:].rstrip(b" \t\r\n"))


def cap_documents(documents: Sequence[bytes], *, max_bytes: int | None) -> list[bytes]:
    """At most `max_bytes` of documents with their ends, in their order, spread over all of them.

    Documents are chosen in the order of a hash of their content; the last is cut to fit, unless it
    is a copy.
    """
    if max_bytes is None:
        return list(documents)
    left = max_bytes
    kept: dict[int, bytes] = {}
    whole: set[bytes] = set()
    place = [hash_place(document, purpose=b"cap") for document in documents]
    for index in sorted(range(len(documents)), key=lambda index: (place[index], index)):
        document = cut_text(documents[index], left - len(END_OF_DOCUMENT))
        # A piece of a document that is kept whole would be another content, perhaps held out.
        if not document.strip() or (
            len(document) < len(documents[index]) and documents[index] in whole
        ):
            break
        kept[index] = document
        whole.add(document)
        left -= len(document) + len(END_OF_DOCUMENT)
        if left <= len(END_OF_DOCUMENT):
            break
    return [kept[index] for index in sorted(kept)]


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """What the split needs to know of documents: too many of them may not fit into memory."""

    place_D: NDArray[np.uint64]
    """Hash of each content, its place in the split; equal contents have equal ones."""
    bytes_D: NDArray[np.int64]
    """Bytes of each, with its end."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.place_D)

    @classmethod
    def of(cls, documents: Iterable[bytes]) -> DocumentTable:
        """Read documents once."""
        places, sizes = array("Q"), array("q")
        for document in documents:
            places.append(content_hash(document, purpose=b"split"))
            sizes.append(len(document) + len(END_OF_DOCUMENT))
        return cls(np.frombuffer(places, np.uint64), np.frombuffer(sizes, np.int64))


def hold_out(
    table: DocumentTable, *, share: float, validation_needed: int, train_needed: int
) -> NDArray[np.bool_]:
    """Which documents are held out.

    Each content whose hash falls into the lowest `share` of all hashes. Where documents are so few
    or so unequal that this gives less than half or more than twice that share of the bytes, or a
    side that is too short, they are taken in the order of their hashes until the share is reached,
    passing over those that would far exceed it, and then the shortest until there are enough. Where
    those leave no room for one that is still needed, one content alone is held out: the shortest
    that is enough.

    Args:
        table: All documents.
        share: Share of the bytes to hold out.
        validation_needed: Fewest bytes held out, with the ends of documents.
        train_needed: Fewest bytes left.

    Returns:
        [documents]; equal contents alike; long enough, with enough left, wherever one content alone
        can be; else perhaps none or too few.
    """
    place_C, content_D = np.unique(table.place_D, return_inverse=True)
    bytes_C = np.bincount(content_D, weights=table.bytes_D, minlength=len(place_C)).astype(np.int64)
    total = int(bytes_C.sum())
    held_C = place_C < share * 2.0**64
    held = int(bytes_C[held_C].sum())
    in_bounds = share / 2 <= held / max(total, 1) <= min(2 * share, (1 + share) / 2)
    if not (in_bounds and held >= validation_needed and total - held >= train_needed):
        held_C = _hold_out_by_hand(
            bytes_C, share=share, validation_needed=validation_needed, most=total - train_needed
        )
    return held_C[content_D]


def _hold_out_by_hand(
    bytes_C: NDArray[np.int64], *, share: float, validation_needed: int, most: int
) -> NDArray[np.bool_]:
    """Which of few or unequal contents, in the order of their places, are held out."""
    sizes: list[int] = bytes_C.tolist()
    target = min(max(share * sum(sizes), validation_needed), most)
    held = [False] * len(sizes)
    bytes_held = 0
    for content, size in enumerate(sizes):
        if bytes_held >= target:
            break
        if bytes_held + size <= min(1.5 * target, most):
            held[content] = True
            bytes_held += size
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    for content in by_size:
        if bytes_held >= validation_needed:
            break
        if not held[content] and bytes_held + sizes[content] <= most:
            held[content] = True
            bytes_held += sizes[content]
    if bytes_held < validation_needed:
        enough = [content for content in by_size if validation_needed <= sizes[content] <= most]
        if enough:
            held = [content == enough[0] for content in range(len(sizes))]
    return np.array(held, dtype=np.bool_)


def content_hash(content: bytes, *, purpose: bytes) -> int:
    """64 bits that depend on nothing but the content and what they are used for."""
    digest = hashlib.blake2b(content, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big")


def hash_place(content: bytes, *, purpose: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the content and what it is used for."""
    return content_hash(content, purpose=purpose) / 2**64
