"""How many runs fit: the memory one run of an architecture takes, and the K that follows."""

from __future__ import annotations

import psutil
import torch

from wesar_sweep.config.run import Architecture
from wesar_sweep.model.layout import Layout

CPU_SLOTS = 4
"""Runs a single-threaded CPU worker stacks by default; see docs/LOG.md for the measurement."""

GPU_ROWS = 65_535
"""Most (run, sequence, head) rows of a stack, which attention puts on one axis of its grid."""


def bytes_a_run(architecture: Architecture, *, on_cpu: bool) -> int:
    """Memory of one run in a stack while it trains: state and the activations kept for backward.

    Five float32 copies of the parameters (parameter, gradient, two moments, one temporary), the
    effective weight and its gradient, and the tensors that autograd keeps a token, counted an op.
    """
    a = architecture
    width = 4 if on_cpu else 2
    parameters = Layout(a, with_row_gains=False).size
    state = parameters * (5 * 4 + 2 * width)
    # On a GPU the norms keep float32 copies of their bfloat16 inputs and outputs.
    kept_a_layer = (14 if on_cpu else 24) * a.width + (5 if a.ffn == "swiglu" else 3) * a.ffn_width
    attention_a_layer = 0 if not on_cpu else 2 * a.heads
    logits = 3 * 4 * a.vocabulary
    kept_a_token = (
        a.depth * (kept_a_layer + attention_a_layer) * width + 4 * a.width * width + logits
    )
    return int(state + a.tokens_per_step * kept_a_token)


def choose_slots(
    architecture: Architecture, *, device: torch.device, memory_fraction: float, workers: int
) -> int:
    """K for a worker: what fits into its share of the free memory, and on a CPU no more than pays.

    Args:
        architecture: Shape of the runs.
        device: Where they train.
        memory_fraction: Share of the free memory to use.
        workers: Workers that share this memory.

    Returns:
        At least 1.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What a former stack left in torch's cache is free to the next one.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available // workers
    fits = int(free * memory_fraction) // bytes_a_run(architecture, on_cpu=device.type == "cpu")
    most = (
        CPU_SLOTS if device.type == "cpu" else GPU_ROWS // (architecture.batch * architecture.heads)
    )
    return max(1, min(fits, most))
