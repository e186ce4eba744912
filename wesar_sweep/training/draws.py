"""The standard normal draws that runs start from, a flat row a seed, made by several threads.

Every matrix has its own generator (`model.initialisation.standard_normal`), so no draw depends on
which thread makes it, or when.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from wesar_sweep.model.initialisation import standard_normal
from wesar_sweep.model.layout import Layout

_KEPT_BYTES = 2**29
"""Draws that are kept for further runs of the same seed."""


_TASK_VALUES = 2**18
"""About how many one task draws: two milliseconds, far above what handing it over takes."""


def _draw(into_MOI: Tensor, labels: Sequence[str], seed: int) -> None:
    for w_OI, label in zip(into_MOI, labels, strict=True):
        standard_normal(w_OI.shape, seed=seed, name=label, out=w_OI)


class Draws:
    """Draws of all matrices of a run by its seed, on the CPU.

    Runs of one seed share them, whatever their method, so the latest are kept.

    Args:
        layout: Where each matrix lies in the row.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._most = max(1, _KEPT_BYTES // (4 * layout.size))
        self._rows: dict[int, tuple[Tensor, list[Future[None]]]] = {}

    def begin(self, seeds: Iterable[int], pool: Executor | None) -> None:
        """Begin what is not there yet, in the pool; without one, draw them here."""
        for seed in seeds:
            if seed in self._rows:
                self._rows[seed] = self._rows.pop(seed)  # The latest used are kept.
                continue
            while len(self._rows) >= self._most:
                self._rows.pop(next(iter(self._rows)))
            row_P = torch.empty(self._layout.matrix_parameters)
            tasks = []
            for group in self._layout.groups:
                w_MOI = group.view(row_P.unsqueeze(0))[0]
                step = max(1, _TASK_VALUES // (group.outputs * group.inputs))
                for at in range(0, group.count, step):
                    some, labels = w_MOI[at : at + step], group.labels[at : at + step]
                    if pool is None:
                        _draw(some, labels, seed)
                    else:
                        tasks.append(pool.submit(_draw, some, labels, seed))
            self._rows[seed] = row_P, tasks

    def row(self, seed: int) -> Tensor:
        """The draws of a seed that was begun, float32 [`layout.matrix_parameters`]; waits for them.

        To be read only: they serve every run of the seed.
        """
        row_P, tasks = self._rows[seed]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            del self._rows[seed]
            raise
        tasks.clear()
        return row_P


def drawing_threads(device: torch.device) -> int:
    """How many threads draw: every core for a GPU; a worker on a CPU keeps to its own."""
    return 1 if device.type == "cpu" else len(os.sched_getaffinity(0))
