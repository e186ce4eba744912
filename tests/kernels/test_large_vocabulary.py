"""The ops over token ids at the largest vocabulary that a study may have, 262,144."""

import pytest
import torch
from triton.runtime import interpreter

from wesar_sweep.config.data import MOST_VOCABULARY
from wesar_sweep.kernels.fused import cross_entropy, embedding

V = MOST_VOCABULARY
EDGES = (0, 65_535, 65_536, 131_072, 200_003, V - 1)
"""Ids at the ends, and about what 16 bits hold."""


def ids(runs, rows, device):
    """Token ids, [K, M]: each run has its own, and all of `EDGES`, one of them twice."""
    generator = torch.Generator().manual_seed(0)
    token_KM = torch.randint(V, (runs, rows), generator=generator, dtype=torch.int32)
    token_KM[:, : len(EDGES)] = torch.tensor(EDGES)
    token_KM[:, -1] = V - 1
    return token_KM.to(device)


class Some:
    """Launches of a kernel, of which the interpreter runs these programs alone: each takes 1 ms."""

    def __init__(self, kernel, programs):
        self.kernel, self.programs = kernel, programs

    def __getitem__(self, grid):
        builder = interpreter.interpreter_builder
        honest, programs = builder.set_grid_idx, self.programs
        assert max(programs) < grid[0]

        def chosen(x, y, z):
            builder.grid_idx = (programs[x], y, z)

        def launch(*args, **options):
            builder.set_grid_idx = chosen
            try:
                self.kernel[(len(programs),)](*args, **options)
            finally:
                builder.set_grid_idx = honest

        return launch


def test_embedding(device, monkeypatch):
    runs, rows, D = 2, 12, 8
    token = ids(runs, rows, device)
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(runs, V, D, generator=generator).to(device)
    dx = torch.randn(runs, rows, D, generator=generator).to(device)
    assert torch.equal(embedding.forward(token, w), torch.stack([w[k, token[k]] for k in (0, 1)]))
    # Table rows of tokens, and their neighbours.
    used = sorted({v for row in token.tolist() for t in row for v in (t, max(0, t - 1))})
    if device.type == "cpu":
        programs = [run * V + v for run in range(runs) for v in used]
        monkeypatch.setattr(embedding, "_segments", Some(embedding._segments, programs))
    out = torch.full((runs, V, D), torch.nan, device=device)
    embedding.backward(dx, token, vocabulary=V, out_KVD=out)
    want = torch.zeros(runs, V, D, device=device)
    for k in range(runs):
        want[k].index_add_(0, token[k].long(), dx[k])
    torch.testing.assert_close(out[:, used], want[:, used])
    assert want[:, V - 1].abs().min() > 0, "the control: something is summed there"


@pytest.mark.parametrize("runs", [1, 3])
def test_cross_entropy(device, runs):
    rows = 7
    target = ids(runs, rows, device)
    logit = torch.randn(runs, rows, V, generator=torch.Generator().manual_seed(2)).to(device)
    logit[..., -1] += 5.0
    z_loss = torch.linspace(0.0, 1e-2, runs, device=device)
    leaf = logit.clone().requires_grad_()
    lse = torch.logsumexp(leaf, dim=-1)
    nll = lse - leaf.gather(2, target.long().unsqueeze(2)).squeeze(2)
    (want,) = torch.autograd.grad((nll + z_loss.unsqueeze(1) * lse.square()).sum() / rows, leaf)
    got_nll, got_z, got = cross_entropy.forward_backward(logit, target, z_loss, scale=1 / rows)
    torch.testing.assert_close(got_nll, nll.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_z, lse.detach().square(), rtol=1e-5, atol=1e-4)
    # The largest gradient is 1/7, a typical one 1e-6: a sum of 262,144 powers in another order.
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-9)


@pytest.mark.gpu
def test_addresses_have_64_bits(gpu):
    """Tables and logits of more than 2³² bytes and 2³¹ values; the last run's last are right."""
    runs, rows, D = 5, 64, 2048
    token = ids(runs, rows, gpu)
    w = torch.empty(runs, V, D, dtype=torch.bfloat16, device=gpu).normal_()
    assert w.numel() > 2**31
    x = embedding.forward(token, w)
    assert torch.equal(x, torch.stack([w[k, token[k]] for k in range(runs)]))
    dx = torch.randn(runs, rows, D, device=gpu, dtype=torch.bfloat16)
    embedding.backward(dx, token, vocabulary=V, out_KVD=w)
    want = torch.zeros(V, D, device=gpu).index_add_(0, token[-1].long(), dx[-1].float())
    torch.testing.assert_close(w[-1].float(), want, rtol=1e-2, atol=1e-6)
    del w, x
    runs, rows = 3, 4096
    target = ids(runs, rows, gpu)
    logit = torch.empty(runs, rows, V, dtype=torch.bfloat16, device=gpu).normal_()
    last = logit[-1, -64:].float().requires_grad_()
    nll, _, got = cross_entropy.forward_backward(logit, target, None, scale=1.0, out=logit)
    want_nll = torch.nn.functional.cross_entropy(last, target[-1, -64:].long(), reduction="none")
    torch.testing.assert_close(nll[-1, -64:], want_nll.detach(), rtol=1e-4, atol=1e-4)
    (want,) = torch.autograd.grad(want_nll.sum(), last)
    torch.testing.assert_close(got[-1, -64:].float(), want, rtol=1e-2, atol=1e-6)
