"""The stacked step: right against a plain training loop, and the same bits in any company."""

import pytest
import torch
import torch.nn.functional as F

from wesar_sweep.kernels import cross_entropy, data_order
from wesar_sweep.model.fold import fold
from wesar_sweep.model.plain import PlainDecoder
from wesar_sweep.training import stack as stack_module

METHODS = (
    "he", "small", "xavier", "gpt2", "wesar", "weight_norm", "sigma_reparam", "residual_scaling",
    "scaled_embed", "embed_norm",
)  # fmt: skip

SHAPES = [
    {},
    {"ffn": "swiglu", "width": 12},
    {"tied": True},
    {"qk_norm": True},
    {"position": "none"},
    {"ffn": "swiglu", "tied": True, "qk_norm": True, "depth": 1, "ffn_width": 20},
]


def train(stack, steps):
    """Losses and gradient norms, [steps, K] each."""
    block = stack.data_block(steps)
    records = [stack.step(block[n]) for n in range(steps)]
    return torch.stack([r.loss_K for r in records]), torch.stack([r.grad_norm_K for r in records])


def folded_module(stack, slot, run):
    scale = run.architecture.width**0.5 if run.parts.scaled_embed else 1.0
    module = PlainDecoder(run.architecture, embed_scale=scale, embed_norm=run.parts.embed_norm)
    return module.load_effective(fold(stack.rows.effective_KP[slot], stack.rows.layout))


@pytest.mark.parametrize("shape", SHAPES)
def test_folded_runs_give_the_same_loss_as_an_ordinary_module(
    study_of, runs_of, stack_of, text, shape
):
    """Every method, trained a few steps, then folded: no gate is left and the logits are equal."""
    study = study_of(model=shape)
    runs = runs_of(study, *({"method": name, "seed": n} for n, name in enumerate(METHODS)))
    stack = stack_of(study, runs)
    train(stack, 5)
    window = text[: 4 * 11].long().view(4, 11)
    losses = stack.evaluate(range(len(runs)), window)
    for slot, run in enumerate(runs):
        module = folded_module(stack, slot, run)
        logits = module(window[:, :-1])
        expected = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        # Float32: two implementations of two layers, losses near 5.
        assert losses[slot] == pytest.approx(expected.item(), abs=2e-5), run.hyperparameters.method


@pytest.mark.parametrize("method", ["he", "small", "xavier", "gpt2", "scaled_embed", "embed_norm"])
def test_equals_a_plain_training_loop(study_of, runs_of, stack_of, text, method):
    """Where the parameters are the weights, the engine is torch.optim.AdamW with clipping."""
    study = study_of(training={"steps": 30, "clip": 0.5, "weight_decay": 0.2, "lr": 5e-3})
    (run,) = runs_of(study, {"method": method})
    stack = stack_of(study, [run])
    module = folded_module(stack, 0, run)
    h = run.hyperparameters
    decayed = [p for p in module.parameters() if p.ndim == 2]
    plain = [p for p in module.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": h.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=h.lr, betas=(h.beta1, h.beta2), eps=h.eps,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) / h.warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, T_max=h.steps - 1 - h.warmup, eta_min=h.lr * h.final_lr_ratio
            ),
        ],
        milestones=[h.warmup],
    )
    block = stack.data_block(h.steps)
    got, expected = [], []
    for n in range(h.steps):
        token, target = data_order.gather(text, block[n], context=run.architecture.context)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(token[0]).flatten(0, 1), target[0].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), h.clip)
        optimizer.step()
        scheduler.step()
        record = stack.step(block[n])
        got.append((record.loss_K.item(), record.grad_norm_K.item()))
        expected.append((loss.item(), norm.item()))
    # Rounding differs and grows a little with every step; a wrong schedule or decay shows at 1e-2.
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=2e-3, atol=2e-4)


def test_methods_mix_in_one_stack_and_slots_do_not_see_their_neighbours(
    study_of, runs_of, stack_of
):
    """Bit for bit: all ten methods together, each alone, and in another order."""
    study = study_of(training={"z_loss": 1e-4})
    cells = [
        {"method": name, "seed": n % 3, "lr": 10.0 ** -(n % 4)} for n, name in enumerate(METHODS)
    ]
    runs = runs_of(study, *cells)
    together = train(stack_of(study, runs), 12)
    backwards = train(stack_of(study, runs[::-1]), 12)
    for slot, run in enumerate(runs):
        alone = train(stack_of(study, [run]), 12)
        for got, reverse, want in zip(together, backwards, alone, strict=True):
            assert torch.equal(got[:, slot], want[:, 0]), run.hyperparameters.method
            assert torch.equal(reverse[:, -1 - slot], want[:, 0])


def poison(stack, slot):
    stack.rows.parameter_KP[slot] = torch.nan
    stack.rows.effective_KP[slot] = torch.nan


def test_a_poisoned_neighbour_changes_nothing(study_of, runs_of, stack_of):
    study = study_of()
    runs = runs_of(study, *({"method": name} for name in METHODS))
    clean = train(stack_of(study, runs), 8)
    stack = stack_of(study, runs)
    for slot in (0, 4, 5, 6):
        poison(stack, slot)
    got = train(stack, 8)
    for slot in (1, 2, 3, 7, 8, 9):
        assert torch.equal(got[0][:, slot], clean[0][:, slot])
        assert torch.equal(got[1][:, slot], clean[1][:, slot])
    assert torch.isnan(got[0][:, 5]).all()


