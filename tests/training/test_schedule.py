"""Schedules against the same formulas in plain Python, a step at a time."""

import math

import pytest
import torch

from wesar_sweep.training.schedule import SCHEDULES, Schedules, factor


def in_python(name, step, *, warmup, steps, ratio, decay):
    if step < warmup:
        return (step + 1) / warmup
    last = steps - 1
    p = min(1, (step - warmup) / max(1, last - warmup))
    if name == "cosine":
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * p)) / 2
    if name == "linear":
        return 1 - (1 - ratio) * p
    if name == "wsd":
        length = max(1, decay * steps)
        return 1 - (1 - ratio) * min(1, max(0, (step - (last - length)) / length))
    return 1.0


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_all_schedules_at_once(warmup):
    steps, ratio, decay, count = 40, 0.1, 0.25, len(SCHEDULES)
    schedules = Schedules(
        code_K=torch.arange(count),
        warmup_K=torch.full((count,), float(warmup)),
        steps_K=torch.full((count,), float(steps)),
        final_ratio_K=torch.full((count,), ratio),
        decay_fraction_K=torch.full((count,), decay),
    )
    for step in range(steps):
        got = factor(torch.full((count,), float(step)), schedules)
        expected = [
            in_python(name, step, warmup=warmup, steps=steps, ratio=ratio, decay=decay)
            for name in SCHEDULES
        ]
        torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_ends():
    """The peak is reached right after the warm-up, the final ratio at the last step."""
    for name, last in (("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1), ("constant", 1.0)):
        one = Schedules(
            code_K=torch.tensor([SCHEDULES.index(name)]),
            warmup_K=torch.tensor([5.0]),
            steps_K=torch.tensor([50.0]),
            final_ratio_K=torch.tensor([0.1]),
            decay_fraction_K=torch.tensor([0.2]),
        )
        assert factor(torch.tensor([5.0]), one).item() == 1.0
        assert factor(torch.tensor([49.0]), one).item() == pytest.approx(last, abs=1e-6)
