"""How many runs fit: the memory that one run takes, and the K that follows.

On a GPU it is measured: two small stacks of the architecture train a step each, and what the second
takes beyond the first is what a run takes. On a CPU it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from wesar_sweep.config.run import Architecture
from wesar_sweep.config.study import Precision
from wesar_sweep.model.layout import Layout
from wesar_sweep.training.stack import Stack, StackTraits, dtype_of

CPU_SLOTS = 4
"""Runs a single-threaded CPU worker stacks by default; see docs/LOG.md for the measurement."""

LIBRARY_ROWS = 65_535
"""Most (run, sequence, head) rows that torch's attention takes on one axis of its grid."""

_MARGIN = 1.05
"""A captured step's memory is a little more fragmented than a launched one's."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many slots a worker takes, and why."""

    slots: int
    micro_batches: int
    """Parts of a step that train one after another."""
    bytes_a_run: int
    bytes_fixed: int
    """Whatever K is."""
    bytes_free: int
    """That the slots may fill."""


def counted_bytes_a_run(architecture: Architecture) -> int:
    """Memory of one run in a stack on a CPU: its state, and what autograd keeps for backward.

    Five float32 copies of the parameters (parameter, gradient, two moments, one temporary), the
    effective weight and its gradient, and the tensors that autograd keeps a token, counted an op.
    """
    a = architecture
    parameters = Layout(a, with_row_gains=False).size
    kept_a_layer = 14 * a.width + (5 if a.ffn == "swiglu" else 3) * a.ffn_width + 2 * a.heads
    kept_a_token = a.depth * kept_a_layer * 4 + 16 * a.width + 12 * a.vocabulary
    return int(parameters * (5 * 4 + 2 * 4) + a.tokens_per_step * kept_a_token)


def choose_slots(
    architecture: Architecture,
    *,
    device: torch.device,
    memory_fraction: float,
    workers: int,
    traits: StackTraits,
    precision: Precision,
    token_dtype: torch.dtype = torch.uint8,
    fed: bool = False,
) -> Fit:
    """K for a worker: what fits into its share of the free memory, and on a CPU no more than pays.

    Args:
        architecture: Shape of the runs.
        device: Where they train.
        memory_fraction: Share of the free memory to use.
        workers: Workers that share this memory.
        traits: What the runs can bring.
        precision: Of activations and matrix products.
        token_dtype: Of the training tokens.
        fed: Whether they are fed to the device, by way of buffers there (`training.feed`).

    Returns:
        At least one slot.

    Raises:
        torch.OutOfMemoryError: Not even one run fits, a sequence at a time.
    """
    if device.type == "cpu":
        free = int(psutil.virtual_memory().available // workers * memory_fraction)
        each = counted_bytes_a_run(architecture)
        return Fit(max(1, min(free // each, CPU_SLOTS)), 1, each, 0, free)
    from wesar_sweep.kernels.fused import attention  # Only where there is a GPU.

    torch.cuda.empty_cache()
    free = int(torch.cuda.mem_get_info(device)[0] * memory_fraction)
    micro_batches = 1
    while True:
        try:
            one, two = (
                _dry_run(
                    architecture,
                    slots=slots,
                    device=device,
                    traits=traits,
                    precision=precision,
                    micro_batches=micro_batches,
                    token_dtype=token_dtype,
                    fed=fed,
                )
                for slots in (1, 2)
            )
            if one <= free:
                break
        except torch.OutOfMemoryError:
            if micro_batches >= architecture.batch:
                raise
        torch.cuda.empty_cache()
        if micro_batches >= architecture.batch:
            break
        micro_batches = _next_divisor(architecture.batch, micro_batches)
    each = max(1, int((two - one) * _MARGIN))
    fixed = max(0, one - each)
    fits = (free - fixed) // each
    if not attention.use_fused(architecture.context, architecture.head_width, dtype_of(precision)):
        sequences = architecture.batch // micro_batches
        fits = min(fits, LIBRARY_ROWS // (sequences * architecture.heads))
    return Fit(max(1, fits), micro_batches, each, fixed, free)


def _next_divisor(batch: int, parts: int) -> int:
    return next(n for n in range(parts + 1, batch + 1) if batch % n == 0)


def _dry_run(
    architecture: Architecture,
    *,
    slots: int,
    device: torch.device,
    traits: StackTraits,
    precision: Precision,
    micro_batches: int,
    token_dtype: torch.dtype,
    fed: bool,
) -> int:
    """Most bytes that a stack of so many runs held during a step."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    tokens = torch.zeros(
        4 * architecture.tokens_per_step + 2,
        dtype=token_dtype,
        device=torch.device("cpu") if fed else device,
    )
    stack = Stack(
        architecture,
        slots=slots,
        traits=traits,
        train_S=tokens,
        device=device,
        precision=precision,
        capture=False,
        micro_batches=micro_batches,
    )
    stack.warm_up()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
