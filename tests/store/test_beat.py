"""Beats: written whole, read tolerantly."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wesar_sweep.store.beat import (
    Beat,
    SlotBeat,
    is_alive,
    living_beats,
    read_beats,
    write_beat,
)
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.storage_record import make_storage_record

BEAT = Beat(
    worker="w0",
    pid=12,
    host="here",
    device="cpu",
    state="training",
    slots=(SlotBeat(3, 0, 20, 300), SlotBeat(3, 1, 0, 300)),
    slot_count=2,
    tokens=4096,
    tokens_per_second=1e4,
    versions={"torch": "2.13.0"},
    corpus_hash="abc",
)


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    made = StudyDirectory(tmp_path)
    made.create()
    return made


def test_the_newest_beat_of_each_worker(directory: StudyDirectory) -> None:
    write_beat(directory, beat=Beat(worker="w0", pid=11, host="here"))
    write_beat(directory, beat=BEAT)
    write_beat(directory, beat=Beat(worker="w1", pid=13, host="here"))
    beats = read_beats(directory)
    assert beats[0] == BEAT
    assert beats[0].slots[0].step == 20
    assert [beat.worker for beat in beats] == ["w0", "w1"]


def test_what_cannot_be_read_is_left_out(directory: StudyDirectory) -> None:
    write_beat(directory, beat=BEAT)
    for name, text in {"w1": '{"worker": "w1", "pi', "w2": "[1]", "w3": '{"worker": "w3"}'}.items():
        directory.beat_file(name).write_text(text)
    assert read_beats(directory) == [BEAT]


def test_a_newer_versions_field_is_ignored(directory: StudyDirectory) -> None:
    write_beat(directory, beat=BEAT)
    path = directory.beat_file("w0")
    path.write_text(path.read_text().replace('"pid"', '"watts": 300, "pid"'))
    assert read_beats(directory) == [BEAT]


def test_a_worker_of_another_host_lives_while_its_file_is_touched(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    directory.create()
    lock_file = directory.worker_lock_file("w0")
    lock_file.touch()
    beat = Beat(worker="w0", pid=1, host="another")
    write_beat(directory, beat=beat)
    # Without a shared database there is no other host.
    assert not is_alive(directory, beat)
    make_storage_record(directory, url="postgresql://h/d", name="s", heartbeat_grace_s=60.0)
    assert is_alive(directory, beat) and living_beats(directory) == [beat]
    assert not is_alive(directory, replace(beat, state="finished"))
    assert not is_alive(directory, replace(beat, host=platform.node())), "its lock is free"
    os.utime(lock_file, (0, time.time() - 61))
    assert not is_alive(directory, beat)
