"""What a method costs: step time of stacks of one method, or of all ten mixed, against he's.

    python benchmarks/gpu_overhead.py                (make bench-gpu)

One stack a method lies on the GPU, each with its captured step. They take turns (he, one of the
others in an order drawn anew each round, he, …), and a turn is compared with the mean of he's
before and after it: so a drift of clocks or temperature cancels. One more variant is wesar with the
probes that studies record by default, each 20 steps.

A stack of wesar launches the same kernels on the same shapes as one of he. Two controls say where a
difference comes from, and take as many turns as wesar:

* "he, again" is a second stack of he: only the place of its memory is another. Which stack is made
  first, and so gets which memory, is drawn anew in each call.
* "wesar in he's place" is the state of a stack of wesar, copied into that of he for a turn and
  out again: same memory, same graph, only the numbers are others.

With --close these are all there is: three stacks, which fit a smaller GPU.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import gpu
import torch
from scipy.stats import t as student_t
from torch import Tensor

if TYPE_CHECKING:
    from wesar_sweep.training.stack import Stack

PLAIN = "he"
AGAIN = "he, again"
WESAR = "wesar"
IN_PLACE = "wesar in he's place"
OTHERS = ("weight_norm", "sigma_reparam", "residual_scaling", "mixed")
PROBED = "wesar, probed"
CLOSE = (WESAR, IN_PLACE, AGAIN)
"""Variants whose bound is half a per cent, below which a few turns say nothing."""

PROBE_EVERY = 20
"""As studies do by default."""

TURN_S = 0.25
"""A turn, on a GPU; a step takes 5 to 40 ms. One with probes is a whole number of their periods."""

FEWER = 3
"""The other variants take turns in each so many rounds alone."""


def state_of(stack: Stack) -> list[Tensor]:
    """All that differs between a stack of he and one of wesar; not copied."""
    rows = stack.rows
    return [
        rows.parameter_KP,
        rows.effective_KP,
        rows.gate_trains_KM,
        rows.form_KM,
        stack.first_KP,
        stack.second_KP,
    ]


def copy(state: Sequence[Tensor], *, to: Sequence[Tensor]) -> None:
    """Tensor by tensor."""
    for source, target in zip(state, to, strict=True):
        target.copy_(source)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean; its 95 % interval by Student's t); nan where one value is all there is."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return mean, mean - half, mean + half


def figure_of(name: str) -> str:
    """As a variant stands in the rows: he_again_over_he."""
    return f"{gpu.figure_name(name)}_over_{PLAIN}"


def measure(
    case: gpu.Case,
    *,
    results: gpu.Results,
    device: torch.device,
    rounds: int,
    turn_s: float,
    draw: random.Random,
    others: Sequence[str] = OTHERS,
) -> None:
    """Wesar, its controls and the other variants of one case."""
    trainers: dict[str, gpu.Trainer] = {}
    stacks: dict[str, Stack] = {}
    made = [PLAIN, AGAIN, WESAR, *others]
    draw.shuffle(made)
    results.say(f"{case.label}: in the order of their memory: {'; '.join(made)}")
    for name in made:
        with results.part(f"stack of {name}, {case.label}"):
            method = PLAIN if name == AGAIN else name
            stack = gpu.make_stack(case, method=method, device=device)
            stacks[name], trainers[name] = stack, gpu.Trainer(stack)
            trainers[name].advance(3)
            if name == WESAR:
                trainers[PROBED] = gpu.Trainer(stack, probe_every=PROBE_EVERY)
                trainers[PROBED].advance(PROBE_EVERY)
            results.say(f"{case.label} {name}: loss {trainers[name].loss():.3f}")
    if PLAIN not in trainers:
        return
    step_s = gpu.median(gpu.time_blocks(trainers[PLAIN].advance, device=device, seconds=0.2))
    steps = max(1, round(turn_s / step_s))
    # A whole number of probing periods, so that each turn holds as many probes.
    probed_steps = max(1, round(steps / PROBE_EVERY)) * PROBE_EVERY

    def turn(name: str) -> float:
        block = [probed_steps if name == PROBED else steps]
        return gpu.timed(trainers[name].advance, block, device=device)[0]

    losses: dict[str, float] = {}
    inhabitants: dict[str, list[Tensor]] = {}
    if WESAR in stacks:
        inhabitants = {
            name: [value.clone() for value in state_of(stacks[name])] for name in (PLAIN, WESAR)
        }

    def turn_in_place() -> float:
        here = state_of(stacks[PLAIN])
        copy(here, to=inhabitants[PLAIN])
        copy(inhabitants[WESAR], to=here)
        seconds = turn(PLAIN)
        losses[IN_PLACE] = trainers[PLAIN].loss()
        copy(here, to=inhabitants[WESAR])
        copy(inhabitants[PLAIN], to=here)
        return seconds

    variants = [name for name in trainers if name != PLAIN] + ([IN_PLACE] if inhabitants else [])
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    plain = [turn(PLAIN)]
    for number in range(rounds):
        now = [name for name in variants if name in CLOSE or number % FEWER == 0]
        draw.shuffle(now)
        for name in now:
            seconds = turn_in_place() if name == IN_PLACE else turn(name)
            plain.append(turn(PLAIN))
            ratios[name].append(2 * seconds / (plain[-2] + plain[-1]))
    # What turns of one stack differ by, with no other place of memory and no other numbers.
    noise = [2 * plain[i] / (plain[i - 1] + plain[i + 1]) for i in range(1, len(plain) - 1)]
    compared = {**ratios, PLAIN: noise}
    losses |= {name: trainer.loss() for name, trainer in trainers.items()}
    for name, loss in losses.items():
        if not gpu.is_plausible(loss, vocabulary=case.vocabulary):
            del compared[name]
            results.failures.append(f"{name}, {case.label}")
            results.say(f"{name}, {case.label}: loss {loss}, so no speed is reported")
    if PLAIN not in compared:
        return
    rows = []
    figures: dict[str, Sequence[float] | float] = {f"{PLAIN}_step_seconds": plain}
    for name, values in compared.items():
        figure, ordered = figure_of(name), sorted(values)
        mean, least, most = interval(values)
        figures[figure] = values
        if name in CLOSE:
            figures |= {f"{figure}_mean": mean, f"{figure}_low": least, f"{figure}_high": most}
        low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.8))
        rows.append(
            {
                "case": case.label,
                "step time": f"{name} over {PLAIN}",
                "mean": f"{mean - 1:+.2%}",
                "95 % interval": f"{least - 1:+.2%} to {most - 1:+.2%}",
                "p20": f"{low - 1:+.2%}",
                "p50": f"{gpu.median(values) - 1:+.2%}",
                "p80": f"{high - 1:+.2%}",
                "n": len(values),
            }
        )
    results.record(case.label, **figures)
    results.say(gpu.table(rows))


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="d128 or d512; repeatable")
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of wesar and its controls; others a third"
    )
    parser.add_argument("--close", action="store_true", help="only wesar and its controls")
    parser.add_argument("--seed", type=int, help="of all orders; drawn anew where not given")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_overhead", arguments)
    shapes = [case for case in gpu.CASES if case.name in ("d128 N4", "d512 N8")]
    cases, turn_s, rounds = gpu.chosen(shapes, arguments.only), TURN_S, arguments.rounds
    if arguments.check:
        cases, turn_s, rounds = [gpu.TINY], 0.02, 2
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    results.say(f"orders by seed {seed}")
    draw = random.Random(seed)
    for case in cases:
        with results.part(case.label):
            measure(
                case,
                results=results,
                device=device,
                rounds=rounds,
                turn_s=turn_s,
                draw=draw,
                others=() if arguments.close else OTHERS,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
