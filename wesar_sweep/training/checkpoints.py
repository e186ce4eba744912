"""Checkpoints: the state of runs on disk, so that whoever takes them next goes on where they stood.

A file holds every run of one worker's stack at one moment: parameters, moments, effective weights,
the vectors of power iteration, and what the host knows (curves, evaluations). The order of the data
follows from seed and step. Runs do not depend on their neighbours, so a run is taken out of a file
by its key (trial, seed) and put into any slot of any stack of its shape; where several files hold
it, the one with the most steps counts. On a CPU it then ends with the same bits as if nothing had
happened.

Files are safetensors: read without pickle, a row at a time. They appear whole or not at all; a run
whose bytes do not give its checksum is taken from the file before. A file is deleted once each of
its runs has ended or stands in two newer ones, whoever wrote them; a worker keeps four at most.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wesar_sweep.config.run import Run
from wesar_sweep.store import checkpoint_files
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeReader
from wesar_sweep.store.provenance import project_version
from wesar_sweep.training.record import RecordState, RunRecord, SetEvaluation
from wesar_sweep.training.stack import Stack
from wesar_sweep.training.tensor_files import write_tensors

_log = logging.getLogger(__name__)

_FORMAT = 1
_KEPT = 2
"""So many files hold a run, so that one may be damaged."""
_MOST = 4
"""Files of a worker's own that it keeps at most."""
_INDEX = "wesar_sweep"
"""The entry of a file's metadata that says what is in it."""

RunKey = tuple[int, int]
"""Trial and seed."""


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run as it stood."""

    record: RecordState
    rows: dict[str, Tensor]
    """Its rows of the tensors of `Stack.state`."""


@dataclass(frozen=True, slots=True)
class _File:
    """What a checkpoint's header says."""

    path: Path
    written_at: int
    """Nanoseconds since the epoch."""
    runs: dict[RunKey, tuple[int, dict[str, Any]]]
    """Row and entry of each run."""

    def steps(self, key: RunKey) -> int:
        """Steps that a run in it had done."""
        return int(self.runs[key][1]["steps_done"])


