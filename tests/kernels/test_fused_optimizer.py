"""The fused optimizer pass against pull-back, AdamW and new effective weights one after another."""

import math

import pytest
import torch

from tests.kernels.compiled import compile_calls
from wesar_sweep.config.run import Architecture
from wesar_sweep.kernels import adamw as plain
from wesar_sweep.kernels.fused import optimizer as fused
from wesar_sweep.kernels.reparametrization import power_iteration, spectral_norm
from wesar_sweep.training.fused_step import _places
from wesar_sweep.training.parameters import ParameterRows

FORMS = [
    frozenset({"scalar"}),
    frozenset({"scalar", "spectral"}),
    frozenset({"scalar", "row"}),
    frozenset({"scalar", "row", "spectral"}),
]
# Rows of 136 and 2,100 are pieces and a rest of 128 and of 2,048; matrices of 136 by 136 are too
# large to be held in power iteration, those of 24 by 24 are not.
SHAPES = [(24, 40, 11), (136, 130, 9), (8, 2100, 5)]
NUMBER = {"scalar": 0, "row": 1, "spectral": 2}
# Float32 sums in another order, and a gradient of the spectral form that is a difference.
TOLERANCE = dict(rtol=2e-4, atol=2e-6)


def rows_of(shape, forms, K, device):
    """Random rows of K runs: run 0 is scalar, and so on through the forms."""
    width, ffn_width, vocabulary = shape
    architecture = Architecture(
        width, 1, 2, 4, "gelu", ffn_width, "rope", tied=False, qk_norm=True, batch=1,
        vocabulary=vocabulary,
    )  # fmt: skip
    rows = ParameterRows(architecture, slots=K, forms=forms, device=device, dtype=torch.float32)
    layout, generator = rows.layout, torch.Generator().manual_seed(width)

    def random(like):
        return torch.randn(like.shape, generator=generator).to(device)

    rows.parameter_KP.copy_(random(rows.parameter_KP))
    tail = rows.parameter_KP[:, layout.norm_gains.start :]
    tail.mul_(0.1).add_(1)
    ordered = sorted(forms, key=NUMBER.get)
    for run in range(K):
        form = ordered[run % len(ordered)]
        rows.form_KM[run] = NUMBER[form]
        rows.gate_trains_KM[run] = form != "row"
    embedding = layout.groups[0].matrices
    rows.form_KM[:, embedding] = 0
    rows.gate_trains_KM[:, embedding] = False
    for group in layout.groups:
        if group.name in rows.left:
            # As in training, near the leading singular vectors: uᵀWv of any others is a small
            # difference of large terms.
            left, w_KMOI = random(rows.left[group.name]), group.view(rows.parameter_KP)
            for _ in range(5):
                left, right = power_iteration(w_KMOI, left)
            rows.left[group.name], rows.right[group.name] = left, right
            rows.spectral_norm_KM[:, group.matrices] = spectral_norm(w_KMOI, left, right)
    first = 0.1 * random(rows.parameter_KP)
    second = random(rows.parameter_KP).square() + 0.1
    gradient = random(rows.effective_KP)
    return rows, first, second, gradient


def recipe(K, device):
    def column(*values):
        return torch.tensor([values[k % len(values)] for k in range(K)], device=device)

    return plain.AdamW(
        lr_K=column(1e-2, 3e-2, 1e-1),
        beta1_K=column(0.9, 0.8, 0.9),
        beta2_K=column(0.95, 0.999, 0.9),
        eps_K=column(1e-8, 1e-8, 1e-6),
        weight_decay_K=column(0.1, 0.0, 0.3),
        clip_K=column(1.0, math.inf, 0.5),
        step_K=column(1.0, 5.0, 3000.0),
    )


def step(rows, first, second, gradient, adamw):
    return fused.update(
        rows.parameter_KP,
        first,
        second,
        gradient,
        rows.effective_KP,
        adamw=adamw,
        places=_places(rows.layout),
        forms=fused.Forms(
            rows.form_KM, rows.gate_trains_KM, rows.left, rows.right, rows.spectral_norm_KM
        ),
    )


