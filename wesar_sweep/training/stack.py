"""K runs of one architecture, trained as one model with a leading run axis.

Each slot has its own step counter, schedule, data cursor and optimizer state, so a run can enter a
slot whenever another leaves. A slot's bits depend on its run alone: no reduction over K, selection
by `where`, never by multiplying (0·NaN).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wesar_sweep.config.parametrization import Form
from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.config.study import Precision, Study
from wesar_sweep.kernels import adamw, cross_entropy, data_order, rope
from wesar_sweep.model.decoder import (
    EmbeddingSwitches,
    Taps,
    effective_weights,
    forward,
    hidden,
)
from wesar_sweep.training.feed import Feed
from wesar_sweep.training.parameters import ParameterRows, forms_of, zero_rows
from wesar_sweep.training.scoring import DeviceWindows, Score, score
from wesar_sweep.training.slots import SlotTable

if TYPE_CHECKING:
    from wesar_sweep.store.rows import FloatArray
    from wesar_sweep.training.data_parallel import Ranks
    from wesar_sweep.training.fused_step import FusedStep

MOST_STEPS = 64
"""Most steps of one block."""


@dataclass(frozen=True, slots=True)
class StackTraits:
    """What the runs of a study can bring into a stack; what none brings is not computed."""

    forms: frozenset[Form]
    scaled_embed: bool
    embed_norm: bool
    z_loss: bool
    document_end: int | None = None
    """The token past which attention does not look back; None: it does."""

    @classmethod
    def of(
        cls, study: Study, *, methods: Sequence[str], document_end: int | None = None
    ) -> StackTraits:
        """The traits of all runs of a study.

        Args:
            study: The study.
            methods: Every value that its `method` takes.
            document_end: The token that ends a document, where attention is kept within each.
        """
        parts = [study.method_parts(name) for name in methods]
        return cls(
            forms=forms_of([part.reparametrization for part in parts]),
            scaled_embed=any(part.scaled_embed for part in parts),
            embed_norm=any(part.embed_norm for part in parts),
            z_loss="z_loss" in study.space or study.training.z_loss > 0,
            document_end=document_end,
        )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step leaves behind, on the device."""

    loss_K: Tensor
    """Cross-entropy before the update, nats a token (without z-loss)."""
    grad_norm_K: Tensor
    """Norm of the parameters' gradient before clipping."""
    probes: dict[str, Tensor] | None
    """Probe name -> [K, X], before the update but for `update_ratio`; None unless asked for."""


@dataclass(frozen=True, slots=True)
class Block:
    """What some steps on end left behind, perhaps still on its way from the device."""

    steps: int
    records: Sequence[StepRecord]
    """Of every step on a CPU; on a GPU of the probed steps alone."""
    probed: Sequence[int]
    """Which steps of the block were probed, ascending."""
    history_S2K: Tensor | None = None
    """Losses and norms in the host's memory, once `ready`; None where `records` hold them."""
    ready: torch.cuda.Event | None = None
    began: torch.cuda.Event | None = None
    """When the device turned to it; None on a CPU."""

    def seconds(self) -> float | None:
        """Time that the device took over it, once it is read; None on a CPU."""
        if self.began is None or self.ready is None:
            return None
        return self.began.elapsed_time(self.ready) / 1e3

    def read(self) -> tuple[FloatArray, FloatArray, dict[int, dict[str, FloatArray]]]:
        """Losses and gradient norms, [steps, K] each, and probes by step; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        if self.history_S2K is not None:
            history = self.history_S2K[: self.steps].numpy().copy()
            loss_SK, norm_SK = history[:, 0], history[:, 1]
        else:
            loss_SK = torch.stack([record.loss_K for record in self.records]).cpu().numpy()
            norm_SK = torch.stack([record.grad_norm_K for record in self.records]).cpu().numpy()
        found = [record.probes for record in self.records if record.probes is not None]
        probes: dict[int, dict[str, FloatArray]] = {
            offset: {name: np.asarray(x.cpu()) for name, x in values.items()}
            for offset, values in zip(self.probed, found, strict=True)
        }
        return loss_SK, norm_SK, probes


def dtype_of(precision: Precision) -> torch.dtype:
    """Type of effective weights and activations."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


