"""What handing out runs costs: asks and tells a second, added host time a run, a large `status`.

    python benchmarks/orchestration.py [--workers 1,8,32]      (make bench-orchestration)

Worker processes take a grid's trials by `CellQueue.take` and hand in invented outcomes by
`CellQueue.finish`, as if training took no time: all that is measured is ours. An ask is one taken
run, a tell one finished one. The added host time a run is the processor time of the workers over
the runs; with trivial runs they also wait for each other at the study's lock, which is the rate's
to show. On SQLite and, where a server is installed or WESAR_STORAGE names one, on PostgreSQL.

`status` is timed as users start it, on a finished study of 10,000 runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from record import Measurement, append

from wesar_sweep.config import dump_study
from wesar_sweep.config.run import make_run
from wesar_sweep.config.space import Choices, Range, grid_cells
from wesar_sweep.config.study import Study
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.storage import close_study, open_study
from wesar_sweep.studies.trial_taker import repeated, take_together

ROOT = Path(__file__).parent.parent
STATUS_RUNS = 10_000


def a_study(cells: int, *, replicates: int = 1) -> Study:
    lr = Range(low=1e-4, high=1e-1, log=True, points=cells // 2)
    methods = Choices(choices=("he", "small"))
    return Study(name="bench", space={"lr": lr, "method": methods}, replicates=replicates)


def hand_out(
    folder: Path, *, url: str | None, workers: int, runs: int, repeats: int
) -> list[Measurement]:
    """Rates and costs of some workers on one database."""
    rates, costs, takes, finishes = [], [], [], []
    environment = {key: value for key, value in os.environ.items() if key != "WESAR_STORAGE"}
    if url is not None:
        environment["WESAR_STORAGE"] = url
    for number in range(repeats):
        directory = StudyDirectory(folder / f"{workers}-{number}-{url is None}")
        study = a_study(runs)
        with storage(url):
            close_study(open_study(study, directory))
        write_atomically(directory.study_file, dump_study(study).encode())
        done = take_together(directory, count=workers, mode="finish", environment=environment)
        taken = sum(len(one.trials) for one in done)
        assert taken == runs and not repeated(done), f"{taken} of {runs} taken, {repeated(done)}"
        seconds = max(one.ended_at for one in done) - min(one.began_at for one in done)
        rates.append(taken / seconds)
        costs.append(1000 * sum(one.cpu_s for one in done) / taken)
        takes.append(1000 * sum(one.take_s for one in done) / taken)
        finishes.append(1000 * sum(one.finish_s for one in done) / taken)
    case = f"{'SQLite' if url is None else 'PostgreSQL'}, {workers} worker(s), {runs} runs"
    figures = {
        "asks_and_tells_per_second": rates,
        "host_ms_a_run": costs,
        "ask_ms_waiting_included": takes,
        "tell_ms_waiting_included": finishes,
    }
    return [
        Measurement("orchestration", figure, tuple(values), case)
        for figure, values in figures.items()
    ]


@contextmanager
def storage(url: str | None) -> Iterator[None]:
    """Have this process find the database."""
    before = os.environ.pop("WESAR_STORAGE", None)
    if url is not None:
        os.environ["WESAR_STORAGE"] = url
    try:
        yield
    finally:
        os.environ.pop("WESAR_STORAGE", None)
        if before is not None:
            os.environ["WESAR_STORAGE"] = before


def open_status(folder: Path, *, repeats: int) -> Measurement:
    """Seconds of `status` on a finished study, from the shell to the end."""
    study = a_study(STATUS_RUNS // 4, replicates=4)
    directory = StudyDirectory(folder / "large")
    directory.create()
    write_atomically(directory.study_file, dump_study(study).encode())
    cells = grid_cells(study)
    for number in range(8):
        rows = []
        for trial in range(number, len(cells), 8):
            for seed in study.seeds:
                run = make_run(study, trial, seed, cells[trial])
                rows.append(
                    Outcome(
                        study=study.name,
                        trial=trial,
                        seed=seed,
                        hyperparameters=run.columns(),
                        status="completed",
                        init_loss=5.5,
                        val_loss=2.5,
                        best_loss=2.5,
                        steps=250,
                        tokens=1000,
                    )
                )
        OutcomeWriter(directory, f"w{number}").append(*rows)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "wesar_sweep", "status", str(directory.root)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        times.append(time.perf_counter() - start)
        assert f"{STATUS_RUNS} of {STATUS_RUNS} done" in done.stdout, done.stdout
    return Measurement("orchestration", "status_s", tuple(times), f"{STATUS_RUNS} finished runs")


@contextmanager
def postgres() -> Iterator[str | None]:
    """A server's URL: the one that is named, else one of our own with its data safe on the disk."""
    named = os.environ.get("WESAR_STORAGE")
    if named:
        yield named
        return
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres_server

    why_not = postgres_server.missing()
    if why_not is not None:
        print(f"PostgreSQL is left out: {why_not}", file=sys.stderr)
        yield None
        return
    server = postgres_server.Server(fsync=True)
    try:
        yield server.new_database()
    finally:
        server.remove()


def table(found: Sequence[Measurement]) -> None:
    """Print the medians, a line a case."""
    cases: dict[str, dict[str, float]] = {}
    for one in found:
        cases.setdefault(one.case, {})[one.figure] = one.quantile(0.5)
    figures = ("asks_and_tells_per_second", "host_ms_a_run", "ask_ms_waiting_included")
    print(f"\n{'':34}{'runs/s':>8}{'host ms/run':>13}{'ask ms':>8}{'tell ms':>9}")
    for case, values in cases.items():
        if "status_s" in values:
            print(f"{'status, ' + case:34}{values['status_s']:>8.2f} s")
            continue
        numbers = [values[figure] for figure in (*figures, "tell_ms_waiting_included")]
        print("{:34}{:>8.0f}{:>13.1f}{:>8.1f}{:>9.1f}".format(case, *numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="1,8", help="numbers of worker processes")
    parser.add_argument("--runs", type=int, default=60, help="runs of each study for each worker")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        for workers in [int(word) for word in arguments.workers.split(",")]:
            for place in [None] if url is None else [None, url]:
                found += hand_out(
                    Path(folder),
                    url=place,
                    workers=workers,
                    # A process pays for its first run: with few a worker that is all one sees.
                    runs=2 * (arguments.runs * workers // 2),
                    repeats=arguments.repeats,
                )
        found.append(open_status(Path(folder), repeats=arguments.repeats))
    append(found)
    table(found)


if __name__ == "__main__":
    main()
