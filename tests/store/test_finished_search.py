"""The record of a finished search on disk: read back whole, and refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.finished_search import (
    CutCell,
    FinishedSearch,
    WholeCell,
    read_finished_search,
    require_text_of_search,
    write_finished_search,
)
from wesar_sweep.store.layout import StudyDirectory

RECORD = FinishedSearch(
    study="search",
    study_hash="ab",
    pruned=9,
    seed=1,
    corpus_sha256="cd",
    best=WholeCell(
        trial=3,
        params={"method": "he", "lr": 0.1 + 0.2},
        loss=1.0,
        loss_low=None,
        loss_high=None,
        seeds=(0,),
        losses=(1.0,),
    ),
    cells=(
        CutCell(trial=1, params={"method": "he", "clip": None}, step=10, loss=1 / 3, n=2),
        CutCell(trial=2, params={"tied": True}, step=20, loss=None, n=0),
    ),
)


def test_it_is_read_back_whole(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    assert read_finished_search(directory) is None
    write_finished_search(directory, RECORD)
    assert read_finished_search(directory) == RECORD


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"best": {}, "cells": [{"step": 1}]}'])
def test_a_damaged_one_is_named(tmp_path: Path, text: str) -> None:
    directory = StudyDirectory(tmp_path)
    directory.finished_search_file.write_text(text)
    with pytest.raises(StoreError, match=r"finishes\.json does not say what was finished"):
        read_finished_search(directory)


def test_the_text_must_be_that_of_the_search(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    require_text_of_search(directory, sha256="any")
    write_finished_search(directory, RECORD)
    require_text_of_search(directory, sha256="cd")
    with pytest.raises(StoreError, match="corpus has changed since search was trained"):
        require_text_of_search(directory, sha256="ef")
