"""Initial draws, and the gradient of every method against float64 autograd of its formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from wesar_sweep.config.initial_std import initial_std
from wesar_sweep.config.matrices import role_of
from wesar_sweep.config.run import Architecture
from wesar_sweep.kernels import data_order
from wesar_sweep.model.fold import fold
from wesar_sweep.model.initialisation import standard_normal
from wesar_sweep.model.plain import PlainDecoder
from wesar_sweep.training import parameters as parameters_module

METHODS = ("he", "wesar", "weight_norm", "sigma_reparam", "residual_scaling", "embed_norm")


def plain_formula(method, label, w, parameters):
    """The effective weight as SCIENCE writes it, for autograd to differentiate."""
    if method == "weight_norm" and label != "e":
        return parameters["gain"][label][:, None] * w / w.square().sum(1, keepdim=True).sqrt()
    if method == "sigma_reparam" and label != "e":
        u, v = parameters["u"][label], parameters["v"][label]
        return parameters["gate"][label] / (u @ w @ v) * w
    return parameters["gate"][label] * w


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [{}, {"ffn": "swiglu", "tied": True, "qk_norm": True}])
def test_gradients(study_of, runs_of, stack_of, text, method, shape):
    study = study_of(model=shape)
    runs = runs_of(study, {"method": method, "seed": 3}, {"method": "he", "seed": 4})
    stack = stack_of(study, runs, methods=[*METHODS])
    rows, layout = stack.rows, stack.rows.layout
    for step in stack.data_block(3):
        stack.step(step)  # away from the start, where gains equal row norms and norms' gains are 1
    row = rows.parameter_KP[:1].double()

    leaf = {}
    given = {"gate": {}, "gain": {}, "u": {}, "v": {}}
    for group in layout.groups:
        for place, label in enumerate(group.labels):
            leaf[label] = group.view(row)[0, place].clone().requires_grad_()
            number = group.first_matrix + place
            given["gate"][label] = row[0, layout.gates][number].clone().requires_grad_()
            gains = row[0, layout.row_gains(group)].view(group.count, -1)[place]
            given["gain"][label] = gains.clone().requires_grad_()
            if group.name in rows.left:
                given["u"][label] = rows.left[group.name][0, place].double()
                given["v"][label] = rows.right[group.name][0, place].double()

    module = PlainDecoder(runs[0].architecture, embed_norm=runs[0].parts.embed_norm).double()
    weights = {f"{name}.weight": plain_formula(method, name, w, given) for name, w in leaf.items()}
    first = stack.data_block(1)[0]
    token, target = data_order.gather(text, first, context=runs[0].architecture.context)
    gains = dict(module.named_parameters())
    norms = {name: p for name, p in gains.items() if p.ndim == 1}
    for name, value in fold(rows.effective_KP[0], layout).items():
        if f"{name}.weight" in norms:
            norms[f"{name}.weight"].data.copy_(value)
    logits = torch.func.functional_call(module, {**norms, **weights}, (token[0],))
    loss = F.cross_entropy(logits.flatten(0, 1), target[0].flatten())
    wanted = [*leaf.values(), *given["gate"].values(), *given["gain"].values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    expected = {id(x): g for x, g in zip(wanted, grads, strict=True)}

    before = rows.parameter_KP.clone()
    captured = {}
    honest = rows.pull_back

    def capture(leaf_grads):
        norm = honest(leaf_grads)
        captured["grad"] = rows.grad_KP.clone()
        return norm

    rows.pull_back = capture
    record = stack.step(first)
    assert record.loss_K[0].item() == pytest.approx(loss.item(), abs=1e-5)
    got = captured["grad"][:1].double()
    # Float32 against float64 through two layers: relative to the largest entry of each gradient.
    for group in layout.groups:
        for place, label in enumerate(group.labels):
            want = expected[id(leaf[label])]
            close(group.view(got)[0, place], want, f"{method} {label}")
            number = group.first_matrix + place
            gate_grad = expected[id(given["gate"][label])]
            trains = (
                method in ("wesar",)
                or (method == "sigma_reparam" and label != "e")
                or (method == "residual_scaling" and role_of(label) in ("o", "w"))
            )
            if trains:
                # A query's gate under qk_norm has gradient zero: a sum that cancels to rounding.
                close(got[0, layout.gates][number], gate_grad, f"gate of {label}", floor=1e-3)
            else:
                assert got[0, layout.gates][number] == 0
            part = got[0, layout.row_gains(group)].view(group.count, -1)[place]
            if method == "weight_norm" and label != "e":
                close(part, expected[id(given["gain"][label])], f"gain of {label}")
            else:
                assert (part == 0).all()
    assert not torch.equal(rows.parameter_KP, before)


def close(got, want, what, *, floor=1e-9):
    scale = want.abs().max().item() + floor
    assert (got - want).abs().max().item() / scale < 2e-4, what


def test_stds_of_the_paper():
    """Table 1 for the 130M model, worked by hand: d 768, N 12, feed-forward 4d."""
    a = Architecture(
        width=768, depth=12, heads=12, context=64, ffn="gelu", ffn_width=3072, position="rope",
        tied=False, qk_norm=False, batch=1, vocabulary=32_000,
    )  # fmt: skip
    he = {role: initial_std(role, init="he", architecture=a) for role in "qkvouwp"}
    assert he["q"] == he["k"] == he["v"] == he["u"] == he["p"] == pytest.approx(math.sqrt(1 / 768))
    assert he["o"] == pytest.approx(math.sqrt(1 / (2 * 12 * 768)))
    assert he["w"] == pytest.approx(math.sqrt(2 / (8 * 12 * 768)))
    small = {role: initial_std(role, init="small", architecture=a) for role in "eqkvouwp"}
    assert (
        small["e"]
        == small["q"]
        == small["u"]
        == small["p"]
        == pytest.approx(math.sqrt(2 / (5 * 768)))
    )
    assert small["o"] == small["w"] == pytest.approx(math.sqrt(2 / (5 * 768)) / math.sqrt(24))
    assert initial_std("w", init="gpt2", architecture=a) == pytest.approx(0.02 / math.sqrt(24))
    assert initial_std("u", init="xavier", architecture=a) == pytest.approx(
        math.sqrt(2 / (768 + 3072))
    )
    assert initial_std("p", init="xavier", architecture=a) == pytest.approx(math.sqrt(2 / 32_768))


@pytest.mark.parametrize("method", ["he", "wesar", "weight_norm", "residual_scaling"])
def test_effective_weights_start_with_the_std_of_their_role(study_of, runs_of, stack_of, method):
    """Whatever the method, W̄ begins as He says (but σ for WeSaR's embedding)."""
    study = study_of(model={"width": 96, "heads": 4})
    (run,) = runs_of(study, {"method": method})
    stack = stack_of(study, [run])
    for group in stack.rows.layout.groups:
        for place, label in enumerate(group.labels):
            role = role_of(label)
            std = initial_std(role, init="he", architecture=run.architecture)
            if method == "wesar" and role == "e":
                std = math.sqrt(4e-5)
            measured = group.view(stack.rows.effective_KP)[0, place].std().item()
            # Standard error of a std from at least 96² draws: 0.8 %.
            assert measured == pytest.approx(std, rel=0.03), label
            actual = group.view(stack.rows.parameter_KP)[0, place].std().item()
            if method == "wesar":
                assert actual == pytest.approx(math.sqrt(4e-5), rel=0.03), "one σ for every matrix"


def test_sigma_reparam_starts_with_spectral_norm_one(study_of, runs_of, stack_of):
    study = study_of(model={"width": 24})
    (run,) = runs_of(study, {"method": "sigma_reparam"})
    stack = stack_of(study, [run])
    for group in stack.rows.layout.groups:
        if group.name == "embed":
            continue
        norms = torch.linalg.svdvals(group.view(stack.rows.effective_KP)[0])[:, 0]
        # Thirty steps of power iteration from a random start.
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0.05, atol=0)


