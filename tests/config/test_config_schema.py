"""The JSON Schema takes what `load_study` takes, shorthands included, and refuses what it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_shipped_files import SWEEPS

from wesar_sweep.config import json_schema, knob_table, parse_study, resolved, yaml12
from wesar_sweep.config.schema import FileKind

ROOT = Path(__file__).parents[2]
FILES: list[tuple[FileKind, Path]] = [
    *(("study", path) for path in sorted(ROOT.glob("search_spaces/*.yaml"))),
    *(("sweep", path) for path in SWEEPS),
]


def is_valid(kind: FileKind, value: object) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema(kind)).is_valid(value))


@pytest.mark.parametrize("kind", ["study", "sweep"])
def test_is_a_schema(kind: FileKind) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(kind))


@pytest.mark.parametrize(("kind", "path"), FILES, ids=[path.name for _, path in FILES])
def test_shipped_files(kind: FileKind, path: Path) -> None:
    jsonschema.Draft202012Validator(json_schema(kind)).validate(yaml12.read(path).value)


def test_resolved_study() -> None:
    study = parse_study({"space": {"lr": {"low": 0.1, "high": 1, "points": 3}, "depth": [1]}})
    plain = yaml12.parse(yaml12.dumps(resolved(study))).value
    jsonschema.Draft202012Validator(json_schema("study")).validate(plain)


@pytest.mark.parametrize(
    "space",
    [
        {"lr": 1e-3},
        {"lr": [1e-3, 1]},
        {"lr": {"choices": [1e-3]}},
        {"lr": {"low": 1e-3, "high": 1, "log": True, "points": 3}},
        {"sigma2": {"choices": [1e-3], "when": {"method": ["wesar"]}}},
        {"method": ["he", "mine"]},
        {"clip": [None, 1.0]},
    ],
)
def test_shorthands(space: dict[str, Any]) -> None:
    assert is_valid("study", {"space": space})


@pytest.mark.parametrize(
    "study",
    [
        {},
        {"space": {"lrs": 1}},
        {"space": {"lr": 0}},
        {"space": {"lr": [1, 1]}},
        {"space": {"lr": []}},
        {"space": {"width": [3.5]}},
        {"space": {"method": {"low": 1, "high": 2}}},
        {"space": {"schedule": ["cosin"]}},
        {"space": {"lr": {"low": 1}}},
        {"space": {}, "training": {"stepz": 1}},
        {"space": {}, "training": {"precision": "fp16"}},
        {"space": {"precision": ["bf16", "fp32"]}},
        {"space": {}, "methods": {"he": {"init": "small"}}},
        {"space": {}, "data": {"source": "txt"}},
    ],
)
def test_refused(study: dict[str, Any]) -> None:
    assert not is_valid("study", study)


def test_every_knob_is_described() -> None:
    space = json_schema("study")["properties"]["space"]["properties"]
    assert list(space) == list(knob_table())
    assert all(
        knob.description in space[name]["description"] for name, knob in knob_table().items()
    )


def test_callers_cannot_change_it() -> None:
    json_schema("study")["properties"].clear()
    assert json_schema("study")["properties"]
