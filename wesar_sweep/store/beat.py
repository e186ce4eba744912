"""A worker's sign of life: what it trains, how fast, on what. For displays alone.

Whether a worker lives is told by the lock on `StudyDirectory.worker_lock_file`, not by a beat's
age. Of a study that several hosts share, whose locks do not see each other, it is told by when the
lock's file was last touched: displays do without the database.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, NamedTuple

from wesar_sweep.store.atomic import write_json
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import is_held
from wesar_sweep.store.storage_record import read_storage_record

WorkerState = Literal["starting", "training", "idle", "stopping", "finished", "failed"]


class SlotBeat(NamedTuple):
    """What one slot trains."""

    trial: int
    seed: int
    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One worker at one moment."""

    worker: str
    pid: int
    host: str
    process_started: float | None = None
    """When the process started, in the kernel's ticks: with the number, a process for certain."""
    started_at: float | None = None
    """Seconds since the epoch."""
    device: str = ""
    """``cpu`` or ``cuda``, as torch names it."""
    device_name: str = ""
    """Name of the processor or GPU."""
    state: WorkerState = "starting"
    slots: tuple[SlotBeat, ...] = ()
    slot_count: int | None = None
    """K, the slots of the stack; None before there is one."""
    runs_done: int = 0
    """Runs this worker has finished since it started."""
    tokens: int = 0
    """Tokens trained on since it started."""
    tokens_per_second: float | None = None
    training_seconds: float = 0.0
    """Wall time in training steps since it started."""
    evaluation_seconds: float = 0.0
    """Wall time in evaluations since it started."""
    updated_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    message: str = ""
    """The last thing worth telling, such as why a run failed."""
    corpus_hash: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Name -> version of what only the worker has loaded, such as torch and CUDA."""


def write_beat(directory: StudyDirectory, *, beat: Beat) -> None:
    """Replace the worker's beat, atomically.

    Raises:
        StoreError: The disk is full or refuses.
    """
    write_json(directory.beat_file(beat.worker), asdict(beat))


def read_beats(directory: StudyDirectory) -> list[Beat]:
    """The newest beat of every worker that has one, sorted by worker.

    Tolerant, as a display should be: what cannot be read is left out, unknown fields are ignored.
    """
    known = {entry.name for entry in fields(Beat)}
    beats = []
    for path in sorted(directory.workers_folder.glob("*.json")):
        try:
            values = {
                key: value for key, value in json.loads(path.read_text()).items() if key in known
            }
            values["slots"] = tuple(SlotBeat(*slot) for slot in values.get("slots", ()))
            beats.append(Beat(**values))
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return beats


def living_beats(directory: StudyDirectory) -> list[Beat]:
    """The beats of workers that live, sorted by worker."""
    return [beat for beat in read_beats(directory) if is_alive(directory, beat)]


def is_alive(directory: StudyDirectory, beat: Beat) -> bool:
    """Whether the worker of a beat lives, as far as its files tell."""
    lock_file = directory.worker_lock_file(beat.worker)
    if is_held(lock_file):
        return True
    if beat.host == platform.node() or beat.state in ("finished", "failed"):
        return False
    record = read_storage_record(directory)
    if record is None:
        return False
    try:
        return time.time() - lock_file.stat().st_mtime < record.heartbeat_grace_s
    except OSError:
        return False
