"""Documents of a text in pieces are those of the whole, however it is cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.data import documents
from wesar_sweep.data.documents import DocumentKind, split_documents, stream_documents
from wesar_sweep.data.text_files import stream_text
from wesar_sweep.errors import ConfigError

LINES = st.lists(
    st.sampled_from(["a", " b", "cd ", "\n", "\n\n", " \n", "\r\n", "\r\n\r\n", "\t", "\r", "σ"]),
    max_size=40,
).map("".join)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(ends)]


@settings(max_examples=300, deadline=None)
@given(text=LINES, places=st.lists(st.integers(0, 80), max_size=8))
@pytest.mark.parametrize("kind", ["file", "paragraph", "line"])
def test_pieces_give_the_same_documents(kind: DocumentKind, text: str, places: list[int]) -> None:
    raw = text.encode()
    assert list(stream_documents(cut(raw, places), kind=kind)) == split_documents(raw, kind=kind)


def test_no_more_than_a_document_is_kept() -> None:
    kept = 0
    given_out = 0

    def pieces() -> object:
        nonlocal kept
        for n in range(200):
            yield f"paragraph {n}\nin two lines\n\n".encode() * 10
            kept = max(kept, 10 * (n + 1) - given_out)

    for _ in stream_documents(pieces(), kind="paragraph"):
        given_out += 1
    assert given_out == 2000
    assert kept <= 11


@pytest.mark.parametrize("kind", ["paragraph", "line"])
def test_text_without_an_end_is_looked_at_once(
    kind: DocumentKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = 0
    real = documents._last_end

    def counted(text: bytearray, begin: int, *, kind: DocumentKind) -> int:
        nonlocal looked_at
        looked_at += len(text) - begin
        return real(text, begin, kind=kind)

    monkeypatch.setattr(documents, "_last_end", counted)
    separator = b"\n" if kind == "paragraph" else b"\r"
    pieces = [separator.join([b"word"] * 200)] * 100
    assert len(list(stream_documents(pieces, kind=kind))) == (1 if kind == "paragraph" else 19_901)
    assert looked_at < 1.1 * sum(map(len, pieces))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), size=st.integers(1, 7))
def test_streams_cut_between_characters(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "stream.txt"
    text = text.replace("\0", "").removeprefix("\ufeff")
    file.write_bytes(text.encode(errors="replace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wesar_sweep.data.text_files._PIECE", size)
        pieces = list(stream_text(file, key="data.paths"))
    for piece in pieces:
        piece.decode()
    assert b"".join(pieces) == file.read_bytes()


@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82", b"\0", b"\xed\xa0\x80"])
def test_what_is_no_text_is_told_with_its_place_in_the_file(tmp_path: Path, bad: bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * 2_500_000 + bad)
    with pytest.raises(ConfigError, match="at offset 2,500,000"):
        list(stream_text(file, key="data.paths"))
