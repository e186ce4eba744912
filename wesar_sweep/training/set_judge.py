"""Runs judged on evaluation sets: which stand at a step of a set's, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from wesar_sweep.data.evaluation_sets import LoadedSet
from wesar_sweep.training.record import RunRecord
from wesar_sweep.training.scoring import DeviceWindows
from wesar_sweep.training.stack import Stack


class SetJudge:
    """Judges the runs of one stack after another; keeps the windows of the last context.

    Args:
        sets: By their names in the study.
        device: Where the stacks are.
    """

    def __init__(self, sets: Mapping[str, LoadedSet], *, device: torch.device) -> None:
        self._sets, self._device = dict(sets), device
        self._context: int | None = None
        self._windows: dict[str, DeviceWindows] = {}

    def judge(self, stack: Stack, standing: Sequence[tuple[int, RunRecord]]) -> None:
        """Judge runs on each set that is due for them, all that are due at once.

        Args:
            stack: Which the runs are in.
            standing: Slot and record of each, none of whose steps is under way.
        """
        for name, found in self._sets.items():
            due = [(slot, record) for slot, record in standing if record.set_due(name)]
            if not due:
                continue
            windows = self._windows_of(name, stack.architecture.context)
            scores = stack.score([slot for slot, _ in due], windows)
            for (_, record), score in zip(due, scores, strict=True):
                record.add_set(name, found.figures(nll=score.nll, exact=score.exact))

    def _windows_of(self, name: str, context: int) -> DeviceWindows:
        if context != self._context:
            self._context, self._windows = context, {}
        if name not in self._windows:
            groups = self._sets[name].windows(context)
            self._windows[name] = DeviceWindows.of(groups, device=self._device)
        return self._windows[name]
