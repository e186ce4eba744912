"""The fused norm with its residual add against the plain one and its autograd."""

import pytest
import torch

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels import rms_norm as plain
from wesar_sweep.kernels.fused import rms_norm as fused

# Triton's interpreter cuts a float32 to bfloat16 where a GPU rounds: a whole unit, not half of one.
BF16 = 2**-8 if torch.cuda.is_available() else 2**-7
# One rounding to bfloat16 is 2^-9 of the value; float32 sums of up to 1,100 terms in another order.
# A gradient is a difference, whose rounding is that of its terms: hence the absolute part.
TOLERANCE = {
    torch.bfloat16: dict(atol=1e-4, rtol=BF16),
    torch.float32: dict(atol=5e-6, rtol=5e-6),
}
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 33, 32), (3, 37, 129), (3, 40, 128), (1, 3, 1100)]


def flat_view(K, D, dtype, device, generator, *, gap=3):
    """Gains as they lie in the flat row of a run: other weights stand between those of two runs."""
    row_KP = torch.randn(K, D + gap, generator=generator).to(device, dtype)
    return row_KP[:, 1 : 1 + D]


def case(K, M, D, dtype, device, *, gain_dtype=None):
    generator = torch.Generator().manual_seed(D)
    x, delta, dy, dsum = (
        torch.randn(K, M, D, generator=generator).to(device, dtype) for _ in range(4)
    )
    return x, delta, dy, dsum, flat_view(K, D, gain_dtype or dtype, device, generator)


def expect(total, gain, dy, dsum):
    """Output and gradients in float64, from the rounded sum, as the fused one promises."""
    leaf = total.double().requires_grad_()
    gain_leaf = gain.double().requires_grad_() if gain is not None else None
    rstd = (leaf.square().mean(-1) + plain.EPS).rsqrt()
    y = leaf * rstd.unsqueeze(-1)
    if gain_leaf is not None:
        y = y * gain_leaf.unsqueeze(1)
    leaves = [leaf] if gain_leaf is None else [leaf, gain_leaf]
    dx, *dgain = torch.autograd.grad(y, leaves, dy.double())
    dx = dx if dsum is None else dx + dsum.double()
    return y.detach(), rstd.detach(), dx, dgain[0] if dgain else None


def backward(dy, total, rstd, gain, dsum=None):
    """Gradients of the sum and the gain (None without one)."""
    K, M, D = dy.shape
    if gain is None:
        return fused.backward(dy, total, rstd, None, dsum), None
    parts = torch.empty(K, fused.partial_sums(K, M, D), D, dtype=torch.float32, device=dy.device)
    dx = fused.backward(dy, total, rstd, gain, dsum, partial_KBD=parts)
    return dx, fused.sum_partials(parts)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("with_gain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("K", "M", "D"), SHAPES)
def test_equals_the_formula(K, M, D, dtype, with_gain, residual, device, poisoned_empty):
    x, delta, dy, dsum, gain = case(K, M, D, dtype, device)
    gain = gain if with_gain else None
    delta, dsum = (delta, dsum) if residual else (None, None)
    kept = [None if z is None else z.clone() for z in (x, delta, dy, dsum, gain)]

    total, y, rstd = fused.forward(x, gain, delta)
    dx, dgain = backward(dy, total, rstd, gain, dsum)

    if residual:
        exact = 0 if dtype == torch.float32 or x.is_cuda else BF16
        torch.testing.assert_close(total, (x.float() + delta.float()).to(dtype), atol=0, rtol=exact)
    else:
        assert total is x
    expected_y, expected_rstd, expected_dx, expected_dgain = expect(total, gain, dy, dsum)
    assert y.dtype == dx.dtype == dtype and rstd.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected_y, **TOLERANCE[dtype])
    torch.testing.assert_close(rstd.double(), expected_rstd, atol=0, rtol=2e-6)
    # Where D is 1 the gradient is ε/(x² + ε)^1.5, a difference of equals: its terms' rounding.
    scale = max(1.0, rstd.max().item()) if D == 1 else 1.0
    tolerance = dict(TOLERANCE[dtype], atol=TOLERANCE[dtype]["atol"] * scale)
    torch.testing.assert_close(dx.double(), expected_dx, **tolerance)
    assert (dgain is None) == (gain is None)
    if gain is not None:
        assert dgain.dtype == torch.float32
        # dy and the sum are read as they are and summed in float32, whatever their type.
        torch.testing.assert_close(dgain.double(), expected_dgain, atol=2e-5, rtol=2e-5)
    for before, after in zip(kept, (x, delta, dy, dsum, gain), strict=True):
        assert before is None or torch.equal(before, after)


