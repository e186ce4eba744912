"""What precision and determinism cost: step time of stacks in tf32, in fp32 and deterministic.

    python benchmarks/gpu_modes.py                (make bench-gpu)

A stack of each mode in turn lies on the GPU beside one in bfloat16, each with its captured step,
and they take turns, as in `gpu_overhead`: one is compared with the mean of bfloat16's before and
after it.
A deterministic stack is trained for a few steps twice over, from the same runs: whether both leave
the same bits is said, for it and for bfloat16 without the option.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import gpu
import torch

if TYPE_CHECKING:
    from torch import Tensor

BASE = "bf16"
DETERMINISTIC = "bf16, deterministic"
OTHERS = ("tf32", "fp32", DETERMINISTIC)
"""The deterministic one last: its switch is the process's, and holds for what is captured after."""

TURN_S = 0.25
STEPS_TWICE = 20
"""Steps of the comparison of bits."""


def make(case: gpu.Case, mode: str, device: torch.device) -> gpu.Trainer:
    """A stack in a mode, one step trained."""
    precision = mode.split(",")[0]
    stack = gpu.make_stack(
        case,
        method="wesar",
        device=device,
        precision=precision,
        deterministic=mode == DETERMINISTIC,
    )
    trainer = gpu.Trainer(stack)
    trainer.advance(3)
    return trainer


def bits_after(case: gpu.Case, mode: str, device: torch.device) -> Tensor:
    """Parameters after some steps of a fresh stack."""
    trainer = make(case, mode, device)
    trainer.advance(STEPS_TWICE)
    trainer.loss()
    return trainer.parameters().clone()


def measure(case: gpu.Case, *, results: gpu.Results, device: torch.device, rounds: int) -> None:
    """The modes of one case, one after another beside bfloat16: memory may not hold them all."""
    with results.part(f"bits, {case.label}"):
        say_whether_it_repeats(case, BASE, results, device)
    base = make(case, BASE, device)
    steps = gpu.steps_in(base, seconds=TURN_S, device=device)
    rows = []
    for mode in OTHERS:
        with results.part(f"{mode}, {case.label}"):
            if mode == DETERMINISTIC:
                say_whether_it_repeats(case, mode, results, device)
            other = make(case, mode, device)
            row = gpu.in_turns(
                other, base, mode=mode, over=BASE, figure=f"{gpu.figure_name(mode)}_over_{BASE}",
                case=case, steps=steps, rounds=rounds, results=results, device=device,
            )  # fmt: skip
            rows.append(row)
            del other
        gpu.free(device)
    if rows:
        results.say(gpu.table(rows))


def say_whether_it_repeats(
    case: gpu.Case, mode: str, results: gpu.Results, device: torch.device
) -> None:
    """Train twice from the same runs and compare bits."""
    first = bits_after(case, mode, device)
    gpu.free(device)
    same = torch.equal(first, bits_after(case, mode, device))
    gpu.free(device)
    results.say(f"{case.label} {mode}: twice the same bits: {same}")
    results.record(case.label, **{f"{gpu.figure_name(mode)}_repeats_itself": float(same)})


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="a case; repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each mode")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_modes", arguments)
    cases, rounds = gpu.chosen(gpu.CASES, arguments.only), arguments.rounds
    if arguments.check:
        cases, rounds = [gpu.TINY], 2
    for case in cases:
        with results.part(case.label):
            measure(case, results=results, device=device, rounds=rounds)
        torch.use_deterministic_algorithms(False)
        gpu.free(device)
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
