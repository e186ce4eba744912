"""On a GPU: the captured step against launched kernels; a run in company against it alone."""

import math

import numpy as np
import pytest
import torch

from wesar_sweep.data.evaluation_sets import WindowGroup
from wesar_sweep.training.scoring import DeviceWindows
from wesar_sweep.training.stack import Stack, StackTraits

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return torch.device("cuda")


@pytest.fixture
def small_study(study_of):
    return study_of(
        model={"width": 64, "depth": 2, "heads": 2, "context": 64},
        training={"steps": 300, "batch": 8, "warmup": 20, "lr": 3e-3},
    )


def losses(study, runs, text, device, *, steps, slots=None, precision="bf16", **options):
    """[steps, runs] of training losses, and validation losses at the end."""
    traits = StackTraits.of(study, methods=["he", "wesar"])
    stack = Stack(
        runs[0].architecture,
        slots=slots or len(runs),
        traits=traits,
        train_S=text.to(device),
        precision=precision,
        **options,
    )
    stack.warm_up()
    for slot in range(stack.slots):
        stack.load(slot, runs[slot % len(runs)])
    found = [torch.from_numpy(stack.train(50).read()[0]) for _ in range(steps // 50)]
    window = text[-65 * 32 :].long().view(32, 65).to(device)
    return torch.cat(found)[:, : len(runs)], stack.evaluate(range(len(runs)), window)


def test_capture_changes_nothing(small_study, runs_of, text, gpu):
    """The same kernels in the same order: equal bits."""
    runs = runs_of(small_study, {"method": "wesar"}, {"method": "he", "seed": 1})
    captured, _ = losses(small_study, runs, text, gpu, steps=100)
    launched, _ = losses(small_study, runs, text, gpu, steps=100, capture=False)
    assert torch.equal(captured, launched)


@pytest.mark.parametrize("method", ["wesar", "sigma_reparam", "weight_norm"])
def test_saved_and_restored_in_another_stack(small_study, runs_of, text, gpu, method):
    """Other slots of a stack as large, whose step was captured before: equal bits."""
    runs = runs_of(small_study, {"method": method}, {"method": "he", "seed": 1})
    traits = StackTraits.of(small_study, methods=["he", method])
    undisturbed, first, second = (
        Stack(runs[0].architecture, slots=2, traits=traits, train_S=text.to(gpu), precision="bf16")
        for _ in range(3)
    )
    for stack in (undisturbed, first):
        stack.warm_up()
        stack.load_many([0, 1], runs)
        stack.train(30).read()
    state = first.state([1, 0])
    second.warm_up()
    second.load_many([0, 1], runs)
    second.train(7).read()
    # In each other's slots.
    second.load_many([1, 0], runs)
    for slot, place in ((0, 0), (1, 1)):
        rows = {name: value[place] for name, value in state.items()}
        assert {name: row.shape for name, row in rows.items()} == second.state_shapes()
        second.restore(slot, rows, steps_done=30)
    want, got = undisturbed.train(40).read(), second.train(40).read()
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert (mine == theirs[:, [1, 0]]).all()


def test_micro_batches_give_the_same_step(small_study, runs_of, text, gpu):
    """Two orders of one sum, compared for as long as rounding has not grown.

    Training at a high rate is chaotic: after some 15 steps any two roundings go their own ways.
    """

    def curve(precision, *, micro_batches=1, **params):
        runs = runs_of(small_study, {"method": "wesar", **params})
        options = {"precision": precision, "micro_batches": micro_batches}
        return losses(small_study, runs, text, gpu, steps=50, **options)[0][:, 0]

    # float32 rounds by 6e-8, so a gradient, a sum over 512 tokens, differs by some 1e-6 of itself
    # in another order. Weights that differ by 1e-6 of themselves, or by 1e-5, give curves that are
    # 5e-6 or 5e-5 apart within 30 steps at this rate, no more at the end than at the start.
    calm = curve("fp32", lr=3e-4)
    assert (calm - curve("fp32", lr=3e-4, micro_batches=4)).abs()[:20].max() < 1e-3
    # The control: steps that are a hundredth longer are seen, 1e-2 apart.
    assert (calm - curve("fp32", lr=3.03e-4)).abs()[:20].max() > 1e-3
    # bfloat16 rounds by 4e-3, each part of a gradient by itself.
    rounded = curve("bf16"), curve("bf16", micro_batches=4)
    assert (rounded[0] - rounded[1]).abs()[:10].max() < 0.02


def test_a_run_alone_and_among_64(small_study, runs_of, text, gpu):
    """Sums may take another order with K, so curves drift as two seeds' rounding would."""
    runs = runs_of(small_study, *({"method": "wesar", "seed": n} for n in range(20)))
    together, final_together = losses(small_study, runs, text, gpu, steps=300, slots=64)
    differences, curves = [], []
    for n, run in enumerate(runs):
        alone, (final,) = losses(small_study, [run], text, gpu, steps=300)
        curves.append((alone[:, 0] - together[:, n]).abs())
        differences.append(final - final_together[n])
    curve = torch.stack(curves)
    assert curve[:, :5].max() < 0.02, "the first steps differ by rounding alone"
    assert curve.mean() < 0.05
    mean = sum(differences) / 20
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 19)
    print(f"final loss alone minus among 64: mean {mean:+.5f}, sd {spread:.5f}, n 20")
    # Student's t at 1 in 1000 with 19 degrees of freedom: centred on zero.
    assert abs(mean) <= 3.88 * spread / math.sqrt(20) + 1e-6


def test_nan_in_one_run_changes_no_other(small_study, runs_of, text, gpu):
    cells = [{"method": "he", "seed": n} for n in range(4)]
    clean, _ = losses(small_study, runs_of(small_study, *cells), text, gpu, steps=50)
    cells[2]["lr"] = 1e30
    got, _ = losses(small_study, runs_of(small_study, *cells), text, gpu, steps=50)
    assert not torch.isfinite(got[-1, 2])
    assert torch.equal(got[:, [0, 1, 3]], clean[:, [0, 1, 3]])


def test_weights_are_kept_in_more_digits_than_the_effective_ones(small_study, runs_of, text, gpu):
    """Rounded to bfloat16 they are those that the passes read, but for what lies at its edges."""
    methods = ["he", "wesar", "weight_norm", "sigma_reparam"]
    runs = runs_of(small_study, *({"method": name} for name in methods))
    stack = Stack(
        runs[0].architecture,
        slots=len(runs),
        traits=StackTraits.of(small_study, methods=methods),
        train_S=text.to(gpu),
        precision="bf16",
    )
    stack.warm_up()
    stack.load_many(range(len(runs)), runs)
    stack.train(20).read()
    for slot in range(len(runs)):
        folded_P = stack.rows.folded(slot)
        effective_P = stack.rows.effective_KP[slot].float().cpu()
        assert folded_P.device.type == "cpu" and folded_P.dtype == torch.float32
        # A step of bfloat16 is 2^-8 of a number's power of two.
        torch.testing.assert_close(folded_P, effective_P, rtol=2**-8, atol=0)
        assert float((folded_P.bfloat16().float() == effective_P).float().mean()) > 0.99
        assert not torch.equal(folded_P, effective_P)


@pytest.mark.parametrize("context", [64, 768])
def test_scores_are_evaluations(study_of, runs_of, text, gpu, context):
    """Bf16: windows scored whole give the loss that `evaluate` gives; a run alone the same.

    By this project's attention and by the library's.
    """
    study = study_of(
        model={"width": 64, "depth": 2, "heads": 2, "context": context},
        training={"steps": 300, "batch": 8, "warmup": 20, "lr": 1e-3},
    )
    runs = runs_of(study, {"method": "wesar"}, {"method": "he", "seed": 1}, {"method": "he"})
    traits = StackTraits.of(study, methods=["he", "wesar"])
    stacks = []
    for own in (runs, runs[:1]):
        stack = Stack(
            runs[0].architecture, slots=len(own), traits=traits, train_S=text.to(gpu),
            precision="bf16",
        )  # fmt: skip
        stack.warm_up()
        stack.load_many(range(len(own)), own)
        # Few, and gentle: roundings of bfloat16 that differ with K must not grow.
        stack.train(5).read()
        stacks.append(stack)
    token_ST = text[: 11 * (context // 4)].unfold(0, context // 4, context // 4)
    token_WT = torch.zeros(len(token_ST), context + 1, dtype=torch.int32)
    token_WT[:, : context // 4] = token_ST
    full_WT = text[: 9 * (context + 1)].int().view(9, -1)
    groups = [
        WindowGroup(
            token_WT=own.numpy(), length_W=np.full(len(own), length, np.int32),
            scored_W=np.full(len(own), length - 1, np.int32),
            document_W=np.arange(len(own), dtype=np.int32),
        )
        for own, length in ((token_WT[:, : context // 4 + 1], context // 4), (full_WT, context + 1))
    ]  # fmt: skip
    for group in groups:
        windows = DeviceWindows.of([group], device=gpu)
        scores = stacks[0].score([2, 0], windows)
        (alone,) = stacks[1].score([0], windows)
        assert alone.nll == pytest.approx(scores[1].nll, rel=1e-2)
        assert scores[0].nll != scores[1].nll
    mean = [score.nll / (9 * context) for score in scores]
    # Logits are float32 here, and rounded to bfloat16 there.
    assert mean == pytest.approx(stacks[0].evaluate([2, 0], full_WT.long().to(gpu)), abs=2e-2)
