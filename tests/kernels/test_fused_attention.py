"""Causal attention against the formula."""

import pytest
import torch

from wesar_sweep.kernels import attention as reference
from wesar_sweep.kernels import rope
from wesar_sweep.kernels.fused import attention, library_attention

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def expected(qkv, *, heads, context, first=None):
    """Mixed values in float32 through the reference, packed rows in."""
    K, M, X = qkv.shape
    q, k, v = qkv.unflatten(2, (3, heads, X // 3 // heads)).unflatten(1, (-1, context)).unbind(3)
    if first is not None:
        first = first.unflatten(1, (-1, context))
    return reference.reference(q, k, v, first).reshape(K, M, X // 3)


def first_keys(runs, sequences, context, device, *, every):
    """First keys of random tokens, of which one in `every` ends a document, int32 [K, B·T]."""
    generator = torch.Generator().manual_seed(context)
    token = torch.randint(0, every, (runs, sequences, context), generator=generator)
    return reference.first_keys(token.to(device), document_end=0).flatten(1)


def run(qkv, dy, *, heads, context, first=None, **options):
    """Output and packed gradient of the fused op."""
    D = qkv.shape[2] // 3
    shape = {"heads": heads, "head_width": D // heads, "context": context}
    q, k, v = qkv.split(D, dim=2)
    y, lse = attention.forward(q, k, v, first_KM=first, **shape)
    out = torch.full_like(qkv, torch.nan)
    attention.backward(dy, q, k, v, y, lse, out=out, first_KM=first, **shape, **options)
    return y, out


def leaves_before_the_rotation(qkv, dy, *, heads, width, context, first=None):
    """Whether the gradient that leaves is that of what was to be rotated."""
    shape = {"heads": heads, "context": context, "first": first}
    cos, sin = rope.tables(context, width, device=qkv.device)
    leaf = qkv.clone().requires_grad_()
    q, k, v = leaf.unflatten(2, (3, heads, width)).unflatten(1, (-1, context)).unbind(3)
    turned = torch.stack((rope.reference(q, cos, sin), rope.reference(k, cos, sin), v), dim=3)
    packed = turned.reshape(qkv.shape)
    (want,) = torch.autograd.grad(expected(packed, **shape), leaf, dy)
    _, got = run(packed.detach(), dy, rotation=(cos, sin), **shape)
    close(got, want, tolerance=1e-5)


def test_gradients_can_leave_before_the_rotation(device):
    generator = torch.Generator().manual_seed(7)
    for runs, sequences, context, heads, width in ((1, 2, 9, 1, 16), (2, 1, 130, 2, 32)):
        D = heads * width
        qkv = torch.randn(runs, sequences * context, 3 * D, generator=generator).to(device)
        dy = torch.randn(runs, sequences * context, D, generator=generator).to(device)
        shape = {"heads": heads, "context": context}
        leaves_before_the_rotation(qkv, dy, width=width, **shape)


def test_the_largest_logit(device):
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(3, 2 * 70, 3 * 2 * 16, generator=generator).to(device)
    q, k, v = qkv.split(32, dim=2)
    found = []
    attention.forward(q, k, v, heads=2, head_width=16, context=70, peaks=found)
    heads = [x.unflatten(2, (2, 16)).unflatten(1, (2, 70)) for x in (q, k)]
    torch.testing.assert_close(found[0], reference.max_logit(*heads), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_the_largest_logit_of_a_dead_run_is_not_a_number(device):
    qkv = torch.randn(2, 20, 3 * 16, generator=torch.Generator().manual_seed(3)).to(device)
    qkv[1] = torch.nan
    found = []
    q, k, v = qkv.split(16, dim=2)
    attention.forward(q, k, v, heads=1, head_width=16, context=20, peaks=found)
    assert found[0].isnan().tolist() == [False, True]


def run_library(qkv, dy, *, heads, context, first=None):
    """The same through torch's kernels."""
    D = qkv.shape[2] // 3
    shape = {"heads": heads, "head_width": D // heads, "context": context}
    bias = None
    if first is not None:
        bias = library_attention.bias(first, context=context, dtype=qkv.dtype)
    y, tape = library_attention.forward(*qkv.split(D, dim=2), bias=bias, **shape)
    return y, torch.cat(library_attention.backward(dy, tape, **shape), dim=2)


def close(got, want, *, tolerance):
    error = (got.float() - want.float()).norm() / want.float().norm()
    assert error < tolerance, error


@pytest.mark.parametrize(
    ("runs", "sequences", "context", "heads", "width"),
    [
        (1, 1, 1, 1, 8),
        (3, 2, 7, 2, 8),
        (1, 2, 40, 1, 32),
        (3, 1, 65, 2, 16),
        (1, 1, 130, 1, 64),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_formula(device, runs, sequences, context, heads, width, dtype):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers")
    generator = torch.Generator().manual_seed(context)
    qkv = torch.randn(runs, sequences * context, 3 * heads * width, generator=generator)
    dy = torch.randn(runs, sequences * context, heads * width, generator=generator)
    qkv, dy = qkv.to(device, dtype), dy.to(device, dtype)
    shape = {"heads": heads, "context": context}
    leaf = qkv.float().requires_grad_()
    want = expected(leaf, **shape)
    (want_grad,) = torch.autograd.grad(want, leaf, dy.float())
    y, grad = run(qkv, dy, **shape)
    # Float32: sums in another order. bfloat16: powers and results rounded once each.
    close(y, want, tolerance=1e-5 if dtype == torch.float32 else 1e-2)
    close(grad, want_grad, tolerance=1e-5 if dtype == torch.float32 else 1.5e-2)


@pytest.mark.parametrize(
    ("runs", "sequences", "context", "heads", "width", "every"),
    [
        (1, 1, 1, 1, 8, 2),
        (3, 2, 7, 2, 8, 3),
        (1, 2, 40, 1, 32, 9),
        (3, 1, 65, 2, 16, 20),
        # Blocks that no query of another block sees, and a document over three of them.
        (1, 1, 200, 1, 16, 10),
        (1, 1, 200, 1, 16, 150),
    ],
)
@pytest.mark.parametrize("op", [run, run_library])
def test_within_documents_it_equals_the_formula(
    device, dtype, op, runs, sequences, context, heads, width, every
):
    generator = torch.Generator().manual_seed(context)
    qkv = torch.randn(runs, sequences * context, 3 * heads * width, generator=generator)
    dy = torch.randn(runs, sequences * context, heads * width, generator=generator)
    qkv, dy = qkv.to(device, dtype), dy.to(device, dtype)
    first = first_keys(runs, sequences, context, device, every=every)
    shape = {"heads": heads, "context": context}
    leaf = qkv.float().requires_grad_()
    want = expected(leaf, first=first, **shape)
    (want_grad,) = torch.autograd.grad(want, leaf, dy.float())
    y, grad = op(qkv, dy, first=first, **shape)
    # As without documents.
    close(y, want, tolerance=1e-5 if dtype == torch.float32 else 1e-2)
    close(grad, want_grad, tolerance=1e-5 if dtype == torch.float32 else 1.5e-2)
    if context > 1:
        # The control: without them it is another op by far.
        assert (y.float() - expected(qkv.float(), **shape)).norm() > 0.05 * want.norm()


def test_gradients_within_documents_can_leave_before_the_rotation(device):
    generator = torch.Generator().manual_seed(7)
    runs, sequences, context, heads, width = 2, 1, 130, 1, 16
    qkv = torch.randn(runs, sequences * context, 3 * width, generator=generator).to(device)
    dy = torch.randn(runs, sequences * context, width, generator=generator).to(device)
    first = first_keys(runs, sequences, context, device, every=40)
    shape = {"heads": heads, "context": context, "first": first}
    leaves_before_the_rotation(qkv, dy, width=width, **shape)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_blocks_that_nobody_sees_are_not_read(device):
    """Two documents of a block each: what is not a number in one is nothing to the other."""
    generator = torch.Generator().manual_seed(1)
    block = attention.tiles(128, 16).block
    qkv = torch.randn(1, 2 * block, 3 * 16, generator=generator).to(device)
    dy = torch.randn(1, 2 * block, 16, generator=generator).to(device)
    first = torch.arange(2 * block, dtype=torch.int32, device=device) // block * block
    for poisoned, clean in (
        (slice(0, block), slice(block, None)),
        (slice(block, None), slice(block)),
    ):
        spoilt = qkv.clone()
        spoilt[:, poisoned] = torch.nan
        for got in run(spoilt, dy, heads=1, context=2 * block, first=first[None]):
            assert got[:, clean].isfinite().all() and got[:, poisoned].isnan().all()


def test_the_largest_logit_within_documents(device):
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(3, 2 * 70, 3 * 2 * 16, generator=generator).to(device)
    q, k, _ = qkv.split(32, dim=2)
    first = first_keys(3, 2, 70, device, every=4)
    found = []
    attention.forward(
        *qkv.split(32, dim=2), heads=2, head_width=16, context=70, first_KM=first, peaks=found
    )
    heads = [x.unflatten(2, (2, 16)).unflatten(1, (2, 70)) for x in (q, k)]
    want = reference.max_logit(*heads, first.unflatten(1, (2, 70)))
    torch.testing.assert_close(found[0], want, atol=1e-5, rtol=1e-5)
    assert (want < reference.max_logit(*heads)).all(), "the control: others are larger"


def test_the_library_gives_the_same(device):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 2 * 24, 3 * 2 * 16, generator=generator).to(device)
    dy = torch.randn(2, 2 * 24, 2 * 16, generator=generator).to(device)
    shape = {"heads": 2, "context": 24}
    for got, want in zip(run_library(qkv, dy, **shape), run(qkv, dy, **shape), strict=True):
        close(got, want, tolerance=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_nan_stays_in_its_run(device):
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, 20, 3 * 16, generator=generator).to(device)
    dy = torch.randn(3, 20, 16, generator=generator).to(device)
    shape = {"heads": 1, "context": 10}
    clean = run(qkv, dy, **shape)
    poisoned = qkv.clone()
    poisoned[1] = torch.nan
    for got, want in zip(run(poisoned, dy, **shape), clean, strict=True):
        assert torch.isnan(got[1]).all()
        assert torch.equal(got[[0, 2]], want[[0, 2]])
