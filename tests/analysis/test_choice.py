"""How cells were chosen, and the words that go by it."""

from __future__ import annotations

from typing import Any

import pytest
from invented_study import lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.choice import choice, chosen_words, fixed_beforehand
from wesar_sweep.store.frames import outcomes_frame

HE = {"method": "he", "lr": 1e-3}


@pytest.mark.parametrize(
    ("sampler", "kind", "fixed", "said"),
    [
        ({}, "grid", True, ""),
        ({"name": "listed", "listed": [HE]}, "listed", True, "were written out one by one"),
        ({"name": "random", "cells": 9}, "indifferent", True, "whatever came of others"),
        ({"name": "qmc", "cells": 9}, "indifferent", True, "whatever came of others"),
        ({"name": "tpe", "cells": 9}, "outcomes", False, "good cells by val_loss"),
        ({"name": "boundary", "along": "lr"}, "boundary", False, "where runs begin to diverge"),
    ],
)
def test_each_sampler_has_its_kind_and_its_words(
    sampler: dict[str, Any], kind: str, fixed: bool, said: str
) -> None:
    study = lr_study(sampler=sampler)
    assert (choice(study), fixed_beforehand(study)) == (kind, fixed)
    assert said in chosen_words(study)


def test_cells_that_a_pruner_ended_were_chosen_by_outcomes() -> None:
    whose = {"study": "tpe", "hash": "ab", "pruned": 7, "drawn": 1, "seed": 0}
    study = lr_study(sampler={"name": "listed", "listed": [HE]}, finishes=whose)
    assert not fixed_beforehand(study)
    assert "those that the pruner of tpe ended" in chosen_words(study)


def test_a_study_that_searches_lr_beside_its_axis_is_not_said_to_leave_it_out() -> None:
    study = lr_study(
        space={"method": "wesar", "sigma2": [1e-5, 1e-4, 1e-3], "lr": [1e-3, 1e-2]},
        sampler={"name": "boundary", "along": "sigma2"},
    )
    words = Analysis(study, outcomes_frame([])).verdict.basin
    assert "does not search lr" not in words and "no width is given" in words
