"""Budgets: what a study may spend, counted by each worker and looked at by all.

Nobody keeps the account: each worker writes what it spent (`store.spent`) and adds up the others'
files once a second. So workers may overshoot together by what they spend in about two seconds and
one block of steps, each; a worker alone by one block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from wesar_sweep.config.sweep import Budget
from wesar_sweep.errors import StoreError
from wesar_sweep.store.drive import Drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.spent import Spent, read_spent, total, write_spent

LOOK_EVERY_S = 1.0


def used_up(budget: Budget, spent: Spent, *, stop_at: float | None) -> str | None:
    """Which budget is used up, in words; None while there is something left.

    The budget of trials is the queue's (`studies.queue`): started cells are trained to their end.

    Args:
        budget: The limits.
        spent: By all workers of the study.
        stop_at: When the wall time of this call ends, in seconds since the epoch.
    """
    if budget.gpu_hours is not None and spent.device_hours >= budget.gpu_hours:
        return (
            f"the budget of {budget.gpu_hours:g} GPU-hours (budget.gpu_hours) is used up: "
            f"{spent.device_hours:.4g} device-hours spent"
        )
    if budget.tokens is not None and spent.tokens >= budget.tokens:
        return (
            f"the budget of {budget.tokens:,} tokens (budget.tokens) is used up: "
            f"{spent.tokens:,} trained"
        )
    if stop_at is not None and time.time() >= stop_at:
        return f"the budget of {budget.wall_hours:g} wall hours (budget.wall_hours) is used up"
    return None


def trials_words(budget: Budget) -> str:
    """That the budget of trials is used up."""
    return (
        f"the budget of {budget.trials:,} trials (budget.trials) is used up: "
        "every cell that may be started has been trained"
    )


class Meter:
    """Counts what one worker spends while a `with` block lasts, and says when it is too much.

    A thread keeps the worker's file, so that time counts also where no step is trained: while torch
    loads, kernels are compiled or a long evaluation runs.

    Args:
        directory: The study's.
        worker: The worker's name.
        drive: The call that started it, whose budget holds; None: count alone.
        devices: Devices that the worker holds: its ranks.
        figures: What this worker has spent so far; its device time is filled in here, and seconds
            of one device are multiplied by their number.
    """

    def __init__(
        self,
        directory: StudyDirectory,
        *,
        worker: str,
        drive: Drive | None,
        devices: int = 1,
        figures: Callable[[], Spent],
    ) -> None:
        self._directory, self._worker, self._figures = directory, worker, figures
        self._budget = Budget() if drive is None else drive.budget
        self._stop_at = None if drive is None else drive.stop_at
        self._devices = devices
        self._started = time.monotonic()
        # A name may be used again, as by a requeued job.
        self._former = read_spent(directory).get(worker, Spent())
        self._others = Spent()
        self._error: StoreError | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            self._look()

    def used_up(self) -> str | None:
        """Which budget is used up, in words, by the others' newest files and our own count now.

        Raises:
            StoreError: The files cannot be read or written.
        """
        if self._error is not None:
            raise self._error
        return used_up(self._budget, self._mine().plus(self._others), stop_at=self._stop_at)

    def _mine(self) -> Spent:
        own, elapsed = self._figures(), time.monotonic() - self._started
        return self._former.plus(
            replace(
                own,
                device_seconds=self._devices * elapsed,
                training_seconds=self._devices * (own.training_seconds or 0.0),
                evaluation_seconds=self._devices * (own.evaluation_seconds or 0.0),
            )
        )

    def _look(self) -> None:
        write_spent(self._directory, worker=self._worker, spent=self._mine())
        if self._budget.gpu_hours is not None or self._budget.tokens is not None:
            spent = read_spent(self._directory)
            self._others = total(one for name, one in spent.items() if name != self._worker)

    def _loop(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            try:
                self._look()
            except StoreError as error:
                # For the worker's own thread, which ends by it.
                self._error = error
                return
