"""K runs of one architecture, trained as one model with a leading run axis.

Each slot has its own step counter, schedule, data cursor and optimizer state, so a run can enter a
slot whenever another leaves. A slot's bits depend on its run alone: no reduction over K, selection
by `where`, never by multiplying (0·NaN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wesar_sweep.config.run import Architecture, Run
from wesar_sweep.config.study import Study
from wesar_sweep.kernels import adamw, cross_entropy, data_order, rope
from wesar_sweep.model.decoder import Taps, effective_weights, forward
from wesar_sweep.model.parametrization import Form
from wesar_sweep.training.parameters import ParameterRows, forms_of
from wesar_sweep.training.slots import SlotTable


@dataclass(frozen=True, slots=True)
class StackTraits:
    """What the runs of a study can bring into a stack; what none brings is not computed."""

    forms: frozenset[Form]
    scaled_embed: bool
    embed_norm: bool
    z_loss: bool

    @classmethod
    def of(cls, study: Study, *, methods: Sequence[str]) -> StackTraits:
        """The traits of all runs of a study, whose `method` takes these values."""
        parts = [study.method_parts(name) for name in methods]
        return cls(
            forms=forms_of([part.reparametrization for part in parts]),
            scaled_embed=any(part.scaled_embed for part in parts),
            embed_norm=any(part.embed_norm for part in parts),
            z_loss="z_loss" in study.space or study.training.z_loss > 0,
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


class Stack:
    """The state of K runs and the step that advances them all.

    Args:
        architecture: Shape of every run.
        slots: K.
        traits: What the runs can bring.
        train_S: Training tokens on the device, any integer type.
    """

    def __init__(
        self, architecture: Architecture, *, slots: int, traits: StackTraits, train_S: Tensor
    ) -> None:
        self.architecture, self.traits = architecture, traits
        self.device = train_S.device
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.rows = ParameterRows(
            architecture, slots=slots, forms=traits.forms, device=self.device, dtype=dtype
        )
        self.table = SlotTable(slots, width=architecture.width, device=self.device)
        self.first_KP = torch.zeros_like(self.rows.parameter_KP)
        self.second_KP = torch.zeros_like(self.rows.parameter_KP)
        self._train_S = train_S
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
        assert run.architecture == self.architecture
        self.rows.load(slot, run)
        self.table.load(slot, run)
        self.first_KP[slot] = 0
        self.second_KP[slot] = 0

    def keep(self, slots: Sequence[int]) -> None:
        """Shrink to these slots, in this order."""
        index = torch.tensor(slots, device=self.device)
        self.rows.keep(index)
        self.table.keep(index)
        self.first_KP = self.first_KP[index].contiguous()
        self.second_KP = self.second_KP[index].contiguous()

    def data_block(self, steps: int) -> Tensor:
        """First tokens of the sequences of the next steps, int64 [steps, K, B]."""
        a = self.architecture
        step_SK = self.table.step_K + torch.arange(steps, device=self.device).unsqueeze(1)
        return data_order.reference(
            self.table.seed_K, step_SK, tokens=len(self._train_S), batch=a.batch, context=a.context
        )

    def step(self, first_KB: Tensor, *, probe: bool = False) -> StepRecord:
        """One update of every slot on the sequences that start at `first_KB`."""
        rows, table = self.rows, self.table
        token_KBT, target_KBT = data_order.gather(
            self._train_S, first_KB, context=self.architecture.context
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
        )
        nll_K = cross_entropy.cross_entropy(logit_KMV, target_KBT.flatten(1))
        loss_K = nll_K
        if self.traits.z_loss:
            loss_K = nll_K + table.z_loss_K * cross_entropy.z_reference(logit_KMV)
        leaf_grads = torch.autograd.grad(loss_K, leaves, grad_outputs=torch.ones_like(loss_K))
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
        return StepRecord(nll_K.detach(), grad_norm_K, before)

    def _probe(self, taps: Taps) -> dict[str, Tensor]:
        """Probes that describe the parameters of this step's loss; see SCIENCE, probes."""
        rows = self.rows
        return {
            "weight_norm": rows.matrix_norms(rows.parameter_KP),
            "effective_norm": rows.matrix_norms(rows.effective_KP),
            "gate": rows.gates_KM(),
            "gradient_norm": rows.matrix_norms(rows.grad_KP),
            "max_attention_logit": torch.stack(taps.max_attention_logit, dim=1),
            "residual_rms": torch.stack(taps.residual_rms, dim=1),
            "max_output_logit": torch.stack(taps.max_output_logit, dim=1),
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
        index = torch.tensor(slots, device=self.device)
        rows = self.rows
        weights = effective_weights(rows.effective_KP[index], rows.layout, train=False)
        switches = self.table.switches(
            index, scale=self.traits.scaled_embed, normalise=self.traits.embed_norm
        )
        total_K = torch.zeros(len(slots), dtype=torch.float64, device=self.device)
        for window_BT in window_ST.split(self.architecture.batch):
            window_KBT = window_BT.expand(len(slots), -1, -1)
            logit_KMV = forward(
                weights,
                window_KBT[..., :-1],
                architecture=self.architecture,
                rotation=self._rotation,
                switches=switches,
            )
            nll_K = cross_entropy.cross_entropy(logit_KMV, window_KBT[..., 1:].flatten(1))
            total_K += nll_K.double() * len(window_BT)
        return [float(x) for x in (total_K / len(window_ST)).tolist()]
