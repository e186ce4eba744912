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
from collections.abc import Sequence
from typing import Literal

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


def hold_out(
    documents: Sequence[bytes], *, share: float, validation_needed: int, train_needed: int
) -> set[bytes]:
    """The contents that are held out.

    Each content whose hash falls into the lowest `share` of all hashes. Where documents are so few
    or so unequal that this gives less than half or more than twice that share of the bytes, or a
    side that is too short, they are taken in the order of their hashes until the share is reached,
    passing over those that would far exceed it, and then the shortest until there are enough. Where
    those leave no room for one that is still needed, one content alone is held out: the shortest
    that is enough.

    Args:
        documents: All documents.
        share: Share of the bytes to hold out.
        validation_needed: Fewest bytes held out, with the ends of documents.
        train_needed: Fewest bytes left.

    Returns:
        Contents to hold out; long enough, with enough left, wherever one content alone can be;
        else perhaps empty or too short.
    """
    size: dict[bytes, int] = {}
    for document in documents:
        size[document] = size.get(document, 0) + len(document) + len(END_OF_DOCUMENT)
    place = {content: hash_place(content, purpose=b"split") for content in size}
    total = sum(size.values())
    held = {content for content in size if place[content] < share}
    bytes_held = sum(size[content] for content in held)
    in_bounds = share / 2 <= bytes_held / total <= min(2 * share, (1 + share) / 2)
    if in_bounds and bytes_held >= validation_needed and total - bytes_held >= train_needed:
        return held

    most = total - train_needed
    target = min(max(share * total, validation_needed), most)
    held, bytes_held = set(), 0
    for content in sorted(size, key=lambda content: (place[content], content)):
        if bytes_held >= target:
            break
        if bytes_held + size[content] <= min(1.5 * target, most):
            held.add(content)
            bytes_held += size[content]
    for content in sorted(size, key=lambda content: (size[content], place[content], content)):
        if bytes_held >= validation_needed:
            break
        if content not in held and bytes_held + size[content] <= most:
            held.add(content)
            bytes_held += size[content]
    if bytes_held < validation_needed:
        enough = [content for content in size if validation_needed <= size[content] <= most]
        if enough:
            return {min(enough, key=lambda content: (size[content], place[content], content))}
    return held


def hash_place(content: bytes, *, purpose: bytes) -> float:
    """A number in [0, 1) that depends on nothing but the content and what it is used for."""
    digest = hashlib.blake2b(content, digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") / 2**64
