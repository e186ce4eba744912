"""Pullbacks of every form against float64 autograd through the plain formula."""

import pytest
import torch

from wesar_sweep.kernels import reparametrization as rp


def _case(runs):
    generator = torch.Generator().manual_seed(runs)
    w = torch.randn(runs, 2, 5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    g = torch.randn(runs, 2, 5, 3, generator=generator, dtype=torch.float64)
    gate = (torch.rand(runs, 2, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    gain = (torch.rand(runs, 2, 5, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    return w, g, gate, gain


@pytest.mark.parametrize("runs", [1, 3])
def test_scalar(runs):
    w, g, gate, _ = _case(runs)
    effective = gate[..., None, None] * w
    torch.testing.assert_close(rp.scalar_effective(w, gate), effective)
    expected = torch.autograd.grad(effective, (w, gate), g)
    torch.testing.assert_close(rp.scalar_pullback(g, w, gate), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("runs", [1, 3])
def test_row(runs):
    w, g, _, gain = _case(runs)
    effective = gain.unsqueeze(-1) * w / w.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(rp.row_effective(w, gain), effective)
    expected = torch.autograd.grad(effective, (w, gain), g)
    torch.testing.assert_close(rp.row_pullback(g, w, gain), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("runs", [1, 3])
def test_spectral(runs):
    w, g, gate, _ = _case(runs)
    left, right = rp.power_iteration(w.detach(), torch.ones(runs, 2, 5, dtype=torch.float64))
    sigma = torch.einsum("kmo,kmoi,kmi->km", left, w, right)
    effective = (gate / sigma)[..., None, None] * w
    torch.testing.assert_close(rp.spectral_effective(w, gate, left, right), effective)
    expected = torch.autograd.grad(effective, (w, gate), g)
    torch.testing.assert_close(
        rp.spectral_pullback(g, w, gate, left, right), expected, rtol=1e-12, atol=1e-12
    )


def test_power_iteration_finds_the_largest_singular_value():
    w, *_ = _case(3)
    left = torch.ones(3, 2, 5, dtype=torch.float64)
    for _ in range(200):
        left, right = rp.power_iteration(w.detach(), left)
    expected = torch.linalg.svdvals(w)[..., 0]
    torch.testing.assert_close(rp.spectral_norm(w, left, right), expected)