def test_draws_are_keyed_by_seed_and_name():
    draw = standard_normal((4, 4), seed=1, name="layers.0.q")
    assert torch.equal(draw, standard_normal((4, 4), seed=1, name="layers.0.q"))
    assert not torch.equal(draw, standard_normal((4, 4), seed=2, name="layers.0.q"))
    assert not torch.equal(draw, standard_normal((4, 4), seed=1, name="layers.1.q"))


def test_paired_runs_start_from_the_same_draws(study_of, runs_of, stack_of):
    """Same seed, other method: the same standard normals under another scale."""
    study = study_of()
    stack = stack_of(
        study, runs_of(study, {"method": "small", "seed": 5}, {"method": "he", "seed": 5})
    )
    group = stack.rows.layout.groups[1]
    q = group.view(stack.rows.parameter_KP)[:, 0]
    torch.testing.assert_close(q[0] / q[0].std(), q[1] / q[1].std())


@pytest.mark.parametrize("threads", [1, 3])
def test_runs_loaded_together_are_those_loaded_alone(
    study_of, runs_of, stack_of, threads, monkeypatch
):
    """Bit for bit, whatever the slots' order; control: another seed differs."""
    methods = ("wesar", "weight_norm", "sigma_reparam", "residual_scaling", "he")
    cells = [{"method": name, "seed": n % 3} for n, name in enumerate(methods)]
    study = study_of(model={"ffn": "swiglu", "qk_norm": True})
    runs = runs_of(study, *cells)
    alone = stack_of(study, runs)
    for slot, run in enumerate(runs):
        alone.load(slot, run)
    together = stack_of(study, runs[::-1])
    before = together.rows.parameter_KP.clone()
    monkeypatch.setattr(parameters_module, "drawing_threads", lambda device: threads)
    together.load_many([4, 2, 3, 0, 1], [runs[n] for n in (4, 2, 3, 0, 1)])
    assert not torch.equal(together.rows.parameter_KP, before)
    same_state(together, alone, rtol=0)


