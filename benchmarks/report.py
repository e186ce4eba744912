"""What the report of a large study costs: wall time, peak memory, size of the page.

    python benchmarks/report.py [--runs 500,1000] [--steps 3000]

Fabricates a finished study's directory with the store's own writers (curves with spikes, diverged
runs, probes), then runs `wesar-sweep report` on it as users do, in a process of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from record import Measurement, append

from wesar_sweep.config import dump_study, grid_cells, make_run
from wesar_sweep.config.space import Choices, Range
from wesar_sweep.config.study import Study
from wesar_sweep.store.atomic import write_atomically
from wesar_sweep.store.curves import write_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.store.rows import Curve, Outcome

REPLICATES = 5
METHODS = ("small", "he", "wesar", "gpt2")
LABELS = tuple(f"layers.{layer}.{role}" for layer in range(4) for role in "qkvouw")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one `wesar-sweep report` took."""

    seconds: float
    peak_gb: float
    page_mb: float


def a_study(runs: int, *, steps: int) -> Study:
    lr = Range(low=1e-4, high=1.0, log=True, points=runs // (REPLICATES * len(METHODS)))
    return Study(
        name="bench",
        space={"lr": lr, "method": Choices(choices=METHODS)},
        replicates=REPLICATES,
        training={"steps": steps, "warmup": steps // 10},
    )


def fabricate(directory: StudyDirectory, study: Study, *, steps: int) -> int:
    """Write a finished study of invented curves and return its runs."""
    directory.create()
    write_atomically(directory.study_file, dump_study(study).encode())
    writer = OutcomeWriter(directory, "bench")
    outcomes = []
    for trial, cell in enumerate(grid_cells(study)):
        for seed in range(REPLICATES):
            run = make_run(study, trial, seed, cell)
            rng = np.random.default_rng([trial, seed])
            lr = float(str(run.columns()["lr"]))
            final = 2.5 + 0.2 * (math.log10(lr) + 2.5) ** 2 + 0.01 * rng.standard_normal()
            lost = lr > 0.2 * rng.uniform(0.5, 2)
            ended = int(rng.integers(steps // 3, steps)) if lost else steps
            write_curve(directory, trial, seed, _curve(rng, final, ended, steps, lost=lost))
            outcomes.append(
                Outcome(
                    study=study.name,
                    trial=trial,
                    seed=seed,
                    hyperparameters=run.columns(),
                    status="diverged" if lost else "completed",
                    diverged_at=ended - 1 if lost else None,
                    reason=f"loss not finite at step {ended - 1}" if lost else "",
                    init_loss=5.55,
                    val_loss=math.nan if lost else final,
                    val_bpb=math.nan if lost else final / math.log(2),
                    best_loss=final,
                    spikes=3,
                    steps=ended,
                    tokens=ended * run.architecture.tokens_per_step,
                    seconds=60.0,
                )
            )
    writer.append(*outcomes)
    return len(outcomes)


def _curve(rng: np.random.Generator, final: float, ended: int, steps: int, *, lost: bool) -> Curve:
    step = np.arange(ended)
    loss = final + (5.55 - final) * np.exp(-8 * step / steps) + 0.05 * rng.standard_normal(ended)
    loss[rng.integers(0, ended, 3)] += 1.5
    if lost:
        loss[-1] = math.inf
    probed = np.arange(0, ended, 20)
    shape = (len(probed), len(LABELS))
    names = ("update_ratio", "weight_norm", "effective_norm")
    return Curve(
        loss=loss.astype(np.float32),
        grad_norm=np.exp(0.2 * rng.standard_normal(ended)).astype(np.float32),
        eval_step=np.array([0, ended]),
        eval_loss=np.array([5.55, final], dtype=np.float32),
        probe_step=probed,
        probes={name: rng.uniform(0.5, 2.0, shape).astype(np.float32) for name in names},
        probe_axes=dict.fromkeys(names, LABELS),
    )


def measure(directory: StudyDirectory) -> Cost:
    """One `wesar-sweep report`, imports included."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "wesar_sweep", "report", str(directory.root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # The child's own use: its peak, not the largest of all children so far.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"wesar-sweep report ended with {process.returncode}"
    seconds = time.perf_counter() - start
    size = directory.report_file.stat().st_size
    return Cost(seconds, used.ru_maxrss / 2**20, size / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="500,1000", help="sizes of the study; multiples of 20")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for asked in map(int, options.runs.split(",")):
        study = a_study(asked, steps=options.steps)
        with tempfile.TemporaryDirectory() as folder:
            directory = StudyDirectory(Path(folder) / study.name)
            runs = fabricate(directory, study, steps=options.steps)
            costs = [measure(directory) for _ in range(options.repeats)]
        case = f"{runs} runs x {options.steps} steps"
        names = [field.name for field in fields(Cost)]
        found = {name: tuple(getattr(cost, name) for cost in costs) for name in names}
        append([Measurement("report", name, values, case) for name, values in found.items()])


if __name__ == "__main__":
    main()
