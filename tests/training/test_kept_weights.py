"""Kept weights: what is in a file, when it is written, and what a full disk costs."""

import logging
import math
import os
import resource
import stat

import pytest
import torch

from tests.training.test_engine import SYNTHETIC, ListQueue
from wesar_sweep.config.study import Study
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.errors import StoreError
from wesar_sweep.model.fold import fold
from wesar_sweep.model.plain import PlainDecoder
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.training.engine import Engine
from wesar_sweep.training.kept_weights import WeightKeeper, read_weights
from wesar_sweep.training.memory import Fit
from wesar_sweep.training.parameters import ParameterRows
from wesar_sweep.training.stack import Stack, StackTraits
from wesar_sweep.training.tensor_files import write_tensors

METHODS = (
    "he", "small", "wesar", "weight_norm", "sigma_reparam", "residual_scaling", "scaled_embed",
    "embed_norm",
)  # fmt: skip


@pytest.fixture
def directory(tmp_path) -> StudyDirectory:
    found = StudyDirectory(tmp_path / "out")
    found.create()
    return found


@pytest.mark.parametrize("shape", [{}, {"ffn": "swiglu", "tied": True, "qk_norm": True}])
def test_a_folded_row_is_what_the_model_computes_with(study_of, runs_of, stack_of, shape):
    """Every method in one stack, trained a little; in float32, so that both rows must agree."""
    study = study_of(model=shape)
    runs = runs_of(study, *({"method": name, "seed": n} for n, name in enumerate(METHODS)))
    stack = stack_of(study, runs)
    stack.train(3)
    for slot, run in enumerate(runs):
        folded_P = stack.rows.folded(slot)
        assert folded_P.dtype == torch.float32
        if run.parts.reparametrization == "sigma_reparam":
            # Its norm is a sum over one matrix here and over a group of them there.
            torch.testing.assert_close(folded_P, stack.rows.effective_KP[slot], rtol=2e-6, atol=0)
        else:
            assert torch.equal(folded_P, stack.rows.effective_KP[slot]), run.hyperparameters.method


def test_a_folded_row_after_the_fused_step(study_of, runs_of, text):
    """The GPU's optimizer keeps gates, gains and singular vectors of its own accord."""
    methods = ("wesar", "weight_norm", "sigma_reparam")
    study = study_of(model={"depth": 1}, data=SYNTHETIC)
    runs = runs_of(study, *({"method": name} for name in methods))
    stack = Stack(
        runs[0].architecture,
        slots=len(runs),
        traits=StackTraits.of(study, methods=methods),
        train_S=text % 16,
        fused=True,
        capture=False,
    )
    stack.load_many(range(len(runs)), runs)
    begin_KP = torch.stack([stack.rows.folded(slot) for slot in range(len(runs))])
    stack.train(1)
    folded_KP = torch.stack([stack.rows.folded(slot) for slot in range(len(runs))])
    # Sums of the kernels have another order.
    torch.testing.assert_close(folded_KP, stack.rows.effective_KP, rtol=1e-5, atol=1e-7)
    assert bool((folded_KP != begin_KP).any(dim=1).all()), "every run has moved"


def test_a_folded_row_is_not_rounded_to_bfloat16(study_of, runs_of):
    """The effective rows of a GPU are: those are the control."""
    study = study_of()
    (run,) = runs_of(study, {"method": "wesar"})
    forms = StackTraits.of(study, methods=["wesar"]).forms
    rows, exact = (
        ParameterRows(
            run.architecture, slots=1, forms=forms, device=torch.device("cpu"), dtype=dtype
        )
        for dtype in (torch.bfloat16, torch.float32)
    )
    for one in (rows, exact):
        one.load([0], [run])
    assert torch.equal(rows.folded(0), exact.effective_KP[0])
    assert not torch.equal(rows.effective_KP[0].float(), exact.effective_KP[0])


def test_a_file_says_all_that_is_needed(study_of, runs_of, stack_of, text, directory):
    """Read back into the plain decoder, it has the run's own loss on held-out windows."""
    study = study_of(model={"qk_norm": True})
    cells = [{"method": name, "seed": n} for n, name in enumerate(METHODS)]
    runs = runs_of(study, *cells)
    stack = stack_of(study, runs)
    stack.train(12)
    window_ST = text[-55:].long().view(5, 11)
    losses = stack.evaluate(range(len(runs)), window_ST)
    keeper = WeightKeeper(directory)
    for slot, run in enumerate(runs):
        path = keeper.keep(stack, slot, run, val_loss=losses[slot])
        assert path == directory.weights_file(run.trial, run.seed)
        assert path.name == f"t{slot:05d}-s{slot:03d}.safetensors"
        kept, folded = read_weights(path)
        assert (kept.study, kept.trial, kept.seed) == ("test", slot, slot)
        assert (kept.method, kept.parts) == (METHODS[slot], run.parts)
        assert (kept.steps, kept.val_loss) == (12, losses[slot])
        assert kept.architecture == run.architecture
        model = PlainDecoder(
            kept.architecture, embed_scale=kept.embed_scale, embed_norm=kept.parts.embed_norm
        ).load_effective(folded)
        with torch.no_grad():
            logit_BTV = model(window_ST[:, :-1])
        nll = torch.nn.functional.cross_entropy(logit_BTV.flatten(0, 1), window_ST[:, 1:].flatten())
        assert float(nll) == pytest.approx(losses[slot], abs=2e-5)
    assert len(set(losses)) == len(losses), "the runs differ"


