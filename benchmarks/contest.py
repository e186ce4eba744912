"""One fused op at one shape, beside its reference and its count of bytes and FLOPs.

The reference is the plain torch that the op's tests compare it with, as a function that autograd
and torch.compile take. Which ops there are: `contests`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from gpu import Case
from torch import Tensor

BF16 = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Work:
    """Counted for all runs together."""

    bytes: float
    flops: float = 0.0


@dataclass(slots=True)
class Contest:
    """One op at one shape, ready to run."""

    op: str
    case: Case
    inputs: dict[str, Tensor]
    """What the reference takes, by its argument names; all but `shared` have the run axis first."""
    reference: Callable[..., tuple[Tensor, ...]]
    forward: Callable[[], tuple[Tensor, ...]]
    """The fused op on `inputs`; its results in the order of the reference's."""
    work: Work
    wrt: tuple[str, ...] = ()
    """Inputs that a gradient is taken by."""
    backward: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None = None
    """The fused op's gradients in the order of `wrt`, given the outputs' gradients; after
    `forward`."""
    backward_work: Work | None = None
    timed: Callable[[], object] | None = None
    """What is measured where `forward` prepares something first; None: `forward`."""
    joint: bool = False
    """`forward` gives outputs and then gradients in one go, for outputs' gradients of ones."""
    shared: frozenset[str] = frozenset()
    liger: Callable[..., tuple[Tensor, ...]] | None = None
    """Liger-Kernel's counterpart of the reference."""
    liger_inputs: dict[str, Tensor] | None = None
    """What it takes; None: what the reference takes."""
    liger_says: str = ""
    """In what it differs, or why there is none."""
    compiles: bool = True
    """Whether torch.compile takes the reference in reasonable time."""
    tolerance: float = 1e-2
    """‖fused − reference‖/‖reference‖ with the reference in float32. Rounding each result to
    bfloat16 gives 2e-3; sums of rounded intermediates up to three times that."""
    apart: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """forward, backward: the same by one kernel of ours (or cuBLAS's) an op, where the op joins
    several."""
    tiles: Mapping[str, Callable[[Any], Callable[[], object]]] = field(default_factory=dict)
    """For the sweep: kernel -> from tiles, a call with them; None are the op's own."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Kernel -> the tiles that it takes by itself, whose neighbours are tried."""


Build = Callable[[Case, torch.device, torch.dtype], Contest]


def random(*shape: int, like: tuple[torch.device, torch.dtype], scale: float = 1.0) -> Tensor:
    """Normal values, never zeros: those are faster."""
    device, dtype = like
    return (torch.randn(*shape, device=device, dtype=torch.float32) * scale).to(dtype)


def neighbours(chosen: Any, *, most: int = 40) -> list[Any]:
    """Tiles worth trying beside the chosen ones: each field halved and doubled, two at a time.

    Fields are powers of two but for `num_stages` and `registers`; `num_warps` is kept between 1 and
    16.
    """
    moves: list[tuple[str, int | None]] = []
    for part in fields(chosen):
        value = getattr(chosen, part.name)
        if part.name == "num_stages":
            others: list[int | None] = [n for n in (1, 2, 3, 4, 5) if n != value]
        elif part.name == "registers":
            # Of 65,536 a multiprocessor: what lets 4, 3 and 2 programs of 128 threads onto it.
            others = [n for n in (None, 128, 168, 255) if n != value]
        else:
            least, largest = (1, 16) if part.name == "num_warps" else (1, 4096)
            others = [n for n in (value // 2, value * 2) if least <= n <= largest]
        moves += [(part.name, n) for n in others]
    found = [chosen, *(replace(chosen, **dict([move])) for move in moves)]
    for one, other in itertools.combinations(moves, 2):
        if one[0] != other[0]:
            found.append(replace(chosen, **dict([one, other])))
    return found[:most]
