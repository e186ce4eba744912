"""The stacked step on a GPU: fused kernels, captured once as a CUDA graph and replayed.

All that differs between runs is a tensor, so one graph serves every run that ever enters the stack.
Losses and gradient norms go into a history on the device; the host copies it behind a block of
steps and reads it when it wants, while the next block runs. Steps that are probed have a graph of
their own in the same pool of memory.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wesar_sweep.config.study import Precision
from wesar_sweep.kernels.fused import compiling, data_order, optimizer
from wesar_sweep.model.decoder import EmbeddingSwitches, Taps
from wesar_sweep.model.fused_decoder import FusedDecoder
from wesar_sweep.model.layout import Layout
from wesar_sweep.training.parameters import zero_rows
from wesar_sweep.training.scoring import DeviceWindows, Score, score

if TYPE_CHECKING:
    from wesar_sweep.training.stack import Block, Stack


class FusedStep:
    """Advances the runs of a stack; holds no state of theirs.

    Args:
        stack: Whose parameters, moments and slot table it updates in place.
        train_S: Training tokens on the device; unused where the stack is fed.
        precision: Of activations and matrix products.
        deterministic: Only kernels that repeat themselves bit for bit.
        capture: Replay a captured graph; else launch each kernel (the same ones).
        micro_batches: Parts of a step's sequences, one after another.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        train_S: Tensor,
        precision: Precision,
        deterministic: bool,
        capture: bool,
        micro_batches: int,
    ) -> None:
        self._first_sequence, share = stack.share
        assert share % micro_batches == 0, (share, micro_batches)
        self._stack, self._train_S, self._capture = stack, train_S, capture
        self._sequences = share // micro_batches
        self._micro_batches = micro_batches
        self._decoder = self._decoder_of(stack.architecture.context)
        if deterministic:
            # Of the kernels in use only the library's attention has sums in no fixed order.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # Else every buffer of a step would first be filled with NaN, by a kernel of its own.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.rebuild()

    def _decoder_of(self, context: int) -> FusedDecoder:
        """The passes for sequences of so many tokens."""
        rows = self._stack.rows
        shape = replace(rows.layout.architecture, context=context)
        return FusedDecoder(
            replace(rows.layout, architecture=shape),
            device=self._stack.device,
            dtype=rows.effective_KP.dtype,
            document_end=self._stack.traits.document_end,
        )

    def rebuild(self) -> None:
        """Take the stack's tensors as they are now: at the start, and after it has shrunk."""
        from wesar_sweep.training.stack import MOST_STEPS

        stack = self._stack
        whole = self._micro_batches == 1 and stack.ranks is None
        self._step_graph: torch.cuda.CUDAGraph | None = None
        self._probe_graph: torch.cuda.CUDAGraph | None = None
        self._probes: dict[str, Tensor] = {}
        self._pool: Any = None
        self._gradient_KQ = zero_rows(
            stack.slots,
            stack.rows.layout.effective_size,
            device=stack.device,
            # In parts, which are added up, it is not to be rounded once a part.
            dtype=stack.rows.effective_KP.dtype if whole else torch.float32,
        )
        self._history_S2K = torch.zeros(MOST_STEPS, 2, stack.slots, device=stack.device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=stack.device)
        # The schedules' some forty small kernels are run once a block, not once a step.
        self._lr_SK = torch.zeros(MOST_STEPS, stack.slots, device=stack.device)
        self._places = _places(stack.rows.layout)
        pinned = stack.device.type == "cuda"
        self._host = [torch.zeros(MOST_STEPS, 2, stack.slots, pin_memory=pinned) for _ in range(2)]
        self._turn = 0

    def train(self, steps: int, *, probed: Sequence[int]) -> Block:
        """See `Stack.train`."""
        from wesar_sweep.training.stack import Block, StepRecord

        on_gpu = self._stack.device.type == "cuda"
        began = torch.cuda.Event(enable_timing=True) if on_gpu else None
        if self._capture and self._step_graph is None:
            # Before the time is taken: it is no part of a step.
            self._capture_graph(probe=False)
        if began is not None:
            began.record()
        feed = self._stack.feed
        if feed is not None:
            feed.send(steps)
        self._cursor.zero_()
        self._lr_SK[:steps] = self._stack.table.lr_SK(steps)
        records = []
        for offset in range(steps):
            probes = self._advance(probe=offset in probed)
            if offset in probed:
                records.append(
                    StepRecord(self._history_S2K[offset, 0], self._history_S2K[offset, 1], probes)
                )
        if feed is not None:
            feed.release()
        self._turn = 1 - self._turn
        host = self._host[self._turn]
        host.copy_(self._history_S2K, non_blocking=True)
        ready = torch.cuda.Event(enable_timing=True) if on_gpu else None
        if ready is not None:
            ready.record()
        return Block(steps, records, list(probed), host, ready, began)

    def _advance(self, *, probe: bool) -> dict[str, Tensor] | None:
        """One step; probes of a captured step are copied, since the next one overwrites them."""
        if not self._capture:
            return self._update(probe=probe)
        if (self._probe_graph if probe else self._step_graph) is None:
            self._capture_graph(probe=probe)
        if not probe:
            assert self._step_graph is not None
            self._step_graph.replay()
            return None
        assert self._probe_graph is not None
        self._probe_graph.replay()
        return {name: value.clone() for name, value in self._probes.items()}

    def _capture_graph(self, *, probe: bool) -> None:
        """Record a step without running it: kernels must have been compiled and run before."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # A former stack that Python happens to clear away now would end the capture.
        collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                probes = self._update(probe=probe)
        finally:
            if collecting:
                gc.enable()
        if probe:
            assert probes is not None
            self._probe_graph, self._probes = graph, probes
        else:
            self._step_graph = graph

    def warm_up(self) -> None:
        """Compile and run every kernel once, probes included; the state of the runs is spoilt."""
        compiling.compile_ahead(self._use_every_kernel, device=self._stack.device)
        self._use_every_kernel()

    @torch.no_grad()
    def _use_every_kernel(self) -> None:
        """A step with probes, one without, and the loss of some windows."""
        stack = self._stack
        for probe in (True, False):
            self._cursor.zero_()
            self._update(probe=probe)
        self._cursor.zero_()
        token_KM = torch.zeros(
            stack.slots,
            self._sequences * stack.architecture.context,
            dtype=torch.int32,
            device=stack.device,
        )
        traits = stack.traits
        switches = stack.table.switches(scale=traits.scaled_embed, normalise=traits.embed_norm)
        self._decoder.loss(stack.rows.effective_KP, token_KM, token_KM, switches=switches)

    def _batch(self, first: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the present step, of sequences from this one of the share on."""
        stack, feed = self._stack, self._stack.feed
        if feed is not None:
            return data_order.take(
                feed.window_SKBT, self._cursor, feed.turn, sequences=(first, self._sequences)
            )
        return data_order.gather(
            self._train_S,
            stack.table.seed_K,
            stack.table.step_K,
            batch=stack.architecture.batch,
            context=stack.architecture.context,
            sequences=(self._first_sequence + first, self._sequences),
        )

    @torch.no_grad()
    def _update(self, *, probe: bool) -> dict[str, Tensor] | None:
        """One update of every slot."""
        stack, rows, table = self._stack, self._stack.rows, self._stack.table
        a = stack.architecture
        taps = Taps() if probe else None
        traits = stack.traits
        switches = table.switches(scale=traits.scaled_embed, normalise=traits.embed_norm)
        z_loss_K = table.z_loss_K if traits.z_loss else None
        nll_K: Tensor | None = None
        for part in range(self._micro_batches):
            token_KM, target_KM = self._batch(part * self._sequences)
            part_K = self._decoder.loss_and_gradients(
                rows.effective_KP,
                self._gradient_KQ,
                token_KM,
                target_KM,
                switches=switches,
                z_loss_K=z_loss_K,
                rows=a.tokens_per_step,
                add=part > 0,
                taps=taps if part == 0 else None,
            )
            nll_K = part_K if nll_K is None else nll_K + part_K
        assert nll_K is not None
        if stack.ranks is not None:
            stack.ranks.add_up(nll_K, self._gradient_KQ)
        effective_norm = rows.matrix_norms(rows.effective_KP) if probe else None
        gate_KM = rows.gates_KM() if probe else None
        update = optimizer.update(
            rows.parameter_KP,
            stack.first_KP,
            stack.second_KP,
            self._gradient_KQ,
            rows.effective_KP,
            adamw=table.adamw(self._lr_SK.index_select(0, self._cursor)[0]),
            places=self._places,
            forms=optimizer.Forms(
                rows.form_KM, rows.gate_trains_KM, rows.left, rows.right, rows.spectral_norm_KM
            ),
        )
        table.advance()
        record_2K = torch.stack((nll_K, update.grad_norm_K))
        self._history_S2K.index_copy_(0, self._cursor, record_2K.unsqueeze(0))
        self._cursor.add_(1)
        if taps is None:
            return None
        assert effective_norm is not None and gate_KM is not None
        return {
            "weight_norm": update.weight_norm_KM,
            "effective_norm": effective_norm,
            "gate": gate_KM,
            "gradient_norm": update.gradient_norm_KM,
            "update_ratio": optimizer.change_norm(update, self._places) / update.weight_norm_KM,
            **taps.probes(),
        }

    @torch.no_grad()
    def evaluate(
        self, effective_KP: Tensor, window_ST: Tensor, *, switches: EmbeddingSwitches
    ) -> list[float]:
        """See `Stack.evaluate`."""
        a, runs = self._stack.architecture, len(effective_KP)
        total_K = torch.zeros(runs, dtype=torch.float64, device=effective_KP.device)
        for window_BT in window_ST.split(self._sequences):
            window_KBT = window_BT.expand(runs, -1, -1)
            token_KM = window_KBT[..., :-1].flatten(1).int()
            target_KM = window_KBT[..., 1:].flatten(1).int()
            nll_K = self._decoder.loss(effective_KP, token_KM, target_KM, switches=switches)
            total_K += nll_K.double() * len(window_BT)
        assert a.context == window_ST.shape[1] - 1
        return [float(x) for x in (total_K / len(window_ST)).tolist()]

    @torch.no_grad()
    def score(
        self, effective_KP: Tensor, windows: DeviceWindows, *, switches: EmbeddingSwitches
    ) -> list[Score]:
        """See `Stack.score`."""
        decoders = {self._stack.architecture.context: self._decoder}

        def hidden(token_WT: Tensor, row_R: Tensor) -> tuple[Tensor, Tensor]:
            context = token_WT.shape[1]
            if context not in decoders:
                decoders[context] = self._decoder_of(context)
            # A single window flattens to a view that is repeated, not copied.
            token_KM = token_WT.expand(len(effective_KP), -1, -1).flatten(1).contiguous()
            return decoders[context].hidden(effective_KP, token_KM, row_R, switches=switches)

        runs = len(effective_KP)
        return score(windows, runs=runs, sequences=self._sequences, hidden=hidden)


def _places(layout: Layout) -> optimizer.Places:
    """The layout as the optimizer's kernels take it."""
    groups = []
    row = 0
    for g in layout.groups:
        groups.append(
            optimizer.Group(g.name, g.start, g.count, g.outputs, g.inputs, g.first_matrix, row)
        )
        row += g.count * g.outputs
    row_gains = None
    if layout.with_row_gains:
        row_gains = slice(layout.row_gains(layout.groups[0]).start, layout.size)
    gains = slice(layout.norm_gains.start, layout.effective_size)
    return optimizer.Places(tuple(groups), gains, layout.gates, row_gains)
