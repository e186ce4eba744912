"""The typed rows that a run leaves behind: one `Outcome` and one `Curve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config.run import Run
from wesar_sweep.config.space import Scalar

Status = Literal["completed", "diverged", "pruned", "failed"]

Key = tuple[int, int]
"""(trial, seed): a run inside a study."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The row a run ends as. Losses are nats a token; None: not measured, NaN: not finite."""

    study: str
    trial: int
    seed: int
    hyperparameters: dict[str, Scalar]
    """Every knob by its YAML name (`Run.columns`)."""
    status: Status
    diverged_at: int | None = None
    """Step of divergence, from 0; None where the run did not diverge."""
    reason: str = ""
    """Why it diverged, was pruned or failed, in words."""
    init_loss: float | None = None
    """Validation loss before the first step."""
    val_loss: float | None = None
    """Validation loss at the end; NaN where it was not finite, None where the run was cut off."""
    val_bpb: float | None = None
    """The same in bits a byte."""
    best_loss: float | None = None
    """Least validation loss over all evaluations of the run."""
    spikes: int = 0
    """Raw spikes by the study's rule; paired ones are counted from the curves."""
    steps: int = 0
    """Steps trained."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Wall time between entering and leaving the slot, shared with the slot's neighbours."""
    worker: str = ""
    attempt: int = 1
    """1 for a first try; a failed run is tried again up to `retries` times."""
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    """Further evaluation sets: name -> figure -> value at the end. ``loss`` is in nats a token, of
    LAMBADA a word; ``chance`` that of a uniform guess; then ``word_ppl``, ``bpb``, ``accuracy``."""

    @classmethod
    def untrained(cls, run: Run, *, status: Status, reason: str, worker: str) -> Outcome:
        """The row of a run of which nothing was trained that counts."""
        return cls(
            study=run.study,
            trial=run.trial,
            seed=run.seed,
            hyperparameters=run.columns(),
            status=status,
            reason=reason,
            worker=worker,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The series of one run. S steps trained, E evaluations, P probes."""

    loss: FloatArray
    """[S] training loss in nats a token, before the update of that step."""
    grad_norm: FloatArray
    """[S] norm of the gradient of the parameters the optimizer owns, before clipping."""
    eval_step: IntArray
    """[E] number of steps done at each evaluation; the first is 0."""
    eval_loss: FloatArray
    """[E] validation loss."""
    probe_step: IntArray
    """[P] step of each probe."""
    probes: dict[str, FloatArray] = field(default_factory=dict)
    """Probe name -> [P, X]: `update_ratio`, `weight_norm`, `effective_norm`, `gate`,
    `gradient_norm`, `max_attention_logit`, `residual_rms`, `max_output_logit`."""
    probe_axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Probe name -> the X labels: ``layers.0.q`` for a matrix, ``layers.0`` for a layer."""
    set_step: dict[str, IntArray] = field(default_factory=dict)
    """Evaluation set -> [E] number of steps done at each evaluation on it."""
    set_figures: dict[str, FloatArray] = field(default_factory=dict)
    """``set.figure``, such as ``lambada.accuracy`` -> [E]: those of `Outcome.evaluations`, but for
    ``chance``."""