def plain_step(rows, first, second, gradient, adamw):
    """In place; returns (norm of the gradient, norms of W before, of dW, of ΔW)."""
    layout = rows.layout
    leaves = [group.view(gradient) for group in layout.groups]
    leaves += [gradient[:, layout.norm_gains], gradient[:, layout.qk_gains]]
    grad_norm_K = rows.pull_back(leaves)
    gradient_norm_KM = rows.matrix_norms(rows.grad_KP)
    before = rows.parameter_KP.clone()
    plain.reference(
        rows.parameter_KP,
        first,
        second,
        rows.grad_KP,
        grad_norm_K=grad_norm_K,
        adamw=adamw,
        decayed=layout.matrix_parameters,
    )
    rows.refresh_effective()
    change_KM = rows.matrix_norms(rows.parameter_KP - before)
    return grad_norm_K, rows.matrix_norms(before), gradient_norm_KM, change_KM


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: "+".join(sorted(forms)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_steps(shape, forms, device, poisoned_empty):
    K = 3
    rows, first, second, gradient = rows_of(shape, forms, K, device)
    other, first_2, second_2, _ = rows_of(shape, forms, K, device)
    adamw, kept = recipe(K, device), gradient.clone()
    update = step(rows, first, second, gradient, adamw)
    norm, weight, dweight, change = plain_step(other, first_2, second_2, kept.clone(), adamw)
    assert torch.equal(gradient, kept)
    for got, want in (
        (update.grad_norm_K, norm),
        (update.weight_norm_KM, weight),
        (update.gradient_norm_KM, dweight),
        (fused.change_norm(update, _places(rows.layout)), change),
        (first, first_2),
        (second, second_2),
        (rows.parameter_KP, other.parameter_KP),
        (rows.effective_KP, other.effective_KP),
    ):
        torch.testing.assert_close(got, want, **TOLERANCE)
    spectral = rows.form_KM[:, -1] == 2
    for mine, theirs in ((rows.left, other.left), (rows.right, other.right)):
        for name in mine:
            torch.testing.assert_close(mine[name][spectral], theirs[name][spectral], **TOLERANCE)


# NumPy, which interprets the kernel where there is no GPU, says aloud what becomes NaN.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_run_stays_alone(dead, poison, device, poisoned_empty):
    shape, forms = (24, 40, 11), FORMS[-1]
    rows, first, second, gradient = rows_of(shape, forms, 3, device)
    alive, first_2, second_2, sound = rows_of(shape, forms, 3, device)
    gradient[dead, 3] = poison
    update = step(rows, first, second, gradient, recipe(3, device))
    control = step(alive, first_2, second_2, sound, recipe(3, device))
    others = [run for run in range(3) if run != dead]
    for got, want in (
        (update.grad_norm_K, control.grad_norm_K),
        (rows.parameter_KP, alive.parameter_KP),
        (rows.effective_KP, alive.effective_KP),
        (rows.left["qkv"], alive.left["qkv"]),
        (first, first_2),
    ):
        assert torch.equal(got[others], want[others])
        assert want.isfinite().all()
    assert not update.grad_norm_K[dead].isfinite()
    # Gates that do not train and row gains of other forms take no gradient, but the clip is NaN.
    assert rows.parameter_KP[dead].isnan().all()


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.999, 0.0])
@pytest.mark.parametrize("t", [1, 2, 17, 5000, 10**6])
def test_corrections_of_any_step(beta, t, device):
    """√n̂ and m̂ at step t of a gradient of ones from empty moments: n and m are 1 − β."""
    rows, first, second, gradient = rows_of((2, 2, 2), FORMS[0], 1, device)
    first.zero_()
    second.zero_()
    gradient.fill_(1.0)
    adamw = recipe(1, device)
    for name, value in (("beta1_K", beta), ("beta2_K", beta), ("step_K", t), ("clip_K", math.inf)):
        getattr(adamw, name).fill_(value)
    at = rows.layout.norm_gains.start
    before = rows.parameter_KP[0, at].double()
    step(rows, first, second, gradient, adamw)
    correction = 1 - torch.tensor(beta).double() ** t
    own = 1 - torch.tensor(beta).double()
    want = before - 0.01 * own / correction / ((own / correction).sqrt() + 1e-8)
    # 1 − β² of 0.999 is a difference of float32: 3e-5 of it, and that of a step of a hundredth.
    torch.testing.assert_close(rows.parameter_KP[0, at].double(), want, rtol=2e-7, atol=1e-6)


