"""The cells that a study writes out: what they may be, and what is said of those that may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wesar_sweep.config import dump_study, grid_cells, listed_cells, load_study, parse_study
from wesar_sweep.config.load import study_hash
from wesar_sweep.config.yaml12 import parse
from wesar_sweep.errors import ConfigError
from wesar_sweep.studies.check import check

SPACE = {
    "method": ["he", "wesar"],
    "lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
}
HE = {"method": "he", "lr": 3e-3}
WESAR = {"lr": 1e-3, "method": "wesar", "sigma2": 4e-5}


def study(*cells: dict[str, Any], **changes: Any) -> Any:
    sampler = {"name": "listed", "listed": list(cells)}
    return parse_study({"name": "s", "space": SPACE, "sampler": sampler, **changes})


def complaints(*cells: dict[str, Any], **changes: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        study(*cells, **changes)
    return [(p.path or "", p.message, p.allowed or p.hint or "") for p in caught.value.problems]


def test_cells_keep_their_order_and_read_back() -> None:
    found = study(WESAR, HE)
    assert parse_study(parse(dump_study(found)).value) == found
    cells = listed_cells(found)
    assert cells == [WESAR, HE]
    assert list(cells[0]) == ["method", "lr", "sigma2"], "as a grid has them"
    assert study_hash(found) != study_hash(study(HE, WESAR))


def test_a_grid_lists_its_cells_and_a_sampler_none() -> None:
    grid = parse_study({"name": "s", "space": {"lr": [1e-3, 1e-2]}})
    assert listed_cells(grid) == grid_cells(grid)
    random = {"name": "random", "cells": 3}
    assert listed_cells(parse_study({"name": "s", "space": SPACE, "sampler": random})) is None


def test_whole_numbers_are_fractions_where_the_knob_is_one() -> None:
    space = {"lr": {"low": 1, "high": 3}}
    found = study({"lr": 2}, space=space)
    assert type(found.sampler.listed[0]["lr"]) is float


@pytest.mark.parametrize(
    ("cell", "path", "message", "words"),
    [
        ({"method": "he", "lr": 1.0}, "[0].lr", "does not have this value", "from 0.0001 to 0.1"),
        ({"method": "he", "lr": True}, "[0].lr", "does not have this value", "a number from"),
        ({"method": "hee", "lr": 1e-3}, "[0].method", "does not have this value", "he, wesar"),
        ({**WESAR, "sigma2": 1e-4}, "[0].sigma2", "does not have this value", "4.0e-05, 0.001"),
        ({"method": "he"}, "[0]", "lr is missing", "a number from"),
        ({"method": "wesar"}, "[0]", "lr and sigma2 are missing", "sigma2: 4.0e-05, 0.001"),
        ({**HE, "sigma2": 1e-3}, "[0].sigma2", "no sigma2 in a cell of method: he", "condition"),
        ({**HE, "width": 32}, "[0].width", "does not vary this", "method, lr, sigma2"),
        ({**HE, "lrr": 1}, "[0].lrr", "does not vary this", "method, lr, sigma2"),
    ],
)
def test_a_cell_must_lie_in_the_space(cell: Any, path: str, message: str, words: str) -> None:
    ((where, said, allowed),) = complaints(cell)
    assert where == f"sampler.listed{path}" and message in said and words in allowed


def test_what_depends_on_a_wrong_knob_is_not_judged() -> None:
    # Without a method nobody knows whether it has a sigma2.
    assert [said for _, said, _ in complaints({"lr": 1e-3})] == ["method is missing from this cell"]
    assert len(complaints({"lr": 1e-3, "method": "hee", "sigma2": 7.0})) == 1


def test_of_a_list_that_is_wrong_itself_nothing_else_is_said() -> None:
    assert [path for path, *_ in complaints({"method": "he", "lr": [1e-3]})] == [
        "sampler.listed[0].lr"
    ]
    # A parameter that is wrong is said once, not again for each cell.
    assert len(complaints(HE, space={**SPACE, "lr": {"low": 1, "high": 0.1, "log": True}})) == 1


@pytest.mark.parametrize(
    ("sampler", "path", "message"),
    [
        ({"name": "listed"}, "sampler", "needs the cells"),
        ({"name": "listed", "listed": []}, "sampler.listed", ""),
        ({"name": "listed", "listed": [HE], "cells": 3}, "sampler.cells", "every cell"),
        ({"name": "grid", "listed": [HE]}, "sampler.listed", "takes no list"),
        ({"name": "tpe", "cells": 3, "listed": [HE]}, "sampler.listed", "takes no list"),
        ({"name": "listed", "listed": [HE, WESAR, HE]}, "sampler.listed[2]", "listed twice"),
        ({"name": "listed", "listed": [HE], "along": "lr"}, "sampler.along", "along a knob"),
    ],
)
def test_the_list_goes_with_its_sampler(sampler: Any, path: str, message: str) -> None:
    space = SPACE if sampler["name"] != "grid" else {**SPACE, "lr": [1e-3, 3e-3]}
    with pytest.raises(ConfigError) as caught:
        parse_study({"name": "s", "space": space, "sampler": sampler})
    (problem,) = caught.value.problems
    assert problem.path == path and message in problem.message


def test_it_has_no_options() -> None:
    sampler = {"name": "listed", "listed": [HE], "options": {"multivariate": True}}
    with pytest.raises(ConfigError, match="the sampler listed has no options"):
        check(parse_study({"name": "s", "space": SPACE, "sampler": sampler}))


def test_only_listed_cells_finish_others_and_as_many_as_were_drawn() -> None:
    whose = {"study": "x", "hash": "ab", "pruned": 7, "drawn": 1, "seed": 0}
    assert study(HE, finishes=whose).finishes.pruned == 7
    assert study_hash(study(HE, finishes=whose)) == study_hash(study(HE)), "it changes no run"
    ((path, said, _),) = complaints(HE, WESAR, finishes=whose)
    assert path == "finishes.drawn" and said == "2 cells are listed"
    ((path, said, _),) = complaints(HE, WESAR, finishes={**whose, "drawn": 2, "pruned": 1})
    assert path == "finishes.drawn" and said == "no more than 1 were pruned"
    # One key is wrong, and no other is missed for that.
    ((path, *_),) = complaints(HE, finishes={**whose, "drawn": 0})
    assert path == "finishes.drawn"
    grid = {"name": "s", "space": {"lr": [1e-3]}, "finishes": whose}
    with pytest.raises(ConfigError, match="as listed ones"):
        parse_study(grid)


def test_errors_have_their_line(tmp_path: Path) -> None:
    text = "space: {lr: [1e-3, 1e-2]}\nsampler:\n  name: listed\n  listed:\n"
    (tmp_path / "s.yaml").write_text(text + "    - {lr: 1e-3}\n    - {lr: 1e-1}\n    - {}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "s.yaml")
    assert [(p.line, p.column, p.value) for p in caught.value.problems] == [
        (6, 12, "1e-1"),
        (7, 7, "{}"),
    ]


def test_cells_that_train_the_same_are_told() -> None:
    """Without a condition a σ² may stand in a cell whose method has none: it changes no run."""
    cells = [{"method": "he", "sigma2": 1e-5}, {"method": "he", "sigma2": 4e-5}]
    space = {"method": ["he", "wesar"], "sigma2": [1e-5, 4e-5]}
    study = {"space": space, "sampler": {"name": "listed", "listed": cells}}
    with pytest.raises(ConfigError, match="trains what number 1 does"):
        parse_study(study)
    wesar = [{**cell, "method": "wesar"} for cell in cells]
    parse_study({"space": space, "sampler": {"name": "listed", "listed": wesar}})
