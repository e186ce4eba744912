"""Fused rotation and head norms of packed rows against the plain ones and their autograd."""

import pytest
import torch

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels import rms_norm, rope
from wesar_sweep.kernels.fused import rope as fused

# Triton's interpreter cuts a float32 to bfloat16 where a GPU rounds: a whole unit, not half of one.
BF16 = 2**-8 if torch.cuda.is_available() else 2**-7
# One rounding to bfloat16 is 2^-9 of the value, which in a rotation may be a small difference of
# two of size one: hence the absolute part. Float32: sums of up to 64 terms in another order.
TOLERANCE = {
    torch.bfloat16: dict(atol=1e-4, rtol=BF16),
    torch.float32: dict(atol=1e-5, rtol=1e-5),
}
# K, B, T, H, E
SHAPES = [(1, 1, 1, 1, 2), (3, 2, 5, 3, 6), (1, 2, 9, 2, 64), (3, 1, 7, 1, 32), (1, 1, 3, 5, 24)]


def case(K, B, T, H, E, dtype, device, *, with_norm, gap=3):
    generator = torch.Generator().manual_seed(E)
    qkv = torch.randn(K, B * T, 3 * H * E, generator=generator).to(device, dtype)
    dqk = torch.randn(K, B * T, 2 * H * E, generator=generator).to(device, dtype)
    gain = None
    if with_norm:
        row_KP = torch.randn(K, 2 * E + gap, generator=generator).to(device, dtype)
        gain = row_KP[:, 1 : 1 + 2 * E].unflatten(1, (2, E))
    return qkv, dqk, gain


def expect(qkv, dqk, gain, tables, *, H, E, T):
    """Output and gradients in float64, by autograd through the formulas on [K, B, T, 2H, E]."""
    K, M, _ = qkv.shape
    leaf = qkv.double().requires_grad_()
    x = leaf[..., : 2 * H * E].view(K, M // T, T, 2 * H, E)
    leaves, rstd = [leaf], None
    if gain is not None:
        gain_leaf = gain.double().requires_grad_()
        leaves.append(gain_leaf)
        rstd = (x.square().mean(-1) + rms_norm.EPS).rsqrt()
        x = x * rstd.unsqueeze(-1) * gain_leaf.repeat_interleave(H, dim=1)[:, None, None]
        rstd = rstd.detach().view(K, M, 2 * H)
    if tables is not None:
        cos, sin = (table[:T].double().unsqueeze(1) for table in tables)
        left, right = x.chunk(2, dim=-1)
        x = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    y = x.reshape(K, M, 2 * H * E)
    dqkv, *dgain = torch.autograd.grad(y, leaves, dqk.double())
    return y.detach(), rstd, dqkv, dgain[0] if dgain else None


def tables_for(T, E, device, *, rotate):
    # Longer than the context, as the tables of a step of a shorter context are.
    return rope.tables(T + 2, E, device=device) if rotate else None


@pytest.mark.parametrize(("rotate", "with_norm"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("K", "B", "T", "H", "E"), SHAPES)
def test_equals_the_formula(K, B, T, H, E, dtype, rotate, with_norm, device, poisoned_empty):
    qkv, dqk, gain = case(K, B, T, H, E, dtype, device, with_norm=with_norm)
    tables = tables_for(T, E, device, rotate=rotate)
    cos, sin = tables or (None, None)
    shape = dict(heads=H, head_width=E, context=T)
    kept = [None if z is None else z.clone() for z in (qkv, dqk, gain)]

    y, rstd = fused.forward(qkv, cos, sin, gain_K2E=gain, **shape)
    out = torch.full_like(qkv, 7.0)
    dgain = fused.backward(*dqk.chunk(2, dim=2), qkv, cos, sin, rstd, gain, out=out, **shape)

    expected_y, expected_rstd, expected_dqkv, expected_dgain = expect(
        qkv, dqk, gain, tables, H=H, E=E, T=T
    )
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y.double(), expected_y, **TOLERANCE[dtype])
    D = H * E
    # With two channels a norm leaves a sign: its gradient is a difference of near equals.
    scale = max(1.0, rstd.max().item()) if rstd is not None else 1.0
    tolerance = dict(TOLERANCE[dtype], atol=TOLERANCE[dtype]["atol"] * scale)
    torch.testing.assert_close(out[..., : 2 * D].double(), expected_dqkv[..., : 2 * D], **tolerance)
    assert (out[..., 2 * D :] == 7.0).all(), "the values' gradient is attention's to write"
    assert (dgain is None) == (rstd is None) == (gain is None)
    if gain is not None:
        torch.testing.assert_close(rstd.double(), expected_rstd, atol=0, rtol=2e-6)
        assert dgain.dtype == torch.float32 and dgain.shape == (K, 2, E)
        torch.testing.assert_close(dgain.double(), expected_dgain, atol=2e-5, rtol=2e-5)
    for before, after in zip(kept, (qkv, dqk, gain), strict=True):
        assert before is None or torch.equal(before, after)


def test_equals_the_plain_one(device):
    qkv, _, _ = case(3, 2, 5, 3, 6, torch.float32, device, with_norm=False)
    cos, sin = rope.tables(5, 6, device=device)
    y, _ = fused.forward(qkv, cos, sin, heads=3, head_width=6, context=5)
    qk_KBTHE = qkv[..., :36].reshape(3, 2, 5, 6, 6)
    expected = rope.reference(qk_KBTHE, cos, sin).reshape(3, 10, 36)
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=2e-6)
    # The control: a second sequence starts at position nought again.
    later, _ = fused.forward(qkv, *rope.tables(10, 6, device=device), heads=3, head_width=6,
                             context=10)  # fmt: skip
    assert not torch.allclose(later[:, 5:], expected[:, 5:])


