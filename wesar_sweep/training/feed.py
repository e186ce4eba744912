"""Where training tokens lie: on the device, or in host memory, from which a GPU is fed.

Tokens come as a numpy array, perhaps a read-only memory map that is larger than any memory. A CPU
reads them where they lie. A GPU holds them all if they take a small part of its memory; else it is
*fed*: the host works out which sequences the next block of steps sees, gathers them from the map
and copies them behind the block that is running, on a stream of its own. The order of the data is
the same either way, integer for integer (`kernels.data_order`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wesar_sweep.kernels import data_order

RESIDENT_SHARE = 1 / 8
"""Of a GPU's free memory: tokens that take no more stay there, so that most is left to the runs."""


def as_tensor(tokens: NDArray[np.unsignedinteger[Any]]) -> Tensor:
    """The same memory as a tensor, which nobody may write to; nothing is read or copied."""
    with warnings.catch_warnings():
        # Of a map that is only to be read, as this one is.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(tokens)


def is_fed(tokens: NDArray[np.unsignedinteger[Any]], *, device: torch.device) -> bool:
    """Whether a device is to be fed these tokens, by the memory that it has free now."""
    if device.type != "cuda":
        return False
    return bool(tokens.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0])


def train_tokens(
    tokens: NDArray[np.unsignedinteger[Any]], *, device: torch.device, fed: bool | None = None
) -> Tensor:
    """Training tokens where a stack on a device takes them: there, or in host memory if it is fed.

    Args:
        tokens: uint8, uint16 or uint32.
        device: Where the stack is.
        fed: Whether a GPU is fed; None: `is_fed`.
    """
    if is_fed(tokens, device=device) if fed is None else fed:
        return as_tensor(tokens)
    return as_tensor(tokens).to(device)


class Feed:
    """The windows of a block of steps in a stack's buffer on the device, and of the next one.

    The buffer has two halves. A captured step reads one, at its cursor, while the other is filled.
    The host knows each slot's seed and step by itself and never asks the device.

    Args:
        token_S: Training tokens in host memory.
        slots: K.
        batch: Sequences of a run's step.
        context: T.
        share: First sequence of this process's share of a step, and how many, B.
        most_steps: Most steps of a block.
        device: Where the buffer is.
    """

    def __init__(
        self,
        token_S: Tensor,
        *,
        slots: int,
        batch: int,
        context: int,
        share: tuple[int, int],
        most_steps: int,
        device: torch.device,
    ) -> None:
        assert token_S.device.type == "cpu"
        self._tokens, self._batch, self._context = len(token_S), batch, context
        self._share, self._most_steps, self._device = share, most_steps, device
        # torch can make few things of wide unsigned types, and view everything as one.
        self._type, self._stored = token_S.dtype, data_order.signed(token_S)[0].dtype
        # Every window of the tokens; numpy copies chosen ones five times as fast as torch does.
        self._window_XT = np.lib.stride_tricks.sliding_window_view(token_S.numpy(), context + 1)
        self._seed_K = torch.zeros(slots, dtype=torch.int64)
        self._step_K = torch.zeros(slots, dtype=torch.int64)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._make_buffers()

    def _make_buffers(self) -> None:
        shape = (self._most_steps, len(self._seed_K), self._share[1], self._context + 1)
        # Zeros, since kernels are tried out on them.
        window_SKBT = torch.zeros(2 * shape[0], *shape[1:], dtype=self._stored, device=self._device)
        self.window_SKBT = window_SKBT.view(self._type)
        """What the step reads: both halves, [2·steps, K, B, T + 1]."""
        self.turn = torch.zeros(1, dtype=torch.int64, device=self._device)
        """Which half the block that runs reads, in the order of the device's own work."""
        self._half = 0
        self._halves_2SKBT = self.window_SKBT.chunk(2)
        self._host_2SKBT = self._halves_2SKBT
        if self._stream is not None:
            self._host_2SKBT = tuple(
                torch.zeros(shape, dtype=self._stored, pin_memory=True).view(self._type)
                for _ in range(2)
            )
            self._copied, self._read = ([torch.cuda.Event(), torch.cuda.Event()] for _ in range(2))
            # The memory may be in use by what was begun before.
            for event in self._read:
                event.record()

    def load(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Runs with these data seeds are at step 0 of these slots."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._seed_K[slot] = seed
            self._step_K[slot] = 0

    def set_steps(self, slot: int, steps_done: int) -> None:
        """The run in a slot has done so many updates."""
        self._step_K[slot] = steps_done

    def keep(self, slots: Sequence[int]) -> None:
        """Go on with these slots alone, in a smaller buffer."""
        self._seed_K, self._step_K = self._seed_K[list(slots)], self._step_K[list(slots)]
        self._make_buffers()

    def send(self, steps: int) -> None:
        """Gather the next steps of every slot and have them on the device before what comes next.

        The half that is filled was read by the block before the one that may be running.
        """
        step_SK = self._step_K + torch.arange(steps).unsqueeze(1)
        self._step_K = self._step_K + steps
        first_SKB = data_order.reference(
            self._seed_K, step_SK, tokens=self._tokens, batch=self._batch, context=self._context
        )
        begin, count = self._share
        first_SKB = first_SKB[:, :, begin : begin + count]
        self._half = half = 1 - self._half
        host_SKBT = self._host_2SKBT[half][:steps]
        if self._stream is not None:
            # Two blocks ago; it has long left.
            self._copied[half].synchronize()
        host_SKBT.numpy()[:] = self._window_XT[first_SKB.numpy()]
        if self._stream is not None:
            self._stream.wait_event(self._read[half])
            with torch.cuda.stream(self._stream):
                self._halves_2SKBT[half][:steps].copy_(host_SKBT, non_blocking=True)
                self._copied[half].record()
            torch.cuda.current_stream(self._device).wait_event(self._copied[half])
        self.turn.fill_(half)

    def release(self) -> None:
        """All steps that read what was sent last have been begun: it may go when they are done."""
        if self._stream is not None:
            self._read[self._half].record()
