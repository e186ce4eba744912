"""Causal attention against its formula."""

import pytest
import torch

from wesar_sweep.kernels import attention


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_fast_equals_reference(runs, tokens):
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, dy = (
        torch.randn(runs, 2, tokens, 3, 8, generator=generator).requires_grad_() for _ in range(4)
    )
    expected, got = attention.reference(q, k, v), attention.attention(q, k, v)
    # Float32 sums of up to 64 terms in another order.
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), dy),
        torch.autograd.grad(expected, (q, k, v), dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_no_token_sees_a_later_one():
    q, k, v = (torch.randn(1, 1, 6, 2, 4) for _ in range(3))
    before = attention.attention(q, k, v)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 4:], v2[:, :, 4:] = 9.0, -9.0
    after = attention.attention(q, k2, v2)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4:], after[:, :, 4:])


def test_max_logit_is_over_what_is_attended():
    q = torch.ones(2, 1, 3, 1, 4)
    k = torch.ones(2, 1, 3, 1, 4)
    k[1, 0, 0] = 5.0
    torch.testing.assert_close(attention.max_logit(q, k), torch.tensor([2.0, 10.0]))
    later = torch.ones(1, 1, 3, 1, 4)
    later[0, 0, 2] = 5.0
    only_last_sees = torch.zeros(1, 1, 3, 1, 4)
    only_last_sees[0, 0, :2] = 1.0
    assert attention.max_logit(only_last_sees, later).item() == 2.0