def test_control_a_reduction_over_runs_is_caught(study_of, runs_of, stack_of, monkeypatch):
    """The control: were anything reduced over K, the two tests above would fail."""

    def leaky(logit_KMV, target_KM):
        nll_K = cross_entropy.reference(logit_KMV, target_KM)
        return nll_K + 0.0 * nll_K.sum() + 1e-6 * nll_K.mean()

    study = study_of()
    runs = runs_of(study, *({"method": "he", "seed": seed} for seed in range(3)))
    alone = train(stack_of(study, runs[:1]), 8)
    monkeypatch.setattr(stack_module.cross_entropy, "cross_entropy", leaky)
    leaking = train(stack_of(study, runs), 8)
    assert not torch.equal(leaking[0][:, 0], alone[0][:, 0])
    poisoned = stack_of(study, runs)
    poison(poisoned, 2)
    assert torch.isnan(train(poisoned, 2)[0][:, 0]).any()


def test_refill_and_shrinking_change_no_bit(study_of, runs_of, stack_of):
    """A run that enters late, or whose neighbours leave, is the run it would be alone."""
    study = study_of(training={"steps": 20})
    runs = runs_of(study, *({"method": name, "seed": 1} for name in ("wesar", "he", "weight_norm")))
    alone = {
        name: train(stack_of(study, [run]), 16)[0][:, 0]
        for name, run in zip("abc", runs, strict=True)
    }
    stack = stack_of(study, runs[:2])
    first = train(stack, 5)[0]
    stack.load(0, runs[2])
    second = train(stack, 6)[0]
    stack.keep([1])
    third = train(stack, 5)[0]
    assert torch.equal(first[:, 0], alone["a"][:5])
    assert torch.equal(torch.cat((first[:, 1], second[:, 1], third[:, 0])), alone["b"])
    assert torch.equal(second[:, 0], alone["c"][:6])


def test_evaluation_is_the_same_for_any_subset(study_of, runs_of, stack_of, text):
    study = study_of()
    runs = runs_of(study, *({"method": name} for name in METHODS))
    stack = stack_of(study, runs)
    window = text[: 7 * 11].long().view(7, 11)
    everything = stack.evaluate(range(10), window)
    assert [stack.evaluate([slot], window)[0] for slot in range(10)] == everything
    assert stack.evaluate([7, 2], window) == [everything[7], everything[2]]


def test_probes_say_what_happened(study_of, runs_of, stack_of):
    """Update ratios, norms and gates against the parameters before and after the step."""
    study = study_of(training={"warmup": 0, "weight_decay": 0.0})
    runs = runs_of(study, {"method": "wesar"}, {"method": "he"}, {"method": "weight_norm"})
    stack = stack_of(study, runs)
    layout = stack.rows.layout
    old, old_effective = stack.rows.parameter_KP.clone(), stack.rows.effective_KP.clone()
    probes = stack.step(stack.data_block(1)[0], probe=True).probes
    assert probes.keys() == stack.probe_axes().keys()
    for name, labels in stack.probe_axes().items():
        assert probes[name].shape == (3, len(labels)), name
    group = next(g for g in layout.groups if g.name == "down")
    number = layout.matrix_labels.index("layers.1.w")
    before, after = group.view(old)[0, 1], group.view(stack.rows.parameter_KP)[0, 1]
    effective = group.view(old_effective)[0, 1]
    assert probes["weight_norm"][0, number].item() == pytest.approx(before.norm().item(), rel=1e-6)
    assert probes["effective_norm"][0, number].item() == pytest.approx(
        effective.norm().item(), rel=1e-6
    )
    ratio = (after - before).norm() / before.norm()
    assert probes["update_ratio"][0, number].item() == pytest.approx(ratio.item(), rel=1e-5)
    # α₀ of w: He std √(1/(N·4d)) over σ = √4e-5.
    alpha = (1 / (2 * 48)) ** 0.5 / 4e-5**0.5
    assert probes["gate"][0, number].item() == pytest.approx(alpha, rel=1e-6)
    assert probes["gate"][1].tolist() == [1.0] * len(layout.matrix_labels)
    assert (probes["max_attention_logit"] > 0).all() and (probes["residual_rms"] > 0).all()


def test_adam_divides_the_gate_out_of_the_update(study_of, runs_of, stack_of):
    """The method's own claim: under WeSaR the first update ratio is the same for every matrix."""
    study = study_of(training={"warmup": 0, "weight_decay": 0.0, "clip": None}, model={"width": 48})
    stack = stack_of(study, runs_of(study, {"method": "wesar"}, {"method": "he"}))
    ratio = stack.step(stack.data_block(1)[0], probe=True).probes["update_ratio"]
    inner = [
        n for n, label in enumerate(stack.rows.layout.matrix_labels) if label not in ("e", "p")
    ]
    spread = ratio[:, inner].amax(1) / ratio[:, inner].amin(1)
    assert spread[0] < 1.15
    assert spread[1] > 1.5
