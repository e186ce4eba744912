"""A study goes on with more seeds, trained for real; one that differs otherwise is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import wesar_sweep as ws
from wesar_sweep.config import parse_study, study_hash
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.driver import _asks_for_more_seeds
from wesar_sweep.errors import StoreError
from wesar_sweep.store.provenance import read_provenance

ADAPTIVE = {"min": 2, "max": 4, "until": {"divergence_halfwidth": 0.25}}


def tiny(replicates: object, **changes: Any) -> Study:
    return parse_study(
        {
            "name": "tiny",
            "space": {"lr": [1e-3, 1e5]},
            "replicates": replicates,
            "method": "he",
            "model": {"width": 8, "depth": 1, "heads": 2, "context": 8},
            "training": {"steps": 16, "batch": 2, "warmup": 2},
            "data": {"source": "synthetic", "length": 20000},
            "evaluation": {"sequences": 4},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("former", "now", "goes_on"),
    [
        (2, 3, True),
        (2, ADAPTIVE, True),
        (ADAPTIVE, 4, True),
        (3, 2, False),
        (3, ADAPTIVE, False),
        (ADAPTIVE, 3, False),
    ],
)
def test_only_a_study_that_asks_for_no_fewer_goes_on(
    former: object, now: object, goes_on: bool
) -> None:
    assert _asks_for_more_seeds(tiny(now), tiny(former)) == goes_on
    other = tiny(former, space={"lr": [1e-3, 1e4]})
    assert not _asks_for_more_seeds(tiny(now), other)


def test_a_boundary_search_goes_on_with_no_other_number_of_seeds() -> None:
    search = {
        "space": {"lr": {"low": 1e-3, "high": 1.0, "log": True}},
        "sampler": {"name": "boundary", "along": "lr", "cells": 4},
    }
    assert not _asks_for_more_seeds(tiny(3, **search), tiny(2, **search))


def test_runs_keep_their_place(tmp_path: Path) -> None:
    def run(study: Study) -> ws.Result:
        return ws.run(study, on=Sweep(launcher="inline"), out=tmp_path / "out", quiet=True)

    before = run(tiny(2)).outcomes
    result = run(tiny(ADAPTIVE))
    after = result.outcomes
    assert after.height == 8 and result.summary.complete
    assert after.filter(after["seed"] < 2).equals(before)
    assert after.filter(after["trial"] == 1)["status"].unique().to_list() == ["diverged"]
    assert read_provenance(result.directory)["study_hash"] == study_hash(tiny(ADAPTIVE))
    with pytest.raises(StoreError, match="holds another study"):
        run(tiny(2))
    assert result.analysis.further_seeds["further"].to_list() == [2, 2]