class Checkpoints:
    """The checkpoints of a study as one worker writes and reads them. Used by one thread.

    Args:
        directory: The study's directory.
        worker: Whose files are written; only one living worker has the name.
        precision: Of activations: what another precision left is not gone on with.
    """

    def __init__(self, directory: StudyDirectory, *, worker: str, precision: str) -> None:
        """Look at nothing yet; clear away what a killed worker of this name did not finish."""
        self._directory, self._worker = directory, worker
        self._origin = {"format": _FORMAT, "version": project_version(), "precision": precision}
        """What a file must be of to be gone on with."""
        self._known: dict[Path, tuple[tuple[int, int], _File | None]] = {}
        """Path -> its size and time when it was read, and its header; None where it is no use."""
        self._outcomes = OutcomeReader(directory)
        checkpoint_files.clear_unfinished(directory, worker)

    def save(self, stack: Stack, live: Sequence[tuple[int, RunRecord]]) -> None:
        """Write the runs of a stack, none of whose steps may be under way or unjudged.

        Args:
            stack: Their state on the device.
            live: Slot and record of each.

        Raises:
            StoreError: The disk is full or refuses; older checkpoints are as they were.
        """
        state = stack.state([slot for slot, _ in live])
        tensors = {f"stack/{name}": value for name, value in state.items()}
        entries = []
        for place, (_, record) in enumerate(live):
            kept = record.state()
            for name, array in kept.arrays().items():
                tensors[f"runs/{place}/{name}"] = torch.from_numpy(array)
            entries.append(
                {
                    "trial": record.run.trial,
                    "seed": record.run.seed,
                    "steps_done": record.steps_done,
                    "seconds": kept.seconds,
                    "evaluations": list(kept.evaluations),
                    "sets": list(kept.sets),
                }
            )
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checksum") as pool:
            sums = pool.map(lambda place: _checksum(tensors, place), range(len(live)))
            for entry, checksum in zip(entries, sums, strict=True):
                entry["crc32"] = checksum
        index = {**self._origin, "runs": entries}
        path = checkpoint_files.next_of(self._directory, self._worker)
        write_tensors(path, tensors, metadata={_INDEX: json.dumps(index)})
        self._clear()

    def find(self, run: Run, *, like: Stack) -> SavedRun | None:
        """A run as it stood latest, or None where no checkpoint that can be used holds it.

        Args:
            run: Which.
            like: The stack it is to enter.
        """
        files = [file for file in self._files() if run.key in file.runs]
        for file in sorted(files, key=lambda file: file.steps(run.key), reverse=True):
            try:
                saved = self._read(file, run.key)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                _log.warning("checkpoint %s cannot be read, trying another: %s", file.path, error)
                continue
            shapes = {name: row.shape for name, row in saved.rows.items()}
            if shapes != like.state_shapes():
                _log.warning("checkpoint %s is of another shape of model: not used", file.path)
                continue
            return saved
        return None

    def _clear(self) -> None:
        """Delete the files that are of no use any more."""
        self._outcomes.refresh()
        ended = {key for key, row in self._outcomes.rows.items() if row.status != "failed"}
        newer: Counter[RunKey] = Counter()
        files = sorted(self._files(), key=lambda file: file.written_at, reverse=True)
        for file in files:
            if all(key in ended or newer[key] >= _KEPT for key in file.runs):
                file.path.unlink(missing_ok=True)
            newer.update(file.runs.keys())
        for path in checkpoint_files.written_by(self._directory, self._worker)[:-_MOST]:
            path.unlink(missing_ok=True)

    def _files(self) -> Iterator[_File]:
        """All checkpoints of the study that can be used, whoever wrote them."""
        for path in checkpoint_files.all_of(self._directory):
            if (file := self._header(path)) is not None:
                yield file

    def _header(self, path: Path) -> _File | None:
        """What a file says is in it; None where that is damaged or of no use here."""
        try:
            facts = path.stat()
        except FileNotFoundError:
            return None
        signature = facts.st_size, facts.st_mtime_ns
        known = self._known.get(path)
        if known is None or known[0] != signature:
            self._known[path] = known = signature, self._read_header(path, facts.st_mtime_ns)
        return known[1]

    def _read_header(self, path: Path, written_at: int) -> _File | None:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                index = json.loads((file.metadata() or {})[_INDEX])
            runs = {
                (entry["trial"], entry["seed"]): (place, entry)
                for place, entry in enumerate(index["runs"])
            }
            theirs = {name: index[name] for name in self._origin}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            _log.warning("checkpoint %s is damaged and not used: %s", path, error)
            return None
        if theirs != self._origin:
            _log.warning("checkpoint %s is of %s, not of %s: not used", path, theirs, self._origin)
            return None
        return _File(path, written_at, runs)

    def _read(self, file: _File, key: RunKey) -> SavedRun:
        """One run of a file, checked.

        Raises:
            ValueError: Its bytes do not give its checksum.
        """
        place, entry = file.runs[key]
        own = f"runs/{place}/"
        with safe_open(file.path, framework="pt", device="cpu") as opened:
            names = list(opened.keys())
            rows = {
                name.removeprefix("stack/"): opened.get_slice(name)[place : place + 1]
                for name in names
                if name.startswith("stack/")
            }
            arrays = {
                name.removeprefix(own): opened.get_tensor(name).numpy()
                for name in names
                if name.startswith(own)
            }
        checked = {f"stack/{name}": row for name, row in rows.items()}
        checked |= {f"runs/0/{name}": torch.from_numpy(array) for name, array in arrays.items()}
        if _checksum(checked, 0) != entry["crc32"]:
            raise ValueError(f"the bytes of trial {key[0]}, seed {key[1]} are not those written")
        evaluations = tuple((int(step), float(loss)) for step, loss in entry["evaluations"])
        # Written before there were sets, it has none.
        sets = tuple(SetEvaluation(*one) for one in entry.get("sets", ()))
        record = RecordState.of(
            arrays, seconds=entry["seconds"], evaluations=evaluations, sets=sets
        )
        return SavedRun(record, {name: row[0] for name, row in rows.items()})


def _checksum(tensors: dict[str, Tensor], place: int) -> int:
    """CRC-32 over a run's rows, then its series, each in the order of their names."""
    total, names = 0, sorted(tensors)
    for name in names:
        if name.startswith("stack/"):
            total = zlib.crc32(_bytes(tensors[name][place]), total)
    for name in names:
        if name.startswith(f"runs/{place}/"):
            total = zlib.crc32(_bytes(tensors[name]), total)
    return total


def _bytes(tensor: Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")  # torch will not read an empty tensor as bytes.
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
