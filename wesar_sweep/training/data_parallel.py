"""One stack trained by several processes, each with a device and a share of every batch.

For runs that are too large for one device to train in good time (K is then 1). Every rank holds
the whole state and computes the gradient of its share of the sequences; the shares are added up
over all ranks, and each makes the same update of the same numbers, so that the states stay equal
bit for bit. Rank 0 leads: it alone takes runs, reads losses, judges, evaluates and saves, and tells
the others each call of `Stack` that changes the state. They follow until they are told to stop.

torch.distributed carries it: NCCL between GPUs, gloo between CPUs and for what is told. Sharding
the state itself, for models that do not fit one device, would take the place of `Ranks.add_up`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.errors import LaunchError
from wesar_sweep.training.stack import Block, Stack

_PATIENCE = timedelta(minutes=10)
"""A rank that waits longer for the others' gradients takes them for dead."""
_WHILE_IT_LIVES = timedelta(days=365)
"""How long ranks wait for rank 0's next word: it may evaluate, or wait for other workers' runs.
That it is gone they notice by their connection to it."""


class RanksDiffer(RuntimeError):
    """The states of two ranks are not the same any more."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device
    told: dist.ProcessGroup
    """What rank 0 tells goes by this group."""

    @classmethod
    def join(cls, *, rank: int, size: int, address: str, device: torch.device) -> Ranks:
        """Meet the other ranks; returns when all are there.

        Args:
            rank: This process's number, from 0.
            size: How many there are.
            address: `host:port` at which rank 0 listens, or `file:///…` on a shared disk.
            device: This rank's own.

        Raises:
            LaunchError: They did not meet.
        """
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device.index or 0)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                init_method=address if "://" in address else f"tcp://{address}",
                rank=rank,
                world_size=size,
                timeout=_PATIENCE,
            )
            told = dist.new_group(backend="gloo", timeout=_WHILE_IT_LIVES)
        except (RuntimeError, ValueError) as error:
            raise LaunchError(
                f"rank {rank} of {size} did not meet the others at {address}: {error}"
            ) from error
        return cls(rank, size, device, told)

    def share(self, sequences: int) -> tuple[int, int]:
        """First sequence of this rank's share of a batch, and how many they are.

        Raises:
            LaunchError: The batch does not divide.
        """
        if sequences % self.size:
            raise LaunchError(
                f"a batch of {sequences} sequences does not divide among {self.size} ranks: "
                "choose training.batch as a multiple of ranks_per_worker"
            )
        each = sequences // self.size
        return self.rank * each, each

    def add_up(self, *tensors: Tensor) -> None:
        """Sum over all ranks, in place; each has the same bits afterwards."""
        for tensor in tensors:
            if tensor.is_contiguous():
                dist.all_reduce(tensor)
            else:
                # A view of longer rows: collectives want memory in one piece.
                whole = tensor.contiguous()
                dist.all_reduce(whole)
                tensor.copy_(whole)

    def tell(self, word: str, *arguments: Any) -> None:
        """Rank 0's next word to the others."""
        said = [(word, arguments)]
        dist.broadcast_object_list(said, src=0, group=self.told, device=torch.device("cpu"))

    def hear(self) -> tuple[str, tuple[Any, ...]]:
        """What rank 0 says next; waits for it."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self.told, device=torch.device("cpu"))
        word, arguments = heard[0]
        return word, arguments

    def require_same(self, state: Tensor) -> None:
        """Compare a fingerprint of the state over all ranks; each calls it at the same time.

        Raises:
            RanksDiffer: Some rank has another state.
        """
        # Exact integers: a sum of the bits of float32, whatever the order.
        own = state.contiguous().view(torch.int32).to(torch.int64).sum().cpu()
        all_of = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of, own)
        if any(bool(other != own) for other in all_of):
            raise RanksDiffer("the ranks' parameters differ: a device or a library is at fault")

    def leave(self) -> None:
        """Close the connections; stacks are not to be used afterwards."""
        # NCCL waits for the captured steps that sum by it, which a stack's cycles keep alive.
        gc.collect()
        dist.destroy_process_group()


class LeaderStack(Stack):
    """The stack of rank 0: what changes the state is told to the other ranks first."""

    def __init__(self, architecture: Architecture, *, ranks: Ranks, **options: Any) -> None:
        # Each rank has its own tokens and device.
        own = ("train_S", "device")
        told = {name: value for name, value in options.items() if name not in own}
        ranks.tell("stack", architecture, told)
        super().__init__(architecture, ranks=ranks, **options)
        self._told = ranks

    def load_many(self, slots: Sequence[int], runs: Sequence[Run]) -> None:
        """See `Stack.load_many`."""
        self._told.tell("load_many", list(slots), list(runs))
        super().load_many(slots, runs)

    def restore(self, slot: int, state: Mapping[str, Tensor], *, steps_done: int) -> None:
        """See `Stack.restore`; the rows travel to every rank."""
        self._told.tell("restore", slot, dict(state), steps_done)
        super().restore(slot, state, steps_done=steps_done)

    def keep(self, slots: Sequence[int]) -> None:
        """See `Stack.keep`."""
        self._told.tell("keep", list(slots))
        super().keep(slots)

    def warm_up(self) -> None:
        """See `Stack.warm_up`."""
        self._told.tell("warm_up")
        super().warm_up()

    def train(self, steps: int, *, probe_at: Any = ()) -> Block:
        """See `Stack.train`."""
        self._told.tell("train", steps, sorted(probe_at))
        return super().train(steps, probe_at=probe_at)

    def state(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """See `Stack.state`; that all ranks have it is made sure of."""
        self._told.tell("require_same")
        self._told.require_same(self.rows.parameter_KP)
        return super().state(slots)


def follow(ranks: Ranks, train_S: Tensor) -> None:
    """What every rank but the first does: as it is told, until it is told to stop.

    Args:
        ranks: This rank's place.
        train_S: Training tokens on its device, or in host memory.
    """
    stack: Stack | None = None
    while True:
        word, arguments = ranks.hear()
        if word == "stop":
            return
        if word == "stack":
            stack = None  # Its memory is needed for the next.
            architecture, options = arguments
            stack = Stack(
                architecture, train_S=train_S, device=ranks.device, ranks=ranks, **options
            )
            continue
        assert stack is not None, word
        match word:
            case "load_many":
                stack.load_many(*arguments)
            case "restore":
                slot, state, steps_done = arguments
                stack.restore(slot, state, steps_done=steps_done)
            case "keep":
                stack.keep(*arguments)
            case "warm_up":
                stack.warm_up()
            case "train":
                steps, probe_at = arguments
                stack.train(steps, probe_at=probe_at)
            case "require_same":
                ranks.require_same(stack.rows.parameter_KP)
            case _:
                raise AssertionError(word)
