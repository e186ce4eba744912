"""A short measurement in a process of its own: how fast does a worker train each architecture here?

Reads a request as JSON on standard input (see `plan_view`), prints one answer an architecture. Real
steps of the real engine on random tokens: speed does not depend on what the text says.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from wesar_sweep.config import parse_study, resolved_precision
from wesar_sweep.config.run import make_run
from wesar_sweep.config.space import possible_values
from wesar_sweep.model.layout import Layout
from wesar_sweep.training.memory import choose_slots
from wesar_sweep.training.stack import Stack, StackTraits
from wesar_sweep.worker import torch_device

_WARM_STEPS, _TIMED_STEPS = 3, 10


def measure(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens a second of one worker, and FLOPs a token, for each requested cell."""
    study = parse_study(request["study"])
    device = torch_device(request["device"])
    methods = [str(name) for name in possible_values(study, "method")]
    # What it costs to tell documents apart is the same whatever token ends them.
    document_end = 0 if study.data.mask_documents else None
    traits = StackTraits.of(study, methods=methods, document_end=document_end)
    answers = []
    for number, cell in enumerate(request["cells"]):
        run = make_run(study, number, study.first_seed, cell)
        a = run.architecture
        precision = resolved_precision(study, on_gpu=device.type == "cuda")
        fit = choose_slots(
            a,
            device=device,
            memory_fraction=request["memory_fraction"],
            workers=request["workers"],
            traits=traits,
            precision=precision,
        )
        slots = request["slots"] or fit.slots
        train_S = torch.randint(
            0, a.vocabulary, (max(100_000, 4 * a.tokens_per_step),), device=device
        )
        stack = Stack(
            a,
            slots=slots,
            traits=traits,
            train_S=train_S,
            precision=precision,
            micro_batches=fit.micro_batches,
        )
        stack.warm_up()
        stack.load_many(range(slots), [run] * slots)
        seconds = _timed(stack)
        answers.append(
            {
                "width": a.width,
                "depth": a.depth,
                "slots": slots,
                "parameters": stack.rows.layout.effective_size,
                "flops_per_token": flops_per_token(stack.rows.layout),
                "tokens_per_second": slots * a.tokens_per_step / seconds,
            }
        )
    return answers


def flops_per_token(layout: Layout) -> float:
    """FLOPs forward and back: 6 a parameter that multiplies, and 12·N·d·T for attention.

    Kaplan et al. 2020, §2.1, and Chowdhery et al. 2022, appendix B; not halved for causality.
    """
    a = layout.architecture
    multiplied = sum(g.size for g in layout.groups if g.name != "embed" or a.tied)
    return 6.0 * multiplied + 12.0 * a.depth * a.width * a.context


def _timed(stack: Stack) -> float:
    """Median seconds of a step."""
    seconds = []
    for _ in range(_WARM_STEPS + _TIMED_STEPS):
        start = time.perf_counter()
        stack.train(1).read()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_STEPS:])


if __name__ == "__main__":
    json.dump(measure(json.load(sys.stdin)), sys.stdout)
