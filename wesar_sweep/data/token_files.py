"""Token files: a corpus as token ids on disk, mapped into memory, shared by all who train on it.

An entry of the cache is a folder, named by a hash of all that decides which tokens are in it:

    manifest.json     what it is: source, tokenizer, counts, hash
    train.bin         token ids, little-endian uint8, uint16 or uint32
    validation.bin    the same
    tokenizer.json    the tokenizer

It appears whole or not at all (a folder under a temporary name, then a rename). Who wants it while
another makes it waits for that one's lock. Each time it is opened all of its tokens are read and
hashed; an entry whose bytes do not give the manifest's hash is made anew.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from wesar_sweep.data.tokenizer import Ids
from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.locks import HeldLock, try_hold

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever what is in a file, or what decides it, changes its meaning."""

CACHE_VARIABLE = "WESAR_CACHE"

_ELSEWHERE = f"{CACHE_VARIABLE}=FOLDER puts prepared corpora elsewhere"

SPLITS = ("train", "validation")

_MANIFEST = "manifest.json"
_TOKENIZER = "tokenizer.json"
_WAIT_S = 1.0
_PIECE = 1 << 24


def cache_folder() -> Path:
    """Where prepared corpora are kept: ``$WESAR_CACHE``, or wesar-sweep under the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "wesar-sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an entry of the cache says of itself."""

    format: int
    key: str
    """Hash of all that decides the tokens, in hex."""
    description: str
    sources: Sequence[Mapping[str, Any]]
    """Each file with its size and SHA-256, or the data set."""
    tokenizer: Mapping[str, Any]
    """description, vocabulary, end_of_document, sha256."""
    dtype: str
    """Of the ids: ``uint8``, ``uint16`` or ``uint32``."""
    tokens: Mapping[str, int]
    """By split."""
    documents: Mapping[str, int]
    text_bytes: Mapping[str, int]
    """Bytes of text, with one for the end of each document."""
    sha256: str
    """Over all tokens and the tokenizer: the corpus's hash (`corpus_hash`)."""
    made_by: str
    """Version of the project."""
    made_at: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TokenFiles:
    """An entry of the cache, checked."""

    folder: Path
    manifest: Manifest
    train: Ids
    """Read-only, mapped from the file."""
    validation: Ids
    tokenizer_json: str


def corpus_hash(train: Ids, validation: Ids, *, tokenizer: str | None) -> str:
    """SHA-256 over the exact tokens of both splits, in hex.

    Args:
        train: Tokens.
        validation: Tokens.
        tokenizer: Hash of the tokenizer; None for bytes and symbols, which mean themselves.
    """
    digest = hashlib.sha256()
    if tokenizer is not None:
        digest.update(f"tokenizer {tokenizer} {train.dtype.name}\n".encode())
    for name, tokens in zip(SPLITS, (train, validation), strict=True):
        digest.update(f"{name} {len(tokens)}\n".encode())
        for start in range(0, len(tokens), _PIECE):
            # A piece at a time, so that a corpus larger than memory is not held in it.
            digest.update(np.ascontiguousarray(tokens[start : start + _PIECE]).data)
    return digest.hexdigest()


def _hash_of(train: Ids, validation: Ids, tokenizer: Mapping[str, Any]) -> str:
    """The corpus's hash; `tokenizer` as a manifest has it."""
    named = None if tokenizer["kind"] == "bytes" else tokenizer["sha256"]
    return corpus_hash(train, validation, tokenizer=named)


def open_tokens(key: str) -> TokenFiles | None:
    """The entry of that key, all of it read and checked; None where there is none that is right."""
    folder = _folder_of(key)
    try:
        plain = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**plain)
        if manifest.format != FORMAT or manifest.key != key:
            raise ValueError(f"its manifest is of format {manifest.format}, key {manifest.key}")
        train, validation = (_map(folder / f"{name}.bin", manifest, name) for name in SPLITS)
        tokenizer_json = (folder / _TOKENIZER).read_text(encoding="utf-8")
        if hashlib.sha256(tokenizer_json.encode()).hexdigest() != manifest.tokenizer["json_sha256"]:
            raise ValueError("its tokenizer is not the one that was written")
        if _hash_of(train, validation, manifest.tokenizer) != manifest.sha256:
            raise ValueError("its tokens are not those that were written")
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.exists():
            _log.warning("prepared corpus %s is not whole, making it anew: %s", folder, error)
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("prepared corpus %s is damaged, making it anew: %s", folder, error)
        return None
    return TokenFiles(folder, manifest, train, validation, tokenizer_json)


def _map(file: Path, manifest: Manifest, split: str) -> Ids:
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    count = manifest.tokens[split]
    if file.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes, not {count:,} tokens")
    return _mapped(file, dtype, count)