@pytest.mark.parametrize("with_norm", [True, False])
def test_a_gradient_within_longer_rows(with_norm, device, poisoned_empty):
    """Attention may have left its gradient in the first columns of rows as long as qkv's."""
    K, B, T, H, E = 3, 2, 5, 2, 6
    qkv, dqk, gain = case(K, B, T, H, E, torch.float32, device, with_norm=with_norm)
    cos, sin = rope.tables(T, E, device=device)
    shape = dict(heads=H, head_width=E, context=T)
    _, rstd = fused.forward(qkv, cos, sin, gain_K2E=gain, **shape)
    expected = torch.zeros_like(qkv)
    expected_dgain = fused.backward(
        *dqk.chunk(2, dim=2), qkv, cos, sin, rstd, gain, out=expected, **shape
    )

    packed = torch.zeros_like(qkv)
    strided = torch.full_like(qkv, torch.nan)
    strided[..., : 2 * H * E] = dqk
    dgain = fused.backward(
        *strided[..., : 2 * H * E].chunk(2, dim=2), qkv, cos, sin, rstd, gain, out=packed, **shape
    )
    assert torch.equal(packed, expected)
    if with_norm:
        assert torch.equal(dgain, expected_dgain)


def test_rotating_back_gives_the_gradient_of_a_rotation(device):
    """A rotation's gradient is its inverse: what went forward comes back."""
    qkv, _, _ = case(1, 1, 7, 2, 32, torch.float32, device, with_norm=False)
    cos, sin = rope.tables(7, 32, device=device)
    shape = dict(heads=2, head_width=32, context=7)
    y, _ = fused.forward(qkv, cos, sin, **shape)
    back = torch.zeros_like(qkv)
    fused.backward(*y.chunk(2, dim=2), qkv, cos, sin, None, None, out=back, **shape)
    torch.testing.assert_close(back[..., :128], qkv[..., :128], atol=2e-6, rtol=2e-6)
    assert not torch.allclose(y[:, 1:], qkv[:, 1:, :128])


