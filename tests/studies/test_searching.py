"""A boundary search in the queue: step after step, the same whoever trains and however often."""

from __future__ import annotations

import math
import random
from pathlib import Path

from fabricated_runs import (
    curve_of,
    diverged,
    drain,
    failed,
    finish,
    outcome_of,
    rows,
    taken_by_who_waits,
    trials_of,
)

from wesar_sweep.config import parse_study
from wesar_sweep.config.run import Run
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.progress import summary
from wesar_sweep.studies.queue import CellQueue

BOUNDARY = {("he", None): -1.0, ("wesar", 4e-5): -2.2, ("wesar", 1e-3): -1.6}


def study(**changes: object) -> Study:
    return parse_study(
        {
            "name": "s",
            "space": {
                "lr": {"low": 1e-4, "high": 1.0, "log": True},
                "method": ["he", "wesar"],
                "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
            },
            "replicates": 2,
            "sampler": {"name": "boundary", "along": "lr", "options": {"resolution": 0.4}},
            **changes,
        }
    )


def train(run: Run) -> Outcome:
    """Diverges above a threshold of the run's own, spread by 0.05 decades around its series'."""
    knobs = run.columns()
    limit = BOUNDARY[str(knobs["method"]), knobs["sigma2"]]  # type: ignore[index]
    limit += random.Random(f"{limit} {run.seed}").gauss(0, 0.05)
    return (diverged if math.log10(run.hyperparameters.lr) > limit else outcome_of)(run)


def steps(searched: Study, directory: StudyDirectory) -> list[tuple[list[int], float]]:
    """([series, step], lr) of every trial."""
    found = [(t.user_attrs["cell"], t.params["lr"]) for t in trials_of(searched, directory)]
    return sorted(found)


def alone(searched: Study, root: Path) -> list[tuple[list[int], float]]:
    by_itself = StudyDirectory(root)
    with CellQueue(searched, by_itself, "w0") as queue:
        drain(queue, train=train, slots=1)
    return steps(searched, by_itself)


def test_each_series_goes_to_its_boundary(directory: StudyDirectory) -> None:
    searched = study()
    with CellQueue(searched, directory, "w0") as queue:
        assert queue.learns
        first = queue.take(100)
        assert [run.key for run in first] == [(t, seed) for t in range(3) for seed in range(2)]
        assert {run.hyperparameters.lr for run in first} == {0.01}
        for run in first:
            finish(queue, train(run), curve_of())
        trained = [*first, *drain(queue, train=train)]
    now = summary(directory, searched)
    assert now.complete and now.runs == len(trained) == len(rows(directory))
    assert now.runs <= now.runs_at_most == 3 * 12 * 2
    for (method, sigma2), limit in BOUNDARY.items():
        mine = [
            r
            for r in trained
            if (r.hyperparameters.method, r.columns()["sigma2"]) == (method, sigma2)
        ]
        last = mine[-1]
        assert abs(math.log10(last.hyperparameters.lr) - limit) < 0.5
        # No two values of a series share a seed.
        assert [run.seed for run in mine] == list(range(len(mine)))
    assert now.runs < 3 * 11 * 2, "a grid of the same resolution has 66"


def test_several_workers_and_kills_search_what_one_would(
    directory: StudyDirectory, tmp_path: Path
) -> None:
    searched, draw = study(), random.Random(2)
    for _ in range(4):
        a, b = (CellQueue(searched, directory, name, stop_asked=lambda: True) for name in "ab")
        for queue in (a, b, a, b):
            for run in queue.take(3):
                if draw.random() < 0.67:
                    finish(queue, train(run), curve_of())
        a.release()
        b.release()
    with CellQueue(searched, directory, "c") as last:
        drain(last, train=train)
    assert summary(directory, searched).complete
    assert sorted(rows(directory)) == sorted(set(rows(directory)))
    assert steps(searched, directory) == alone(searched, tmp_path / "alone")


def test_a_worker_waits_for_the_step_that_another_trains(directory: StudyDirectory) -> None:
    searched = study(space={"lr": [1e-3, 1e-2, 1e-1, 1.0], "method": "he"})
    with CellQueue(searched, directory, "a") as first, CellQueue(searched, directory, "b") as other:
        mine = first.take(5)
        assert len(mine) == 2

        def end_both() -> None:
            for run in mine:
                finish(first, train(run), curve_of())

        got = taken_by_who_waits(other, 2, end_both)
        assert [run.key for run in got] == [(1, 2), (1, 3)]


def test_a_machine_that_fails_does_not_search_without_end(directory: StudyDirectory) -> None:
    searched = study(space={"lr": [1e-3, 1e-2, 1e-1]}, retries=0, replicates=1)
    with CellQueue(searched, directory, "w0") as queue:
        assert len(drain(queue, train=failed)) == 12
    assert summary(directory, searched).complete