def _mapped(file: Path, dtype: np.dtype[Any], count: int) -> Ids:
    # An empty file cannot be mapped.
    if not count:
        return np.zeros(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,))


def _folder_of(key: str) -> Path:
    return cache_folder() / "corpora" / key[:20]


@contextmanager
def making(key: str, *, waiting: Callable[[], None]) -> Iterator[HeldLock]:
    """Hold the right to make an entry; whoever else wants it waits.

    Args:
        key: Of the entry.
        waiting: Called about once a second while another process makes it.

    Raises:
        StoreError: The folder cannot be made or written to.
    """
    path = _folder_of(key).with_suffix(".lock")
    try:
        while (lock := try_hold(path, timeout_s=_WAIT_S)) is None:
            waiting()
    except StoreError as error:
        raise StoreError(f"{error}. {_ELSEWHERE}") from error
    with lock:
        yield lock


class TokenWriter:
    """Writes an entry; a `with` block that ends by an exception leaves nothing behind.

    Args:
        key: Of the entry, whose lock is held.
    """

    def __init__(self, key: str) -> None:
        """Nothing is touched yet."""
        self._key, self._final = key, _folder_of(key)
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        # Locks of some shared file systems mean nothing to other hosts.
        self._own = f".{self._final.name}.{platform.node()}"
        self.folder = self._final.with_name(f"{self._own}.{os.getpid()}.tmp")
        self.tokens = dict.fromkeys(SPLITS, 0)
        self._files: dict[str, BinaryIO] = {}
        self._began = time.monotonic()

    def __enter__(self) -> TokenWriter:
        # What killed processes left of the same entry.
        for left in self._final.parent.glob(f"{glob.escape(self._own)}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        with self._errors():
            self.folder.mkdir(parents=True)
        return self

    def begin(self, dtype: np.dtype[Any]) -> None:
        """Open the files for ids of this type."""
        self._dtype = dtype.newbyteorder("<")
        with self._errors():
            self._files = {name: (self.folder / f"{name}.bin").open("wb") for name in SPLITS}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            # A full disk is met here again, after it was met and told of.
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, split: str, ids: Ids) -> None:
        """Append tokens to a split.

        Raises:
            StoreError: The disk is full or refuses.
        """
        with self._errors():
            self._files[split].write(ids.astype(self._dtype, copy=False).tobytes())
        self.tokens[split] += len(ids)

    def finish(self, *, tokenizer_json: str, **facts: Any) -> None:
        """Put the entry in its place.

        Args:
            tokenizer_json: The tokenizer.
            facts: The fields of `Manifest` that only the caller knows.
        """
        with self._errors():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
            (self.folder / _TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            train, validation = (
                _mapped(self.folder / f"{name}.bin", self._dtype, self.tokens[name])
                for name in SPLITS
            )
            facts["tokenizer"] = {
                **facts["tokenizer"],
                "json_sha256": hashlib.sha256(tokenizer_json.encode()).hexdigest(),
            }
            manifest = Manifest(
                format=FORMAT,
                key=self._key,
                dtype=self._dtype.name,
                tokens=self.tokens,
                sha256=_hash_of(train, validation, facts["tokenizer"]),
                made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                seconds=round(time.monotonic() - self._began, 1),
                **facts,
            )
            text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
            (self.folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")
            if self._final.exists():
                # It was there and not right, or its maker's lock meant nothing to this host's.
                spoilt = self.folder.with_suffix(".old.tmp")
                os.rename(self._final, spoilt)
                shutil.rmtree(spoilt, ignore_errors=True)
            os.rename(self.folder, self._final)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = store_error(error, path=self.folder, action="write tokens to")
            raise StoreError(f"{told}. Nothing half-made is left there. {_ELSEWHERE}") from error


def file_facts(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each file; those of large files are remembered by size and time.

    Raises:
        StoreError: One cannot be read.
    """
    return [_file_facts(file) for file in files]


_REMEMBERED_BYTES = 64 << 20


def _file_facts(file: Path) -> dict[str, Any]:
    try:
        path, stat = file.resolve(), file.stat()
        facts = {"path": str(path), "bytes": stat.st_size}
        if stat.st_size < _REMEMBERED_BYTES:
            return facts | {"sha256": _sha256_of(file)}
        signature = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:20]
        memory = cache_folder() / "files" / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(memory.read_text(encoding="utf-8"))
            if known["signature"] == signature:
                return facts | {"sha256": known["sha256"]}
        sha256 = _sha256_of(file)
    except OSError as error:
        raise store_error(error, path=file, action="read") from error
    # It is a saving only: a cache that cannot be written to is told of where tokens are written.
    with contextlib.suppress(StoreError):
        write_json(memory, {"signature": signature, "sha256": sha256})
    return facts | {"sha256": sha256}


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
