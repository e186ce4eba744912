"""The baseline: one run as a good training script has it, its whole step a CUDA graph.

`PlainDecoder` under bf16 autocast and torch.compile, cross-entropy on whole logits, clipping, fused
AdamW. Its batch stays on the device and never changes, so it pays nothing for data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wesar_sweep.config.run import Architecture
from wesar_sweep.model import plain

COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "none")
"""For torch.compile; none leaves it out."""


def real_rotate(x: Tensor) -> Tensor:
    """`plain.rotate` without complex numbers, which torch.compile does not generate code for."""
    cos, sin = _tables(x.shape[-2], x.shape[-1], x.device)
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


@functools.cache
def _tables(tokens: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    from wesar_sweep.kernels import rope

    return rope.tables(tokens, head_width, device=device)


class PlainStep:
    """One run, its batch and the step that trains it.

    Args:
        architecture: Its shape.
        device: Where.
        compile_mode: One of `COMPILE_MODES`.
        capture: Whether the step becomes a CUDA graph.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        device: torch.device,
        compile_mode: str = "default",
        capture: bool = True,
    ) -> None:
        a, on_gpu = architecture, device.type == "cuda"
        torch.manual_seed(0)
        # The baseline shall be the best that plain torch does.
        plain.rotate = real_rotate
        _tables(a.context, a.head_width, device)
        self._model = plain.PlainDecoder(a).to(device)
        for name, parameter in self._model.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 if name == "e.weight" else parameter.shape[1] ** -0.5
                torch.nn.init.normal_(parameter, std=std)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=1e-3,
            betas=(0.9, 0.95),
            fused=True,
            capturable=on_gpu,
        )
        self._autocast = functools.partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=on_gpu
        )
        shape = (a.batch, a.context + 1)
        window = torch.randint(a.vocabulary, shape, device=device)
        self._token, self._target = window[:, :-1].contiguous(), window[:, 1:].flatten()
        self._loss_of: Callable[[Tensor, Tensor], Tensor] = self._loss
        if compile_mode != "none":
            mode = None if compile_mode == "default" else compile_mode
            self._loss_of = torch.compile(self._loss, mode=mode)
        self._last: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if on_gpu and capture:
            self._graph = self._capture()

    def advance(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()

    def loss(self) -> float:
        """Of the last step, nats."""
        assert self._last is not None
        return float(self._last)

    def _loss(self, token_BT: Tensor, target_M: Tensor) -> Tensor:
        return F.cross_entropy(self._model(token_BT).flatten(0, 1).float(), target_M)

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._loss_of(self._token, self._target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0, foreach=True)
        self._optimizer.step()
        self._last = loss.detach()

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        # The captured backward pass then makes gradients of its own, which each replay overwrites.
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph
