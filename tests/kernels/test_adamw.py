"""The optimizer against torch's own, a run at a time, each with its own hyperparameters."""

import math

import pytest
import torch

from wesar_sweep.kernels.adamw import AdamW, clip_factor, reference


@pytest.mark.parametrize("runs", [1, 3])
def test_equals_torch(runs):
    generator = torch.Generator().manual_seed(0)
    size, decayed, steps = 11, 7, 6
    start = torch.randn(runs, size, generator=generator)
    grads = torch.randn(steps, runs, size, generator=generator) * 3
    lr = [1e-3, 3e-2, 1e-4][:runs]
    betas = [(0.9, 0.95), (0.8, 0.999), (0.95, 0.9)][:runs]
    decay, clip, eps = (
        [0.1, 0.0, 0.5][:runs],
        [1.0, math.inf, 0.3][:runs],
        [1e-8, 1e-6, 1e-8][:runs],
    )

    parameter, first, second = start.clone(), torch.zeros(runs, size), torch.zeros(runs, size)
    for t in range(steps):
        grad = grads[t].clone()
        adamw = AdamW(
            lr_K=torch.tensor(lr) / (t + 1),
            beta1_K=torch.tensor([b for b, _ in betas]),
            beta2_K=torch.tensor([b for _, b in betas]),
            eps_K=torch.tensor(eps),
            weight_decay_K=torch.tensor(decay),
            clip_K=torch.tensor(clip),
            step_K=torch.full((runs,), float(t + 1)),
        )
        reference(
            parameter,
            first,
            second,
            grad,
            grad_norm_K=grad.norm(dim=1),
            adamw=adamw,
            decayed=decayed,
        )

    for k in range(runs):
        with_decay = start[k, :decayed].clone().requires_grad_()
        without = start[k, decayed:].clone().requires_grad_()
        optimizer = torch.optim.AdamW(
            [
                {"params": [with_decay], "weight_decay": decay[k]},
                {"params": [without], "weight_decay": 0.0},
            ],
            lr=lr[k],
            betas=betas[k],
            eps=eps[k],
        )
        for t in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr[k] / (t + 1)
            with_decay.grad, without.grad = (
                grads[t, k, :decayed].clone(),
                grads[t, k, decayed:].clone(),
            )
            torch.nn.utils.clip_grad_norm_([with_decay, without], clip[k])
            optimizer.step()
        expected = torch.cat((with_decay, without)).detach()
        # Float32: 6 steps of the same operations in a slightly different order.
        torch.testing.assert_close(parameter[k], expected, rtol=2e-6, atol=2e-7)


def test_clipping_is_off_at_infinity_and_says_nan():
    norm, clip = torch.tensor([5.0, 5.0, torch.inf]), torch.tensor([1.0, torch.inf, 1.0])
    factor = clip_factor(norm, clip)
    torch.testing.assert_close(factor[:2], torch.tensor([0.2, 1.0]))
    assert torch.isnan(factor[2])
