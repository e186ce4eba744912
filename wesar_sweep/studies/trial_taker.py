"""One of several processes that take the trials of one study: for checks and benchmarks of storage.

``python -m wesar_sweep.studies.trial_taker DIRECTORY WORKER MODE`` says ``ready`` when it has
opened the study, begins when a line comes in, and says as one line of JSON what it did. With the
mode ``take`` it keeps each trial that it gets, with ``finish`` it hands in an invented outcome, as
a worker does whose training takes no time. It lets go of its trials when its input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from wesar_sweep.config import load_study
from wesar_sweep.config.run import Run
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.queue import CellQueue

Mode = Literal["take", "finish"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What one process did."""

    trials: tuple[int, ...]
    """Numbers of the trials it got, in order."""
    began_at: float
    """Seconds of the host's monotonic clock, which its processes share."""
    ended_at: float
    take_s: float
    """Of the time between: in `CellQueue.take`."""
    finish_s: float
    """Likewise in `CellQueue.finish`."""
    cpu_s: float
    """Processor time of the process in between."""


def take_together(
    directory: StudyDirectory, *, count: int, mode: Mode, environment: Mapping[str, str]
) -> list[Taken]:
    """Have some processes take all trials of a study at the same time.

    Args:
        directory: Of a study that was made (`StudyDirectory.study_file`).
        count: How many processes.
        mode: What each does.
        environment: All their environment variables.

    Raises:
        StoreError: One failed; its last words are in the message.
    """
    program = [sys.executable, "-m", __spec__.name, str(directory.root)]
    takers = [
        subprocess.Popen(
            [*program, f"t{number}", mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )
        for number in range(count)
    ]
    try:
        for taker in takers:
            _line(taker)
        for taker in takers:
            assert taker.stdin is not None, "asked for"
            taker.stdin.write("\n")
            taker.stdin.flush()
        found = [json.loads(_line(taker)) for taker in takers]
        for taker in takers:
            taker.communicate(timeout=60)
    finally:
        for taker in takers:
            if taker.poll() is None:
                taker.kill()
            taker.communicate()
    return [Taken(**{**values, "trials": tuple(values["trials"])}) for values in found]


def _line(taker: subprocess.Popen[str]) -> str:
    assert taker.stdout is not None, "asked for"
    line = taker.stdout.readline()
    if not line:
        said = taker.communicate()[1].strip().splitlines()
        raise StoreError(f"a process that took trials failed: {said[-1] if said else 'in silence'}")
    return line


def main(root: str, worker: str, mode: str) -> None:
    """Be one of them."""
    directory = StudyDirectory(Path(root))
    study = load_study(directory.study_file)
    with CellQueue(study, directory, worker, stop_asked=lambda: True) as queue:
        print("ready", flush=True)
        sys.stdin.readline()
        taken: list[int] = []
        take_s = finish_s = 0.0
        began_at, cpu = time.monotonic(), time.process_time()
        while True:
            start = time.perf_counter()
            runs = queue.take(1)
            take_s += time.perf_counter() - start
            if not runs:
                break
            taken += [run.trial for run in runs]
            if mode == "finish":
                start = time.perf_counter()
                queue.finish([(_invented(run), None) for run in runs])
                finish_s += time.perf_counter() - start
        did = Taken(
            tuple(taken),
            began_at,
            time.monotonic(),
            take_s,
            finish_s,
            time.process_time() - cpu,
        )
        print(json.dumps(asdict(did)), flush=True)
        # Until all have looked: what is let go of now, another would take.
        sys.stdin.read()


def _invented(run: Run) -> Outcome:
    loss = 2.0 + run.hyperparameters.lr
    return Outcome(
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


def repeated(taken: Sequence[Taken]) -> list[int]:
    """Trials that more than one got, sorted."""
    every = [trial for one in taken for trial in one.trials]
    return sorted({trial for trial in every if every.count(trial) > 1})


if __name__ == "__main__":
    main(*sys.argv[1:])