def test_equals_the_plain_one(device):
    x, _, _, _, gain = case(3, 5, 32, torch.float32, device)
    _, y, _ = fused.forward(x, gain)
    torch.testing.assert_close(y, plain.reference(x, gain), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("gain_dtype", [torch.float32, torch.bfloat16])
def test_gains_of_another_type_than_the_rows(gain_dtype, device, poisoned_empty):
    x, _, dy, _, gain = case(3, 5, 32, torch.bfloat16, device, gain_dtype=gain_dtype)
    total, y, rstd = fused.forward(x, gain)
    _, dgain = backward(dy, total, rstd, gain)
    expected_y, _, _, expected_dgain = expect(x, gain, dy, None)
    torch.testing.assert_close(y.double(), expected_y, **TOLERANCE[torch.bfloat16])
    torch.testing.assert_close(dgain.double(), expected_dgain, atol=2e-5, rtol=2e-5)


def test_the_sum_is_rounded_before_it_is_normalised(device):
    """Backward sees the rounded sum only, so forward must not have normalised another."""
    x, delta, _, _, _ = case(1, 9, 32, torch.bfloat16, device)
    total, _, rstd = fused.forward(x, None, delta)
    unrounded = x.double() + delta.double()
    of_rounded, of_unrounded = (
        (z.double().square().mean(-1) + plain.EPS).rsqrt() for z in (total, unrounded)
    )
    torch.testing.assert_close(rstd.double(), of_rounded, atol=0, rtol=2e-6)
    # The control: the two differ by more than the tolerance.
    assert ((of_unrounded / of_rounded - 1).abs() > 4e-6).any()


@pytest.mark.parametrize("switch_dtype", [torch.bool, torch.int32])
def test_switched_off_runs_pass_through(switch_dtype, device):
    x, _, dy, dsum, _ = case(3, 5, 7, torch.bfloat16, device)
    switch = torch.tensor([1, 0, 1], device=device).to(switch_dtype)
    total, y, rstd = fused.forward(x, None, switch_K=switch)
    dx = fused.backward(dy, total, rstd, None, switch_K=switch)
    dx_sum = fused.backward(dy, total, rstd, None, dsum, switch_K=switch)
    _, y_all, rstd_all = fused.forward(x, None)
    dx_all = fused.backward(dy, x, rstd_all, None)
    assert torch.equal(y[1], x[1]) and torch.equal(dx[1], dy[1])
    torch.testing.assert_close(dx_sum[1], dy[1] + dsum[1], atol=0, rtol=BF16)
    for k in (0, 2):
        assert torch.equal(y[k], y_all[k]) and torch.equal(dx[k], dx_all[k])
    # The control: switching does something.
    assert not torch.equal(y_all[1], x[1]) and not torch.equal(dx_all[1], dy[1])


# NumPy, which interprets the kernel where there is no GPU, says aloud that ∞·0 is NaN.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_dead_run_stays_alone(poison, device, poisoned_empty):
    x, delta, dy, dsum, gain = case(3, 37, 24, torch.float32, device)
    switch = torch.tensor([1, 0, 1], device=device, dtype=torch.int32)

    def all_of_it():
        total, y, rstd = fused.forward(x, gain, delta)
        _, y_switched, _ = fused.forward(x, None, switch_K=switch)
        dx_switched = fused.backward(dy, x, rstd, None, switch_K=switch)
        return total, y, rstd, y_switched, dx_switched, *backward(dy, total, rstd, gain, dsum)

    before = all_of_it()
    x[1], dy[1] = poison, torch.nan
    after = all_of_it()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert after[-1][1].isnan().all() and not after[0][1].isfinite().any()


def test_gradient_of_the_gain_is_the_same_every_time(device):
    x, _, dy, _, gain = case(1, 700, 33, torch.float32, device)
    total, _, rstd = fused.forward(x, gain)
    first = backward(dy, total, rstd, gain)[1]
    assert torch.equal(first, backward(dy, total, rstd, gain)[1])


@pytest.mark.parametrize(("K", "blocks", "D"), [(1, 1, 1), (3, 33, 130), (2, 70, 64)])
def test_sum_of_partials(K, blocks, D, device, poisoned_empty):
    partial = torch.randn(K, blocks, D, device=device)
    expected = partial.double().sum(1)
    torch.testing.assert_close(fused.sum_partials(partial).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_many_norms_in_their_places(dtype, device, poisoned_empty):
    partial = torch.randn(4, 3, 33, 40, device=device)
    row = torch.randn(3, 4 * 40 + 24, device=device).to(dtype)
    before, place = row.clone(), slice(16, 16 + 4 * 40)
    expected = partial.double().sum(2).transpose(0, 1).flatten(1)
    rounding = dict(atol=1e-5, rtol=1e-5 if dtype == torch.float32 else BF16)
    fused.sum_gains(partial, row[:, place])
    torch.testing.assert_close(row[:, place].double(), expected, **rounding)
    fused.sum_gains(partial, row[:, place], add=True)
    twice = dict(rounding, atol=rounding["atol"] if dtype == torch.float32 else 0.15)
    torch.testing.assert_close(row[:, place].double(), 2 * expected, **twice)
    for outside in (slice(0, 16), slice(16 + 4 * 40, None)):
        assert torch.equal(row[:, outside], before[:, outside])


def test_compiles_for_hopper_without_spills_in_wide_accesses():
    kernels = compile_calls("""
        from wesar_sweep.kernels.fused import rms_norm
        for K, M, D in ((256, 2048, 128), (1, 65536, 768), (1, 8192, 8192)):
            x, rstd, gain = meta(K, M, D), meta(K, M, dtype=f32), meta(K, D, stride=(16 * D, 1))
            rms_norm.forward(x, gain, x)
            partial = meta(K, rms_norm.partial_sums(K, M, D), D, dtype=f32)
            rms_norm.backward(x, x, rstd, gain, x, partial_KBD=partial)
    """)
    assert len(kernels) >= 6
    for kernel in kernels:
        assert kernel.stack_bytes == 0, kernel.name
        # Rows are read and written sixteen bytes at a time; but for the gain, a row a program.
        assert "ld.global.v4.b32" in kernel.ptx and "st.global.b16" not in kernel.ptx, kernel.name
        assert kernel.ptx.count("ld.global.b16") <= 1, kernel.name


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("K", "M", "D"),
    [(256, 2048, 128), (96, 2048, 256), (16, 2048, 512), (1, 65536, 768), (1, 4096, 8192)],
)
def test_real_shapes(K, M, D, gpu, poisoned_empty):
    x, delta, dy, dsum, gain = (
        torch.randn(K, *(() if i == 4 else (M,)), D, device=gpu, dtype=torch.bfloat16)
        for i in range(5)
    )
    total, y, rstd = fused.forward(x, gain, delta)
    dx, dgain = backward(dy, total, rstd, gain, dsum)
    for k in {0, K // 2, K - 1}:
        run = slice(k, k + 1)
        expected_y, _, expected_dx, expected_dgain = expect(
            total[run], gain[run], dy[run], dsum[run]
        )
        torch.testing.assert_close(y[run].double(), expected_y, **TOLERANCE[torch.bfloat16])
        torch.testing.assert_close(dx[run].double(), expected_dx, **TOLERANCE[torch.bfloat16])
        # Float32 sums of M terms of size one.
        torch.testing.assert_close(
            dgain[run].double(), expected_dgain, atol=1e-6 * M**0.5 * 20, rtol=1e-4
        )
    assert all(z.isfinite().all() for z in (total, y, rstd, dx, dgain))
