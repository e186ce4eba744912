"""The table of knobs agrees with the models that it is made of."""

from __future__ import annotations

import pytest

from wesar_sweep.config import Model, Training, knob_table
from wesar_sweep.config.knobs import WHOLE_STUDY, Recipe, accepts, canonical


def test_every_field_is_a_knob() -> None:
    assert list(knob_table()) == ["method", *Model.model_fields, *Recipe.model_fields]
    assert not set(Model.model_fields) & set(Training.model_fields)


def test_what_holds_for_the_whole_study_is_none() -> None:
    assert WHOLE_STUDY == ("precision", "deterministic")
    assert list(Training.model_fields) == [*Recipe.model_fields, *WHOLE_STUDY]


@pytest.mark.parametrize(
    ("name", "kind", "allowed", "path"),
    [
        ("width", "integer", "a whole number, at least 1", "model.width"),
        ("ffn_width", "integer", "a whole number, at least 1, or null", "model.ffn_width"),
        ("clip", "number", "a number, above 0, or null", "training.clip"),
        ("beta1", "number", "a number, at least 0 and below 1", "training.beta1"),
        ("tied", "boolean", "true or false", "model.tied"),
        ("schedule", "name", "cosine, linear, wsd, constant", "training.schedule"),
        ("method", "name", "the name of a method", "method"),
    ],
)
def test_table(name: str, kind: str, allowed: str, path: str) -> None:
    knob = knob_table()[name]
    assert (knob.kind, knob.allowed, knob.fixed_path) == (kind, allowed, path)
    assert knob.numeric == (kind in ("integer", "number"))


def test_defaults_are_accepted() -> None:
    assert all(accepts(name, knob.default) for name, knob in knob_table().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("inf")),
        ("lr", float("nan")),
        ("lr", "1e-3"),
        ("lr", True),
        ("lr", None),
        ("width", 3.5),
        ("width", 64.0),
        ("width", True),
        ("clip", 0.0),
        ("beta2", 1.0),
        ("tied", 1),
        ("schedule", "Cosine"),
        ("method", 1),
    ],
)
def test_refused(name: str, value: bool | int | float | str | None) -> None:
    assert not accepts(name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 1), ("clip", None), ("width", 1), ("tied", True)]
)
def test_accepted(name: str, value: bool | int | float | str | None) -> None:
    assert accepts(name, value)


def test_canonical() -> None:
    assert type(canonical("lr", 1)) is float
    assert type(canonical("width", 1)) is int
    # A wrong value stays as it is, for the error that names it.
    assert canonical("lr", True) is True
