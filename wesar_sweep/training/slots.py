"""What differs between the slots of a stack, as tensors: so that one step serves every run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wesar_sweep.config.run import Run
from wesar_sweep.kernels.adamw import AdamW
from wesar_sweep.model.decoder import EmbeddingSwitches
from wesar_sweep.training.schedule import SCHEDULES, Schedules, factor

_FLOATS = (
    "lr",
    "warmup",
    "steps",
    "final_lr_ratio",
    "decay_fraction",
    "weight_decay",
    "beta1",
    "beta2",
    "eps",
    "clip",
    "z_loss",
)
_INTS = ("seed", "step", "schedule", "embed_norm", "embed_scale")


class SlotTable:
    """The scalars of K runs on the device: hyperparameters, own step counter, data seed."""

    def __init__(self, slots: int, *, width: int, device: torch.device) -> None:
        self._width = width
        self._float_FK = torch.ones(len(_FLOATS), slots, device=device)
        self._int_IK = torch.zeros(len(_INTS), slots, device=device, dtype=torch.int64)

    def _float(self, name: str) -> Tensor:
        return self._float_FK[_FLOATS.index(name)]

    def _int(self, name: str) -> Tensor:
        return self._int_IK[_INTS.index(name)]

    @property
    def seed_K(self) -> Tensor:
        """int64 [K]: what the data order is keyed by."""
        return self._int("seed")

    @property
    def step_K(self) -> Tensor:
        """int64 [K]: updates done."""
        return self._int("step")

    @property
    def z_loss_K(self) -> Tensor:
        """float32 [K]."""
        return self._float("z_loss")

    def load(self, slots: Sequence[int], runs: Sequence[Run]) -> None:
        """Put runs into slots, at step 0."""
        if not runs:
            return
        columns = [self._columns(run) for run in runs]
        index = torch.tensor(slots, device=self._int_IK.device)
        for table, values in zip(
            (self._float_FK, self._int_IK), zip(*columns, strict=True), strict=True
        ):
            new_XS = torch.tensor(values, dtype=table.dtype).T
            table[:, index] = new_XS.to(table.device)

    def _columns(self, run: Run) -> tuple[list[float], list[int]]:
        h = run.hyperparameters
        floats = {name: getattr(h, name) for name in _FLOATS}
        floats["clip"] = math.inf if h.clip is None else h.clip
        ints = {
            "seed": run.seed,
            "step": 0,
            "schedule": SCHEDULES.index(h.schedule),
            "embed_norm": int(run.parts.embed_norm),
            "embed_scale": int(run.parts.scaled_embed),
        }
        return [float(floats[name]) for name in _FLOATS], [ints[name] for name in _INTS]

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""
        self._float_FK = self._float_FK[:, slots].contiguous()
        self._int_IK = self._int_IK[:, slots].contiguous()

    def set_steps(self, slot: int, steps_done: int) -> None:
        """A run in a slot has done so many updates already."""
        self._int("step")[slot] = steps_done

    def advance(self) -> None:
        """One more update is done in every slot."""
        self._int("step").add_(1)

    def lr_SK(self, steps: int) -> Tensor:
        """Learning rate of the present step and those after it, float32 [steps, K]."""
        ahead_S1 = torch.arange(steps, device=self._int_IK.device).unsqueeze(1)
        schedules = Schedules(
            code_K=self._int("schedule"),
            warmup_K=self._float("warmup"),
            steps_K=self._float("steps"),
            final_ratio_K=self._float("final_lr_ratio"),
            decay_fraction_K=self._float("decay_fraction"),
        )
        return self._float("lr") * factor((self.step_K + ahead_S1).float(), schedules)

    def adamw(self, lr_K: Tensor | None = None) -> AdamW:
        """The optimizer's hyperparameters at the present step.

        Args:
            lr_K: The learning rates, where they are known already.
        """
        return AdamW(
            lr_K=self.lr_SK(1)[0] if lr_K is None else lr_K,
            beta1_K=self._float("beta1"),
            beta2_K=self._float("beta2"),
            eps_K=self._float("eps"),
            weight_decay_K=self._float("weight_decay"),
            clip_K=self._float("clip"),
            step_K=(self.step_K + 1).float(),
        )

    def switches(
        self, slots: Tensor | None = None, *, scale: bool, normalise: bool
    ) -> EmbeddingSwitches:
        """Embedding switches of all slots or of some; a switch no run of the study uses is None."""
        scale_K, normalise_K = self._int("embed_scale"), self._int("embed_norm").bool()
        if slots is not None:
            scale_K, normalise_K = scale_K[slots], normalise_K[slots]
        factor_K = torch.where(scale_K == 1, math.sqrt(self._width), 1.0)
        return EmbeddingSwitches(factor_K if scale else None, normalise_K if normalise else None)
