"""Last norm, prediction and loss in one, against the same in plain torch and its autograd."""

import math

import pytest
import torch

from tests.kernels.compiled import compile_calls
from wesar_sweep.kernels import cross_entropy, rms_norm
from wesar_sweep.kernels.fused import prediction

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPES = [(1, 5, 8, 3), (3, 33, 24, 65), (3, 70, 32, 250), (2, 128, 16, 256)]
"""Runs, rows, width, vocabulary; of the last every tile is whole, so none is masked."""

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}
"""Float32: sums in another order. bfloat16: h and the results rounded to 8 bits."""


def case(runs, rows, width, vocabulary, *, dtype, device):
    """x, gain, w (in longer rows, as in a stack), targets, z-loss weights."""
    generator = torch.Generator().manual_seed(rows)

    def one(*shape):
        size = math.prod(shape)
        flat = torch.randn(runs, size + 40, generator=generator).to(device, dtype)
        return flat[:, 24 : 24 + size].unflatten(1, shape)

    target = torch.randint(vocabulary, (runs, rows), generator=generator, dtype=torch.int32)
    z_loss = torch.linspace(0.0, 0.01, runs, device=device)
    w = one(vocabulary, width) * width**-0.5 * 3
    return one(rows, width).contiguous(), one(width), w, target.to(device), z_loss


def expect(x, gain, w, target, z_loss, *, scale):
    """(nll, gradient by the logits, h, 1/rms, largest logit) in float32."""
    h = rms_norm.reference(x.float(), gain.float())
    logit = (h.to(x.dtype).float() @ w.float().mT).requires_grad_()
    lse = logit.logsumexp(dim=2)
    nll = lse - logit.gather(2, target.long().unsqueeze(2)).squeeze(2)
    total = (nll + z_loss.view(-1, 1) * lse.square()).sum() * scale
    (dlogit,) = torch.autograd.grad(total, logit)
    rstd = (x.float().square().mean(-1) + rms_norm.EPS).rsqrt()
    return nll.detach(), dlogit, h, rstd, logit.detach().abs().amax(dim=(1, 2))


def close(got, want, dtype):
    error = (got.float() - want.float()).norm() / want.float().norm()
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_one(device, dtype, shape):
    x, gain, w, target, z_loss = case(*shape, dtype=dtype, device=device)
    before = [tensor.clone() for tensor in (x, gain, w)]
    peaks = []
    got = prediction.loss(x, gain, w, target, z_loss, scale=1 / shape[1], peaks=peaks)
    want = expect(x, gain, w, target, z_loss, scale=1 / shape[1])
    for mine, theirs in zip((*got, peaks[0]), want, strict=True):
        close(mine, theirs, dtype)
    for tensor, kept in zip((x, gain, w), before, strict=True):
        assert torch.equal(tensor, kept)


def test_without_a_gradient(device, dtype):
    x, gain, w, target, z_loss = case(3, 33, 24, 65, dtype=dtype, device=device)
    nll, dlogit, h, _ = prediction.loss(x, gain, w, target, None, scale=None)
    assert dlogit is None and h is None
    assert torch.equal(nll, prediction.loss(x, gain, w, target, z_loss, scale=1.0)[0])


def test_equals_the_reference_loss(device):
    x, gain, w, target, _ = case(2, 40, 16, 100, dtype=torch.float32, device=device)
    logit = rms_norm.reference(x, gain) @ w.mT
    nll, _, _, _ = prediction.loss(x, gain, w, target, None, scale=None)
    torch.testing.assert_close(
        nll.mean(dim=1), cross_entropy.reference(logit, target.long()), atol=1e-5, rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_nan_stays_in_its_run(device):
    x, gain, w, target, z_loss = case(3, 20, 16, 40, dtype=torch.float32, device=device)
    clean = prediction.loss(x, gain, w, target, z_loss, scale=0.1)
    x[1] = torch.nan
    peaks = []
    dead = prediction.loss(x, gain, w, target, z_loss, scale=0.1, peaks=peaks)
    assert peaks[0].isnan().tolist() == [False, True, False]
    for got, want in zip(dead, clean, strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_where_it_is_used():
    assert prediction.supported(128, 512, 256, torch.bfloat16)
    assert not prediction.supported(128, 512, 512, torch.bfloat16)
    assert not prediction.supported(128, 512, 200, torch.bfloat16)
    assert not prediction.supported(256, 1024, 256, torch.bfloat16)
    assert not prediction.supported(128, 512, 256, torch.float32)


def test_compiles_for_hopper_into_wide_products():
    (kernel,) = compile_calls("""
        from wesar_sweep.kernels.fused import prediction
        x, gain, w = meta(256, 2048, 128), meta(256, 128), meta(256, 256, 128)
        target = meta(256, 2048, dtype=torch.int32)
        prediction.loss(x, gain, w, target, None, scale=0.001)
    """)
    # A row of logits fills the registers; shapes that spill nothing ran slower (docs/LOG.md).
    assert kernel.stack_bytes <= 64
    assert "wgmma.mma_async" in kernel.ptx
