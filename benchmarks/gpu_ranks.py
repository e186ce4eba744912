"""What several GPUs make of one run: the step of a 1.3B (or smaller) model on 1, 2, … ranks.

    python benchmarks/gpu_ranks.py [--sizes 1,2] [--width 2048] [--depth 24] [--sequences 32]

Strong scaling: the global batch stays, each rank takes its share of it. Every number of ranks is a
fresh set of processes, a GPU each (a CPU each where there is none). The losses of the first steps
are compared, and the rates of one call may be compared. Rows go to results/benchmarks.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from record import FILE, Measurement, append, this_cpu, this_gpu

CONTEXT = 1024
PART = 4
"""Sequences that a rank's passes take at a time."""
FIRST, BLOCK, BLOCKS = 4, 4, 6
"""Steps whose losses are compared; then steps a timed block, and blocks."""


@dataclass(frozen=True, slots=True)
class Found:
    """What rank 0 measured."""

    loss: list[float]
    step_s: list[float]
    memory_gb: float


def measure(options: argparse.Namespace, *, size: int) -> Found:
    """Train on so many ranks; what rank 0 says."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--rank", f"{rank},{size},{folder}"],
                stdout=subprocess.PIPE if rank == 0 else None,
                env={"GLOO_SOCKET_IFNAME": "lo", **os.environ},
                text=True,
            )
            for rank in range(size)
        ]
        told = processes[0].communicate()[0]
        endings = [process.wait() for process in processes]
    if any(endings):
        raise SystemExit(f"{size} ranks ended with {endings}")
    return Found(**json.loads(told.splitlines()[-1]))


def be_a_rank(options: argparse.Namespace) -> None:
    """One process of a measurement: follow, or lead and say what was found."""
    import torch

    from wesar_sweep.config.run import make_run
    from wesar_sweep.config.study import Study
    from wesar_sweep.training.data_parallel import LeaderStack, Ranks, follow
    from wesar_sweep.training.stack import StackTraits

    number, count, folder = options.rank.split(",")
    rank, size = int(number), int(count)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        from wesar_sweep.kernels.fused import compiling

        torch.cuda.set_device(device)
        compiling.prepare()
    text = torch.arange(4_000_000, device=device).mul(7919).remainder(251).to(torch.uint8)
    ranks = Ranks.join(rank=rank, size=size, address=f"file://{folder}/meet", device=device)
    if rank:
        follow(ranks, text)
        ranks.leave()
        return
    study = Study(
        name="ranks",
        space={"lr": {"choices": [3e-4]}},
        method="wesar",
        model={"width": options.width, "depth": options.depth, "heads": options.width // 128 or 1,
               "context": options.context},
        training={"steps": 1000, "batch": options.sequences, "warmup": 100},
    )  # fmt: skip
    run = make_run(study, 0, 0, {"lr": 3e-4})
    stack = LeaderStack(
        run.architecture, ranks=ranks, slots=1, train_S=text,
        traits=StackTraits.of(study, methods=["wesar"]), precision="bf16" if on_gpu else "fp32",
        micro_batches=max(1, options.sequences // size // PART) if on_gpu else 1,
    )  # fmt: skip
    stack.warm_up()
    stack.load_many([0], [run])
    loss = stack.train(FIRST).read()[0][:, 0].tolist()
    step_s = []
    for _ in range(BLOCKS):
        began = time.perf_counter()
        stack.train(BLOCK).read()
        step_s.append((time.perf_counter() - began) / BLOCK)
    memory = torch.cuda.max_memory_reserved() / 1e9 if on_gpu else 0.0
    del stack
    ranks.tell("stop")
    ranks.leave()
    print(json.dumps({"loss": loss, "step_s": step_s[1:], "memory_gb": memory}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,2", help="numbers of ranks")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--sequences", type=int, default=32, help="of a step, over all ranks")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        be_a_rank(options)
        return
    case = f"d {options.width}, N {options.depth}, {options.sequences} × {options.context} tokens"
    tokens = options.sequences * options.context
    found: dict[int, Found] = {}
    rows = []
    for size in map(int, options.sizes.split(",")):
        found[size] = one = measure(options, size=size)
        first = next(iter(found.values()))
        away = float(np.abs(np.array(one.loss) / np.array(first.loss) - 1).max())
        rate = np.median(first.step_s) / np.median(one.step_s)
        print(
            f"{size} ranks: {1e3 * np.median(one.step_s):.1f} ms a step, {one.memory_gb:.1f} GB, "
            f"{rate:.2f} times the first, losses of {FIRST} steps within {away:.1e} of its",
            flush=True,
        )
        rates = tuple(tokens / seconds for seconds in one.step_s)
        rows.append(Measurement("gpu_ranks", f"tokens a second, {size} ranks", rates, case))
    import torch

    device = this_gpu() if torch.cuda.is_available() else this_cpu()
    append(rows, device=device, files=(options.out,))


if __name__ == "__main__":
    main()
