"""What the data can cost: tokens fed from host memory, and attention kept within documents.

    python benchmarks/gpu_data.py                 (make bench-gpu)

A stack that is fed, and then one that masks documents, lies on the GPU beside one that holds its
tokens and does not mask, each with its captured step, and they take turns, as in `gpu_modes`: one
is compared with the mean of the plain one's before and after it. The tokens in host memory have
been read before: a map of a file that nobody has read yet also waits for the disk. Random tokens of
a vocabulary of V end a document after V tokens on average.
"""

from __future__ import annotations

import argparse
import sys

import gpu
import torch

PLAIN = "resident"
OTHERS = ("fed", "documents")
NAMES = ("d128 N4", "130M")
"""Our own attention and a batch that many runs share; the library's, and a run alone."""

TURN_S = 0.5
"""Of each turn: some blocks of steps, so that the feeding is hidden behind them or seen."""


def make(case: gpu.Case, mode: str, device: torch.device) -> gpu.Trainer:
    """A stack in a mode, one step trained."""
    stack = gpu.make_stack(
        case,
        method="wesar",
        device=device,
        fed=mode == "fed",
        document_end=0 if mode == "documents" else None,
    )
    trainer = gpu.Trainer(stack)
    trainer.advance(3)
    return trainer


def measure(case: gpu.Case, *, results: gpu.Results, device: torch.device, rounds: int) -> None:
    """The modes of one case, one after another beside the plain one."""
    plain = make(case, PLAIN, device)
    steps = gpu.steps_in(plain, seconds=TURN_S, device=device)
    rows = []
    for mode in OTHERS:
        with results.part(f"{mode}, {case.label}"):
            other = make(case, mode, device)
            row = gpu.in_turns(
                other, plain, mode=mode, over=PLAIN, figure=f"{mode}_over_{PLAIN}",
                case=case, steps=steps, rounds=rounds, results=results, device=device,
            )  # fmt: skip
            rows.append(row)
            del other
        gpu.free(device)
    if rows:
        results.say(gpu.table(rows))


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="a case; repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each mode")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_data", arguments)
    cases, rounds = gpu.chosen(gpu.CASES, arguments.only or NAMES), arguments.rounds
    if arguments.check:
        cases, rounds = [gpu.TINY], 2
    for case in cases:
        with results.part(case.label):
            measure(case, results=results, device=device, rounds=rounds)
        gpu.free(device)
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
