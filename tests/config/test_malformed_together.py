"""Keys that contradict each other: the whole error text of each, and mended: then it must load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wesar_sweep.config import Study, check_space

LR = "space:\n  lr: [1e-3, 1e-2]\n"
SETS = "evaluation:\n  sets:\n"
TWO_METHODS = "space:\n  method: [he, wesar]\n"
WITH_SIGMA2 = TWO_METHODS + "  sigma2: {choices: [1e-3, 1e-2], when: {method: wesar}}\n"

CASES = [
    # (what is wrong, the file, the file mended, the error)
    # Keys that contradict each other.
    (
        "width that heads do not divide",
        "space:\n  width: [32, 48]\n  heads: [2, 3]\n",
        "space:\n  width: [48, 96]\n  heads: [2, 3]\n",
        "study.yaml:2:10: space.width: width 32 is not divisible by heads 3\n"
        "    value: [32, 48]\n"
        "    hint: choose a multiple of 3 as width, or heads that divide 32",
    ),
    (
        "odd width of a head",
        LR + "model: {width: 6, heads: 2}\n",
        LR + "model: {width: 6, heads: 2, position: none}\n",
        "study.yaml:3:16: model.width: width 6 over heads 2 makes 3 a head, and position "
        "rope needs an even number\n"
        "    value: 6\n"
        "    hint: change width or heads, or use position: none",
    ),
    (
        "warm-up as long as the run",
        "space:\n  warmup: [10, 50]\ntraining:\n  steps: 50\n",
        "space:\n  warmup: [10, 49]\ntraining:\n  steps: 50\n",
        "study.yaml:2:11: space.warmup: warmup 50 leaves nothing of steps 50\n"
        "    value: [10, 50]\n"
        "    allowed: a warmup below steps, for every combination",
    ),
    (
        "evaluation after the end",
        LR + "training:\n  steps: 50\nevaluation:\n  at: [10, 60]\n",
        LR + "training:\n  steps: 50\nevaluation:\n  at: [10, 50]\n",
        "study.yaml:6:12: evaluation.at[1]: no run of 50 steps reaches this one\n"
        "    value: 60\n"
        "    allowed: a whole number, at most 50",
    ),
    (
        "evaluation set's name",
        LR + SETS + "    wiki-text: {kind: text, paths: [a]}\n",
        LR + SETS + "    wiki_text: {kind: text, paths: [a]}\n",
        "study.yaml:5:5: evaluation.sets.wiki-text: this is not a set's name\n"
        "    value: {kind: text, paths: [a]}\n"
        "    allowed: letters, digits and '_', beginning with a letter",
    ),
    (
        "evaluation set named as the held-out text",
        LR + SETS + "    validation: {kind: text, paths: [a]}\n",
        LR + SETS + "    novels: {kind: text, paths: [a]}\n",
        "study.yaml:5:5: evaluation.sets.validation: validation is the held-out text of every "
        "study\n"
        "    value: {kind: text, paths: [a]}\n"
        "    hint: choose another name",
    ),
    (
        "evaluation set after the end",
        LR + "training: {steps: 50}\n" + SETS + "    w: {kind: lambada, paths: [a], at: [60]}\n",
        LR + "training: {steps: 60}\n" + SETS + "    w: {kind: lambada, paths: [a], at: [60]}\n",
        "study.yaml:6:41: evaluation.sets.w.at[0]: no run of 50 steps reaches this one\n"
        "    value: 60\n"
        "    allowed: a whole number, at most 50",
    ),
    (
        "stride beyond the least context",
        "space:\n  context: [64, 128]\n" + SETS + "    w: {kind: text, paths: [a], stride: 65}\n",
        "space:\n  context: [64, 128]\n" + SETS + "    w: {kind: text, paths: [a], stride: 64}\n",
        "study.yaml:5:41: evaluation.sets.w.stride: a window of context 64 has no room for 65 new "
        "tokens\n"
        "    value: 65\n"
        "    allowed: a whole number, 1 to 64",
    ),
    (
        "text for a model of symbols",
        LR + SETS + "    w: {kind: text, paths: [a]}\ndata: {source: synthetic}\n",
        LR + SETS + "    w: {kind: text, paths: [a]}\n",
        "study.yaml:5:5: evaluation.sets.w: a model of synthetic symbols cannot be judged on "
        "text\n"
        "    value: {kind: text, paths: [a]}\n"
        "    hint: remove the set, or train on text (data.source)",
    ),
    (
        "grid over a continuous range",
        "space:\n  lr: {low: 1e-3, high: 1, log: true}\n",
        "space:\n  lr: {low: 1e-3, high: 1, log: true, points: 7}\n",
        "study.yaml:2:3: space.lr: a grid needs a list of values, and this range has none\n"
        "    value: {low: 1e-3, high: 1, log: true}\n"
        "    hint: add points: 7, or choose another sampler",
    ),
    (
        "grid with cells",
        LR + "sampler: {name: grid, cells: 9}\n",
        LR + "sampler: {name: random, cells: 9}\n",
        "study.yaml:3:30: sampler.cells: the grid trains every cell\n"
        "    value: 9\n"
        "    hint: remove cells, or choose another sampler",
    ),
    (
        "sampler without cells",
        LR + "sampler: {name: tpe}\n",
        LR + "sampler: {name: tpe, cells: 9}\n",
        "study.yaml:3:1: sampler: the sampler tpe needs cells\n"
        "    value: {name: tpe}\n"
        "    hint: say how many cells to train, such as cells: 40",
    ),
    (
        "nothing to search",
        "space:\n  lr: 1e-3\nsampler: {name: tpe, cells: 9}\n",
        LR + "sampler: {name: tpe, cells: 9}\n",
        "study.yaml:1:1: space: the sampler tpe has nothing to choose: no knob in space has "
        "two values",
    ),
    (
        "CMA-ES over choices",
        LR + "  beta1: {low: 0.1, high: 0.9}\nsampler: {name: cmaes, cells: 9}\n",
        "space:\n"
        "  lr: {low: 1e-3, high: 1e-2}\n"
        "  beta1: {low: 0.1, high: 0.9}\n"
        "sampler: {name: cmaes, cells: 9}\n",
        "study.yaml:4:17: sampler.name: cmaes searches ranges only, and lr has a list of "
        "values\n"
        "    value: cmaes\n"
        "    hint: use tpe",
    ),
    (
        "CMA-ES over one knob",
        "space:\n  lr: {low: 1e-3, high: 1e-2}\nsampler: {name: cmaes, cells: 9}\n",
        "space:\n"
        "  lr: {low: 1e-3, high: 1e-2}\n"
        "  beta1: {low: 0.1, high: 0.9}\n"
        "sampler: {name: cmaes, cells: 9}\n",
        "study.yaml:3:17: sampler.name: cmaes needs at least two knobs to search\n"
        "    value: cmaes\n"
        "    hint: use tpe",
    ),
    (
        "Gaussian process under a condition",
        WITH_SIGMA2 + "sampler: {name: gp, cells: 9}\n",
        WITH_SIGMA2 + "sampler: {name: tpe, cells: 9}\n",
        "study.yaml:4:17: sampler.name: gp cannot search under a condition, as sigma2 asks\n"
        "    value: gp\n"
        "    hint: use tpe",
    ),
    (
        "pruner without evaluations",
        LR + "pruner: {name: median}\n",
        LR + "pruner: {name: median}\nevaluation: {every: 100}\n",
        "study.yaml:3:1: pruner: the pruner has nothing to judge: no evaluation before the "
        "end of a run\n"
        "    value: {name: median}\n"
        "    hint: set evaluation.every, such as every: 60",
    ),
    (
        "pruner with several objectives",
        LR + "pruner: {name: median}\nevaluation: {every: 100}\nobjectives: [val_loss, spikes]\n",
        LR + "evaluation: {every: 100}\nobjectives: [val_loss, spikes]\n",
        "study.yaml:3:1: pruner: a pruner needs a single objective\n"
        "    value: {name: median}\n"
        "    hint: remove the pruner, or all objectives but one",
    ),
    (
        "pruner for another objective",
        LR + "pruner: {name: median}\nevaluation: {every: 100}\nobjectives: [spikes]\n",
        LR + "evaluation: {every: 100}\nobjectives: [spikes]\n",
        "study.yaml:3:1: pruner: a pruner judges the validation loss, which is not the "
        "objective here\n"
        "    value: {name: median}\n"
        "    hint: remove the pruner, or set objectives: [val_loss]",
    ),
    (
        "Wilcoxon with one replicate",
        LR + "pruner: {name: wilcoxon}\nreplicates: 1\n",
        LR + "pruner: {name: wilcoxon}\nreplicates: 6\n",
        "study.yaml:3:1: pruner: wilcoxon compares replicates, and there is but one\n"
        "    value: {name: wilcoxon}\n"
        "    hint: set replicates to 2 or more, or choose another pruner",
    ),
    (
        "objective given twice",
        LR + "objectives: [spikes, spikes]\n",
        LR + "objectives: [spikes]\n",
        "study.yaml:3:22: objectives[1]: this objective is given twice\n"
        "    value: spikes\n"
        "    hint: remove one of the two",
    ),
    (
        "built-in method redefined",
        LR + "methods:\n  he: {init: small}\n",
        LR + "methods:\n  my_he: {init: small}\n",
        "study.yaml:4:3: methods.he: he is built in and keeps its meaning\n"
        "    value: {init: small}\n"
        "    hint: choose another name",
    ),
    (
        "σ² by width of a method without σ²",
        LR + "methods:\n  own: {init: he, sigma2_at_width: 128}\n",
        LR + "methods:\n  own: {init: he, sigma2_at_width: 128, reparametrization: wesar}\n",
        "study.yaml:4:19: methods.own.sigma2_at_width: only methods with the wesar "
        "reparametrization use sigma2\n"
        "    value: 128\n"
        "    hint: remove it, or set reparametrization: wesar",
    ),
    (
        "name that is no method's",
        LR + "methods:\n  2he: {init: small}\n",
        LR + "methods:\n  he2: {init: small}\n",
        "study.yaml:4:3: methods.2he: this is not a method's name\n"
        "    value: {init: small}\n"
        "    allowed: letters, digits and '_', beginning with a letter",
    ),
    (
        "grid too large",
        "space:\n"
        "  lr: {low: 0.1, high: 1, points: 1000}\n"
        "  beta1: {low: 0.1, high: 0.9, points: 101}\n",
        "space:\n"
        "  lr: {low: 0.1, high: 1, points: 1000}\n"
        "  beta1: {low: 0.1, high: 0.9, points: 100}\n",
        "study.yaml:1:1: space: the grid has more than 100,000 cells\n"
        "    hint: use fewer values, or another sampler",
    ),
    # Several at once, in the order of the file.
    (
        "everything wrong",
        "name: x y\n"
        "space:\n"
        "  lr: [1e-3, fast]\n"
        "  sigma: 1\n"
        "  width: [63]\n"
        "training:\n"
        "  steps: 0\n"
        "  warmup: 400\n"
        "foo: 1\n"
        "objectives: [spike]\n"
        "evaluation: {at: [500]}\n",
        "name: xy\n"
        "space:\n"
        "  lr: [1e-3, 1e-2]\n"
        "  sigma2: 1\n"
        "  width: [64]\n"
        "training:\n"
        "  steps: 500\n"
        "  warmup: 400\n"
        "objectives: [spikes]\n"
        "evaluation: {at: [500]}\n",
        "study.yaml:1:7: name: this text is not allowed here\n"
        "    value: x y\n"
        "    allowed: letters, digits, '.', '_' and '-', beginning with a letter or digit\n"
        "study.yaml:3:14: space.lr[1]: lr cannot have this value\n"
        "    value: fast\n"
        "    allowed: a number, above 0\n"
        "study.yaml:4:3: space.sigma: there is no such knob\n"
        "    value: 1\n"
        "    allowed: {KNOBS}\n"
        "    hint: did you mean sigma2?\n"
        "study.yaml:5:10: space.width: width 63 is not divisible by heads 2\n"
        "    value: [63]\n"
        "    hint: choose a multiple of 2 as width, or heads that divide 63\n"
        "study.yaml:7:10: training.steps: the number is too small\n"
        "    value: 0\n"
        "    allowed: a whole number, at least 1\n"
        "study.yaml:9:1: foo: unknown key\n"
        "    value: 1\n"
        "    allowed: {STUDY_KEYS}\n"
        "study.yaml:10:14: objectives[0]: this is not one of the allowed values\n"
        "    value: spike\n"
        "    allowed: val_loss, divergence_rate, spikes\n"
        "    hint: did you mean spikes?",
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


def test_more_combinations_than_can_be_checked(
    refusal: Callable[[str], str], load: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "space:\n  width: [32, 64, 96]\n  heads: [1, 2, 4]\n"
    load(text)
    monkeypatch.setattr(check_space, "MAX_SETTINGS", 8)
    assert refusal(text) == (
        "study.yaml:1:1: space: too many combinations of heads, width to check\n"
        "    hint: use fewer values"
    )
