"""The studies and sweeps that ship: they load, resolve, and keep what their comments promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wesar_sweep.config import (
    BUILT_IN_METHODS,
    Study,
    Sweep,
    dump_study,
    grid_cells,
    load_study,
    load_sweep,
    parse_study,
    study_hash,
    yaml12,
)
from wesar_sweep.config.boundary import boundary_search
from wesar_sweep.config.listed import listed_cells

ROOT = Path(__file__).parents[2]
REFERENCE = sorted(ROOT.glob("search_spaces/reference/*.yaml"))
STUDIES = [*sorted(ROOT.glob("search_spaces/*.yaml")), *REFERENCE]
COUNTED = [path for path in STUDIES if path.stem != "boundary"]
"""Those whose cells are known beforehand."""
SWEEPS = [
    path
    for path in sorted(ROOT.glob("sweeps/*.yaml"))
    if "storage" in Sweep.model_fields or "postgres" not in path.name
]


def load(name: str) -> Study:
    return load_study(ROOT / "search_spaces" / f"{name}.yaml")


def test_they_are_there() -> None:
    assert {path.stem for path in STUDIES} >= {
        "boundary",
        "lr_sigma",
        "methods",
        "tpe",
        "width_depth",
    }
    assert {path.stem for path in REFERENCE} >= {
        "depth",
        "search",
        "spikes",
        "table6",
        "table6-step-time",
        "table9-130m",
        "table9-proxy",
        "width",
    }
    assert "laptop" in {path.stem for path in SWEEPS}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_resolves_to_itself(path: Path) -> None:
    study = load_study(path)
    again = parse_study(yaml12.parse(dump_study(study)).value)
    assert again == study
    assert study_hash(again) == study_hash(study)
    assert study.name == path.stem
    assert study.title and study.question


def test_boundary_counts_the_runs_that_it_saves() -> None:
    study = load("boundary")
    search = boundary_search(study)
    assert search is not None
    text = (ROOT / "search_spaces/boundary.yaml").read_text(encoding="utf-8")
    runs = len(search.series) * search.grid_values * study.least_replicates
    assert f"instead of a grid's {runs}" in text
    assert f"runs of {study.training.steps} steps" in text


@pytest.mark.parametrize("path", COUNTED, ids=lambda path: path.stem)
def test_comment_counts_the_cells(path: Path) -> None:
    study = load_study(path)
    listed = listed_cells(study)
    cells = study.sampler.cells if listed is None else len(listed)
    text = path.read_text(encoding="utf-8")
    said = re.search(r"(\d+) cells of (\d+) seeds?, .*?(\d+) runs of (\d+) steps", text)
    assert said is not None
    assert [int(number) for number in said.groups()] == [
        cells,
        study.least_replicates,
        (cells or 0) * study.least_replicates,
        study.training.steps,
    ]


@pytest.mark.parametrize("path", [*STUDIES, *SWEEPS], ids=lambda path: path.stem)
def test_begins_with_the_command_that_runs_it(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    folder = path.parent.name
    assert f"{folder}/{path.name}" in head
    assert "wesar-sweep run" in head
    assert folder == "sweeps" or "On a GPU" in head


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_loads(path: Path) -> None:
    load_sweep(path)


def test_methods_has_every_built_in_method() -> None:
    assert set(BUILT_IN_METHODS) == {cell["method"] for cell in grid_cells(load("methods"))}


def test_lr_sigma_varies_sigma2_for_wesar_only() -> None:
    cells = grid_cells(load("lr_sigma"))
    assert all(("sigma2" in cell) == (cell["method"] == "wesar") for cell in cells)
    assert {cell["lr"] for cell in cells} >= {3e-4, 1.0}
