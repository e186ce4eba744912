"""The table of pieces gives what was put in, at every length, and knows what it has not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.data import piece_table
from wesar_sweep.data.piece_table import PieceTable, _WordTable

PIECES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=20),
        # Bytes that are also lengths, and zeros, which also fill the words of short pieces.
        st.lists(st.sampled_from([0, 1, 7, 8, 15, 97]), min_size=1, max_size=17).map(bytes),
    ),
    unique=True,
    max_size=60,
)


def look_up(table: PieceTable, pieces: list[bytes]) -> tuple[list[list[int]], set[int]]:
    """The ids of each piece, and those that have none, asked for as parts of one text."""
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    values, missing = table.find(b"".join(pieces), begins, ends)
    counts = table.counts(values)
    before = np.cumsum(counts) - counts
    out = np.zeros(counts.sum() + 1, np.uint16)
    table.gather(values, counts, before, out)
    return [a.tolist() for a in np.split(out[:-1], before[1:])], set(missing.tolist())


def put(table: PieceTable, ids_of: dict[bytes, list[int]]) -> None:
    ids = np.array([one for ids in ids_of.values() for one in ids], np.uint16)
    table.add(list(ids_of), ids, np.array([len(ids) for ids in ids_of.values()], np.int64))


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, more=PIECES, seed=st.integers(0, 99))
def test_what_is_put_in_is_found_and_nothing_else(
    pieces: list[bytes], more: list[bytes], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids_of = {piece: rng.integers(0, 60_000, rng.integers(0, 9)).tolist() for piece in pieces}
    table = PieceTable(np.dtype(np.uint16))
    half = dict(list(ids_of.items())[::2])
    put(table, half)
    put(table, {piece: ids for piece, ids in ids_of.items() if piece not in half})
    assert len(table) == len(pieces)
    asked = [*pieces, *more, *pieces]
    if not asked:
        return
    found, missing = look_up(table, asked)
    assert found == [ids_of.get(piece, []) for piece in asked]
    assert missing == {i for i, piece in enumerate(asked) if piece not in ids_of}


def test_it_grows_and_keeps_what_it_had() -> None:
    table = PieceTable(np.dtype(np.uint16))
    pieces = [str(i).encode() * (1 + i % 3) for i in range(10_000, 40_000)]
    ids_of = {piece: [i % 60_000, i % 7] for i, piece in enumerate(pieces)}
    for begin in range(0, len(pieces), 7_000):
        put(table, {piece: ids_of[piece] for piece in pieces[begin : begin + 7_000]})
    found, missing = look_up(table, pieces)
    assert not missing
    assert found == list(ids_of.values())


def test_keys_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _WordTable,
        "_home",
        lambda self, keys: np.full(len(keys[0]), len(self._values) - 2, np.int64),
    )
    table = PieceTable(np.dtype(np.uint16))
    ids_of = {bytes([i]) * size: [i, size] for i in range(1, 40) for size in (1, 7, 8, 15)}
    put(table, ids_of)
    found, missing = look_up(table, [*ids_of, b"new", b"also new"])
    assert found == [*ids_of.values(), [], []]
    assert missing == {len(ids_of), len(ids_of) + 1}


def test_control_without_lengths_pieces_with_zeros_are_confused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words_of = piece_table._short_words

    def without_lengths(*args: np.ndarray) -> tuple[np.ndarray]:
        return (words_of(*args)[0] | np.uint64(7),)

    monkeypatch.setattr(piece_table, "_short_words", without_lengths)
    table = PieceTable(np.dtype(np.uint16))
    put(table, {b"a": [1]})
    assert look_up(table, [b"\0a"]) == ([[1]], set())
