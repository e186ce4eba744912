"""Norm, rotation, embedding and activations against their formulas in float64."""

import math

import pytest
import torch

from wesar_sweep.kernels import embedding, feed_forward, rms_norm, rope


@pytest.mark.parametrize("runs", [1, 3])
def test_rms_norm(runs):
    x = torch.randn(runs, 5, 7, dtype=torch.float64)
    gain = torch.randn(runs, 7, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + rms_norm.EPS).sqrt() * gain[:, None]
    torch.testing.assert_close(rms_norm.reference(x, gain), expected, atol=1e-5, rtol=1e-5)


def test_rms_norm_keeps_the_input_type():
    assert rms_norm.reference(torch.randn(1, 2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rotation_keeps_lengths_and_sees_distances_only():
    cos, sin = rope.tables(16, 6)
    q, k = torch.randn(1, 1, 1, 1, 6), torch.randn(1, 1, 1, 1, 6)
    rotated_q = rope.reference(q.expand(1, 1, 16, 1, 6), cos, sin)[0, 0, :, 0]
    rotated_k = rope.reference(k.expand(1, 1, 16, 1, 6), cos, sin)[0, 0, :, 0]
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm().expand(16))
    products = rotated_q @ rotated_k.T
    for distance in (0, 3, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products[0, 0], products[0, 5])


def test_rotation_turns_the_first_pair_by_one_radian_a_token():
    cos, sin = rope.tables(3, 4)
    x = torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 3, 1, 4)
    turned = rope.reference(x, cos, sin)[0, 0, 2, 0]
    torch.testing.assert_close(turned, torch.tensor([math.cos(2), 0.0, math.sin(2), 0.0]))


def test_embedding_takes_each_run_from_its_own_table():
    w = torch.arange(2 * 5 * 3, dtype=torch.float32).view(2, 5, 3).requires_grad_()
    token = torch.tensor([[[0, 4]], [[1, 1]]])
    out = embedding.reference(token, w)
    assert torch.equal(out[1, 0, 0], w[1, 1]) and torch.equal(out[0, 0, 1], w[0, 4])
    (grad,) = torch.autograd.grad(out, w, torch.ones_like(out))
    assert grad[1, 1].tolist() == [2, 2, 2] and grad[1, 0].tolist() == [0, 0, 0]


def test_activations():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    phi = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(feed_forward.gelu_reference(x), x * phi)
    torch.testing.assert_close(feed_forward.swiglu_reference(x, x), x * x / (1 + torch.exp(-x)))
