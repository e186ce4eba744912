"""A trainer that fabricates outcomes: what is tested here is who trains what, not training.

As a script it is one worker: ``python fabricated_runs.py DIRECTORY WORKER SECONDS_A_RUN``.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from wesar_sweep.config.run import Run
from wesar_sweep.config.space import Choices, Range
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Curve, Outcome
from wesar_sweep.studies.queue import CellQueue
from wesar_sweep.studies.storage import storage_of

LR = Range(low=1e-4, high=1e-1, log=True)
LR_GRID = Range(low=1e-4, high=1e-1, log=True, points=3)


def make_study(**changes: Any) -> Study:
    """A study of three lr, two seeds a cell, with whatever is to be different."""
    fields: dict[str, Any] = {"name": "s", "space": {"lr": LR_GRID}, "replicates": 2, **changes}
    return Study(**fields)


def trials_of(study: Study, directory: StudyDirectory) -> list[FrozenTrial]:
    """What stands in the database, as Optuna alone reads it: no lock is taken."""
    place = storage_of(study, directory)
    file = f"sqlite:///{directory.database_file}"
    storage = RDBStorage(file if place.url is None else place.url.for_sqlalchemy)
    try:
        return optuna.load_study(study_name=place.study, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def sixty_cells() -> Study:
    """The study of the concurrency test."""
    lr = Range(low=1e-4, high=1e-1, log=True, points=20)
    return make_study(space={"lr": lr, "method": Choices(choices=("he", "small", "xavier"))})


def outcome_of(run: Run, **changes: Any) -> Outcome:
    """A completed run whose loss is a bowl in lr with its bottom at 1e-2."""
    loss = 2.0 + abs(math.log10(run.hyperparameters.lr) + 2) + 0.01 * run.seed
    made = Outcome(
        study=run.study,
        trial=run.trial,
        seed=run.seed,
        hyperparameters=run.columns(),
        status="completed",
        init_loss=5.5,
        val_loss=loss,
        best_loss=loss,
        steps=run.hyperparameters.steps,
        tokens=1000,
    )
    return replace(made, **changes)


def diverged(run: Run, **changes: Any) -> Outcome:
    """A run that blew up at step 7."""
    return outcome_of(run, status="diverged", val_loss=math.nan, diverged_at=7, **changes)


def failed(run: Run) -> Outcome:
    """A run whose machine broke."""
    return outcome_of(run, status="failed", init_loss=None, val_loss=None, reason="out of memory")


def curve_of(evaluations: dict[int, float] | None = None) -> Curve:
    """A curve with these evaluations and nothing else worth reading."""
    evaluations = evaluations or {0: 5.5}
    nothing = np.zeros(0, dtype=np.float32)
    return Curve(
        loss=nothing,
        grad_norm=nothing,
        eval_step=np.array(list(evaluations)),
        eval_loss=np.array(list(evaluations.values()), dtype=np.float32),
        probe_step=np.zeros(0, dtype=np.int64),
    )


def report(queue: CellQueue, run: Run, *, step: int, val_loss: float) -> bool:
    """Tell one intermediate loss; whether the run is to be ended."""
    (stop,) = queue.report([(run, step, val_loss)])
    return stop


def finish(queue: CellQueue, outcome: Outcome, curve: Curve | None) -> None:
    """Hand in one result."""
    queue.finish([(outcome, curve)])


def drain(
    queue: CellQueue, *, train: Callable[[Run], Outcome] = outcome_of, slots: int = 3
) -> list[Run]:
    """Train all that the queue gives, `slots` at a time."""
    trained = []
    while runs := queue.take(slots):
        for run in runs:
            finish(queue, train(run), curve_of())
            trained.append(run)
    return trained


def taken_by_who_waits(queue: CellQueue, count: int, until: Callable[[], object]) -> list[Run]:
    """What a worker is given that first has to wait: for what `until` does, and not for long."""
    got: list[Run] = []
    waiting = threading.Thread(target=lambda: got.extend(queue.take(count)))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive(), "it did not wait"
    until()
    waiting.join(timeout=20)
    return got


def rows(directory: StudyDirectory) -> list[tuple[int, int]]:
    """(trial, seed) of every line of every outcome file, repeated ones repeated."""
    found = []
    for path in sorted(directory.outcomes_folder.glob("*.jsonl")):
        # What is behind the last newline is being written.
        for line in path.read_text().rpartition("\n")[0].splitlines():
            row = json.loads(line)
            found.append((row["trial"], row["seed"]))
    return found


def main(root: str, worker: str, seconds: str) -> None:
    """One worker of the concurrency test."""

    def train(run: Run) -> Outcome:
        time.sleep(float(seconds))
        return outcome_of(run)

    with CellQueue(sixty_cells(), StudyDirectory(Path(root)), worker) as queue:
        drain(queue, train=train, slots=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
