"""The engine with a queue in memory: judging, refilling, pruning, faults, independence."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.data.evaluation_sets import load_sets
from wesar_sweep.training import engine as engine_module
from wesar_sweep.training.engine import Engine
from wesar_sweep.training.memory import Fit
from wesar_sweep.training.record import evaluation_steps

METHODS = ("he", "wesar", "weight_norm")


class ListQueue:
    """Hands out runs in order and keeps what comes back; `prune` names (trial, step) to stop at."""

    def __init__(self, runs, *, prune=(), retries=0, learns=True):
        self.waiting, self.prune, self.retries = list(runs), set(prune), retries
        self.tries = {}
        self.outcomes, self.curves, self.reports, self.taken = {}, {}, [], []
        self.calls = []
        self.learns = learns

    def take(self, count, *, architecture=None):
        if architecture is None and self.waiting:
            architecture = self.waiting[0].architecture
        fit = [run for run in self.waiting if run.architecture == architecture][:count]
        self.waiting = [run for run in self.waiting if run not in fit]
        self.taken += fit
        self.calls.append(("take", [run.key for run in fit]))
        return fit

    def report(self, losses):
        assert all(math.isfinite(val_loss) for _, _, val_loss in losses)
        self.reports += [(run.key, step, val_loss) for run, step, val_loss in losses]
        self.calls.append(("report", [run.key for run, _, _ in losses]))
        return [(run.trial, step) in self.prune for run, step, _ in losses]

    def finish(self, results):
        self.calls.append(("finish", [(outcome.trial, outcome.seed) for outcome, _ in results]))
        for outcome, curve in results:
            self.keep(outcome, curve)

    def keep(self, outcome, curve):
        key = (outcome.trial, outcome.seed)
        assert key not in self.outcomes or self.outcomes[key].status == "failed"
        self.tries[key] = self.tries.get(key, 0) + 1
        if outcome.status == "failed" and self.tries[key] <= self.retries:
            self.waiting.append(next(run for run in self.taken if run.key == key))
        self.outcomes[key], self.curves[key] = outcome, curve


def sets_of(study, corpus):
    """The evaluation sets of a study, read."""
    return load_sets(
        study.evaluation.sets,
        tokenizer=corpus.tokenizer,
        vocabulary=corpus.vocabulary,
        context=study.model.context,
    )


@pytest.fixture
def train(study_of):
    """Train runs with K slots; returns the queue."""

    def go(study, runs, *, slots, overlaps=False, corpus=None, **queue_options):
        queue = ListQueue(runs, **queue_options)
        corpus = corpus or load_corpus(study.data, context=study.model.context)
        engine = Engine(
            study,
            queue=queue,
            corpus=corpus,
            device=torch.device("cpu"),
            methods=METHODS,
            slots=lambda architecture: Fit(slots, 1, 0, 0, 0),
            worker="w0",
            on_block=lambda engine: False,
            evaluation_sets=sets_of(study, corpus),
        )
        engine._overlaps = overlaps
        engine.train()
        assert not queue.waiting
        curves = [curve for curve in queue.curves.values() if curve is not None]
        assert engine.kept_steps == sum(len(curve.loss) for curve in curves)
        return queue

    return go


SYNTHETIC = {"source": "synthetic", "symbols": 16, "length": 20_000}


def same(a, b):
    """Everything but the time it took."""
    for key in a.outcomes:
        x, y = a.outcomes[key], b.outcomes[key]
        for name in ("status", "diverged_at", "reason", "init_loss", "val_loss", "spikes", "steps"):
            left, right = getattr(x, name), getattr(y, name)
            assert left == right or (left != left and right != right), (key, name)
        c, d = a.curves[key], b.curves[key]
        for name in ("loss", "grad_norm", "eval_step", "eval_loss", "probe_step"):
            np.testing.assert_array_equal(getattr(c, name), getattr(d, name), strict=True)
        assert repr(x.evaluations) == repr(y.evaluations), "NaN is equal to itself here"
        for kept, other in ((c.set_step, d.set_step), (c.set_figures, d.set_figures)):
            assert kept.keys() == other.keys()
            for name in kept:
                np.testing.assert_array_equal(kept[name], other[name], strict=True)
        assert c.probes.keys() == d.probes.keys()
        for name in c.probes:
            np.testing.assert_array_equal(c.probes[name], d.probes[name], strict=True)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_outcomes_do_not_depend_on_the_type_of_tokens_nor_on_where_they_lie(
    study_of, runs_of, train, tmp_path, dtype
):
    """Read-only maps of both splits beside bytes in memory."""
    study = study_of(data=SYNTHETIC, evaluation={"sequences": 5, "every": 5})
    runs = runs_of(study, {"method": "he"}, {"method": "wesar", "seed": 1})
    corpus = load_corpus(study.data, context=study.model.context)
    maps = {}
    for name in ("train", "validation"):
        np.save(tmp_path / f"{name}.npy", getattr(corpus, name).astype(dtype))
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    mapped = train(study, runs, slots=2, corpus=replace(corpus, **maps))
    same(mapped, train(study, runs, slots=2))
    assert all(outcome.status == "completed" for outcome in mapped.outcomes.values())


def test_outcomes_and_curves_do_not_depend_on_slots(study_of, runs_of, train):
    """Refills, divergence next door, unequal lengths, probes out of step: no bit changes."""
    study = study_of(
        training={"steps": 50},
        data=SYNTHETIC,
        evaluation={"sequences": 5, "every": 17},
        probes={"every": 7},
        divergence={"window": 4, "patience": 5, "delta": 0.5},
    )
    cells = [
        {
            "method": METHODS[n % 3],
            "lr": [1e-3, 3e-2, 1e6, 30.0][n % 4],
            "seed": n % 2,
            "steps": 23 + 4 * n,
        }
        for n in range(11)
    ]
    runs = runs_of(study, *cells)
    results = [train(study, runs, slots=slots) for slots in (1, 3, 16)]
    statuses = {o.status for o in results[0].outcomes.values()}
    assert statuses == {"completed", "diverged"}, "the study must contain both to prove anything"
    assert len({o.steps for o in results[0].outcomes.values()}) > 3
    # As on a GPU: verdicts come a block late, and results when the next block has begun.
    late = [train(study, runs, slots=3, overlaps=True, learns=learns) for learns in (True, False)]
    for other in (*results[1:], *late):
        same(results[0], other)


def test_a_run_that_explodes_is_a_result(study_of, runs_of, train):
    study = study_of(training={"steps": 40}, data=SYNTHETIC)
    queue = train(study, runs_of(study, {"method": "he", "lr": 1e30}), slots=2)
    (outcome,) = queue.outcomes.values()
    (curve,) = queue.curves.values()
    assert outcome.status == "diverged"
    assert "not finite" in outcome.reason
    assert outcome.diverged_at == outcome.steps - 1 == len(curve.loss) - 1
    assert math.isnan(outcome.val_loss) and math.isfinite(outcome.init_loss)
    assert np.isfinite(curve.loss[:-1]).all()
    assert not np.isfinite(curve.loss[-1] + curve.grad_norm[-1])


def test_a_completed_run_is_described(study_of, runs_of, train):
    study = study_of(
        training={"steps": 45}, data=SYNTHETIC, evaluation={"sequences": 4, "at": [10, 30]}
    )
    (run,) = runs_of(study, {"method": "wesar"})
    queue = train(study, [run], slots=4)
    outcome, curve = queue.outcomes[run.key], queue.curves[run.key]
    assert outcome.status == "completed" and outcome.diverged_at is None
    assert curve.eval_step.tolist() == [0, 10, 30, 45]
    assert [step for _, step, _ in queue.reports] == [10, 30], "not at the start nor at the end"
    assert outcome.val_loss == pytest.approx(curve.eval_loss[-1])
    assert outcome.best_loss == pytest.approx(curve.eval_loss.min())
    assert outcome.val_bpb == pytest.approx(outcome.val_loss / math.log(2))
    assert outcome.tokens == 45 * 3 * 10
    assert curve.probe_step.tolist() == list(range(0, 45, 4))
    assert curve.probes["update_ratio"].shape == (12, len(curve.probe_axes["update_ratio"]))
    assert outcome.hyperparameters == run.columns()


def test_pruning_frees_the_slot(study_of, runs_of, train):
    study = study_of(
        training={"steps": 40}, data=SYNTHETIC, evaluation={"sequences": 4, "every": 10}
    )
    runs = runs_of(study, *({"method": "he", "lr": 10.0**-n} for n in range(1, 5)))
    queue = train(study, runs, slots=2, prune={(0, 10), (2, 20)})
    assert [queue.outcomes[(n, 0)].status for n in range(4)] == [
        "pruned", "completed", "pruned", "completed",
    ]  # fmt: skip
    assert queue.outcomes[(0, 0)].steps == 10 and queue.outcomes[(2, 0)].steps == 20
    assert queue.outcomes[(2, 0)].val_loss == pytest.approx(queue.curves[(2, 0)].eval_loss[-1])


def test_the_queue_hears_of_all_slots_at_once_and_of_results_before_it_is_asked(
    study_of, runs_of, train
):
    """One call for all runs that are evaluated together: each call waits for a disk."""
    study = study_of(
        training={"steps": 20}, data=SYNTHETIC, evaluation={"sequences": 4, "every": 10}
    )
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(6)))
    queue = train(study, runs, slots=3, prune={(0, 10), (1, 10)})
    keys = [run.key for run in runs]
    assert [call for call in queue.calls if call[1]] == [
        ("take", keys[:1]),
        ("take", keys[1:3]),
        ("report", keys[:3]),
        ("finish", keys[:2]),
        ("take", keys[3:5]),
        ("finish", keys[2:3]),
        ("report", keys[3:5]),
        ("take", keys[5:]),
        ("finish", keys[3:5]),
        ("report", keys[5:]),
        ("finish", keys[5:]),
    ]


@pytest.mark.parametrize("learns", [True, False])
def test_a_gpu_waits_for_results_to_be_kept_only_where_a_sampler_learns(
    study_of, runs_of, train, learns
):
    study = study_of(training={"steps": 10}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(2)))
    queue = train(study, runs, slots=1, overlaps=True, learns=learns)
    kinds = [kind for kind, keys in queue.calls if keys]
    assert kinds == ["take", "finish"] * 2 if learns else ["take", "take", "finish", "finish"]


def test_architectures_one_after_another(study_of, runs_of, train):
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, *({"width": [12, 24][n % 2], "batch": 3, "seed": n} for n in range(5)))
    queue = train(study, runs, slots=3)
    assert len(queue.outcomes) == 5
    assert all(o.status == "completed" for o in queue.outcomes.values())


def test_a_fault_of_the_machine_fails_runs_and_they_are_tried_again(
    study_of, runs_of, train, monkeypatch
):
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(3)))
    undisturbed = train(study, runs, slots=2)
    honest, calls = engine_module.Stack.step, []

    def faulty(self, *args, **options):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return honest(self, *args, **options)

    monkeypatch.setattr(engine_module.Stack, "step", faulty)
    queue = train(study, runs, slots=2, retries=2)
    assert [o.status for o in queue.outcomes.values()] == ["completed"] * 3
    same(undisturbed, queue)
    calls.clear()
    given_up = train(study, runs[:1], slots=1)
    assert given_up.outcomes[(0, 0)].status == "failed"
    assert "illegal memory access" in given_up.outcomes[(0, 0)].reason


def test_one_bad_run_does_not_condemn_its_neighbours(study_of, runs_of, train, monkeypatch):
    """A fault fails the stack once; each further try is made alone, so the bad run is found out."""
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(7)))
    undisturbed = train(study, [run for run in runs if run.seed != 2], slots=3)
    honest = engine_module.Stack.load_many

    def load_many(self, slots, runs):
        if any(run.seed == 2 for run in runs):
            raise RuntimeError("this run breaks its stack")
        honest(self, slots, runs)

    monkeypatch.setattr(engine_module.Stack, "load_many", load_many)
    queue = train(study, runs, slots=3, retries=2)
    statuses = {seed: outcome.status for (_, seed), outcome in queue.outcomes.items()}
    assert statuses.pop(2) == "failed"
    assert set(statuses.values()) == {"completed"}
    assert queue.tries[(2, 2)] == 3 and sum(queue.tries.values()) == 3 + 2 + 2 + 4
    same(undisturbed, queue)


def test_a_process_that_only_fails_is_given_up(study_of, runs_of, train, monkeypatch):
    """It must not burn the tries of the whole study: the driver starts another."""
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(40)))

    def broken(self, *args, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(engine_module.Stack, "step", broken)
    with pytest.raises(engine_module.MachineFault, match="device-side assert"):
        train(study, runs, slots=2)


def test_an_absurd_variance_is_a_divergence(study_of, runs_of, train):
    """The gate overflows float32: a result of the setting, not a fault of the machine."""
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, {"method": "wesar", "sigma2": 1e-80}, {"method": "wesar"})
    queue = train(study, runs, slots=2)
    assert [o.status for o in queue.outcomes.values()] == ["diverged", "completed"]


def test_a_stack_that_does_not_fit_goes_on_with_half_the_slots(
    study_of, runs_of, train, monkeypatch
):
    """No run is lost and no try is counted; one slot that does not fit is a failure."""
    study = study_of(training={"steps": 12}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": "he", "seed": n} for n in range(9)))
    undisturbed = train(study, runs, slots=2)
    honest, limit = engine_module.Stack.step, [2]

    def small_memory(self, *args, **options):
        if self.slots > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, *args, **options)

    monkeypatch.setattr(engine_module.Stack, "step", small_memory)
    queue = train(study, runs, slots=8)
    assert {o.status for o in queue.outcomes.values()} == {"completed"}
    assert {o.attempt for o in queue.outcomes.values()} == {1}
    same(undisturbed, queue)
    limit[0] = 0
    failed = train(study, runs[:2], slots=2)
    assert {o.status for o in failed.outcomes.values()} == {"failed"}


def test_training_approaches_the_entropy_of_the_source_and_never_goes_below(
    study_of, runs_of, train
):
    """A source of known entropy: no model can beat it, and a small one comes near."""
    data = {"source": "synthetic", "symbols": 8, "length": 400_000, "concentration": 0.5}
    study = study_of(
        model={"width": 16, "heads": 2, "depth": 1, "context": 32},
        training={"steps": 250, "batch": 16, "warmup": 10},
        data=data,
        evaluation={"sequences": 400},
    )
    runs = runs_of(study, {"method": "he", "lr": 2e-2, "batch": 16})
    queue = train(study, runs, slots=1)
    (outcome,) = queue.outcomes.values()
    entropy = load_corpus(study.data, context=32).entropy_rate
    # 400·32 held-out tokens: a standard error near 0.01 nats of the sampled text's own entropy.
    assert outcome.init_loss > entropy + 0.3
    assert entropy - 0.02 < outcome.val_loss < entropy + 0.06


def test_evaluation_steps(study_of):
    study = study_of(evaluation={"every": 10, "at": [5, 25]})
    assert evaluation_steps(study, 30) == (0, 5, 10, 20, 25, 30)
    assert evaluation_steps(study, 20) == (0, 5, 10, 20)
