"""Learning-rate schedules, a run its own: linear warm-up, then cosine, linear, wsd or constant.

With t the step from 0, S the steps, w the warm-up, r the final ratio and f the decay fraction; the
factor of the peak rate is (t + 1)/w while t < w, and then, with p = (t − w)/max(1, S − 1 − w) and
0 ≤ p ≤ 1::

    cosine    r + (1 − r)·(1 + cos πp)/2
    linear    1 − (1 − r)·p
    wsd       1 until a share f of all steps is left, then linear to r (Hu et al. 2024)
    constant  1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from wesar_sweep.config.study import Schedule

SCHEDULES: tuple[str, ...] = get_args(Schedule)
"""Names; a run's code is its place here."""


@dataclass(frozen=True, slots=True)
class Schedules:
    """The schedule of K runs, each float32 [K] but the code."""

    code_K: Tensor
    """int64 place in `SCHEDULES`."""
    warmup_K: Tensor
    steps_K: Tensor
    final_ratio_K: Tensor
    decay_fraction_K: Tensor


def factor(step_K: Tensor, schedules: Schedules) -> Tensor:
    """Share of the peak learning rate at a step.

    Args:
        step_K: float32 step of each run, from 0.
        schedules: Of the same runs.

    Returns:
        float32 [K].
    """
    s = schedules
    rest = 1 - s.final_ratio_K
    last_K = s.steps_K - 1
    progress_K = ((step_K - s.warmup_K) / (last_K - s.warmup_K).clamp(min=1)).clamp(0, 1)
    cosine_K = s.final_ratio_K + rest * 0.5 * (1 + torch.cos(math.pi * progress_K))
    linear_K = 1 - rest * progress_K
    decay_steps_K = (s.decay_fraction_K * s.steps_K).clamp(min=1)
    wsd_K = 1 - rest * ((step_K - (last_K - decay_steps_K)) / decay_steps_K).clamp(0, 1)
    after_K = torch.ones_like(step_K)
    for name, value_K in (("cosine", cosine_K), ("linear", linear_K), ("wsd", wsd_K)):
        after_K = torch.where(s.code_K == SCHEDULES.index(name), value_K, after_K)
    return torch.where(step_K < s.warmup_K, (step_K + 1) / s.warmup_K.clamp(min=1), after_K)
