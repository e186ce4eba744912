"""How full the slots are in a study that ends most of its runs early, and what refilling gains.

    python benchmarks/gpu_occupancy.py               (make bench-gpu)

The same study, successive halving over random cells, is trained twice from its first run on: once
refilling slots as runs end, once in batches that no run may enter once they have begun (and whose
stack shrinks as they end, as every stack does). Occupancy is the share of all steps of all slots,
empty ones included, that stand in the curve of a run that was handed in.

Wall times are of queue and engine, Optuna's database and the written curves included. Of them
`training` is the device's own time in steps, `evaluation` that of held-out losses, and `queue` that
of asking for runs, telling losses and handing in results, which may overlap with training. What is
left, `rest`, is making stacks, capturing their steps, and the host's judging.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu
import torch
import yaml

from wesar_sweep.config.load import parse_study
from wesar_sweep.config.run import Architecture
from wesar_sweep.config.study import Study
from wesar_sweep.store.layout import StudyDirectory

STUDY = """
title: Occupancy of slots
space:
  method: [he, small, wesar]
  lr: {low: 3.0e-4, high: 3.0e-1, log: true}
sampler: {name: random, cells: 640}
pruner: {name: sha, options: {min_resource: 150, reduction_factor: 3}}
replicates: 1
model: {width: 128, depth: 4, heads: 2, context: 256}
training: {steps: 1350, batch: 8, warmup: 50}
evaluation: {sequences: 32, every: 150}
probes: {every: 150}
data: {source: stdlib}
"""
"""Long enough to measure training, not its start and end; under a minute each on a large GPU."""

TINY = {
    "sampler": {"name": "random", "cells": 12},
    "pruner": {"name": "sha", "options": {"min_resource": 5, "reduction_factor": 3}},
    "model": {"width": 16, "depth": 1, "heads": 2, "context": 16},
    "training": {"steps": 45, "batch": 2, "warmup": 3},
    "evaluation": {"sequences": 4, "every": 5},
    "probes": {"every": None},
}
"""What --check trains instead."""

PARTS = ("training", "evaluation", "queue")
"""Of the wall time; the last may overlap with the first, and the rest then be less than nothing."""

SHORT = ("training.steps=2", "training.warmup=0", "evaluation.every=1", "probes.every=1")
"""Makes a study that is over at once and yet goes through everything."""


def the_study(arguments: argparse.Namespace, *, overrides: Sequence[str] = ()) -> Study:
    """As asked for."""
    raw: dict[str, Any] = yaml.safe_load(STUDY)
    if arguments.check:
        raw |= TINY
    if arguments.cells:
        raw["sampler"]["cells"] = arguments.cells
    if arguments.pruner == "hyperband":
        least = raw["pruner"]["options"]["min_resource"]
        raw["pruner"] = {
            "name": "hyperband",
            "options": {"min_resource": least, "reduction_factor": 3},
        }
    return parse_study(raw, name="occupancy", overrides=overrides)


def train(study: Study, *, slots: int, refill: bool, device: torch.device) -> dict[str, Any]:
    """The whole study, in a folder of its own."""
    from wesar_sweep.data.corpus import load_corpus
    from wesar_sweep.studies.queue import CellQueue
    from wesar_sweep.training.engine import Engine
    from wesar_sweep.training.memory import Fit

    def fit(architecture: Architecture) -> Fit:
        return Fit(slots, 1, 0, 0, 0)

    corpus = load_corpus(study.data, context=study.model.context)
    with tempfile.TemporaryDirectory() as folder:
        directory = StudyDirectory(Path(folder))
        directory.create()
        start = time.perf_counter()
        with CellQueue(study, directory, "w0") as queue:
            engine = Engine(
                study,
                queue=queue,
                corpus=corpus,
                device=device,
                methods=study.space["method"].choices,  # type: ignore[union-attr]
                slots=fit,
                worker="w0",
                on_block=lambda engine: False,
                refill=refill,
            )
            engine.train()
        seconds = time.perf_counter() - start
        from wesar_sweep.store.outcomes import OutcomeReader

        reader = OutcomeReader(directory)
        reader.refresh()
        statuses = Counter(row.status for row in reader.rows.values())
        kept = sum(row.steps for row in reader.rows.values())
    assert kept == engine.kept_steps, (kept, engine.kept_steps)
    return {
        "seconds": seconds,
        "training": engine.training_seconds,
        "evaluation": engine.evaluation_seconds,
        "queue": engine.queue_seconds,
        "slot_steps": engine.slot_steps,
        "kept_steps": engine.kept_steps,
        "tokens": engine.tokens,
        "statuses": dict(statuses),
    }


def main() -> int:
    """Parse, train twice, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=64, help="K")
    parser.add_argument("--cells", type=int, help="runs to train instead of 640")
    parser.add_argument("--pruner", choices=("sha", "hyperband"), default="sha")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_occupancy", arguments)
    slots = 4 if arguments.check else arguments.slots
    study = the_study(arguments)
    case = f"{arguments.pruner} {study.sampler.cells} runs d{study.model.width} K{slots}"
    # The first study of a process compiles the kernels and loads the libraries.
    short = the_study(arguments, overrides=[f"sampler.cells={slots}", *SHORT])
    train(short, slots=slots, refill=True, device=device)
    found: dict[str, dict[str, Any]] = {}
    for name, refill in (("refilled", True), ("batches", False)):
        with results.part(f"{name}, {case}"):
            figures = found[name] = train(study, slots=slots, refill=refill, device=device)
            occupancy = figures["kept_steps"] / figures["slot_steps"]
            parts = {part: figures[part] for part in PARTS}
            rest = figures["seconds"] - sum(parts.values())
            said = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
            results.say(
                f"{name}: {figures['seconds']:.1f} s: {said}, rest {rest:.1f} s; "
                f"{figures['kept_steps']} of {figures['slot_steps']} slot-steps kept, "
                f"{occupancy:.1%}; {1e6 * figures['training'] / figures['slot_steps']:.1f} us a "
                f"slot-step; {figures['statuses']}"
            )
            results.record(
                case,
                **{
                    f"{name}_occupancy": occupancy,
                    f"{name}_wall_seconds": figures["seconds"],
                    **{f"{name}_{part}_seconds": seconds for part, seconds in parts.items()},
                    f"{name}_tokens_per_second": figures["tokens"] / figures["seconds"],
                },
            )
    if len(found) == 2:
        # The two prune otherwise, since runs end in another order: so by the kept step.
        costs = {
            key: [found[name][key] / found[name]["kept_steps"] for name in ("batches", "refilled")]
            for key in ("seconds", "training")
        }
        ratios = {key: batches / refilled for key, (batches, refilled) in costs.items()}
        results.record(
            case,
            **{f"batches_over_refilled_{key}_per_kept_step": x for key, x in ratios.items()},
        )
        results.say(
            f"a kept step takes {ratios['seconds']:.2f} times as long in batches by the wall "
            f"clock, {ratios['training']:.2f} times in training alone"
        )
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
