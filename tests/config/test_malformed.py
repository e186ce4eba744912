"""Malformed files and sections, each with its whole error text, and mended: then it must load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wesar_sweep.config import Study, load_study
from wesar_sweep.errors import ConfigError

LR = "space:\n  lr: [1e-3, 1e-2]\n"

CASES = [
    # (what is wrong, the file, the file mended, the error)
    # Files that are not YAML, or not a study's YAML.
    (
        "empty file",
        "",
        LR,
        "study.yaml: the file is empty\n    hint: a study needs at least `space:`",
    ),
    (
        "only comments",
        "# nothing yet\n",
        LR,
        "study.yaml: the file is empty\n    hint: a study needs at least `space:`",
    ),
    (
        "a list",
        "- lr\n- method\n",
        LR,
        "study.yaml:1:1: the file is a list, not a mapping\n"
        "    hint: write `key: value` lines; see `wesar-sweep schema`",
    ),
    (
        "tab as indentation",
        "space:\n\tlr: 1e-3\n",
        "space:\n    lr: 1e-3\n",
        "study.yaml:2:1: a tab is not allowed here\n    value: lr: 1e-3\n    hint: use spaces",
    ),
    (
        "no space after a colon",
        LR + "training:\n  steps:50\n  warmup: 5\n",
        LR + "training:\n  steps: 50\n  warmup: 5\n",
        "study.yaml:4:3: there is no space after the colon\n"
        "    value: steps:50\n"
        "    hint: write `key: value`",
    ),
    (
        "no space after the only colon",
        LR + "training:\n  beta1:0.5\n",
        LR + "training:\n  beta1: 0.5\n",
        "study.yaml:4:3: training: expected a mapping, found text\n"
        "    value: beta1:0.5\n"
        "    allowed: a mapping with the keys {TRAINING_KEYS}\n"
        "    hint: write a space after the colon: beta1: 0.5",
    ),
    (
        "wrong indentation",
        "space:\n  lr: 1e-3\n width: 64\n",
        "space:\n  lr: 1e-3\n  width: 64\n",
        "study.yaml:3:2: this does not fit the lines above\n"
        "    value: width: 64\n"
        "    hint: give the keys of one mapping the same indentation",
    ),
    (
        "list that is not closed",
        "space:\n  lr: [1e-3, 1e-2\nreplicates: 3\n",
        LR + "replicates: 3\n",
        "study.yaml:2:7: this list is not closed\n"
        "    value: lr: [1e-3, 1e-2\n"
        "    hint: separate values by commas and end with ]",
    ),
    (
        "quote that is not closed",
        LR + "title: 'about lr\n",
        LR + "title: 'about lr'\n",
        "study.yaml:3:8: this quoted text is not closed\n"
        "    value: title: 'about lr\n"
        "    hint: end it with the quote that it begins with",
    ),
    (
        "key given twice",
        "space:\n  lr: 1e-3\n  width: 64\n  lr: 1e-2\n",
        "space:\n  lr: 1e-3\n  width: 64\n",
        "study.yaml:4:3: space.lr: the key is given twice, first in line 2\n"
        "    hint: keep one of the two",
    ),
    (
        "merge key",
        "space:\n  <<: {lr: 1e-3}\n",
        "space:\n  lr: 1e-3\n",
        "study.yaml:2:3: merge keys (<<) are not part of YAML 1.2\n"
        "    value: <<\n"
        "    hint: write out the keys that it stands for",
    ),
    (
        "two documents",
        LR + "---\nreplicates: 3\n",
        LR + "replicates: 3\n",
        "study.yaml:3:1: the file holds more than one document\n"
        "    value: ---\n"
        "    hint: remove the line `---`",
    ),
    (
        "tag of another language",
        LR + "title: !!python/name:os.system\n",
        LR + "title: name\n",
        "study.yaml:3:8: the tag !!python/name:os.system is not allowed\n"
        "    value: !!python/name:os.system\n"
        "    hint: remove the tag",
    ),
    (
        "key that is a number",
        LR + "2: x\n",
        LR,
        "study.yaml:3:1: a key must be text\n    value: 2\n    hint: put the key in quotes",
    ),
    # Keys and values of a section.
    (
        "space is missing",
        "training:\n  steps: 50\n",
        LR + "training:\n  steps: 50\n",
        "study.yaml: space is missing\n"
        "    allowed: knobs and what they vary over, such as `space: {lr: [1e-3, 1e-2]}`",
    ),
    (
        "unknown key",
        LR + "training:\n  stepz: 50\n",
        LR + "training:\n  steps: 50\n",
        "study.yaml:4:3: training.stepz: unknown key\n"
        "    value: 50\n"
        "    allowed: {TRAINING_KEYS}\n"
        "    hint: did you mean steps?",
    ),
    (
        "key in the wrong section",
        LR + "model:\n  steps: 50\n",
        LR + "training:\n  steps: 50\n",
        "study.yaml:4:3: model.steps: unknown key\n"
        "    value: 50\n"
        "    allowed: width, depth, heads, context, ffn, ffn_width, position, tied, qk_norm, "
        "preset\n"
        "    hint: steps belongs under training, or under space to vary it",
    ),
    (
        "section key at the top",
        LR + "cells: 3\n",
        LR + "sampler: {name: tpe, cells: 3}\n",
        "study.yaml:3:1: cells: unknown key\n"
        "    value: 3\n"
        "    allowed: {STUDY_KEYS}\n"
        "    hint: cells belongs under sampler",
    ),
    (
        "number too small",
        LR + "training:\n  steps: 0\n",
        LR + "training:\n  steps: 100\n",
        "study.yaml:4:10: training.steps: the number is too small\n"
        "    value: 0\n"
        "    allowed: a whole number, at least 1",
    ),
    (
        "quoted number",
        LR + "training:\n  steps: '50'\n",
        LR + "training:\n  steps: 50\n",
        "study.yaml:4:10: training.steps: expected a whole number, found text\n"
        "    value: '50'\n"
        "    allowed: a whole number, at least 1\n"
        "    hint: write 50, without quotes or separators",
    ),
    (
        "number with underscores",
        LR + "training:\n  steps: 1_000\n",
        LR + "training:\n  steps: 1000\n",
        "study.yaml:4:10: training.steps: expected a whole number, found text\n"
        "    value: 1_000\n"
        "    allowed: a whole number, at least 1\n"
        "    hint: write 1000, without quotes or separators",
    ),
    (
        "fraction for a whole number",
        LR + "training:\n  steps: 50.0\n",
        LR + "training:\n  steps: 50\n",
        "study.yaml:4:10: training.steps: expected a whole number, found a fraction\n"
        "    value: 50.0\n"
        "    allowed: a whole number, at least 1\n"
        "    hint: write 50",
    ),
    (
        "infinite number",
        LR + "training:\n  eps: .inf\n",
        LR + "training:\n  eps: 1e-8\n",
        "study.yaml:4:8: training.eps: the number must be finite\n"
        "    value: .inf\n"
        "    allowed: a number, above 0",
    ),
    (
        "yes and no of YAML 1.1",
        LR + "model:\n  tied: no\n",
        LR + "model:\n  tied: false\n",
        "study.yaml:4:9: model.tied: expected true or false, found text\n"
        "    value: no\n"
        "    allowed: true or false\n"
        "    hint: write true or false: in YAML 1.2 yes, no, on and off are text",
    ),
    (
        "wrong case",
        LR + "model:\n  ffn: SwiGLU\n",
        LR + "model:\n  ffn: swiglu\n",
        "study.yaml:4:8: model.ffn: this is not one of the allowed values\n"
        "    value: SwiGLU\n"
        "    allowed: gelu, swiglu\n"
        "    hint: did you mean swiglu?",
    ),
    (
        "precision that there is not",
        LR + "training:\n  precision: fp16\n",
        LR + "training:\n  precision: bf16\n",
        "study.yaml:4:14: training.precision: this is not one of the allowed values\n"
        "    value: fp16\n"
        "    allowed: bf16, tf32, fp32, or null\n"
        "    hint: did you mean bf16?",
    ),
    (
        "precision at the top",
        LR + "precision: fp32\n",
        LR + "training: {precision: fp32}\n",
        "study.yaml:3:1: precision: unknown key\n"
        "    value: fp32\n"
        "    allowed: {STUDY_KEYS}\n"
        "    hint: precision belongs under training",
    ),
    (
        "determinism as a number",
        LR + "training:\n  deterministic: 1\n",
        LR + "training:\n  deterministic: true\n",
        "study.yaml:4:18: training.deterministic: expected true or false, found a whole number\n"
        "    value: 1\n"
        "    allowed: true or false",
    ),
    (
        "section without content",
        LR + "training:\n",
        LR + "training: {}\n",
        "study.yaml:3:10: training: expected a mapping, found nothing (null)\n"
        "    value: null\n"
        "    allowed: a mapping with the keys {TRAINING_KEYS}\n"
        "    hint: give a value, or remove the key for its default",
    ),
    (
        "sampler as one word",
        LR + "sampler: grid\n",
        LR + "sampler: {name: grid}\n",
        "study.yaml:3:10: sampler: expected a mapping, found text\n"
        "    value: grid\n"
        "    allowed: a mapping with the keys name, listed, along, cells, seed, options\n"
        "    hint: write {name: grid}",
    ),
    (
        "unknown sampler",
        LR + "sampler: {name: bayes, cells: 9}\n",
        LR + "sampler: {name: tpe, cells: 9}\n",
        "study.yaml:3:17: sampler.name: this is not one of the allowed values\n"
        "    value: bayes\n"
        "    allowed: grid, listed, boundary, random, tpe, qmc, cmaes, gp, nsga2",
    ),
    (
        "unknown data source",
        LR + "data: {source: texts}\n",
        LR + "data: {source: text, paths: [a.txt]}\n",
        "study.yaml:3:16: data.source: this is not one of the allowed values\n"
        "    value: texts\n"
        "    allowed: stdlib, text, huggingface, synthetic\n"
        "    hint: did you mean text?",
    ),
    (
        "data source is missing",
        LR + "data: {held_out: 0.2}\n",
        LR + "data: {source: stdlib, held_out: 0.2}\n",
        "study.yaml:3:1: data: source is missing\n"
        "    value: {held_out: 0.2}\n"
        "    allowed: stdlib, text, huggingface, synthetic",
    ),
    (
        "misspelt required key",
        LR + "data: {source: text, path: [a.txt]}\n",
        LR + "data: {source: text, paths: [a.txt]}\n",
        "study.yaml:3:22: data.path: unknown key\n"
        "    value: [a.txt]\n"
        "    allowed: source, tokenizer, mask_documents, held_out, paths, field, documents, "
        "validation, max_bytes\n"
        "    hint: did you mean paths?",
    ),
    (
        "text for a list",
        LR + "data: {source: text, paths: a.txt}\n",
        LR + "data: {source: text, paths: [a.txt]}\n",
        "study.yaml:3:29: data.paths: expected a list, found text\n"
        "    value: a.txt\n"
        "    allowed: a list\n"
        "    hint: write [a.txt]",
    ),
    (
        "name with a blank",
        "name: my study\nspace:\n  lr: [1e-3, 1e-2]\n",
        "name: my_study\nspace:\n  lr: [1e-3, 1e-2]\n",
        "study.yaml:1:7: name: this text is not allowed here\n"
        "    value: my study\n"
        "    allowed: letters, digits, '.', '_' and '-', beginning with a letter or digit",
    ),
    (
        "part of a method",
        LR + "methods:\n  mine: {init: smal}\n",
        LR + "methods:\n  mine: {init: small}\n",
        "study.yaml:4:16: methods.mine.init: this is not one of the allowed values\n"
        "    value: smal\n"
        "    allowed: he, small, xavier, gpt2\n"
        "    hint: did you mean small?",
    ),
]
NAMES = [case[0].replace(" ", "-") for case in CASES]


@pytest.mark.parametrize(("malformed", "error"), [(c[1], c[3]) for c in CASES], ids=NAMES)
def test_whole_error_text(refusal: Callable[[str], str], malformed: str, error: str) -> None:
    assert refusal(malformed) == error


@pytest.mark.parametrize("mended", [c[2] for c in CASES], ids=NAMES)
def test_mended_file_loads(load: Callable[[str], Study], mended: str) -> None:
    # The control: what is refused is the one defect, not something else in the file.
    load(mended)


@pytest.mark.usefixtures("in_tmp_path")
def test_missing_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert str(caught.value) == "study.yaml: there is no such file"


@pytest.mark.usefixtures("in_tmp_path")
def test_folder() -> None:
    Path("study.yaml").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert str(caught.value) == "study.yaml: this is a folder, not a file"


@pytest.mark.usefixtures("in_tmp_path")
def test_not_utf8() -> None:
    Path("study.yaml").write_bytes("space: {lr: 1}\ntitle: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert str(caught.value) == (
        "study.yaml:2:11: this is not UTF-8 text\n"
        "    value: byte 0xe9\n"
        "    hint: save the file as UTF-8"
    )


def test_control_character(refusal: Callable[[str], str]) -> None:
    assert (
        refusal("space: {lr: 1}\ntitle: a\x01b\n")
        == "study.yaml:2:9: the character U+0001 is not allowed"
    )


@pytest.mark.usefixtures("in_tmp_path")
def test_file_name_that_cannot_name_the_study() -> None:
    Path("my study.yaml").write_text("space: {lr: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_study("my study.yaml")
    assert str(caught.value) == (
        "my study.yaml: the file's name 'my study' cannot name the study\n"
        "    allowed: letters, digits, '.', '_' and '-', beginning with a letter or digit\n"
        "    hint: rename it, or set name:"
    )


def test_no_pydantic_jargon() -> None:
    text = "\n".join(case[3] for case in CASES)
    for phrase in ("Input should", "valid ", "Extra inputs", "Field required", "union", "pydantic"):
        assert phrase not in text
