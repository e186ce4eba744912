"""Malformed spaces, each with the whole of its error text, and mended: then it must load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wesar_sweep.config import Study

LR = "space:\n  lr: [1e-3, 1e-2]\n"
TWO_METHODS = "space:\n  method: [he, wesar]\n"
WITH_SIGMA2 = TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: {method: wesar}}\n"

CASES = [
    # (what is wrong, the file, the file mended, the error)
    # Parameters of the space.
    (
        "unknown knob",
        "space:\n  sigma: [1e-3]\n",
        "space:\n  sigma2: [1e-3]\n",
        "study.yaml:2:3: space.sigma: there is no such knob\n"
        "    value: [1e-3]\n"
        "    allowed: {KNOBS}\n"
        "    hint: did you mean sigma2?",
    ),
    (
        "precision, which holds for the whole study",
        "space:\n  lr: 1e-3\n  precision: [bf16, fp32]\n",
        "space:\n  lr: 1e-3\ntraining:\n  precision: fp32\n",
        "study.yaml:3:3: space.precision: precision is no knob: one value holds for the whole "
        "study\n"
        "    value: [bf16, fp32]\n"
        "    hint: set training.precision; to compare two values, run two studies",
    ),
    (
        "determinism, which holds for the whole study, in a condition",
        "space:\n  lr: {choices: [1e-3, 1e-2], when: {deterministic: true}}\n",
        LR + "training:\n  deterministic: true\n",
        "study.yaml:2:38: space.lr.when.deterministic: deterministic is no knob: one value holds "
        "for the whole study\n"
        "    value: true\n"
        "    hint: set training.deterministic; to compare two values, run two studies",
    ),
    (
        "value outside of the knob's bounds",
        "space:\n  lr: [0, 1e-3]\n",
        LR,
        "study.yaml:2:8: space.lr[0]: lr cannot have this value\n"
        "    value: 0\n"
        "    allowed: a number, above 0",
    ),
    (
        "fraction for a knob of whole numbers",
        "space:\n  width: 3.5\n",
        "space:\n  width: 64\n",
        "study.yaml:2:10: space.width: width cannot have this value\n"
        "    value: 3.5\n"
        "    allowed: a whole number, at least 1",
    ),
    (
        "range that leaves the knob's bounds",
        "space:\n  warmup: {low: -5, high: 5}\n",
        "space:\n  warmup: {low: 0, high: 5}\n",
        "study.yaml:2:17: space.warmup.low: warmup cannot have this value\n"
        "    value: -5\n"
        "    allowed: a whole number, at least 0",
    ),
    (
        "low is missing",
        "space:\n  lr: {high: 1, log: true, points: 3}\n",
        "space:\n  lr: {low: 1e-3, high: 1, log: true, points: 3}\n",
        "study.yaml:2:3: space.lr: low is missing\n"
        "    value: {high: 1, log: true, points: 3}\n"
        "    allowed: a value, a list of values, {choices: [...]}, or {low: ..., high: ...}",
    ),
    (
        "low is misspelt",
        "space:\n  lr: {lo: 1e-3, high: 1, points: 3}\n",
        "space:\n  lr: {low: 1e-3, high: 1, points: 3}\n",
        "study.yaml:2:8: space.lr.lo: unknown key\n"
        "    value: 1e-3\n"
        "    allowed: low, high, log, step, points, when\n"
        "    hint: did you mean low?",
    ),
    (
        "low above high",
        "space:\n  lr: {low: 1, high: 1e-3, points: 3}\n",
        "space:\n  lr: {low: 1e-3, high: 1, points: 3}\n",
        "study.yaml:2:13: space.lr.low: low must be below high\n    value: 1",
    ),
    (
        "low equal to high",
        "space:\n  lr: {low: 1e-3, high: 0.001, points: 3}\n",
        "space:\n  lr: 1e-3\n",
        "study.yaml:2:13: space.lr.low: low must be below high\n"
        "    value: 1e-3\n"
        "    hint: for one value write lr: 0.001",
    ),
    (
        "logarithm from zero",
        "space:\n  z_loss: {low: 0, high: 1, log: true, points: 3}\n",
        "space:\n  z_loss: {low: 0, high: 1, points: 3}\n",
        "study.yaml:2:17: space.z_loss.low: a logarithmic range begins above 0\n"
        "    value: 0\n"
        "    hint: raise low, or remove log",
    ),
    (
        "step with log",
        "space:\n  lr: {low: 1, high: 2, log: true, step: 1}\n",
        "space:\n  lr: {low: 1, high: 2, step: 1}\n",
        "study.yaml:2:42: space.lr.step: step does not go with log\n"
        "    value: 1\n"
        "    hint: use points for evenly spaced values in the logarithm",
    ),
    (
        "step with points",
        "space:\n  lr: {low: 1, high: 2, step: 1, points: 2}\n",
        "space:\n  lr: {low: 1, high: 2, points: 2}\n",
        "study.yaml:2:31: space.lr.step: step does not go with points\n"
        "    value: 1\n"
        "    hint: keep one of the two",
    ),
    (
        "step that misses the end",
        "space:\n  lr: {low: 0.1, high: 1, step: 0.2}\n",
        "space:\n  lr: {low: 0.1, high: 0.9, step: 0.2}\n",
        "study.yaml:2:24: space.lr.high: steps from low do not reach high\n"
        "    value: 1\n"
        "    hint: the last value that they reach is 0.9",
    ),
    (
        "step of zero",
        "space:\n  lr: {low: 0.1, high: 1, step: 0}\n",
        "space:\n  lr: {low: 0.1, high: 1, step: 0.1}\n",
        "study.yaml:2:33: space.lr.step: the step cannot have this value\n"
        "    value: 0\n"
        "    allowed: a number above 0",
    ),
    (
        "fractional step of whole numbers",
        "space:\n  depth: {low: 1, high: 4, step: 1.5}\n",
        "space:\n  depth: {low: 1, high: 4, step: 1}\n",
        "study.yaml:2:34: space.depth.step: the step cannot have this value\n"
        "    value: 1.5\n"
        "    allowed: a whole number, at least 1",
    ),
    (
        "more points than whole numbers",
        "space:\n  depth: {low: 1, high: 4, points: 7}\n",
        "space:\n  depth: {low: 1, high: 4, points: 4}\n",
        "study.yaml:2:36: space.depth.points: only 4 whole numbers are left of these points\n"
        "    value: 7\n"
        "    hint: use at most 4 points",
    ),
    (
        "very long range",
        "space:\n  steps: {low: 100, high: 100000}\n",
        "space:\n  steps: {low: 100, high: 100000, step: 100}\n",
        "study.yaml:2:3: space.steps: the range holds 99,901 values, more than 10,000\n"
        "    value: {low: 100, high: 100000}\n"
        "    hint: use a larger step, or points",
    ),
    (
        "range of words",
        "space:\n  schedule: {low: 1, high: 2}\n",
        "space:\n  schedule: [cosine, wsd]\n",
        "study.yaml:2:3: space.schedule: schedule has no range\n"
        "    value: {low: 1, high: 2}\n"
        "    allowed: a list of: cosine, linear, wsd, constant\n"
        "    hint: list the values: schedule: [...]",
    ),
    (
        "choices with low",
        "space:\n  lr: {choices: [1e-3], low: 1}\n",
        "space:\n  lr: {choices: [1e-3]}\n",
        "study.yaml:2:25: space.lr.low: low does not go with choices\n"
        "    value: 1\n"
        "    allowed: choices, when",
    ),
    (
        "no choices",
        "space:\n  lr: []\n",
        LR,
        "study.yaml:2:7: space.lr: the list is empty\n"
        "    value: []\n"
        "    allowed: a value, a list of values, {choices: [...]}, or {low: ..., high: ...}",
    ),
    (
        "choice given twice",
        "space:\n  lr: [1, 1.0]\n",
        "space:\n  lr: [1, 2]\n",
        "study.yaml:2:11: space.lr[1]: this choice is given twice\n"
        "    value: 1.0\n"
        "    hint: remove one of the two",
    ),
    (
        "list in a list",
        "space:\n  lr: [[1e-3, 1e-2]]\n",
        LR,
        "study.yaml:2:8: space.lr[0]: expected a number, found a list\n"
        "    value: [1e-3, 1e-2]\n"
        "    allowed: a number, above 0",
    ),
    (
        "unknown method",
        "space:\n  method: [he, Wezar]\n",
        TWO_METHODS,
        "study.yaml:2:16: space.method[1]: there is no such method\n"
        "    value: Wezar\n"
        "    allowed: {METHODS}\n"
        "    hint: did you mean wesar?",
    ),
    (
        "fixed and searched",
        LR + "training:\n  lr: 1e-3\n",
        LR,
        "study.yaml:4:3: training.lr: lr is set in both training and space\n"
        "    value: 1e-3\n"
        "    hint: keep one of the two; an override of what is searched is --set space.lr=...",
    ),
    (
        "method fixed and searched",
        "method: he\nspace:\n  method: [he, small]\n",
        "space:\n  method: [he, small]\n",
        "study.yaml:1:1: method: method is set both at the top level and in space\n"
        "    value: he\n"
        "    hint: keep one of the two; an override of what is searched is --set "
        "space.method=...",
    ),
    # Conditions.
    (
        "condition on an unknown knob",
        TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: {methd: wesar}}\n",
        WITH_SIGMA2,
        "study.yaml:3:42: space.sigma2.when.methd: there is no such knob\n"
        "    value: wesar\n"
        "    allowed: {KNOBS}\n"
        "    hint: did you mean method?",
    ),
    (
        "condition on an unknown method",
        TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: {method: [wesar, wezar]}}\n",
        WITH_SIGMA2,
        "study.yaml:3:58: space.sigma2.when.method[1]: there is no such method\n"
        "    value: wezar\n"
        "    allowed: {METHODS}\n"
        "    hint: did you mean wesar?",
    ),
    (
        "condition that never holds",
        TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: {method: small}}\n",
        WITH_SIGMA2,
        "study.yaml:3:50: space.sigma2.when.method: method never has this value here\n"
        "    value: small\n"
        "    allowed: he, wesar",
    ),
    (
        "condition on a fixed knob that never holds",
        "space:\n  sigma2: {choices: [1e-3, 1e-2], when: {method: he}}\n",
        WITH_SIGMA2,
        "study.yaml:2:50: space.sigma2.when.method: method never has this value here\n"
        "    value: he\n"
        "    allowed: wesar\n"
        "    hint: put method in space, or remove this condition",
    ),
    (
        "condition on itself",
        "space:\n  lr: {choices: [1, 2], when: {lr: 1}}\n",
        "space:\n  lr: {choices: [1, 2]}\n",
        "study.yaml:2:32: space.lr.when.lr: lr cannot depend on itself\n    value: 1",
    ),
    (
        "conditions in a circle",
        "space:\n"
        "  lr: {choices: [1, 2], when: {depth: 2}}\n"
        "  depth: {choices: [1, 2], when: {lr: 1}}\n",
        "space:\n  lr: {choices: [1, 2], when: {depth: 2}}\n  depth: {choices: [1, 2]}\n",
        "study.yaml:2:25: space.lr.when: the conditions of lr, depth depend on each other\n"
        "    value: {depth: 2}\n"
        "    hint: remove one of these conditions",
    ),
    (
        "condition on a continuous range",
        "space:\n"
        "  lr: {low: 0.1, high: 1}\n"
        "  depth: {choices: [1, 2], when: {lr: 0.5}}\n"
        "sampler: {name: tpe, cells: 9}\n",
        "space:\n"
        "  lr: {low: 0.1, high: 1}\n"
        "  depth: {choices: [1, 2]}\n"
        "sampler: {name: tpe, cells: 9}\n",
        "study.yaml:3:35: space.depth.when.lr: lr is drawn from a range, so that it never "
        "has an exact value\n"
        "    value: 0.5\n"
        "    hint: give space.lr choices, points or a step",
    ),
    (
        "condition that is no mapping",
        TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: wesar}\n",
        WITH_SIGMA2,
        "study.yaml:3:41: space.sigma2.when: expected a mapping, found text\n"
        "    value: wesar\n"
        "    allowed: a mapping",
    ),
    (
        "sigma2 for methods that ignore it",
        TWO_METHODS + "  sigma2: [1e-3, 1e-2]\n",
        WITH_SIGMA2,
        "study.yaml:3:3: space.sigma2: the grid would train equal cells of method he: only "
        "methods with the wesar reparametrization use sigma2\n"
        "    value: [1e-3, 1e-2]\n"
        "    hint: when: {method: wesar}",
    ),
    (
        "sigma2 without a method that uses it",
        "method: he\nspace:\n  sigma2: [1e-3, 1e-2]\n",
        "method: wesar\nspace:\n  sigma2: [1e-3, 1e-2]\n",
        "study.yaml:3:3: space.sigma2: sigma2 would vary nothing: only methods with the "
        "wesar reparametrization use sigma2\n"
        "    value: [1e-3, 1e-2]\n"
        "    hint: remove it, or set method to one that uses it",
    ),
    (
        "decay_fraction without wsd",
        "space:\n  decay_fraction: [0.1, 0.2]\n",
        "space:\n  decay_fraction: [0.1, 0.2]\ntraining:\n  schedule: wsd\n",
        "study.yaml:2:3: space.decay_fraction: decay_fraction would vary nothing: only the "
        "schedule wsd uses decay_fraction\n"
        "    value: [0.1, 0.2]\n"
        "    hint: remove it, or set schedule to one that uses it",
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
