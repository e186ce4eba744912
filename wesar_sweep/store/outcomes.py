"""Outcomes on disk: one append-only file of JSON lines a worker.

A row written here is the commit point of a run: it will never be trained again. One process writes
a file; any number read. A last line without its newline was cut off by a kill and is left out; the
writer mends it before its next row. Floats that are not finite are written as null beside
``"nonfinite": {"val_loss": "nan"}``, because JSON has no word for them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Outcome

_FIELDS = frozenset(field.name for field in fields(Outcome))
_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_outcome(outcome: Outcome) -> str:
    """One line of JSON, without its newline."""
    row = asdict(outcome)
    nonfinite: dict[str, str] = {}

    def plain(name: str, value: Any) -> Any:
        # json does not know numpy's scalars.
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, float) and not math.isfinite(value):
            nonfinite[name] = str(value)
            return None
        return value

    for name, value in row.items():
        if name == "evaluations":
            row[name] = {
                key: {figure: plain(f"{name}.{key}.{figure}", x) for figure, x in figures.items()}
                for key, figures in value.items()
            }
        elif name == "hyperparameters":
            row[name] = {key: plain(f"{name}.{key}", knob) for key, knob in value.items()}
        else:
            row[name] = plain(name, value)
    if nonfinite:
        row["nonfinite"] = nonfinite
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode_outcome(line: str) -> Outcome:
    """The outcome of one line. Fields that a newer version may have added are left out.

    Raises:
        ValueError: The line is not a JSON object with the fields of an outcome.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("the line is not a JSON object")
    for name, word in row.pop("nonfinite", {}).items():
        *heads, last = name.split(".")
        place = row
        for head in heads:
            place = place[head]
        place[last] = _NAMES[word]
    try:
        return Outcome(**{name: value for name, value in row.items() if name in _FIELDS})
    except TypeError as error:
        raise ValueError(str(error)) from error


def better(old: Outcome, new: Outcome) -> Outcome:
    """The row that stands for a run that has two: a result beats a failure, then the later try.

    Of equals the one of the worker whose name comes first, so that all readers keep the same one,
    in whatever order they came upon the two.
    """
    if (old.status == "failed") != (new.status == "failed"):
        return new if old.status == "failed" else old
    if new.attempt == old.attempt:
        return new if new.worker < old.worker else old
    return new if new.attempt > old.attempt else old


@dataclass(slots=True)
class OutcomeWriter:
    """Appends one worker's outcomes, each call one write that is on the disk when it returns."""

    directory: StudyDirectory
    worker: str

    def append(self, *outcomes: Outcome) -> None:
        """Write rows for good.

        Raises:
            StoreError: The disk is full or refuses. A row that is not whole does not count: what
                part of it was written is a torn line, which readers leave out.
        """
        path = self.directory.outcomes_file(self.worker)
        lines = "".join(
            encode_outcome(replace(outcome, worker=outcome.worker or self.worker)) + "\n"
            for outcome in outcomes
        ).encode()
        if not lines:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _mend_tail(descriptor)
                written = os.write(descriptor, lines)
                if written != len(lines):
                    # Only a full disk shortens a write to a regular file; the next write says so.
                    os.write(descriptor, lines[written:])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise store_error(error, path=path) from error


def _mend_tail(descriptor: int) -> None:
    """End a torn last line: finish it where only its newline is missing, else cut it off."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    data = os.pread(descriptor, size, 0)
    start = data.rfind(b"\n") + 1
    try:
        decode_outcome(data[start:].decode())
    except (ValueError, KeyError):
        os.ftruncate(descriptor, start)
    else:
        os.write(descriptor, b"\n")


class OutcomeReader:
    """Reads all outcome files of a study, again and again, and parses each row once.

    For progress displays and queues: a second `read` costs one `stat` a file where nothing is new.
    """

    def __init__(self, directory: StudyDirectory) -> None:
        """Remember the directory; nothing is read yet."""
        self._directory = directory
        self._offsets: dict[Path, int] = {}
        self._lines: dict[Path, int] = {}
        self._rows: dict[tuple[int, int], Outcome] = {}

    @property
    def rows(self) -> dict[tuple[int, int], Outcome]:
        """(trial, seed) -> the row that stands for it, as of the last `read`. Not a copy."""
        return self._rows

    def read(self) -> list[Outcome]:
        """One row a (trial, seed), sorted by it: a result beats a failure, else the latest attempt.

        Raises:
            StoreError: A line other than a torn last one is not an outcome; names file and line.
                Nothing is changed on disk.
        """
        self.refresh()
        return [self._rows[key] for key in sorted(self._rows)]

    def refresh(self) -> int:
        """Read what is new and return how many new lines there were.

        Raises:
            StoreError: As `read`.
        """
        folder = self._directory.outcomes_folder
        new = 0
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
            offset = self._offsets.get(path, 0)
            try:
                if path.stat().st_size <= offset:
                    continue
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
            except OSError as error:
                raise store_error(error, path=path, action="read") from error
            whole = data[: data.rfind(b"\n") + 1]
            new += self._parse(path, whole)
            self._offsets[path] = offset + len(whole)
        return new

    def _parse(self, path: Path, data: bytes) -> int:
        number = self._lines.get(path, 0)
        first = number
        for raw in data.splitlines():
            number += 1
            if not raw.strip():
                continue
            try:
                outcome = decode_outcome(raw.decode())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{path}:{number}: this line is not an outcome ({error}); the file was damaged "
                    "from outside. Mend that line by hand, or remove it: then the run it held is "
                    "trained again"
                ) from error
            key = (outcome.trial, outcome.seed)
            known = self._rows.get(key)
            self._rows[key] = outcome if known is None else better(known, outcome)
        self._lines[path] = number
        return number - first


def read_outcomes(directory: StudyDirectory) -> list[Outcome]:
    """All outcomes of a study, one a (trial, seed), sorted by it.

    Raises:
        StoreError: As `OutcomeReader.read`.
    """
    return OutcomeReader(directory).read()


def finished_keys(outcomes: Iterable[Outcome], *, attempts: int) -> set[tuple[int, int]]:
    """The (trial, seed) that are never trained again.

    Args:
        outcomes: Rows as `read_outcomes` gives them.
        attempts: How many tries a run gets: 1 + `Study.retries`. A failed run with fewer is open.
    """
    return {
        (outcome.trial, outcome.seed)
        for outcome in outcomes
        if outcome.status != "failed" or outcome.attempt >= attempts
    }
