"""Evaluation sets in the engine: when, of whom, the same bits in company and after a restart."""

import math

import numpy as np
import pytest

from tests.training.test_checkpoints import Life, again, queue_of
from tests.training.test_engine import METHODS, same
from wesar_sweep.store.layout import StudyDirectory

WIKI = " = One = \n\n Lamps are lit . \n\n = Two = \n\n Seas have tides and tides have times . \n"
LAMBADA = "a lamp is lit\nthe tide has its time\nodd\n"


@pytest.fixture
def study(study_of, tmp_path):
    """Text to train on, two sets at steps of their own, and a rate that explodes."""
    lines = "\n".join(f"line {n} has {n * n} lamps and {n % 7} tides" for n in range(300))
    for name, text in (("train", lines), ("wiki", WIKI), ("lambada", LAMBADA)):
        (tmp_path / name).write_text(text)
    sets = {
        "wiki": {"kind": "wikitext", "paths": [tmp_path / "wiki"], "every": 13, "stride": 4},
        "lambada": {"kind": "lambada", "paths": [tmp_path / "lambada"], "at": [5, 20]},
    }
    for one in sets.values():
        one["paths"] = [str(path) for path in one["paths"]]
    return study_of(
        training={"steps": 40},
        data={"source": "text", "paths": [str(tmp_path / "train")], "documents": "line"},
        evaluation={"sequences": 5, "every": 10, "sets": sets},
        divergence={"window": 4, "patience": 5, "delta": 0.5},
    )


@pytest.fixture
def runs(study, runs_of):
    cells = [
        {"method": METHODS[n % 3], "lr": [1e-3, 2e-3, 1e6][n % 3], "steps": 29 + 4 * n}
        for n in range(5)
    ]
    return runs_of(study, *cells)


@pytest.fixture
def alone(study, runs):
    queue = queue_of(runs)
    Life(study, queue, None, slots=1)
    assert {row.status for row in queue.outcomes.values()} == {"completed", "diverged"}
    return queue


def test_a_run_is_judged_at_its_steps_and_at_the_end(study, runs, alone):
    outcome, curve = alone.outcomes[runs[1].key], alone.curves[runs[1].key]
    assert outcome.status == "completed" and outcome.steps == 33
    assert {name: steps.tolist() for name, steps in curve.set_step.items()} == {
        "wiki": [13, 26, 33],
        "lambada": [5, 20, 33],
    }
    assert curve.eval_step.tolist() == [0, 10, 20, 30, 33], "steps of sets are no others'"
    assert [step for key, step, _ in alone.reports if key == runs[1].key] == [10, 20, 30]
    figures = outcome.evaluations
    assert figures["wiki"].keys() == {"loss", "chance", "word_ppl", "bpb"}
    assert figures["lambada"].keys() == {"loss", "chance", "accuracy"}
    assert figures["wiki"]["chance"] == pytest.approx(math.log(256))
    assert curve.set_figures.keys() == {
        "wiki.loss", "wiki.word_ppl", "wiki.bpb", "lambada.loss", "lambada.accuracy"
    }  # fmt: skip
    assert curve.set_figures["wiki.loss"][-1] == np.float32(figures["wiki"]["loss"])
    assert curve.set_figures["wiki.loss"][0] != curve.set_figures["wiki.loss"][-1]


def test_a_run_that_diverged_has_no_figures_at_the_end(runs, alone):
    key = runs[2].key
    assert alone.outcomes[key].status == "diverged"
    assert alone.outcomes[key].evaluations == {}
    steps = alone.outcomes[key].steps
    assert all(step <= steps for own in alone.curves[key].set_step.values() for step in own)


def test_company_changes_no_bit(study, runs, alone):
    for slots in (2, 16):
        queue = queue_of(runs)
        life = Life(study, queue, None, slots=slots)
        same(alone, queue)
        assert life.engine.evaluation_seconds > 0


def test_gone_on_with_elsewhere_the_evaluations_so_far_are_kept(study, runs, alone, tmp_path):
    directory = StudyDirectory(tmp_path / "study")
    directory.create()
    queue, lives = queue_of(runs), 0
    while len(queue.outcomes) < len(runs):
        queue = again(queue) if lives else queue
        Life(study, queue, directory, worker=f"w{lives}", slots=2 + lives % 2, blocks=4)
        lives += 1
    assert lives > 2, "nothing was resumed"
    same(alone, queue)


def test_a_pruned_run_is_described_up_to_there(study, runs, alone):
    queue = queue_of(runs, prune={(1, 20)})
    Life(study, queue, None, slots=2)
    outcome, curve = queue.outcomes[runs[1].key], queue.curves[runs[1].key]
    assert outcome.status == "pruned" and outcome.evaluations == {}
    assert curve.set_step["lambada"].tolist() == [5, 20]
    whole = alone.curves[runs[1].key].set_figures["lambada.loss"]
    np.testing.assert_array_equal(curve.set_figures["lambada.loss"], whole[:2])