@pytest.mark.parametrize("with_norm", [True, False])
def test_a_dead_run_stays_alone(with_norm, device, poisoned_empty):
    qkv, dqk, gain = case(3, 2, 5, 3, 6, torch.float32, device, with_norm=with_norm)
    cos, sin = rope.tables(5, 6, device=device)
    shape = dict(heads=3, head_width=6, context=5)

    def all_of_it():
        y, rstd = fused.forward(qkv, cos, sin, gain_K2E=gain, **shape)
        out = torch.zeros_like(qkv)
        dgain = fused.backward(*dqk.chunk(2, dim=2), qkv, cos, sin, rstd, gain, out=out, **shape)
        return y, out, *([rstd, dgain] if with_norm else [])

    before = all_of_it()
    qkv[1], dqk[1] = torch.nan, torch.nan
    after = all_of_it()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert after[0][1].isnan().all()


def test_compiles_for_hopper_without_spills_in_wide_accesses():
    kernels = compile_calls("""
        from wesar_sweep.kernels.fused import rope
        for K, M, T, H in ((256, 2048, 256, 2), (1, 65536, 1024, 12)):
            qkv, dqk, rstd = meta(K, M, 192 * H), meta(K, M, 128 * H), meta(K, M, 2 * H, dtype=f32)
            table, gain = meta(T, 32, dtype=f32), meta(K, 2, 64, stride=(4096, 64, 1))
            shape = dict(heads=H, head_width=64, context=T)
            rope.forward(qkv, table, table, **shape)
            rope.forward(qkv, table, table, gain_K2E=gain, **shape)
            rope.backward(*dqk.chunk(2, dim=2), qkv, table, table, None, None, out=qkv, **shape)
            rope.backward(*dqk.chunk(2, dim=2), qkv, table, table, rstd, gain, out=qkv, **shape)
    """)
    assert len(kernels) >= 5
    for kernel in kernels:
        assert kernel.stack_bytes == 0, kernel.name
        assert "ld.global.v4.b32" in kernel.ptx and "global.b16" not in kernel.ptx, kernel.name


@pytest.mark.gpu
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize(
    ("K", "B", "T", "H", "E"), [(256, 8, 256, 2, 64), (16, 8, 256, 8, 64), (1, 64, 1024, 12, 64)]
)
def test_real_shapes(K, B, T, H, E, with_norm, gpu, poisoned_empty):
    qkv = torch.randn(K, B * T, 3 * H * E, device=gpu, dtype=torch.bfloat16)
    dqk = torch.randn(K, B * T, 2 * H * E, device=gpu, dtype=torch.bfloat16)
    gain = torch.randn(K, 2, E, device=gpu, dtype=torch.bfloat16) if with_norm else None
    tables = rope.tables(T, E, device=gpu)
    shape = dict(heads=H, head_width=E, context=T)
    y, rstd = fused.forward(qkv, *tables, gain_K2E=gain, **shape)
    out = torch.full_like(qkv, 7.0)
    dgain = fused.backward(*dqk.chunk(2, dim=2), qkv, *tables, rstd, gain, out=out, **shape)
    for k in {0, K // 2, K - 1}:
        run = slice(k, k + 1)
        expected_y, _, expected_dqkv, expected_dgain = expect(
            qkv[run], dqk[run], None if gain is None else gain[run], tables, H=H, E=E, T=T
        )
        D = H * E
        torch.testing.assert_close(y[run].double(), expected_y, **TOLERANCE[torch.bfloat16])
        torch.testing.assert_close(
            out[run, :, : 2 * D].double(),
            expected_dqkv[..., : 2 * D],
            atol=1e-3,
            rtol=BF16,
        )
        if gain is not None:
            # Float32 sums of M·H terms of size one.
            torch.testing.assert_close(
                dgain[run].double(), expected_dgain, atol=2e-5 * (B * T * H) ** 0.5, rtol=1e-4
            )
    assert (out[..., 2 * H * E :] == 7.0).all()
