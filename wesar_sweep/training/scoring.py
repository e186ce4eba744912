"""The log-likelihood of an evaluation set under K runs at once.

Only rows whose next token is scored meet the prediction matrix, some at a time, so that logits take
little memory whatever the vocabulary. On a CPU a run's bits do not depend on K: the windows of a
product and the rows of a piece follow from the set and the architecture alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wesar_sweep.data.evaluation_sets import WindowGroup
from wesar_sweep.kernels import linear

CPU_LOGITS = 2**22
"""Most logits of one run at a time, 16 MiB of float32; of all runs together K times that."""
GPU_LOGITS = 2**25
"""Most logits of all runs together at a time."""


class Score(NamedTuple):
    """What a run came to on a set."""

    nll: float
    """Nats, summed over all scored tokens in float64."""
    exact: int
    """Windows of which each scored token was the likeliest."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Windows of one padded length on the device; a row is an input whose next token is scored."""

    token_WT: Tensor
    """int32 [W, T + 1]."""
    window_R: Tensor
    place_R: Tensor
    target_R: Tensor
    """int64."""
    first_W: list[int]
    """The row at which the rows of each window begin; one more entry ends the last."""


@dataclass(frozen=True, slots=True)
class DeviceWindows:
    """The windows of a set on a device."""

    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, groups: Sequence[WindowGroup], *, device: torch.device) -> DeviceWindows:
        """Put windows on a device."""
        return cls(tuple(_on_device(group, device) for group in groups))


def _on_device(group: WindowGroup, device: torch.device) -> _Group:
    window_R, place_R = group.rows()
    target_R = group.token_WT[window_R, place_R + 1].astype(np.int64)
    return _Group(
        torch.from_numpy(group.token_WT).to(device),
        torch.from_numpy(window_R).to(device),
        torch.from_numpy(place_R).to(device),
        torch.from_numpy(target_R).to(device),
        [0, *np.cumsum(group.scored_W, dtype=np.int64).tolist()],
    )


Hidden = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(tokens [W, T], rows R of the W·T) -> (h [K, R, D], prediction matrices [K, V, D])."""


def score(windows: DeviceWindows, *, runs: int, sequences: int, hidden: Hidden) -> list[Score]:
    """Score all windows under all runs.

    Args:
        windows: Of one set.
        runs: K.
        sequences: Windows of one forward pass.
        hidden: The forward pass.

    Returns:
        One a run.
    """
    device = windows.groups[0].token_WT.device
    nll_K = torch.zeros(runs, dtype=torch.float64, device=device)
    exact_K = torch.zeros(runs, dtype=torch.int64, device=device)
    for group in windows.groups:
        count, length = group.token_WT.shape[0], group.token_WT.shape[1] - 1
        for begin in range(0, count, sequences):
            end = min(begin + sequences, count)
            rows = slice(group.first_W[begin], group.first_W[end])
            window_R = group.window_R[rows] - begin
            row_R = window_R * length + group.place_R[rows]
            h_KRD, predict_KVD = hidden(group.token_WT[begin:end, :-1], row_R)
            missed_KW = torch.zeros(runs, end - begin, dtype=torch.int64, device=device)
            start = 0
            for h_KCD in h_KRD.split(_rows_at_a_time(predict_KVD), dim=1):
                piece = slice(start, start + h_KCD.shape[1])
                start = piece.stop
                nll_KC, hit_KC = _score_rows(h_KCD, predict_KVD, group.target_R[rows][piece])
                nll_K += nll_KC.double().sum(dim=1)
                missed_KW.index_add_(1, window_R[piece], (~hit_KC).long())
            exact_K += (missed_KW == 0).sum(dim=1)
    return [Score(nll, exact) for nll, exact in zip(nll_K.tolist(), exact_K.tolist(), strict=True)]


def _rows_at_a_time(predict_KVD: Tensor) -> int:
    runs, vocabulary, _ = predict_KVD.shape
    most = CPU_LOGITS if predict_KVD.device.type == "cpu" else GPU_LOGITS // runs
    return max(1, most // vocabulary)


def _score_rows(h_KCD: Tensor, predict_KVD: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each row's target, float32 [K, C], and whether no token was likelier."""
    logit_KCV = _logits(h_KCD, predict_KVD)
    target_KC1 = target_C.expand(len(h_KCD), -1).unsqueeze(2)
    hit_KC = logit_KCV.argmax(dim=2) == target_C
    logp_KCV = torch.log_softmax(logit_KCV, dim=2)
    return -logp_KCV.gather(2, target_KC1).squeeze(2), hit_KC


def _logits(h_KCD: Tensor, predict_KVD: Tensor) -> Tensor:
    """In float32 always: rounded to bfloat16 many tokens would tie for the likeliest."""
    if h_KCD.dtype == torch.float32:
        return linear.linear(h_KCD, predict_KVD)
    if h_KCD.device.type == "cuda":
        return torch.bmm(h_KCD, predict_KVD.mT, out_dtype=torch.float32)
    return linear.linear(h_KCD.float(), predict_KVD.float())
