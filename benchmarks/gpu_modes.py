"""What precision and determinism cost: step time of stacks in tf32, fp32 and with repeatable kernels.

    python benchmarks/gpu_modes.py                (make bench-gpu)

One stack a mode lies on the GPU, each with its captured step, and they take turns with the stack in
bfloat16, as in `gpu_overhead`: a turn is compared with the mean of bfloat16's before and after it.
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
    """The modes of one case."""
    trainers: dict[str, gpu.Trainer] = {}
    for mode in (BASE, *OTHERS):
        with results.part(f"{mode}, {case.label}"):
            if mode in (BASE, DETERMINISTIC):
                first, second = (bits_after(case, mode, device) for _ in range(2))
                same = torch.equal(first, second)
                results.say(f"{case.label} {mode}: twice the same bits: {same}")
                results.record(
                    case.label, **{f"{gpu.figure_name(mode)}_repeats_itself": float(same)}
                )
                del first, second
            trainers[mode] = make(case, mode, device)
    if BASE not in trainers:
        return
    step_s = gpu.median(gpu.time_blocks(trainers[BASE].advance, device=device, seconds=0.2))
    steps = max(1, round(TURN_S / step_s))

    def turn(mode: str) -> float:
        return gpu.timed(trainers[mode].advance, [steps], device=device)[0]

    ratios: dict[str, list[float]] = {mode: [] for mode in OTHERS if mode in trainers}
    base = [turn(BASE)]
    for _ in range(rounds):
        for mode, values in ratios.items():
            seconds = turn(mode)
            base.append(turn(BASE))
            values.append(2 * seconds / (base[-2] + base[-1]))
    tokens = case.slots * case.architecture.tokens_per_step
    rows = []
    figures: dict[str, list[float]] = {"bf16_tokens_per_second": [tokens / t for t in base]}
    for mode, values in ratios.items():
        loss = trainers[mode].loss()
        if not gpu.is_plausible(loss, vocabulary=case.vocabulary):
            results.failures.append(f"{mode}, {case.label}")
            results.say(f"{mode}, {case.label}: loss {loss}, so no speed is reported")
            continue
        figures[f"{gpu.figure_name(mode)}_over_bf16"] = values
        rate = tokens / (gpu.median(base) * gpu.median(values))
        rows.append(
            {
                "case": case.label,
                "mode": mode,
                "step time over bf16": f"{gpu.median(values):.3f}",
                "tokens/s": f"{rate / 1e6:.2f} M",
                "n": len(values),
            }
        )
    results.record(case.label, **figures)
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
    results, device = gpu.begin("gpu_modes", arguments)
    cases, rounds = gpu.chosen(gpu.CASES, arguments.only), arguments.rounds
    if arguments.check:
        cases, rounds = [gpu.TINY], 2
    for case in cases:
        with results.part(case.label):
            measure(case, results=results, device=device, rounds=rounds)
        torch.use_deterministic_algorithms(False)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
