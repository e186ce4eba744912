"""Causal attention against its formula."""

import pytest
import torch

from wesar_sweep.kernels import attention


def same_with_gradients(got, expected, leaves, dy):
    # Float32 sums of up to 64 terms in another order.
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got, leaves, dy),
        torch.autograd.grad(expected, leaves, dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_fast_equals_reference(runs, tokens):
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, dy = (
        torch.randn(runs, 2, tokens, 3, 8, generator=generator).requires_grad_() for _ in range(4)
    )
    expected, got = attention.reference(q, k, v), attention.attention(q, k, v)
    same_with_gradients(got, expected, (q, k, v), dy)


def documents(runs, sequences, tokens, *, every=5, seed=0):
    """Token ids of which about one in `every` is 0 and ends a document, [K, B, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, every, (runs, sequences, tokens), generator=generator)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_token_that_ends_a_document_belongs_to_it(dtype):
    """And the next one begins the next, whatever it is."""
    token = torch.tensor([[[7, 3, 0, 5, 0, 0, 9, 9]]], dtype=dtype)
    want = [[[0, 0, 0, 3, 3, 5, 6, 6]]]
    assert attention.first_keys(token, document_end=0).tolist() == want
    assert attention.first_keys(token, document_end=8).tolist() == [[[0] * 8]]
    assert attention.first_keys(token[..., :1], document_end=7).tolist() == [[[0]]]


def test_first_keys_are_those_of_a_loop():
    token = documents(3, 2, 50)
    want = []
    for row in token.flatten(0, 1).tolist():
        first = 0
        for place, before in enumerate([-1, *row[:-1]]):
            first = place if before == 0 else first
            want.append(first)
    assert attention.first_keys(token, document_end=0).flatten().tolist() == want


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_within_documents_fast_equals_reference(runs, tokens):
    generator = torch.Generator().manual_seed(tokens)
    q, k, v, dy = (
        torch.randn(runs, 2, tokens, 3, 8, generator=generator).requires_grad_() for _ in range(4)
    )
    first = attention.first_keys(documents(runs, 2, tokens), document_end=0)
    expected, got = (f(q, k, v, first) for f in (attention.reference, attention.attention))
    same_with_gradients(got, expected, (q, k, v), dy)
    # The control: where there is a document to end, it ends something.
    whole = attention.reference(q, k, v)
    assert torch.equal(expected, whole) == (int(first.max()) == 0)


def test_a_document_is_attended_as_if_it_stood_alone():
    q, k, v = (torch.randn(1, 1, 9, 2, 4) for _ in range(3))
    token = torch.tensor([[[5, 5, 5, 0, 5, 5, 0, 5, 5]]])
    first = attention.first_keys(token, document_end=0)
    together = attention.reference(q, k, v, first)
    for start, end in ((0, 4), (4, 7), (7, 9)):
        alone = attention.reference(*(x[:, :, start:end] for x in (q, k, v)))
        torch.testing.assert_close(together[:, :, start:end], alone)


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
    # The large key lies in a document before: of the second run alone.
    first = torch.tensor([[[0, 0, 0]], [[0, 1, 1]]])
    q[:, 0, 0] = 0.0
    assert attention.max_logit(q, k, first).tolist() == [2.0, 2.0]
    assert attention.max_logit(q, k).tolist() == [2.0, 10.0]
