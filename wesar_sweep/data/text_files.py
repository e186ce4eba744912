"""Text files of the user's: what a path, folder or glob names, and the text that is in a file.

Everything that can be wrong with a file is a `Problem` for the user. What a document is, and which
of them are held out, is decided in `wesar_sweep.data.documents`.
"""

from __future__ import annotations

import bz2
import difflib
import glob
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wesar_sweep.errors import ConfigError, Problem

ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar")
"""Files of files: their contents are no text even once decompressed."""

_UTF8_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20


def find_files(paths: Sequence[str], *, key: str) -> list[Path]:
    """The files that paths, folders and globs name: each once, in the order named, folders sorted.

    A folder stands for every file below it whose name, and whose folders' names, do not begin with
    a dot. A file that is empty is passed over where a folder or a glob led to it.

    Args:
        paths: As the user wrote them; ``~`` is the home folder.
        key: Dotted path of the list in the study file, for the errors.

    Returns:
        Existing, non-empty regular files.

    Raises:
        ConfigError: All that is wrong with any of the paths.
    """
    problems: list[Problem] = []
    found: dict[Path, Path] = {}
    for index, text in enumerate(paths):
        where = f"{key}.{index}"
        candidates = _candidates(text)
        if candidates is None:
            problems.append(_missing(text, path=where))
            continue
        full = [file for file in candidates if file.stat().st_size > 0]
        if not full:
            problems.append(_no_text(text, candidates, path=where))
        for file in full:
            found.setdefault(file.resolve(), file)
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def read_text(file: Path, *, key: str, limit: int | None = None) -> bytes:
    """The text of one file, decompressed by its suffix (gz, bz2, xz, zst) and checked to be UTF-8.

    Args:
        file: An existing file.
        key: Dotted path of the value that named it, for the errors.
        limit: Stop after so many bytes of text, at the end of a character; None reads all.

    Returns:
        UTF-8 bytes without a byte-order mark.

    Raises:
        ConfigError: Not readable, a broken or unknown archive, a missing decompressor, or not
            UTF-8.
    """
    pieces: list[bytes] = []
    length = 0
    for piece in read_pieces(file, key=key):
        pieces.append(piece)
        length += len(piece)
        if limit is not None and length > limit:
            break
    raw = b"".join(pieces)
    if limit is not None and len(raw) > limit:
        raw = cut_text(raw, limit)
    return check_text(raw, file=file, key=key).removeprefix(_UTF8_BOM)


def stream_text(file: Path, *, key: str) -> Iterator[bytes]:
    """The same in pieces of about a megabyte, each whole characters, for files of any size.

    Raises:
        ConfigError: As `read_text`, once the piece is reached that is not right.
    """
    begun = 0
    rest = b""
    for piece in read_pieces(file, key=key):
        raw = rest + piece
        # A character that the piece ends within goes on in the next one.
        whole = len(raw) - _unfinished(raw)
        text, rest = raw[:whole], raw[whole:]
        check_text(text, file=file, key=key, offset=begun)
        yield text if begun else text.removeprefix(_UTF8_BOM)
        begun += whole
    check_text(rest, file=file, key=key, offset=begun)


def _unfinished(raw: bytes) -> int:
    """How many of the last bytes begin a character of which more are to come: 0 to 3."""
    for back in range(1, min(3, len(raw)) + 1):
        first = raw[-back]
        if first & 0xC0 == 0x80:
            continue
        length = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2 if first >= 0xC0 else 1
        return back if length > back else 0
    return 0


def cut_text(text: bytes, limit: int) -> bytes:
    """At most `limit` bytes of a UTF-8 text, cut between two characters."""
    if len(text) <= limit:
        return text
    # Bytes 10xxxxxx go on with a character, which has at most three of them.
    while limit > 0 and text[limit] & 0xC0 == 0x80:
        limit -= 1
    return text[:limit]


def check_text(raw: bytes, *, file: Path, key: str, offset: int = 0) -> bytes:
    """`raw` itself, which begins at `offset` of the file's text, if it is UTF-8 text.

    Raises:
        ConfigError: It is not UTF-8, or holds zero bytes, which text has none of and which end a
            document in a corpus.
    """
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            Problem(
                f"{file} is not UTF-8 text: byte {raw[error.start]:#04x} "
                f"at offset {offset + error.start:,}",
                path=key,
                hint=f"convert it, for example with `iconv -f latin1 -t utf-8 {file}`; "
                "or leave it out, for example by a glob such as folder/**/*.txt",
            )
        ) from None
    zero = raw.find(b"\0")
    if zero >= 0:
        raise ConfigError(
            Problem(
                f"{file} is not text: zero byte at offset {offset + zero:,}",
                path=key,
                hint=f"if it is UTF-16, convert it with `iconv -f utf-16 -t utf-8 {file}`",
            )
        )
    return raw


