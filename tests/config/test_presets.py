"""Shapes by name: their numbers, what wins over them, and what is said of a wrong name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from wesar_sweep.config import Study, dump_study, json_schema, parse_study, study_hash, yaml12
from wesar_sweep.config.knobs import Model
from wesar_sweep.config.parameter_count import model_parameters
from wesar_sweep.config.presets import PRESETS
from wesar_sweep.config.run import make_run
from wesar_sweep.config.space import Choices

SPACE = "space: {lr: [1e-3]}\n"


@pytest.mark.parametrize(
    ("name", "parameters", "width", "depth", "heads"),
    [
        ("130m", 130e6, 768, 12, 12),
        ("1.3b", 1.3e9, 2048, 24, 16),
        ("13b", 13e9, 5120, 40, 40),
    ],
)
def test_the_names_count_parameters(
    name: str, parameters: float, width: int, depth: int, heads: int
) -> None:
    """With the vocabulary of the paper, within 5 %."""
    data = {"source": "text", "paths": ["x"], "tokenizer": {"kind": "bpe", "vocabulary": 32_000}}
    study = parse_study({"space": {"lr": [1e-3]}, "model": {"preset": name}, "data": data})
    shape = make_run(study, 0, 0, {"lr": 1e-3}).architecture
    assert (shape.width, shape.depth, shape.heads) == (width, depth, heads)
    assert (shape.ffn, shape.ffn_width, shape.context) == ("gelu", 4 * width, 2048)
    assert (shape.position, shape.tied, shape.qk_norm) == ("rope", False, False)
    assert model_parameters(shape) == pytest.approx(parameters, rel=0.05)


def test_presets_give_every_key() -> None:
    for preset in PRESETS.values():
        assert preset.model_fields_set == set(Model.model_fields)


def test_the_resolved_study_shows_the_numbers(load: Callable[..., Study]) -> None:
    study = load(SPACE + "model: {preset: 130m}\n")
    resolved = dump_study(study)
    assert "preset" not in resolved
    assert "  width: 768\n  depth: 12\n  heads: 12\n  context: 2048\n" in resolved
    by_hand = load(SPACE + "model: {width: 768, depth: 12, heads: 12, context: 2048}\n")
    assert study == by_hand
    assert study_hash(study) == study_hash(by_hand)
    assert parse_study(yaml12.parse(resolved).value) == study


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("{preset: 130m, depth: 3, tied: true}", ()),
        ("{depth: 3, tied: true, preset: 130m}", ()),
        ("{depth: 3, tied: true}", ("model.preset=130m",)),
        ("{preset: 13b}", ("model.depth=3", "model.preset=130m", "model.tied=true")),
    ],
)
def test_keys_beside_a_preset_win(
    load: Callable[..., Study], model: str, overrides: tuple[str, ...]
) -> None:
    study = load(SPACE + f"model: {model}\n", *overrides)
    assert (study.model.width, study.model.depth, study.model.tied) == (768, 3, True)


def test_null_is_no_preset(load: Callable[..., Study]) -> None:
    assert load(SPACE + "model: {preset: null}\n") == load(SPACE)
    assert load(SPACE + "model: {preset: 13b}\n", "model.preset=null") == load(SPACE)


@pytest.mark.parametrize(
    "width", ["[384, 768]", "{choices: [384, 768]}", "{low: 384, high: 768, step: 384}", "384"]
)
def test_a_searched_knob_wins(load: Callable[..., Study], width: str) -> None:
    study = load(f"space:\n  width: {width}\nmodel: {{preset: 130m}}\n")
    assert make_run(study, 0, 0, {"width": 384}).architecture.width == 384
    assert make_run(study, 0, 0, {"width": 384}).architecture.heads == 12
    assert "width" not in study.model.model_fields_set


def test_a_knob_searched_under_a_condition_is_else_the_presets(load: Callable[..., Study]) -> None:
    width = "{choices: [384], when: {method: he}}"
    study = load(f"space:\n  method: [he, wesar]\n  width: {width}\nmodel: {{preset: 130m}}\n")
    assert study.model.width == 768


def test_python_values() -> None:
    lr = Choices(choices=(1e-3,))
    searched = {"lr": lr, "width": Choices(choices=(384,))}
    study = parse_study({"space": searched, "model": {"preset": "130m"}})
    assert "width" not in study.model.model_fields_set
    conditional = Choices(choices=(384,), when={"method": ("he",)})
    space = {"method": ["he", "wesar"], "width": conditional}
    assert parse_study({"space": space, "model": {"preset": "130m"}}).model.width == 768
    raw: dict[str, Any] = {"space": {"lr": lr}, "model": {"preset": "130m"}}
    parse_study(raw)
    assert raw["model"] == {"preset": "130m"}, "the caller's values are left alone"


@pytest.mark.parametrize(
    ("written", "shown", "hint"),
    [
        ("130M", "130M", "    hint: did you mean 130m?"),
        ("1.3bn", "1.3bn", "    hint: did you mean 1.3b?"),
        ("7b", "7b", None),
        ("13", "13", "    hint: did you mean 13b?"),
        ("[13b]", None, None),
    ],
)
def test_a_wrong_name(
    refusal: Callable[..., str], written: str, shown: str | None, hint: str | None
) -> None:
    """Named with its line; nothing is said of the heads that the unknown shape may divide."""
    said = refusal(SPACE + f"model:\n  heads: 5\n  preset: {written}\n").splitlines()
    assert said[0] == "study.yaml:4:11: model.preset: there is no such preset"
    assert "    allowed: 130m, 1.3b, 13b" in said
    assert shown is None or f"    value: {shown}" in said
    if hint is not None:
        assert hint in said
    over = refusal(SPACE, f"model.preset={written}").splitlines()
    assert over[0] == f"--set model.preset={written}: model.preset: there is no such preset"


def test_what_does_not_fit_the_shape_is_found(refusal: Callable[..., str]) -> None:
    assert refusal(SPACE + "model: {preset: 130m, heads: 5}\n").startswith(
        "study.yaml:2:1: model.width: width 768 is not divisible by heads 5"
    )


def test_it_belongs_under_model(refusal: Callable[..., str]) -> None:
    assert "    hint: preset belongs under model" in refusal(SPACE + "preset: 13b\n")
    assert "there is no such knob" in refusal("space: {preset: [130m, 13b]}\n")


def test_the_schema_knows_it() -> None:
    check = jsonschema.Draft202012Validator(json_schema("study"))
    for name in (*PRESETS, None):
        assert check.is_valid({"space": {"lr": 1}, "model": {"preset": name}})
    assert not check.is_valid({"space": {"lr": 1}, "model": {"preset": "7b"}})
