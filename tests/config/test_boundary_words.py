"""The words of a boundary search: what it goes over, how finely, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from wesar_sweep.config import dump_study, parse_study, study_hash
from wesar_sweep.config.boundary import BoundarySearch, boundary_search
from wesar_sweep.config.yaml12 import parse
from wesar_sweep.errors import ConfigError

LR = {"low": 1e-3, "high": 10, "log": True}
ALONG = {"name": "boundary", "along": "lr"}


def search(space: dict[str, Any], **sampler: Any) -> BoundarySearch:
    study = parse_study({"name": "s", "space": space, "sampler": {**ALONG, **sampler}})
    assert parse_study(parse(dump_study(study)).value) == study
    found = boundary_search(study)
    assert found is not None
    return found


def test_a_range_is_tried_at_quarters_of_the_resolution() -> None:
    found = search({"lr": LR}, options={"resolution": 0.5})
    assert (found.resolution, found.most, found.grid_values, found.log) == (0.5, 12, 9, True)
    assert (found.values[0], found.values[-1], len(found.values)) == (1e-3, 10.0, 33)
    gaps = [math.log10(b / a) for a, b in zip(found.values, found.values[1:], strict=False)]
    assert gaps == pytest.approx([0.125] * 32, abs=1e-3)
    assert search({"lr": LR}).resolution == pytest.approx(0.2)
    assert found.value(found.place(0.02)) == pytest.approx(0.02)


def test_a_list_is_tried_as_it_is() -> None:
    found = search({"lr": [1e-1, 1e-3, 1e-2, 3e-2]}, cells=5)
    assert found.values == (1e-3, 1e-2, 3e-2, 1e-1)
    assert (found.resolution, found.most, found.grid_values) == (pytest.approx(1.0), 5, 3)
    linear = search({"weight_decay": {"low": 0.0, "high": 0.4, "step": 0.1}}, along="weight_decay")
    assert (linear.log, linear.values) == (False, (0.0, 0.1, 0.2, 0.3, 0.4))
    assert (linear.resolution, linear.grid_values) == (pytest.approx(0.1), 5)


def test_every_setting_of_the_other_knobs_is_a_series() -> None:
    sigma2 = {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}}
    found = search({"method": ["he", "wesar"], "lr": LR, "sigma2": sigma2})
    assert found.series == (
        {"method": "he"},
        {"method": "wesar", "sigma2": 4e-5},
        {"method": "wesar", "sigma2": 1e-3},
    )


def test_other_studies_keep_their_hash() -> None:
    # By the commit before there was a search: a study that was begun then goes on.
    study = parse_study({"name": "study", "space": {"lr": [1e-3, 1e-2]}})
    assert study_hash(study).startswith("eb597cc8")
    assert boundary_search(study) is None


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"sampler": {"name": "boundary"}}, "sampler", "needs a knob to go along"),
        ({"sampler": {**ALONG, "along": "method"}}, "sampler.along", "a number that space varies"),
        ({"sampler": {"along": "lr"}}, "sampler.along", "grid does not go along"),
        ({"sampler": {**ALONG, "cells": 2}}, "sampler.cells", "so few cells"),
        ({"sampler": {**ALONG, "options": {"res": 1}}}, "sampler.options.res", "no such option"),
        (
            {"sampler": {**ALONG, "options": {"resolution": 3}}},
            "sampler.options.resolution",
            "does not go with the range",
        ),
        ({"space": {"lr": [1e-3, 1e-2]}}, "space.lr", "at least 3 values"),
        (
            {"space": {"lr": LR, "weight_decay": {"low": 0.0, "high": 0.1}}},
            "space.weight_decay",
            "for each value of the other knobs",
        ),
        (
            {
                "space": {
                    "lr": [1e-3, 1e-2, 1e-1],
                    "clip": {"choices": [1.0, 2.0], "when": {"lr": 1e-3}},
                }
            },
            "space.clip.when",
            "makes no series",
        ),
        ({"pruner": {"name": "wilcoxon"}}, "pruner", "must know whether they diverge"),
        (
            {"replicates": {"min": 3, "max": 5, "until": {"divergence_halfwidth": 0.2}}},
            "replicates",
            "chooses by itself",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], path: str, message: str) -> None:
    raw = {"space": {"lr": LR, "method": ["he", "small"]}, "sampler": ALONG, **changes}
    with pytest.raises(ConfigError) as caught:
        parse_study(raw)
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert message in found[path]
