"""Cross-entropy and z-loss: outputs, gradients, and a NaN that stays with its run."""

import math

import pytest
import torch

from wesar_sweep.kernels import cross_entropy as ce


def _case(runs, rows, vocabulary, dtype=torch.float32):
    generator = torch.Generator().manual_seed(runs * 100 + rows)
    logit = torch.randn(runs, rows, vocabulary, generator=generator, dtype=dtype) * 3
    target = torch.randint(0, vocabulary, (runs, rows), generator=generator)
    return logit.requires_grad_(), target


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("rows", "vocabulary"), [(5, 7), (64, 256), (33, 101)])
def test_fast_equals_reference(runs, rows, vocabulary):
    logit, target = _case(runs, rows, vocabulary)
    weight = torch.linspace(0.5, 2, runs)
    expected, got = ce.reference(logit, target), ce.cross_entropy(logit, target)
    torch.testing.assert_close(got, expected)
    # exp2 of a rescaled log-probability and softmax differ by a few units in the last place.
    torch.testing.assert_close(
        torch.autograd.grad(got, logit, weight)[0],
        torch.autograd.grad(expected, logit, weight)[0],
        rtol=1e-5,
        atol=1e-8,
    )


def test_reference_is_the_formula():
    logit, target = _case(2, 9, 11, torch.float64)
    p = torch.softmax(logit, -1).gather(2, target[..., None])[..., 0]
    torch.testing.assert_close(
        ce.reference(logit, target).double(), -p.log().mean(1), atol=1e-6, rtol=1e-6
    )


def test_z_is_the_squared_log_partition():
    logit = torch.zeros(2, 3, 8)
    torch.testing.assert_close(ce.z_reference(logit), torch.full((2,), math.log(8) ** 2))


def test_large_logits_stay_finite():
    logit = torch.tensor([[[1000.0, 0.0], [0.0, 1000.0]]], requires_grad=True)
    loss = ce.cross_entropy(logit, torch.tensor([[1, 1]]))
    assert loss.item() == 500.0
    assert torch.isfinite(torch.autograd.grad(loss, logit, torch.ones(1))[0]).all()


def test_nan_stays_in_its_run():
    logit, target = _case(3, 6, 10)
    clean = torch.autograd.grad(ce.cross_entropy(logit, target), logit, torch.ones(3))[0]
    poisoned = logit.detach().clone()
    poisoned[1] = torch.nan
    poisoned.requires_grad_()
    loss = ce.cross_entropy(poisoned, target)
    grad = torch.autograd.grad(loss, poisoned, torch.ones(3))[0]
    assert torch.isnan(loss[1]) and torch.isfinite(loss[[0, 2]]).all()
    assert torch.equal(grad[[0, 2]], clean[[0, 2]])
