"""A budget of trials: no cell more is started, by whomever; what was started is finished."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_runs import LR, curve_of, drain, finish, make_study, outcome_of, rows

from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import close_study

SAMPLED = {"space": {"lr": LR}, "sampler": {"name": "random", "cells": 5}}


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "s")


@pytest.mark.parametrize("changes", [{}, SAMPLED], ids=["grid", "random"])
def test_two_workers_start_no_more_cells_than_may_be(
    directory: StudyDirectory, changes: dict[str, object]
) -> None:
    study = make_study(**changes)
    with (
        CellQueue(study, directory, "w0", most_cells=2) as a,
        CellQueue(study, directory, "w1", most_cells=2) as b,
    ):
        (first,) = a.take(1)
        finish(b, outcome_of(b.take(1)[0]), curve_of())
        finish(a, outcome_of(first), curve_of())
        drain(a)
        drain(b)
        assert (a.cells_started, b.cells_started) == (1, 1)
        assert not a.may_go_on
    assert len(rows(directory)) == 4
    # The control: with a larger budget the rest of a grid of three, or of five, is trained.
    with CellQueue(study, directory, "w2", most_cells=99) as queue:
        assert queue.may_go_on
        drain(queue)
    assert len(rows(directory)) == 2 * (5 if changes else 3)


def test_a_started_cell_is_gone_on_with(directory: StudyDirectory) -> None:
    """Its worker died: another adopts it though no cell may be started any more."""
    study = make_study()
    dead = CellQueue(study, directory, "w0", most_cells=1)
    (run,) = dead.take(1)
    finish(dead, outcome_of(run), curve_of())
    dead._lock.release()
    close_study(dead._opened)
    with CellQueue(study, directory, "w1", most_cells=1) as queue:
        assert queue.may_go_on
        (other,) = drain(queue)
        assert (other.trial, queue.cells_started) == (run.trial, 0)
        assert not queue.may_go_on
