"""Products with norm, activation and residual inside, against the same in plain torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from wesar_sweep.kernels import rms_norm, rope
from wesar_sweep.kernels.fused import linear
from wesar_sweep.kernels.fused import rms_norm as fused_norm

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = [(1, 5, 8, 24), (3, 33, 12, 48), (3, 130, 32, 96), (1, 64, 40, 17), (2, 128, 16, 128)]
"""Runs, rows, narrow side, long side; of the last every tile is whole, so none is masked."""

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
"""Float32: sums in another order. bfloat16: operands and results rounded to 8 bits."""


@pytest.fixture
def make(device, dtype):
    """Random tensors; with `in_row`, a view of longer rows, as weights and gains of a stack are."""
    generator = torch.Generator().manual_seed(0)

    def one(runs, *shape, in_row=False):
        size = math.prod(shape)
        flat = torch.randn(runs, size + 40, generator=generator).to(device, dtype)
        part = flat[:, 24 : 24 + size] if in_row else flat[:, :size].contiguous()
        return part.unflatten(1, shape)

    return one


def check(got, want, dtype):
    for mine, theirs in zip(got, want, strict=True):
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize(("runs", "rows", "narrow", "long"), SHAPES)
def test_norm_linear(make, dtype, runs, rows, narrow, long):
    x, gain = make(runs, rows, narrow), make(runs, narrow, in_row=True)
    w = make(runs, long, narrow, in_row=True)
    h = rms_norm.reference(x.float(), gain.float())
    rstd = (x.float().square().mean(-1) + rms_norm.EPS).rsqrt()
    check(linear.norm_linear(x, gain, w), (h @ w.float().mT, h, rstd), dtype)


@pytest.mark.parametrize(
    ("runs", "sequences", "context", "heads", "width"),
    [(1, 1, 7, 1, 16), (3, 3, 11, 2, 32), (2, 4, 32, 1, 64)],
)
def test_norm_linear_with_a_rotation(make, dtype, runs, sequences, context, heads, width):
    """Queries and keys leave rotated, values as they are."""
    D, rows = heads * width, sequences * context
    x, gain = make(runs, rows, D), make(runs, D, in_row=True)
    w = make(runs, 3 * D, D, in_row=True)
    cos, sin = rope.tables(context, width, device=x.device)
    h = rms_norm.reference(x.float(), gain.float())
    qkv = (h @ w.float().mT).unflatten(2, (3, heads, width)).unflatten(1, (sequences, context))
    q, k, v = qkv.unbind(3)
    turned = (rope.reference(z, cos, sin) for z in (q, k))
    want = torch.stack((*turned, v), dim=3).reshape(runs, rows, 3 * D)
    got, _, _ = linear.norm_linear(x, gain, w, rotation=(cos, sin))
    check([got], [want], dtype)
    # The control: it is not what leaves without.
    assert not torch.allclose(got.float(), linear.norm_linear(x, gain, w)[0].float(), atol=1e-2)


@pytest.mark.parametrize(("width", "able"), [(8, False), (16, True), (24, False), (64, True)])
def test_widths_of_heads_that_can_be_rotated(width, able):
    assert linear.turns(width) is able


@pytest.mark.parametrize(("runs", "rows", "narrow", "long"), SHAPES)
def test_linear_add(make, dtype, runs, rows, narrow, long):
    x, w = make(runs, rows, long), make(runs, narrow, long, in_row=True)
    residual = make(runs, rows, narrow)
    plain = residual.float() + x.float() @ w.float().mT
    check([linear.linear_add(x, w, residual)], [plain], dtype)
    active = residual.float() + F.gelu(x.float()) @ w.float().mT
    check([linear.gelu_linear_add(x, w, residual)], [active], dtype)


@pytest.mark.parametrize(("runs", "rows", "narrow", "long"), SHAPES)
def test_gelu_linear_backward(make, dtype, runs, rows, narrow, long):
    dy, w = make(runs, rows, narrow), make(runs, narrow, long, in_row=True)
    u = make(runs, rows, long)
    leaf = u.float().requires_grad_()
    a = F.gelu(leaf)
    (du,) = torch.autograd.grad(a @ w.float().mT, leaf, dy.float())
    check(linear.gelu_linear_backward(dy, w, u), (du, a.detach()), dtype)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("runs", "rows", "narrow", "long"), SHAPES)
def test_linear_norm_backward(make, dtype, runs, rows, narrow, long, residual):
    x, gain = make(runs, rows, narrow), make(runs, narrow, in_row=True)
    w, dy = make(runs, long, narrow, in_row=True), make(runs, rows, long)
    dresidual = make(runs, rows, narrow) if residual else None
    x_leaf, gain_leaf = x.float().requires_grad_(), gain.float().requires_grad_()
    y = rms_norm.reference(x_leaf, gain_leaf) @ w.float().mT
    dx, dgain = torch.autograd.grad(y, (x_leaf, gain_leaf), dy.float())
    if dresidual is not None:
        dx = dx + dresidual.float()
    rstd = (x.float().square().mean(-1) + rms_norm.EPS).rsqrt()
    parts = x.new_empty(runs, linear.partial_sums(rows), narrow, dtype=torch.float32)
    got = linear.linear_norm_backward(dy, w, x, rstd, gain, dresidual, partial_KBI=parts)
    check((got, fused_norm.sum_partials(parts)), (dx, dgain), dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_nan_stays_in_its_run(make):
    x, gain, w = make(3, 20, 16), make(3, 16, in_row=True), make(3, 32, 16, in_row=True)
    clean = linear.norm_linear(x, gain, w)
    poisoned = x.clone()
    poisoned[1] = torch.nan
    for got, want in zip(linear.norm_linear(poisoned, gain, w), clean, strict=True):
        assert torch.isnan(got[1]).all()
        assert torch.equal(got[[0, 2]], want[[0, 2]])