class Watching(ListQueue):
    """Remembers which runs had weights on disk when their outcomes came."""

    def __init__(self, runs, directory, **options):
        super().__init__(runs, **options)
        self._directory, self.had = directory, {}

    def finish(self, results):
        for outcome, _ in results:
            key = (outcome.trial, outcome.seed)
            self.had[key] = self._directory.weights_file(*key).exists()
        super().finish(results)


def train(study: Study, queue: ListQueue, keeper: WeightKeeper | None) -> Engine:
    engine = Engine(
        study,
        queue=queue,
        corpus=load_corpus(study.data, context=study.model.context),
        device=torch.device("cpu"),
        methods=METHODS,
        slots=lambda architecture: Fit(2, 1, 0, 0, 0),
        worker="w0",
        on_block=lambda engine: False,
        weights=keeper,
    )
    engine.train()
    return engine


def test_completed_runs_alone_and_before_their_outcomes(study_of, runs_of, directory):
    study = study_of(
        data=SYNTHETIC,
        training={"steps": 24},
        evaluation={"sequences": 5, "every": 8},
        divergence={"window": 4, "patience": 4},
    )
    cells = [
        {"lr": 1e-3, "method": "wesar"},
        {"lr": 1e30, "method": "he"},
        {"lr": 1e-2, "method": "small"},
        {"lr": 1e-2, "method": "he", "seed": 1},
    ]
    queue = Watching(runs_of(study, *cells), directory, prune={(2, 16)})
    engine = train(study, queue, WeightKeeper(directory))
    statuses = {key: outcome.status for key, outcome in queue.outcomes.items()}
    assert statuses == {
        (0, 0): "completed", (1, 0): "diverged", (2, 0): "pruned", (3, 1): "completed"
    }  # fmt: skip
    assert queue.had == {key: status == "completed" for key, status in statuses.items()}
    assert engine.checkpoint_seconds > 0
    for key in ((0, 0), (3, 1)):
        kept, folded = read_weights(directory.weights_file(*key))
        assert kept.val_loss == queue.outcomes[key].val_loss
        assert kept.steps == queue.outcomes[key].steps == 24
        model = PlainDecoder(kept.architecture).load_effective(folded)
        assert all(bool(x.isfinite().all()) for x in model.parameters())
    # The control: nobody keeps them unless told to.
    again = Watching(runs_of(study, cells[0]), StudyDirectory(directory.root / "none"))
    train(study, again, None)
    assert again.had == {(0, 0): False}


@pytest.fixture
def full_disk():
    """No file of this process may grow beyond 20 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_weights_and_not_the_outcome(
    study_of, runs_of, directory, caplog, full_disk
):
    study = study_of(data=SYNTHETIC, model={"width": 48, "heads": 2})
    queue = Watching(runs_of(study, {"lr": 1e-2}), directory)
    with caplog.at_level(logging.WARNING):
        train(study, queue, WeightKeeper(directory))
    assert queue.outcomes[0, 0].status == "completed"
    assert math.isfinite(queue.outcomes[0, 0].val_loss)
    assert queue.had == {(0, 0): False}
    assert "trial 0, seed 0: no weights kept: cannot write" in caplog.text
    assert list(directory.weights_folder.iterdir()) == [], "nothing half written is left"


def test_what_an_earlier_try_left_is_cleared(study_of, runs_of, stack_of, directory):
    study = study_of()
    runs = runs_of(study, {"method": "he"}, {"method": "he"})
    stack = stack_of(study, runs)
    mine, other = (directory.weights_file(trial, 0) for trial in (0, 1))
    directory.weights_folder.mkdir()
    halves = [path.with_name(f".{path.name}.1.tmp") for path in (mine, other)]
    for half in halves:
        half.write_bytes(b"half")
    WeightKeeper(directory).keep(stack, 0, runs[0], val_loss=1.0)
    assert sorted(directory.weights_folder.iterdir()) == [halves[1], mine]


def test_what_holds_no_weights_of_a_run(tmp_path):
    missing = tmp_path / "t.safetensors"
    with pytest.raises(StoreError, match=r"cannot read .*t\.safetensors: No such file"):
        read_weights(missing)
    with pytest.raises(StoreError, match=r"cannot read .*: Is a directory"):
        read_weights(tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no header")
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"x": torch.ones(2)}, metadata={"format": "pt"})
    newer = tmp_path / "newer.safetensors"
    write_tensors(newer, {"x": torch.ones(2)}, metadata={"wesar_sweep_run": '{"format": 99}'})
    for path in (damaged, other, newer):
        with pytest.raises(StoreError, match=r"holds no weights of a run, or is damaged"):
            read_weights(path)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)}, metadata={})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_labels_are_those_of_the_plain_decoder(study_of, runs_of, stack_of):
    study = study_of(model={"ffn": "swiglu"})
    (run,) = runs_of(study, {"method": "he"})
    stack = stack_of(study, [run])
    labels = fold(stack.rows.folded(0), stack.rows.layout)
    own = dict(PlainDecoder(run.architecture).named_parameters())
    assert {name.removesuffix(".weight") for name in own} == labels.keys()
