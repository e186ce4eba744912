"""Attention kept within documents: what a token's loss depends on, in both steps and the engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.errors import ConfigError
from wesar_sweep.kernels import rope
from wesar_sweep.kernels.fused import attention, gelu_gradients, linear, prediction
from wesar_sweep.model.decoder import effective_weights, forward
from wesar_sweep.training.engine import Engine
from wesar_sweep.training.memory import Fit
from wesar_sweep.training.stack import Stack, StackTraits

SPACE = ord(" ")
"""In these tests it ends a document: a word."""


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(study, runs, text, device, *, document_end, **options):
    traits = StackTraits.of(study, methods=["he", "wesar"], document_end=document_end)
    stack = Stack(
        runs[0].architecture, slots=len(runs), traits=traits, train_S=text.to(device), **options
    )
    stack.load_many(range(len(runs)), runs)
    return stack


def logits_of(stack, token_KBT):
    a = stack.architecture
    return forward(
        effective_weights(stack.rows.effective_KP, stack.rows.layout, train=False),
        token_KBT,
        architecture=a,
        rotation=rope.tables(a.context, a.head_width),
        switches=stack.table.switches(scale=False, normalise=False),
        document_end=stack.traits.document_end,
    ).unflatten(1, token_KBT.shape[1:])


def test_other_documents_change_no_logit(study_of, runs_of, text):
    """And where attention crosses their ends, they do."""
    study = study_of()
    runs = runs_of(study, {"method": "he"}, {"method": "wesar", "seed": 1})
    token = torch.tensor(list(b"abc de fgh"))
    other = torch.tensor(list(b"xyz uv fgh"))
    for document_end, same in ((SPACE, True), (None, False)):
        stack = make(study, runs, text, torch.device("cpu"), document_end=document_end)
        stack.train(2)
        before, after = (logits_of(stack, x.expand(2, 1, -1)) for x in (token, other))
        # The last word, seven characters from the start; the space before it has other words to
        # see, and itself belongs to the one before.
        assert torch.equal(before[:, :, 7:], after[:, :, 7:]) == same
        assert not torch.equal(before[:, :, 6], after[:, :, 6])


@pytest.fixture(params=["library", "by hand"])
def kernels(request, monkeypatch):
    """Whether the fused step takes the library's attention or its own, in float32 too."""
    monkeypatch.setattr(gelu_gradients, "preferred", lambda *shape: False)
    if request.param == "by hand":
        monkeypatch.setattr(linear, "supported", lambda *shape: True)
        monkeypatch.setattr(attention, "use_fused", lambda *shape: True)
        monkeypatch.setattr(prediction, "supported", lambda *shape: True)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_fused_step_equals_the_reference(study_of, runs_of, text, device, kernels, qk_norm):
    """Float32: losses, norms, each probe, and the evaluation after it."""
    study = study_of(model={"depth": 1, "qk_norm": qk_norm}, training={"batch": 2})
    runs = runs_of(study, {"method": "wesar"}, {"method": "he", "seed": 1})
    plain = make(study, runs, text, device, document_end=SPACE, fused=False)
    fused = make(study, runs, text, device, document_end=SPACE, fused=True, capture=False)
    anywhere = make(study, runs, text, device, document_end=None, fused=False)
    window = text[: 4 * (study.model.context + 1)].long().view(4, -1).to(device)
    begun = [stack.evaluate([1, 0], window) for stack in (plain, fused, anywhere)]
    # Float32, sums in another order.
    assert begun[1] == pytest.approx(begun[0], abs=1e-4)
    assert min(abs(x - y) for x, y in zip(begun[0], begun[2], strict=True)) > 1e-3, "the control"
    want, got, other = (stack.train(1, probe_at=(0,)).read() for stack in (plain, fused, anywhere))
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=2e-5)
    for name, value in want[2][0].items():
        np.testing.assert_allclose(got[2][0][name], value, rtol=5e-3, atol=1e-5, err_msg=name)
    residual = [probes[0]["residual_rms"] for _, _, probes in (want, other)]
    assert (np.abs(residual[0] - residual[1]) > 1e-3).all(), "the control"


@pytest.mark.gpu
@pytest.mark.parametrize("context", [64, 640])
def test_a_captured_step_within_documents_is_the_launched_one(study_of, runs_of, text, context):
    """bfloat16, our own attention and the library's: equal bits; float32 in plain torch is near."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = torch.device("cuda")
    study = study_of(
        model={"width": 64, "heads": 2, "context": context}, training={"batch": 4, "lr": 1e-4}
    )
    runs = runs_of(study, {"method": "he"}, {"method": "wesar", "seed": 1})
    found = []
    for capture in (True, False):
        stack = make(
            study, runs, text, device, document_end=SPACE, precision="bf16", capture=capture,
            deterministic=True,
        )  # fmt: skip
        stack.warm_up()
        stack.load_many([0, 1], runs)
        found.append(stack.train(20, probe_at=(1,)).read())
    torch.use_deterministic_algorithms(False)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    plain = make(study, runs, text, device, document_end=SPACE, fused=False)
    # bfloat16 rounds by 4e-3, a loss over thousands of tokens by less.
    np.testing.assert_allclose(found[0][0], plain.train(20).read()[0], atol=0.03)


class OneRun:
    """A queue of one run, which keeps what becomes of it."""

    learns = True

    def __init__(self, run):
        self.runs, self.outcome = [run], None

    def take(self, count, *, architecture=None):
        taken, self.runs = self.runs, []
        return taken

    def report(self, losses):
        return [False for _ in losses]

    def finish(self, results):
        ((self.outcome, _),) = results


def trained(study, run, corpus):
    """The engine's losses of one run, before the first step and at the end."""
    queue = OneRun(run)
    Engine(
        study, queue=queue, corpus=corpus, device=torch.device("cpu"), methods=["he"],
        slots=lambda architecture: Fit(1, 1, 0, 0, 0), worker="w0", on_block=lambda engine: False,
    ).train()  # fmt: skip
    return queue.outcome.init_loss, queue.outcome.val_loss


@pytest.fixture
def files(tmp_path):
    """Short documents, a line each."""
    words = "the quick brown fox jumps over the lazy dog "
    lines = [words[n % 9 :] + words[: n % 7] + str(n) for n in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    return {"source": "text", "paths": [str(tmp_path / "*.txt")], "documents": "line"}


def test_the_study_says_whether_documents_are_masked(study_of, runs_of, files):
    found = {}
    for masked in (False, True):
        study = study_of(
            model={"context": 40}, training={"steps": 3}, data={**files, "mask_documents": masked}
        )
        corpus = load_corpus(study.data, context=40)
        assert corpus.end_of_document == 0
        found[masked] = trained(study, *runs_of(study, {}), corpus)
    # From the first evaluation on.
    for before, after in zip(found[False], found[True], strict=True):
        assert abs(before - after) > 1e-4


def test_documents_that_nothing_ends_cannot_be_told_apart(study_of, runs_of, files):
    study = study_of(model={"context": 40}, data={**files, "mask_documents": True})
    corpus = replace(load_corpus(study.data, context=40), tokenizer=None)
    with pytest.raises(ConfigError, match=r"data\.mask_documents.*no token ends a document"):
        trained(study, *runs_of(study, {}), corpus)
    plain = study_of(model={"context": 40}, training={"steps": 1}, data=files)
    trained(plain, *runs_of(plain, {}), corpus)
