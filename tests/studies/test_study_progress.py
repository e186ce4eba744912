"""Counts of a study in progress."""

from __future__ import annotations

import os
from pathlib import Path

from fabricated_runs import (
    LR,
    curve_of,
    diverged,
    drain,
    failed,
    finish,
    make_study,
    outcome_of,
)

from wesar_sweep.store.beat import Beat, SlotBeat, write_beat
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.progress import Progress, summary
from wesar_sweep.studies.queue import CellQueue


def test_from_nothing_to_done(tmp_path: Path, each_database: str) -> None:
    study, directory = make_study(retries=1), StudyDirectory(tmp_path / "s")
    progress = Progress(directory, study)
    now = progress.read()
    assert (now.cells, now.runs, now.waiting, now.runs_done, now.complete) == (3, 6, 6, 0, False)
    with CellQueue(study, directory, "w0") as queue:
        a, b, c, d = queue.take(4)
        finish(queue, outcome_of(a), curve_of())
        finish(queue, diverged(b), curve_of())
        finish(queue, failed(c), None)
        slots = (SlotBeat(*c.key, 0, 300), SlotBeat(*d.key, 5, 300), SlotBeat(*a.key, 300, 300))
        write_beat(directory, beat=Beat(worker="w0", pid=os.getpid(), host="h", slots=slots))
        now = progress.read()
        assert (now.completed, now.diverged, now.failed, now.retrying) == (1, 1, 0, 1)
        assert (now.running, now.waiting, now.workers) == (2, 2, 1)
        assert (now.cells_done, now.tokens) == (1, 2000)
        finish(queue, failed(d), None)
        drain(queue, train=failed, slots=1)
    # The beat is still there; its worker is not.
    now = progress.read()
    assert (now.running, now.workers) == (0, 0)
    assert (now.failed, now.retrying, now.waiting, now.complete) == (4, 0, 0, True)
    assert (now.cells_done, now.cells_failed) == (3, 2)
    assert summary(directory, study) == now


def test_a_failed_cell_of_a_sampler_is_replaced(tmp_path: Path, each_database: str) -> None:
    study = make_study(
        space={"lr": LR}, sampler={"name": "random", "cells": 3}, replicates=1, retries=0
    )
    directory = StudyDirectory(tmp_path / "s")
    with CellQueue(study, directory, "w0") as queue:
        (run,) = queue.take(1)
        finish(queue, failed(run), None)
        now = summary(directory, study)
        assert (now.cells, now.cells_failed, now.cells_done, now.complete) == (4, 1, 1, False)
        drain(queue)
    now = summary(directory, study)
    assert (now.cells, now.completed, now.failed, now.complete) == (4, 3, 1, True)
