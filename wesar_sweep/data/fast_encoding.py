"""Exact token ids at tens of megabytes a second: text is cut into pieces, each looked up by itself.

A tokenizer that first splits text by a pattern never joins what lies in two of its pre-tokens. So a
text may be cut wherever a pre-token ends *whatever surrounds the place*, which a rule on two
neighbouring bytes tells (`CutRule`); the ids of the text are those of its pieces. Few pieces are
distinct: a table keeps their ids, the tokenizer's own library gives those of new ones, and a window
of text is looked up at once. Which tokenizers may be cut, and where, is in
`wesar_sweep.data.cut_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.data.piece_table import MOST_VOCABULARY, PieceTable, Places
from wesar_sweep.data.tokenizer import Ids, id_type

WINDOW = 1 << 19
"""Bytes of text worked on at once: the arrays of a window fit into a core's own cache."""

LONGEST_KEPT = 1024
"""Bytes of the longest piece that is kept; longer ones hardly come twice."""

EncodePieces = Callable[[list[str]], tuple[Ids, Places]]
"""The ids of each piece by itself, one after the other, and how many each has, [pieces]."""

_BEYOND_ASCII = bytes(range(0x80, 0x100))
_WHITESPACE = b" \t\n\v\f\r"

# Characters that some engine of patterns may take for white space; what follows one is not cut off.
# More than needed (U+180E, U+200B and U+FEFF are none) only makes pieces longer.
_MAYBE_WHITESPACE = (
    *(0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x200C)),
    *(0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF),
)


@dataclass(frozen=True)
class CutRule:
    """Where a pre-token certainly ends: by classes of two or three neighbouring bytes of ASCII."""

    pairs: tuple[tuple[bytes, bytes], ...]
    """(left, right): a text is cut between any of the left and any of the right."""
    after_others: bytes = b""
    """White space that is cut off from any character beyond ASCII but white space."""
    last: bytes = b""
    """White space that, last of several before a visible character, is cut off from the others."""
    alone: bytes = b""
    """White space that is cut off from a visible character behind it, if it is cut off before.

    The one cut of a rule that is certain only together with another.
    """
    visible: bytes = b""
    """What may follow white space, for the last two."""

    def cut(self, text: bytes, *, also: Places | None = None) -> Places:
        """Where the pieces of some UTF-8 text begin, and last its end: [pieces + 1], ascending.

        Args:
            text: Begins and ends where a document, or a piece of one, does.
            also: Where further documents begin, [documents], at most the text's length.
        """
        if not text:
            return np.zeros(1, np.int64)
        # Where the byte before a place and the byte behind it have a bit in common, it is cut.
        before, behind, special = self._tables
        ends = np.frombuffer(text.translate(before), np.uint8)
        begins = np.frombuffer(text.translate(behind), np.uint8)
        cuts = np.empty(len(text) + 1, np.uint8)
        np.bitwise_and(ends[:-1], begins[1:], out=cuts[1:-1])
        cuts[0] = cuts[-1] = 1
        if not text.isascii():
            places = np.flatnonzero(cuts[1:-1] & (1 << len(self.pairs))) + 1
            cuts[places[_follows_maybe_whitespace(text, places)]] = 0
        if self.visible:
            kinds = np.frombuffer(text.translate(special), np.uint8)
            last = kinds[:-2] & (kinds[1:-1] >> 1) & (kinds[2:] >> 2) & 1
            if also is not None:
                # No white space is before a character of another document.
                last[also[(also > 1) & (also < len(text))] - 2] = 0
            cuts[1:-2] |= last
        if also is not None:
            cuts[also] = 1
        if self.alone:
            alone = (kinds[:-1] >> 3) & (kinds[1:] >> 2) & 1
            cuts[1:-1] |= alone * (cuts[:-2] != 0)
        return np.flatnonzero(cuts != 0)

    @cached_property
    def _tables(self) -> tuple[bytes, bytes, bytes]:
        """For each byte: bits of the pairs it may end, of those it may begin, and of its kinds."""
        pairs = (*self.pairs, (_BEYOND_ASCII, self.after_others))
        kinds = (_WHITESPACE, self.last, self.visible, self.alone)
        assert len(pairs) <= 8
        return (
            _bits(before for before, _ in pairs),
            _bits(behind for _, behind in pairs),
            _bits(kinds),
        )


def _bits(classes: Iterable[bytes]) -> bytes:
    """For each byte, bit i is set if it is in the i-th class."""
    table = bytearray(256)
    for bit, members in enumerate(classes):
        for byte in members:
            table[byte] |= 1 << bit
    return bytes(table)


