"""The batched product: equal to the plain one, and the same bits for every K."""

import pytest
import torch

from wesar_sweep.kernels import linear


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(5, 3, 7), (33, 17, 9), (128, 64, 32)])
def test_equals_reference_in_output_and_gradients(runs, rows, outputs, inputs):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(
        runs, rows, inputs, generator=generator, dtype=torch.float64, requires_grad=True
    )
    w = torch.randn(
        runs, outputs, inputs, generator=generator, dtype=torch.float64, requires_grad=True
    )
    dy = torch.randn(runs, rows, outputs, generator=generator, dtype=torch.float64)
    expected = torch.einsum("kmi,koi->kmo", x, w)
    for op in (linear.linear, linear.reference):
        y = op(x, w)
        torch.testing.assert_close(y, expected)
        for got, want in zip(
            torch.autograd.grad(y, (x, w), dy),
            torch.autograd.grad(expected, (x, w), dy, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(got, want)


def test_a_blas_that_depends_on_k_is_found_and_avoided(monkeypatch):
    """The control: a product whose bits depend on K is noticed, and linear then goes run by run."""
    honest = torch.bmm

    def depends_on_batch(left, right):
        return honest(left, right) * (1 + 1e-7 * (left.shape[0] == 16))

    linear.batched_product_is_independent.cache_clear()
    monkeypatch.setattr(torch, "bmm", depends_on_batch)
    try:
        assert not linear.batched_product_is_independent()
        x, w = torch.randn(16, 4, 8), torch.randn(16, 2, 8)
        assert torch.equal(linear.linear(x, w)[3:4], linear.linear(x[3:4], w[3:4]))
    finally:
        linear.batched_product_is_independent.cache_clear()
