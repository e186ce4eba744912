"""Fused activations against the plain ones and their autograd, and the formula of GELU's tail."""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels import feed_forward as plain
from wesar_sweep.kernels.fused import feed_forward as fused

# Triton's interpreter cuts a float32 to bfloat16 where a GPU rounds: a whole unit, not half of one.
BF16 = 2**-8 if torch.cuda.is_available() else 2**-7
# One rounding to the type: 2^-9 of the value in bfloat16; in float32 the tail's formula, whose
# absolute error is below 7e-7 (`test_gelu_and_slope_to_twelve_standard_deviations`).
TOLERANCE = {
    torch.bfloat16: dict(atol=1e-6, rtol=BF16),
    torch.float32: dict(atol=1e-6, rtol=2e-6),
}


@triton.jit
def _value_and_slope(x_ptr, alone_ptr, value_ptr, slope_ptr, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < size, other=0.0)
    value, slope = fused.gelu_and_slope(x)
    tl.store(alone_ptr + place, fused.gelu_value(x), mask=place < size)
    tl.store(value_ptr + place, value, mask=place < size)
    tl.store(slope_ptr + place, slope, mask=place < size)


def gelu_and_slope(x):
    alone, value, slope = (torch.empty_like(x) for _ in range(3))
    grid = (triton.cdiv(len(x), 65536),)
    _value_and_slope[grid](x, alone, value, slope, len(x), BLOCK=65536)
    assert torch.equal(alone.nan_to_num(), value.nan_to_num())
    return value, slope


def exact(x):
    """Value and slope in float64; erfc keeps the tail's relative accuracy."""
    x = x.double()
    below = 0.5 * torch.special.erfc(-x * 0.5**0.5)
    density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    return x * below, below + x * density


def test_gelu_and_slope_to_twelve_standard_deviations(device):
    x = torch.linspace(-12, 12, 480_001, device=device)
    value, slope = gelu_and_slope(x)
    exact_value, exact_slope = exact(x)
    # 4.2e-7 is the formula's own; the rest is float32: 12 is rounded to 4.8e-7.
    assert (value - exact_value).abs().max() < 7e-7
    assert (slope - exact_slope).abs().max() < 7e-7
    # Relatively 4.2e-4 where the value is above 1e-18, a fifth of bfloat16's rounding.
    reached = (x > -9) & (x != 0)
    assert ((value - exact_value) / exact_value)[reached].abs().max() < 4.5e-4
    assert ((value - exact_value) / exact_value)[x > 0].abs().max() < 2e-6
    # The control: a tenth of the bound is exceeded, so the bound says something.
    assert (value - exact_value).abs().max() > 7e-8


# NumPy, which interprets the kernel where there is no GPU, says aloud that x² is infinite.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_gelu_far_out_and_not_a_number(device):
    x = torch.tensor([13.0, 1e4, 1e30, -13.0, -1e4, -1e30, 0.0, -0.0, torch.nan], device=device)
    value, slope = gelu_and_slope(x)
    assert torch.equal(value[:3], x[:3]) and ((slope[:3] - 1).abs() < 1e-6).all()
    assert (value[3:6].abs() < 1e-9).all() and (slope[3:6].abs() < 1e-6).all()
    assert (value[6:8] == 0).all()
    torch.testing.assert_close(slope[6:8], torch.full_like(x[6:8], 0.5), atol=7e-7, rtol=0)
    assert value[8].isnan() and slope[8].isnan()


def plain_gelu(u):
    return plain.gelu_reference(u)


def plain_swiglu(u):
    return plain.swiglu_reference(*u.chunk(2, dim=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("K", "M", "F"), [(1, 1, 1), (3, 5, 7), (1, 9, 257), (3, 8, 512)])
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_equals_the_plain_one(kind, K, M, F, dtype, device, poisoned_empty):
    generator = torch.Generator().manual_seed(F)
    width = F if kind == "gelu" else 2 * F
    u = (3 * torch.randn(K, M, width, generator=generator)).to(device, dtype)
    da = torch.randn(K, M, F, generator=generator).to(device, dtype)
    leaf = u.double().requires_grad_()
    expected = (plain_gelu if kind == "gelu" else plain_swiglu)(leaf)
    (expected_du,) = torch.autograd.grad(expected, leaf, da.double())
    forward = getattr(fused, f"{kind}_forward")
    backward = getattr(fused, f"{kind}_backward")

    u_before, da_before = u.clone(), da.clone()
    a = forward(u)
    du = backward(da, u)

    assert a.shape == da.shape and du.shape == u.shape and a.dtype == du.dtype == dtype
    torch.testing.assert_close(a.double(), expected.detach(), **TOLERANCE[dtype])
    # The gradient's error is the slope's, times |da| up to five.
    scale = dict(TOLERANCE[dtype], atol=5e-6)
    torch.testing.assert_close(du.double(), expected_du, **scale)
    assert torch.equal(u, u_before) and torch.equal(da, da_before)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_a_dead_run_stays_alone(kind, device, poisoned_empty):
    u = torch.randn(3, 5, 14 if kind == "swiglu" else 7, device=device)
    da = torch.randn(3, 5, 7, device=device)
    forward = getattr(fused, f"{kind}_forward")
    backward = getattr(fused, f"{kind}_backward")
    before = (forward(u), backward(da, u))
    u[1] = torch.nan
    after = (forward(u), backward(da, u))
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[[0, 2]], y[[0, 2]])
        assert y[1].isnan().all()


def test_compiles_for_hopper_without_spills_in_wide_accesses():
    kernels = compile_calls("""
        from wesar_sweep.kernels.fused import feed_forward as ff
        u_KMF, u_KMG = meta(256, 2048, 512), meta(256, 2048, 1024)
        ff.gelu_forward(u_KMF)
        ff.swiglu_forward(u_KMG)
        ff.gelu_backward(u_KMF, u_KMF)
        ff.swiglu_backward(u_KMF, u_KMG)
    """)
    assert len(kernels) == 4
    for kernel in kernels:
        assert kernel.stack_bytes == 0, kernel.name
        assert kernel.registers <= 128, (kernel.name, kernel.registers)
        # Nothing is read or written but sixteen bytes at a time.
        assert "global.v4.b32" in kernel.ptx and "global.b16" not in kernel.ptx, kernel.name


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize(("K", "M", "F"), [(256, 2048, 512), (96, 2048, 1024), (1, 65536, 3072)])
def test_real_shapes(kind, K, M, F, gpu, poisoned_empty):
    generator = torch.Generator(device=gpu).manual_seed(0)
    width = F if kind == "gelu" else 2 * F
    u = torch.randn(K, M, width, generator=generator, device=gpu, dtype=torch.bfloat16)
    da = torch.randn(K, M, F, generator=generator, device=gpu, dtype=torch.bfloat16)
    a = getattr(fused, f"{kind}_forward")(u)
    du = getattr(fused, f"{kind}_backward")(da, u)
    for k in {0, K // 2, K - 1}:
        leaf = u[k : k + 1].float().requires_grad_()
        expected = (plain_gelu if kind == "gelu" else plain_swiglu)(leaf)
        (expected_du,) = torch.autograd.grad(expected, leaf, da[k : k + 1].float())
        tolerance = dict(TOLERANCE[torch.bfloat16], atol=5e-6)
        torch.testing.assert_close(a[k : k + 1].float(), expected.detach(), **tolerance)
        torch.testing.assert_close(du[k : k + 1].float(), expected_du, **tolerance)
    assert a.isfinite().all() and du.isfinite().all()