def _candidates(text: str) -> list[Path] | None:
    """The files behind one entry, empty ones included; None where the entry names nothing."""
    path = Path(text).expanduser()
    if path.is_dir():
        return _below(path)
    if path.exists():
        return [path]
    if glob.has_magic(text):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        below = [_below(match) if match.is_dir() else [match] for match in matches]
        return [file for files in below for file in files] if matches else None
    return None


def _below(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _missing(text: str, *, path: str) -> Problem:
    if glob.has_magic(text):
        return Problem(f"no file matches {text}", path=path, hint=_from_here())
    return Problem(f"{text} does not exist", path=path, hint=_nearest(Path(text).expanduser()))


def _nearest(path: Path) -> str:
    """The existing name most like the missing one; else where the search began."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return _from_here()
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {folder / close[0]}?" if close else _from_here()


def _from_here() -> str:
    return f"paths are relative to the working directory, {Path.cwd()}"


def _no_text(text: str, candidates: list[Path], *, path: str) -> Problem:
    folder = Path(text).expanduser().is_dir()
    if folder and not candidates:
        return Problem(
            f"the folder {text} has no files in it",
            path=path,
            hint="files and folders whose names begin with a dot are passed over",
        )
    if len(candidates) == 1 and not folder:
        return Problem(f"{candidates[0]} is empty", path=path)
    what = f"the folder {text}" if folder else text
    why = f"all {len(candidates)} files are empty" if candidates else "only folders without files"
    return Problem(f"{what} has no text in it: {why}", path=path)


def read_pieces(file: Path, *, key: str) -> Iterator[bytes]:
    """The bytes of one file in pieces of about a megabyte, decompressed by its suffix, unchecked.

    Raises:
        ConfigError: Not readable, an archive of files, broken, or its decompressor is missing.
    """
    if any(suffix in ARCHIVES for suffix in (s.lower() for s in file.suffixes[-2:])):
        raise ConfigError(
            Problem(
                f"{file} is an archive of files",
                path=key,
                allowed="text, plain or compressed one file at a time: gz, bz2, xz, zst",
                hint="unpack it and name the folder",
            )
        )
    suffix = file.suffix.lower()
    try:
        yield from _READERS.get(suffix, _plain)(file)
    except ModuleNotFoundError:
        raise ConfigError(
            Problem(
                f"{file} needs the package zstandard, which is not installed",
                path=key,
                hint="pip install 'wesar-sweep[zstd]', or Python 3.14 or later",
            )
        ) from None
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            problem = Problem(f"{file} cannot be read: {error.strerror}", path=key)
        else:
            problem = Problem(
                f"{file} is not a whole {suffix[1:]} file: {error}",
                path=key,
                hint="make or fetch it again; if it is not compressed, take the suffix "
                f"{suffix} from its name",
            )
        raise ConfigError(problem) from None


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(_PIECE):
        yield piece


def _plain(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        yield from _pieces(stream.read)


def _gz(file: Path) -> Iterator[bytes]:
    with gzip.open(file, "rb") as stream:
        yield from _pieces(stream.read)


def _bz2(file: Path) -> Iterator[bytes]:
    with bz2.open(file, "rb") as stream:
        yield from _pieces(stream.read)


def _xz(file: Path) -> Iterator[bytes]:
    with lzma.open(file, "rb") as stream:
        yield from _pieces(stream.read)


def _zst(file: Path) -> Iterator[bytes]:
    """Zstandard by the standard library from Python 3.14 on, else by the package zstandard.

    Raises:
        ModuleNotFoundError: Neither is there.
        ValueError: The data is damaged or ends within a frame.
    """
    if sys.version_info >= (3, 14):
        from compression import zstd

        try:
            with zstd.open(file, "rb") as stream:
                yield from _pieces(stream.read)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from None
        return
    import zstandard

    # The package's own stream reader takes a file that ends within a frame for a whole one.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = decompressor.decompressobj()
    with file.open("rb") as stream:
        for piece in _pieces(stream.read):
            rest = piece
            while rest:
                if frame.eof:
                    frame = decompressor.decompressobj()
                try:
                    yield frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise ValueError(str(error)) from None
                rest = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise ValueError("the data ends within a frame")


_READERS: dict[str, Callable[[Path], Iterator[bytes]]] = {
    ".gz": _gz,
    ".bz2": _bz2,
    ".xz": _xz,
    ".zst": _zst,
}

COMPRESSED = tuple(_READERS)
"""Suffixes of files that are decompressed while they are read."""
