"""A table from pieces of text to token ids, asked for all the pieces of a text at once.

A piece of up to 15 bytes is one or two 64-bit words that hold its bytes and its length: equal words
are equal pieces, so no hash is trusted. The few longer ones are in a `dict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.data.tokenizer import Ids

Words = NDArray[np.uint64]
Places = NDArray[np.int64]

SHORT, MIDDLE = 7, 15
"""Bytes of the longest pieces that are one word, and two."""

MOST_PIECES = 1 << 20
"""A table holds so many pieces, ids of theirs, and bytes of long ones, or a little more."""
MOST_IDS = 1 << 23
MOST_BYTES = 1 << 26

# A packed value, from the top: one bit that it is there, the number of ids, the place of all but
# the first in the pool, and the first id.
_COUNT_AT, _REST_AT = 47, 20
_THERE = np.uint64(1 << 63)
_COUNT_MASK = np.uint64((1 << (63 - _COUNT_AT)) - 1)
_REST_MASK = np.uint64((1 << (_COUNT_AT - _REST_AT)) - 1)
_FIRST_MASK = np.uint64((1 << _REST_AT) - 1)

MOST_VOCABULARY = 1 << _REST_AT
"""Ids are below this."""

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_FULL = 0.3
"""Share of the slots that may be taken: with so few nearly all keys are where their hash says."""


class PieceTable:
    """Pieces and their ids; grows as it is filled."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._short, self._middle = _WordTable(1), _WordTable(2)
        self._long: dict[bytes, int] = {}
        self._long_bytes = 0
        self._pool: Ids = np.zeros(1 << 12, dtype)
        self._pooled = 0

    @property
    def full(self) -> bool:
        """Whether it holds as much as it may: then a new one is to take its place."""
        return len(self) > MOST_PIECES or self._pooled > MOST_IDS or self._long_bytes > MOST_BYTES

    def __len__(self) -> int:
        return len(self._short) + len(self._middle) + len(self._long)

    def find(self, text: bytes, begins: Places, ends: Places) -> tuple[Words, Places]:
        """The packed ids of the pieces of a text.

        Args:
            text: Holds the pieces.
            begins: [pieces] offsets.
            ends: [pieces] offsets, above those of the beginnings.

        Returns:
            [pieces] values for `counts` and `gather`, 0 where there is none; and the pieces that
            are not in the table.
        """
        # A word begins at each byte, and is read whole, so there are bytes behind the text.
        words_at = np.ndarray((len(text),), "<u8", text + bytes(8), 0, (1,))
        lengths = ends - begins
        is_longer = lengths > SHORT
        # What is found for longer ones is written over.
        values, absent = self._short.find(_short_words(words_at, begins, lengths), skip=is_longer)
        longer = np.flatnonzero(is_longer)
        if not longer.size:
            return values, absent
        missing = [absent]
        of_longer = lengths[longer]
        middle = longer[of_longer <= MIDDLE]
        values[middle], absent = self._middle.find(
            _middle_words(words_at, begins[middle], lengths[middle])
        )
        missing.append(middle[absent])
        long = longer[of_longer > MIDDLE]
        if long.size:
            pairs = zip(begins[long].tolist(), ends[long].tolist(), strict=True)
            known = self._long.get
            found = np.array([known(text[begin:end], 0) for begin, end in pairs], np.uint64)
            values[long] = found
            missing.append(long[found == 0])
        return values, np.concatenate(missing)

    def add(self, pieces: Sequence[bytes], ids: Ids, counts: Places) -> None:
        """Keep pieces that are distinct and not in the table.

        Args:
            pieces: None of them empty.
            ids: Those of all the pieces, one after the other.
            counts: [pieces] how many each has, below 65,536.
        """
        begins = np.cumsum(counts) - counts
        assert not counts.size or counts.max() <= _COUNT_MASK
        first = np.zeros(len(pieces), np.uint64)
        some = counts > 0
        first[some] = ids[begins[some]]
        # Of the pool only the second and later ids are read; the first are kept along.
        rest = (self._pooled + begins + 1).astype(np.uint64)
        assert self._pooled + len(ids) < _REST_MASK
        self._keep(ids)
        packed = counts.astype(np.uint64) << np.uint64(_COUNT_AT)
        values = _THERE | packed | rest << np.uint64(_REST_AT) | first

        lengths = np.array([len(piece) for piece in pieces], np.int64)
        text = b"".join(pieces)
        at = np.cumsum(lengths) - lengths
        words_at = np.ndarray((len(text),), "<u8", text + bytes(8), 0, (1,))
        for table, words_of, kept in (
            (self._short, _short_words, lengths <= SHORT),
            (self._middle, _middle_words, (lengths > SHORT) & (lengths <= MIDDLE)),
        ):
            table.add(words_of(words_at, at[kept], lengths[kept]), values[kept])
        for piece in np.flatnonzero(lengths > MIDDLE).tolist():
            self._long[pieces[piece]] = int(values[piece])
            self._long_bytes += len(pieces[piece])

    def counts(self, values: Words) -> Places:
        """How many ids each value stands for, [values]."""
        return (values >> np.uint64(_COUNT_AT) & _COUNT_MASK).astype(np.int64)

    def gather(self, values: Words, counts: Places, before: Places, out: Ids) -> None:
        """Write the ids of values.

        Args:
            values: [values], as found.
            counts: [values], as counted.
            before: [values] where in `out` those of each begin, ascending.
            out: [ids + 1]: a value without ids writes where the next one will.
        """
        out[before] = values & _FIRST_MASK
        several = np.flatnonzero(counts > 1)
        at, left = before[several], counts[several]
        rest = (values[several] >> np.uint64(_REST_AT) & _REST_MASK).astype(np.int64)
        while at.size:
            at += 1
            out[at] = self._pool.take(rest)
            left -= 1
            going = np.flatnonzero(left > 1)
            at, left, rest = at[going], left[going], rest[going] + 1

    def _keep(self, ids: Ids) -> None:
        needed = self._pooled + len(ids)
        if needed > len(self._pool):
            larger = np.zeros(2 * needed, self._pool.dtype)
            larger[: self._pooled] = self._pool[: self._pooled]
            self._pool = larger
        self._pool[self._pooled : needed] = ids
        self._pooled = needed