CALLS = """
    from wesar_sweep.config.run import Architecture
    from wesar_sweep.kernels.adamw import AdamW
    from wesar_sweep.kernels.fused import optimizer
    from wesar_sweep.model.layout import Layout
    from wesar_sweep.training.fused_step import _places

    def update(K, depth, width, vocabulary, *, row=False, spectral=False):
        a = Architecture(
            width, depth, 2, 256, "gelu", 4 * width, "rope", False, False, 8, vocabulary
        )
        layout = Layout(a, with_row_gains=row)
        def flat(size, dtype=f32):
            return meta(K, size, dtype=dtype, stride=(-(-size // 128) * 128, 1))
        def column():
            return meta(K, dtype=f32)
        M = len(layout.matrix_labels)
        groups = layout.groups[1:] if spectral else ()
        optimizer.update(
            flat(layout.size), flat(layout.size), flat(layout.size),
            flat(layout.effective_size, bf16), flat(layout.effective_size, bf16),
            adamw=AdamW(*(column() for _ in range(7))),
            places=_places(layout),
            forms=optimizer.Forms(
                meta(K, M, dtype=torch.int64), meta(K, M, dtype=torch.bool),
                {g.name: meta(K, g.count, g.outputs, dtype=f32) for g in groups},
                {g.name: meta(K, g.count, g.inputs, dtype=f32) for g in groups},
                meta(K, M, dtype=f32),
            ),
        )
"""


def test_compiles_for_hopper_without_spills_in_wide_accesses():
    kernels = compile_calls(
        CALLS
        + """
    update(256, 4, 128, 256)
    update(16, 8, 512, 256)
    update(1, 12, 768, 32000)
    update(256, 4, 128, 256, spectral=True)
    update(16, 8, 512, 256, spectral=True)
    update(1, 12, 768, 32000, row=True, spectral=True)
    """
    )
    for kernel in kernels:
        assert kernel.stack_bytes == 0, kernel.name
        if kernel.name in ("_sums", "_update", "_held", "_left", "_effective"):
            assert "ld.global.v4.b32" in kernel.ptx, kernel.name
    updates = [kernel for kernel in kernels if kernel.name == "_update"]
    for kernel in updates:
        # 1,024 threads a multiprocessor, of 8 values; where tiles are rows 384, of 16.
        assert kernel.registers <= (64 if kernel.num_warps == 8 else 168), kernel.registers
    # W, m and v of 8 values a thread by 4, in and out; nothing passes through shared memory but
    # the sum of ΔW².
    first = updates[0].ptx
    assert first.count("ld.global.v4.b32") == 6 and first.count("st.global.v4.b32") == 6
    assert first.count("bar.sync") <= 2


@pytest.mark.parametrize(("forms", "most"), [(FORMS[0], 20), (FORMS[1], 33)])
def test_launches_a_step(forms, most, device, monkeypatch):
    """Each is two microseconds and more of a step; `torch` launches none of its own."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime.interpreter import GridExecutor

    class Torch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.called = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.called.append(str(function))
            return function(*args, **(kwargs or {}))

    if device.type == "cuda":
        pytest.skip("counts by the interpreter")
    launched = []
    run = GridExecutor.__call__

    def count(self, *args, **options):
        launched.append(self.fn.__name__)
        # What the interpreter itself does with torch counts for nothing.
        with torch.utils._python_dispatch._disable_current_modes():
            return run(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", count)
    rows, first, second, gradient = rows_of((136, 150, 7), forms, 1, device)
    adamw = recipe(1, device)
    with Torch() as seen:
        step(rows, first, second, gradient, adamw)
    assert 0 < len(launched) <= most, launched
    allocations = {"aten.empty.memory_format", "aten.select.int", "aten.slice.Tensor"}
    assert set(seen.called) <= allocations, set(seen.called)
