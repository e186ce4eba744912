"""What a method costs: step time of stacks of one method, or of all ten mixed, against he's.

    python benchmarks/gpu_overhead.py                (make bench-gpu)

One stack a method lies on the GPU, each with its captured step. They take turns (he, wesar, he,
weight_norm, he, …), and a turn is compared with the mean of he's before and after it: so a drift of
clocks or temperature cancels. One more variant is wesar with the probes that studies record by
default, each 20 steps.
"""

from __future__ import annotations

import argparse
import sys

import gpu
import torch

PLAIN = "he"
VARIANTS = ("wesar", "weight_norm", "sigma_reparam", "residual_scaling", "mixed")
PROBED = "wesar, probed"
PROBE_EVERY = 20
"""As studies do by default."""

TURN_S = 0.25
"""A turn, on a GPU; a step takes 5 to 40 ms."""


def measure(
    case: gpu.Case,
    *,
    results: gpu.Results,
    device: torch.device,
    rounds: int,
    turn_s: float,
) -> None:
    """All variants of one case."""
    trainers: dict[str, gpu.Trainer] = {}
    for method in (PLAIN, *VARIANTS):
        with results.part(f"stack of {method}, {case.label}"):
            stack = gpu.make_stack(case, method=method, device=device)
            trainers[method] = gpu.Trainer(stack)
            trainers[method].advance(3)
            if method == "wesar":
                trainers[PROBED] = gpu.Trainer(stack, probe_every=PROBE_EVERY)
                trainers[PROBED].advance(PROBE_EVERY)
            results.say(f"{case.label} {method}: loss {trainers[method].loss():.3f}")
    if PLAIN not in trainers:
        return
    first = gpu.time_blocks(trainers[PLAIN].advance, device=device, seconds=0.2)
    # A whole number of probing periods, so that each turn holds as many probes.
    periods = max(1, round(turn_s / gpu.median(first) / PROBE_EVERY))

    def turn(name: str) -> float:
        block = [periods * PROBE_EVERY]
        return gpu.timed(trainers[name].advance, block, device=device)[0]

    others = [name for name in trainers if name != PLAIN]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    plain = [turn(PLAIN)]
    for _ in range(rounds):
        for name in others:
            seconds = turn(name)
            plain.append(turn(PLAIN))
            ratios[name].append(2 * seconds / (plain[-2] + plain[-1]))
    # What two turns of one stack differ by: no difference below it means anything.
    noise = [2 * plain[i] / (plain[i - 1] + plain[i + 1]) for i in range(1, len(plain) - 1)]
    figures = {f"{name.replace(', ', '_')}_over_{PLAIN}": ratios[name] for name in others}
    figures[f"{PLAIN}_over_{PLAIN}"] = noise
    figures[f"{PLAIN}_step_seconds"] = plain
    for name, trainer in trainers.items():
        if not gpu.is_plausible(trainer.loss(), vocabulary=case.vocabulary):
            figures.pop(f"{name.replace(', ', '_')}_over_{PLAIN}", None)
            results.failures.append(f"{name}, {case.label}")
            results.say(f"{name}, {case.label}: loss {trainer.loss()}, so no speed is reported")
    results.record(case.label, **figures)
    rows = []
    for figure, values in figures.items():
        if figure.endswith(f"_over_{PLAIN}"):
            ordered = sorted(values)
            low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.8))
            rows.append(
                {
                    "case": case.label,
                    "step time": figure.replace("_over_", " over "),
                    "p20": f"{low - 1:+.2%}",
                    "p50": f"{gpu.median(values) - 1:+.2%}",
                    "p80": f"{high - 1:+.2%}",
                    "n": len(values),
                }
            )
    results.say(gpu.table(rows))


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="d128 or d512; repeatable")
    parser.add_argument("--rounds", type=int, default=7, help="of turns of every variant")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_overhead", arguments)
    shapes = [case for case in gpu.CASES if case.name in ("d128 N4", "d512 N8")]
    cases, turn_s, rounds = gpu.chosen(shapes, arguments.only), TURN_S, arguments.rounds
    if arguments.check:
        cases, turn_s, rounds = [gpu.TINY], 0.02, 2
    for case in cases:
        with results.part(case.label):
            measure(case, results=results, device=device, rounds=rounds, turn_s=turn_s)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