class Stack:
    """The state of K runs and the step that advances them all.

    On a CPU a step is plain torch through autograd, the reference. On a GPU it is the fused kernels
    (`training.fused_step`), captured once as a CUDA graph that serves every run that ever enters.

    Args:
        architecture: Shape of every run.
        slots: K.
        traits: What the runs can bring.
        train_S: Training tokens of any integer type, on the device; in host memory beside a GPU
            they are fed to it (`training.feed`).
        device: Where to train; None: where the tokens are.
        precision: Of activations and matrix products; parameters are float32 always.
        deterministic: On a GPU, only kernels that repeat themselves bit for bit.
        fused: Whether to use the fused kernels; None: on a GPU.
        capture: Whether to capture the fused step; None: on a GPU.
        micro_batches: Parts of a step's sequences, one after another, of the fused step.
        ranks: The processes that train it together (`training.data_parallel`); None: this alone.
        fed: Whether the fused step is fed; None: where the tokens are not on the device.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        slots: int,
        traits: StackTraits,
        train_S: Tensor,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        deterministic: bool = False,
        fused: bool | None = None,
        capture: bool | None = None,
        micro_batches: int = 1,
        ranks: Ranks | None = None,
        fed: bool | None = None,
    ) -> None:
        self.architecture, self.traits = architecture, traits
        self.ranks = ranks
        # First sequence of this process's share of a batch, and how many.
        self.share = (0, architecture.batch) if ranks is None else ranks.share(architecture.batch)
        elsewhere = device is not None and device.type != train_S.device.type
        # Of a tensor there: "cuda" alone does not say which.
        self.device = torch.empty(0, device=device).device if elsewhere else train_S.device
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        self.rows = ParameterRows(
            architecture,
            slots=slots,
            forms=traits.forms,
            device=self.device,
            dtype=dtype_of(precision),
        )
        self.table = SlotTable(slots, width=architecture.width, device=self.device)
        self.first_KP = zero_rows(slots, self.rows.layout.size, device=self.device)
        self.second_KP = zero_rows(slots, self.rows.layout.size, device=self.device)
        self._train_S = train_S
        self.feed: Feed | None = None
        self._fused: FusedStep | None = None
        fused = on_gpu if fused is None else fused
        if fused and (elsewhere if fed is None else fed):
            self.feed = Feed(
                train_S,
                slots=slots,
                batch=architecture.batch,
                context=architecture.context,
                share=self.share,
                most_steps=MOST_STEPS,
                device=self.device,
            )
        if fused:
            from wesar_sweep.training.fused_step import FusedStep

            self._fused = FusedStep(
                self,
                train_S=train_S,
                precision=precision,
                deterministic=deterministic,
                capture=on_gpu if capture is None else capture,
                micro_batches=micro_batches,
            )
        self._rotation = (
            rope.tables(architecture.context, architecture.head_width, device=self.device)
            if architecture.position == "rope"
            else None
        )

    @property
    def slots(self) -> int:
        """K."""
        return self.rows.parameter_KP.shape[0]

    def load(self, slot: int, run: Run) -> None:
        """Start a run in a slot, whatever was there before."""
        self.load_many([slot], [run])

    def load_many(self, slots: Sequence[int], runs: Sequence[Run]) -> None:
        """Start runs in slots; on a GPU much faster than one after another."""
        assert all(run.architecture == self.architecture for run in runs)
        self.rows.load(slots, runs)
        self.table.load(slots, runs)
        if self.feed is not None:
            self.feed.load(slots, [run.seed for run in runs])
        for slot in slots:
            self.first_KP[slot] = 0
            self.second_KP[slot] = 0

    def _state_tensors(self) -> dict[str, Tensor]:
        """All that a step changes but the counters of steps: name -> [K, ...], not copied."""
        rows = self.rows
        state = {
            "parameter": rows.parameter_KP,
            "effective": rows.effective_KP,
            "first": self.first_KP,
            "second": self.second_KP,
        }
        if rows.left:
            state["spectral_norm"] = rows.spectral_norm_KM
        for name in rows.left:
            state |= {f"left.{name}": rows.left[name], f"right.{name}": rows.right[name]}
        return state

    def state(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """What `restore` needs of some runs, [slots, ...] on the CPU; waits for the device."""
        state = {}
        for name, value in self._state_tensors().items():
            # A row at a time: the device may have no room for a copy of them all.
            state[name] = torch.empty(len(slots), *value.shape[1:], dtype=value.dtype)
            for place, slot in enumerate(slots):
                state[name][place].copy_(value[slot])
        return state

    def state_shapes(self) -> dict[str, torch.Size]:
        """Shapes of what `state` gives of one run."""
        return {name: value.shape[1:] for name, value in self._state_tensors().items()}

    def restore(self, slot: int, state: Mapping[str, Tensor], *, steps_done: int) -> None:
        """Put a run that was loaded into a slot back to where `state` was asked for it.

        Args:
            slot: Where it was loaded.
            state: Its rows of what `state` gave.
            steps_done: Updates it had done.
        """
        for name, value in self._state_tensors().items():
            value[slot].copy_(state[name])
        self.table.set_steps(slot, steps_done)
        if self.feed is not None:
            self.feed.set_steps(slot, steps_done)

    def keep(self, slots: Sequence[int]) -> None:
        """Shrink to these slots, in this order."""
        index = torch.tensor(slots, device=self.device)
        self.rows.keep(index)
        self.table.keep(index)
        for name in ("first_KP", "second_KP"):
            kept = zero_rows(len(slots), self.rows.layout.size, device=self.device)
            setattr(self, name, kept.copy_(getattr(self, name)[index]))
        if self.feed is not None:
            self.feed.keep(slots)
        if self._fused is not None:
            self._fused.rebuild()

    def warm_up(self) -> None:
        """Compile and run each fused kernel once; to be called while no run is in the stack."""
        if self._fused is not None:
            self._fused.warm_up()

    def train(self, steps: int, *, probe_at: Collection[int] = ()) -> Block:
        """The next steps of every slot; on a GPU they are only begun.

        Args:
            steps: How many, at most `MOST_STEPS`.
            probe_at: Which of them to probe, counted from 0.
        """
        assert 1 <= steps <= MOST_STEPS
        probed = sorted(offset for offset in probe_at if offset < steps)
        if self._fused is not None:
            return self._fused.train(steps, probed=probed)
        first_SKB = self.data_block(steps)
        records = [self.step(first_SKB[n], probe=n in probe_at) for n in range(steps)]
        return Block(steps, records, probed)

    def data_block(self, steps: int) -> Tensor:
        """First tokens of the sequences of the next steps, int64 [steps, K, B]."""
        a = self.architecture
        step_SK = self.table.step_K + torch.arange(steps, device=self.device).unsqueeze(1)
        return data_order.reference(
            self.table.seed_K, step_SK, tokens=len(self._train_S), batch=a.batch, context=a.context
        )

    def step(self, first_KB: Tensor, *, probe: bool = False) -> StepRecord:
        """One update of every slot on the sequences that start at `first_KB`."""
        rows, table, ranks = self.rows, self.table, self.ranks
        begin, count = self.share
        token_KBT, target_KBT = data_order.gather(
            self._train_S, first_KB[:, begin : begin + count], context=self.architecture.context
        )
        weights = effective_weights(rows.effective_KP, rows.layout, train=True)
        leaves = weights.leaves()
        taps = Taps() if probe else None
        switches = table.switches(scale=self.traits.scaled_embed, normalise=self.traits.embed_norm)
        logit_KMV = forward(
            weights,
            token_KBT,
            architecture=self.architecture,
            rotation=self._rotation,
            switches=switches,
            taps=taps,
            document_end=self.traits.document_end,
        )
        nll_K = cross_entropy.cross_entropy(logit_KMV, target_KBT.flatten(1))
        loss_K = nll_K
        if self.traits.z_loss:
            loss_K = nll_K + table.z_loss_K * cross_entropy.z_reference(logit_KMV)
        # A rank's share of the mean over the whole batch.
        share = torch.full_like(loss_K, count / self.architecture.batch)
        leaf_grads = torch.autograd.grad(loss_K, leaves, grad_outputs=share)
        nll_K = nll_K.detach() * share
        if ranks is not None:
            ranks.add_up(nll_K, *leaf_grads)
        with torch.no_grad():
            grad_norm_K = rows.pull_back(leaf_grads)
            before = self._probe(taps) if taps is not None else None
            old_KP = rows.parameter_KP.clone() if probe else None
            adamw.reference(
                rows.parameter_KP,
                self.first_KP,
                self.second_KP,
                rows.grad_KP,
                grad_norm_K=grad_norm_K,
                adamw=table.adamw(),
                decayed=rows.layout.matrix_parameters,
            )
            rows.refresh_effective()
            table.advance()
            if before is not None and old_KP is not None:
                change_KM = rows.matrix_norms(rows.parameter_KP - old_KP)
                before["update_ratio"] = change_KM / before["weight_norm"]
        return StepRecord(nll_K, grad_norm_K, before)

    def _probe(self, taps: Taps) -> dict[str, Tensor]:
        """Probes that describe the parameters of this step's loss; see SCIENCE, probes."""
        rows = self.rows
        return {
            "weight_norm": rows.matrix_norms(rows.parameter_KP),
            "effective_norm": rows.matrix_norms(rows.effective_KP),
            "gate": rows.gates_KM(),
            "gradient_norm": rows.matrix_norms(rows.grad_KP),
            **taps.probes(),
        }

    def probe_axes(self) -> dict[str, tuple[str, ...]]:
        """Labels of the last axis of every probe."""
        matrices = self.rows.layout.matrix_labels
        layers = tuple(f"layers.{n}" for n in range(self.architecture.depth))
        by_matrix = ("weight_norm", "effective_norm", "gate", "gradient_norm", "update_ratio")
        return {
            **dict.fromkeys(by_matrix, matrices),
            "max_attention_logit": layers,
            "residual_rms": layers,
            "max_output_logit": ("logits",),
        }

    @torch.no_grad()
    def evaluate(self, slots: Sequence[int], window_ST: Tensor) -> list[float]:
        """Mean cross-entropy of some runs on held-out windows, nats a token.

        Args:
            slots: Which runs.
            window_ST: int64 [sequences, context + 1] tokens on the device.

        Returns:
            One a slot asked for; each depends on its run alone.
        """
        effective_KP, switches = self._runs_in(slots)
        if self._fused is not None:
            return self._fused.evaluate(effective_KP, window_ST, switches=switches)
        weights = effective_weights(effective_KP, self.rows.layout, train=False)
        total_K = torch.zeros(len(slots), dtype=torch.float64, device=self.device)
        for window_BT in window_ST.split(self.architecture.batch):
            window_KBT = window_BT.expand(len(slots), -1, -1)
            logit_KMV = forward(
                weights,
                window_KBT[..., :-1],
                architecture=self.architecture,
                rotation=self._rotation,
                switches=switches,
                document_end=self.traits.document_end,
            )
            nll_K = cross_entropy.cross_entropy(logit_KMV, window_KBT[..., 1:].flatten(1))
            total_K += nll_K.double() * len(window_BT)
        return [float(x) for x in (total_K / len(window_ST)).tolist()]

    @torch.no_grad()
    def score(self, slots: Sequence[int], windows: DeviceWindows) -> list[Score]:
        """Log-likelihood of an evaluation set under some runs.

        Args:
            slots: Which runs.
            windows: Of the set, at most the context long, on the stack's device.

        Returns:
            One a slot asked for; each depends on its run alone.
        """
        effective_KP, switches = self._runs_in(slots)
        if self._fused is not None:
            return self._fused.score(effective_KP, windows, switches=switches)
        weights = effective_weights(effective_KP, self.rows.layout, train=False)

        def hidden_of(token_WT: Tensor, row_R: Tensor) -> tuple[Tensor, Tensor]:
            h_KMD = hidden(
                weights,
                token_WT.expand(len(slots), -1, -1),
                architecture=self.architecture,
                rotation=self._rotation,
                switches=switches,
                document_end=self.traits.document_end,
            )
            return h_KMD.index_select(1, row_R), weights.prediction_KVD

        sequences = self.architecture.batch
        return score(windows, runs=len(slots), sequences=sequences, hidden=hidden_of)

    def _runs_in(self, slots: Sequence[int]) -> tuple[Tensor, EmbeddingSwitches]:
        """Effective weights of some runs, and what their methods do to the embedding output."""
        index = torch.tensor(slots, device=self.device)
        effective_KP = self.rows.effective_KP
        if list(slots) != list(range(self.slots)):
            effective_KP = effective_KP[index]
        traits = self.traits
        return effective_KP, self.table.switches(
            index, scale=traits.scaled_embed, normalise=traits.embed_norm
        )