def _follows_maybe_whitespace(text: bytes, places: Places) -> NDArray[np.bool_]:
    """Whether the character before each place may be white space; those are of 2 or 3 bytes."""
    byte = np.frombuffer(text, np.uint8)
    last = byte[places - 1].astype(np.uint32)
    # Before the text's first byte its last ones are read, which only can make pieces longer.
    two = byte[places - 2].astype(np.uint32) << 8 | last
    three = byte[places - 3].astype(np.uint32) << 16 | two
    codes = [int.from_bytes(chr(code).encode(), "big") for code in _MAYBE_WHITESPACE]
    shorter = [code for code in codes if code < 1 << 16]
    longer = [code for code in codes if code >= 1 << 16]
    return np.isin(two, shorter) | np.isin(three, longer)


class PieceEncoder:
    """Encodes documents by their pieces, and keeps those it has met; not for several threads."""

    def __init__(
        self,
        encode_pieces: EncodePieces,
        *,
        rule: CutRule,
        vocabulary: int,
        whole: Sequence[bytes] = (),
    ) -> None:
        """Begin with an empty table.

        Args:
            encode_pieces: The tokenizer's own library.
            rule: Where its texts may be cut.
            vocabulary: Ids are below it.
            whole: A document with any of these strings in it is not cut.
        """
        assert vocabulary <= MOST_VOCABULARY
        self._whole = tuple(whole)
        self._encode_pieces = encode_pieces
        self._rule = rule
        self._type = id_type(vocabulary)
        self._table = PieceTable(self._type)

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """The ids of each document, in order; many short ones are worked on at once.

        Args:
            documents: UTF-8 texts.

        Yields:
            [tokens of a document], of the narrowest type for the vocabulary.

        Raises:
            UnicodeDecodeError: A text is not UTF-8.
        """
        batch: list[bytes] = []
        size = 0
        for document in documents:
            if size + len(document) > WINDOW:
                yield from self._together(batch)
                batch, size = [], 0
            if any(token in document for token in self._whole):
                yield from self._together(batch)
                batch, size = [], 0
                yield self._encode_pieces([document.decode()])[0]
            elif len(document) > WINDOW:
                yield from self._together(batch)
                batch, size = [], 0
                yield np.concatenate(list(self._in_parts(document)))
            else:
                batch.append(document)
                size += len(document)
        yield from self._together(batch)

    def _together(self, documents: Sequence[bytes]) -> Iterator[Ids]:
        """The ids of each of some documents that are one window."""
        ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
        text = b"".join(documents)
        cuts = self._rule.cut(text, also=ends)
        ids, before = self._ids(text, cuts)
        edges = [0, *before[np.searchsorted(cuts, ends)].tolist()]
        for begin, end in pairwise(edges):
            yield ids[begin:end]

    def _in_parts(self, document: bytes) -> Iterator[Ids]:
        """The ids of a document, window by window."""
        begin, size = 0, WINDOW
        while begin < len(document):
            text = document[begin : begin + size]
            cuts = self._rule.cut(text)
            if begin + size < len(document):
                # The last piece may go on behind the window.
                cuts = cuts[:-1]
                if len(cuts) == 1:
                    size *= 2
                    continue
            yield self._ids(text, cuts)[0]
            begin += int(cuts[-1])
            size = WINDOW

    def _ids(self, text: bytes, cuts: Places) -> tuple[Ids, Places]:
        """The ids of a text up to its last cut, and how many of them are before each cut."""
        begins, ends = cuts[:-1], cuts[1:]
        if self._table.full:
            self._table = PieceTable(self._type)
        values, missing = self._table.find(text, begins, ends)
        if missing.size:
            self._learn(text, begins[missing], ends[missing])
            values[missing], still = self._table.find(text, begins[missing], ends[missing])
            missing = missing[still]
        counts = self._table.counts(values)
        direct: dict[int, Ids] = {}
        for piece in missing.tolist():
            ids, _ = self._encode_pieces([text[begins[piece] : ends[piece]].decode()])
            direct[piece] = ids
            counts[piece] = len(ids)
        before = np.zeros(len(cuts), np.int64)
        np.cumsum(counts, out=before[1:])
        out = np.empty(int(before[-1]) + 1, self._type)
        self._table.gather(values, np.where(values, counts, 0), before[:-1], out)
        for piece, ids in direct.items():
            out[before[piece] : before[piece + 1]] = ids
        return out[:-1], before

    def _learn(self, text: bytes, begins: Places, ends: Places) -> None:
        """Take new pieces into the table, but the huge ones."""
        new = {
            text[begin:end]: None
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
            if end - begin <= LONGEST_KEPT
        }
        pieces = list(new)
        ids, counts = self._encode_pieces([piece.decode() for piece in pieces])
        self._table.add(pieces, ids, counts)