def test_a_piece_of_several_runs_is_each_alone(study_of, runs_of, stack_of):
    """As a GPU loads them; within rounding, for sums of several runs may take another order."""
    methods = ("wesar", "weight_norm", "sigma_reparam")
    study = study_of(model={"width": 24})
    runs = runs_of(study, *({"method": name, "seed": n} for n, name in enumerate(methods)))
    alone, together = stack_of(study, runs), stack_of(study, [runs[0]] * 3)
    rows = together.rows
    rows._draws.begin([run.seed for run in runs], None)
    rows._load_piece(0, runs, [rows._draws.row(run.seed) for run in runs])
    together.table.load(range(3), runs)
    # Thirty steps of power iteration in float32.
    same_state(together, alone, rtol=1e-4)


def test_neighbouring_slots_are_loaded_in_pieces():
    runs = list("abcdefg")
    pieces = parameters_module._neighbours([0, 1, 2, 3, 6, 7, 5], runs, most=3)
    assert pieces == [(0, ["a", "b", "c"]), (3, ["d"]), (6, ["e", "f"]), (5, ["g"])]
    assert parameters_module._neighbours([], [], most=3) == []


def same_state(got, want, *, rtol):
    pairs = [
        (got.rows.parameter_KP, want.rows.parameter_KP),
        (got.rows.effective_KP, want.rows.effective_KP),
        (got.rows.form_KM, want.rows.form_KM),
        (got.rows.gate_trains_KM, want.rows.gate_trains_KM),
        (got.table._float_FK, want.table._float_FK),
        (got.table._int_IK, want.table._int_IK),
        *((got.rows.left[name], left) for name, left in want.rows.left.items()),
        *((got.rows.right[name], right) for name, right in want.rows.right.items()),
    ]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol / 100)