class _WordTable:
    """Keys of one or two words to a value, by open addressing; the last word of a key is not 0."""

    def __init__(self, words: int) -> None:
        self._size = 0
        self._make(1 << 12, words)

    def __len__(self) -> int:
        return self._size

    def find(
        self, keys: tuple[Words, ...], *, skip: NDArray[np.bool_] | None = None
    ) -> tuple[Words, Places]:
        """The value of each key, [keys], 0 where there is none; and the keys that have none.

        Those to skip have any value, and are not said to have none.
        """
        slot = self._home(keys)
        hit = self._keys[-1].take(slot, mode="clip") == keys[-1]
        for mine, theirs in zip(self._keys[:-1], keys[:-1], strict=True):
            hit &= mine.take(slot, mode="clip") == theirs
        values = self._values.take(slot, mode="clip")
        if skip is not None:
            hit |= skip
        pending = np.flatnonzero(~hit)
        absent = [pending[:0]]
        while pending.size:
            at = slot[pending]
            free = self._keys[-1].take(at) == 0
            absent.append(pending[free])
            pending, at = pending[~free], at[~free]
            at = (at + 1) & (len(self._values) - 1)
            slot[pending] = at
            hit = np.ones(len(at), bool)
            for mine, theirs in zip(self._keys, keys, strict=True):
                hit &= mine.take(at) == theirs[pending]
            values[pending] = self._values.take(at)
            pending = pending[~hit]
        missing = np.concatenate(absent)
        values[missing] = 0
        return values, missing

    def add(self, keys: tuple[Words, ...], values: Words) -> None:
        """Keep distinct keys that are not in the table."""
        while self._size + len(values) > _FULL * len(self._values):
            kept = np.flatnonzero(self._keys[-1])
            old = tuple(mine[kept] for mine in self._keys), self._values[kept]
            self._make(4 * len(self._values), len(keys))
            self._place(*old)
        self._place(keys, values)
        self._size += len(values)

    def _make(self, slots: int, words: int) -> None:
        self._shift = np.uint64(64 - (slots.bit_length() - 1))
        self._keys = tuple(np.zeros(slots, np.uint64) for _ in range(words))
        self._values = np.zeros(slots, np.uint64)

    def _home(self, keys: tuple[Words, ...]) -> Places:
        mixed = keys[0] * _ODD[0]
        if len(keys) > 1:
            mixed ^= keys[1] * _ODD[1]
        mixed >>= self._shift
        return mixed.view(np.int64)

    def _place(self, keys: tuple[Words, ...], values: Words) -> None:
        slot = self._home(keys)
        pending = np.arange(len(values))
        while pending.size:
            at = slot[pending]
            free = np.flatnonzero(self._keys[-1].take(at) == 0)
            # Where several want a slot, the last to write its number there has it.
            self._values[at[free]] = pending[free]
            won = free[self._values.take(at[free]) == pending[free]]
            for mine, theirs in zip(self._keys, keys, strict=True):
                mine[at[won]] = theirs[pending[won]]
            self._values[at[won]] = values[pending[won]]
            pending = np.delete(pending, won)
            slot[pending] = (slot[pending] + 1) & (len(self._values) - 1)


def _short_words(words_at: Words, begins: Places, lengths: Places) -> tuple[Words]:
    """Of pieces of up to 7 bytes: the bytes, moved to the top, and the length below them."""
    size = lengths.view(np.uint64)
    # `clip`, here and elsewhere, is the fastest mode: nothing is out of bounds.
    word = words_at.take(begins, mode="clip")
    # Of longer pieces, whose words are not used, this is a shift by anything.
    word <<= np.uint64(64) - (size << np.uint64(3))
    word |= size
    return (word,)


def _middle_words(words_at: Words, begins: Places, lengths: Places) -> tuple[Words, Words]:
    """Of pieces of 8 to 15 bytes: the first eight; the others, moved to the top, and the length."""
    size = lengths.view(np.uint64)
    # A piece of 8 bytes may be the text's last: then the others are of any word, and shifted out,
    # as numpy defines a shift by 64 bits.
    second = words_at.take(begins + 8, mode="clip")
    second <<= np.uint64(128) - (size << np.uint64(3))
    second |= size
    return words_at.take(begins, mode="clip"), second
