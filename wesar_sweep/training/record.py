"""The record of one run while it trains: its curves, the verdict, and the outcome it ends as."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config.evaluation import Evaluation, EvaluationSet
from wesar_sweep.config.run import Run
from wesar_sweep.config.study import Study
from wesar_sweep.stability.divergence import DivergenceDetector, Verdict
from wesar_sweep.stability.spikes import find_spikes
from wesar_sweep.store.rows import Curve, FloatArray, IntArray, Outcome, Status

_PROBE = "probes/"


def evaluation_steps(study: Study, steps: int) -> tuple[int, ...]:
    """Numbers of steps after which a run is evaluated: 0, the chosen ones, the end; ascending."""
    return tuple(sorted(_moments(study.evaluation, steps) | {0}))


def set_steps(study: Study, steps: int) -> dict[str, frozenset[int]]:
    """Of each evaluation set, the numbers of steps after which a run is judged on it; the end too.

    Args:
        study: Names the sets.
        steps: Of the run.
    """
    return {name: _moments(one, steps) for name, one in study.evaluation.sets.items()}


def _moments(asked: Evaluation | EvaluationSet, steps: int) -> frozenset[int]:
    """Numbers of steps that `every` and `at` name, and the end."""
    every = asked.every or steps
    return frozenset({*range(every, steps, every), *(n for n in asked.at if n < steps), steps})


class SetEvaluation(NamedTuple):
    """What a run came to on an evaluation set."""

    name: str
    step: int
    """Steps done."""
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class RecordState:
    """What a record must be given to go on as if nothing had happened."""

    seconds: float
    """Wall time so far."""
    evaluations: tuple[tuple[int, float], ...]
    """(steps done, validation loss); the first is before the first step."""
    sets: tuple[SetEvaluation, ...]
    """Evaluations on further sets, in their order."""
    loss: FloatArray
    grad_norm: FloatArray
    probe_step: IntArray
    probes: dict[str, FloatArray]
    """Name -> [P, X]."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The series by name; `of` reads them back."""
        series = {name: getattr(self, name) for name in ("loss", "grad_norm", "probe_step")}
        return series | {f"{_PROBE}{name}": value for name, value in self.probes.items()}

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        *,
        seconds: float,
        evaluations: tuple[tuple[int, float], ...],
        sets: tuple[SetEvaluation, ...],
    ) -> RecordState:
        """From what `arrays` gave."""
        return cls(
            seconds=seconds,
            evaluations=evaluations,
            sets=sets,
            loss=arrays["loss"],
            grad_norm=arrays["grad_norm"],
            probe_step=arrays["probe_step"],
            probes={
                name.removeprefix(_PROBE): value
                for name, value in arrays.items()
                if name.startswith(_PROBE)
            },
        )


@dataclass
class RunRecord:
    """Everything the host knows of a run in a slot."""

    run: Run
    study: Study
    init_loss: float
    """Validation loss before the first step."""
    entered_at: float = field(default_factory=time.monotonic)
    steps_begun: int = 0
    """Updates asked of the device; ahead of `steps_done` while a block is on its way."""
    steps_done: int = 0
    """Updates whose losses are known."""
    _loss: list[FloatArray] = field(default_factory=list)
    _grad_norm: list[FloatArray] = field(default_factory=list)
    _evaluations: list[tuple[int, float]] = field(default_factory=list)
    _sets: list[SetEvaluation] = field(default_factory=list)
    _probe_steps: list[int] = field(default_factory=list)
    _probes: dict[str, list[FloatArray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._evaluation_steps = evaluation_steps(self.study, self.run.hyperparameters.steps)
        self._set_steps = set_steps(self.study, self.run.hyperparameters.steps)
        self._stops = sorted(set().union(self._evaluation_steps, *self._set_steps.values()))
        self._evaluations.append((0, self.init_loss))
        self._detector = DivergenceDetector(
            self.study.divergence,
            warmup=self.run.hyperparameters.warmup,
            initial_loss=self.ceiling,
        )

    @classmethod
    def resumed(cls, run: Run, study: Study, state: RecordState) -> RunRecord:
        """The record of a run that goes on where a checkpoint left it."""
        record = cls(run, study, state.evaluations[0][1])
        record.entered_at -= state.seconds
        verdict = record.add_block(state.loss, state.grad_norm)
        assert verdict is None, "a run that had ended was saved"
        record.steps_begun = record.steps_done
        record._evaluations = list(state.evaluations)
        record._sets = list(state.sets)
        record._probe_steps = [int(step) for step in state.probe_step]
        record._probes = {name: list(values) for name, values in state.probes.items()}
        return record

    def state(self) -> RecordState:
        """What `resumed` needs; to be asked for when no block is on its way."""
        assert self.steps_begun == self.steps_done, (self.steps_begun, self.steps_done)
        empty = np.zeros(0, dtype=np.float32)
        return RecordState(
            seconds=time.monotonic() - self.entered_at,
            evaluations=tuple(self._evaluations),
            sets=tuple(self._sets),
            loss=np.concatenate([empty, *self._loss]),
            grad_norm=np.concatenate([empty, *self._grad_norm]),
            probe_step=np.array(self._probe_steps, dtype=np.int64),
            probes={name: np.stack(values) for name, values in self._probes.items()},
        )

    def intermediate(self) -> list[tuple[int, float]]:
        """(steps done, capped validation loss) of the evaluations between start and end."""
        return [(step, self.capped(loss)) for step, loss in self._evaluations if step > 0]

    @property
    def steps(self) -> int:
        """Steps that the run trains in all."""
        return self.run.hyperparameters.steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done >= self.steps

    @property
    def steps_to_evaluation(self) -> int:
        """Steps until the next evaluation on any text; at least 1 while the run is not finished."""
        return next(at for at in self._stops if at > self.steps_begun) - self.steps_begun

    @property
    def evaluation_due(self) -> bool:
        """Whether the run stands at a step where it is evaluated, on whatever text."""
        return self.steps_begun in self._stops

    @property
    def validation_due(self) -> bool:
        """Whether it stands at a step where its validation loss is measured."""
        return self.steps_begun in self._evaluation_steps

    def set_due(self, name: str) -> bool:
        """Whether it stands at a step where it is judged on a set; the end is one."""
        return self.steps_begun in self._set_steps[name]

    def probe_due(self, offset: int) -> bool:
        """Whether the step `offset` steps ahead of those begun is probed."""
        every = self.study.probes.every
        return every is not None and (self.steps_begun + offset) % every == 0

    def add_probe(self, offset: int, values: dict[str, FloatArray]) -> None:
        """Keep the probes of the step `offset` steps ahead of `steps_done`."""
        self._probe_steps.append(self.steps_done + offset)
        for name, value in values.items():
            self._probes.setdefault(name, []).append(value)

    def add_block(self, loss: FloatArray, grad_norm: FloatArray) -> Verdict | None:
        """Take losses and gradient norms of the next steps done; a verdict ends the run there."""
        self._loss.append(loss)
        self._grad_norm.append(grad_norm)
        self.steps_done += len(loss)
        return self._detector.update(loss, grad_norm)

    def add_evaluation(self, val_loss: float) -> None:
        """Keep a validation loss measured now."""
        self._evaluations.append((self.steps_done, val_loss))

    def add_set(self, name: str, figures: dict[str, float]) -> None:
        """Keep what the run came to on an evaluation set now."""
        self._sets.append(SetEvaluation(name, self.steps_done, figures))

    def verdict_at_end(self) -> Verdict | None:
        """What the rule says of a run that has done all its steps."""
        return self._detector.finish()

    def capped(self, val_loss: float) -> float:
        """A finite figure for the sampler: never worse than the loss at the start."""
        return min(val_loss, self.ceiling) if math.isfinite(val_loss) else self.ceiling

    @property
    def ceiling(self) -> float:
        """Loss at the start, or that of a uniform guess where even that is not finite."""
        uniform = math.log(self.run.architecture.vocabulary)
        return self.init_loss if math.isfinite(self.init_loss) else uniform

    def curve(self, probe_axes: dict[str, tuple[str, ...]], *, steps: int | None = None) -> Curve:
        """The series, cut after `steps` steps (where the run diverged)."""
        steps = self.steps_done if steps is None else steps
        probed = sum(step < steps for step in self._probe_steps)
        evaluations = [(step, value) for step, value in self._evaluations if step <= steps]
        by_set: dict[str, list[SetEvaluation]] = {}
        for one in self._sets:
            if one.step <= steps:
                by_set.setdefault(one.name, []).append(one)
        empty = np.zeros(0, dtype=np.float32)
        return Curve(
            loss=np.concatenate([empty, *self._loss])[:steps],
            grad_norm=np.concatenate([empty, *self._grad_norm])[:steps],
            eval_step=np.array([step for step, _ in evaluations], dtype=np.int64),
            eval_loss=np.array([value for _, value in evaluations], dtype=np.float32),
            probe_step=np.array(self._probe_steps[:probed], dtype=np.int64),
            probes={
                name: np.stack(values)[:probed] for name, values in self._probes.items() if probed
            },
            probe_axes=probe_axes if probed else {},
            set_step={
                name: np.array([one.step for one in own], dtype=np.int64)
                for name, own in by_set.items()
            },
            set_figures={
                f"{name}.{figure}": np.array([one.figures[figure] for one in own], np.float32)
                for name, own in by_set.items()
                for figure in own[0].figures
                if figure != "chance"
            },
        )

    def outcome(
        self,
        status: Status,
        *,
        curve: Curve,
        worker: str,
        bytes_per_token: float,
        diverged_at: int | None = None,
        reason: str = "",
    ) -> Outcome:
        """The row this run ends as; figures come from the (cut) curve."""
        steps = len(curve.loss)
        last_step, last_loss = self._evaluations[-1]
        evaluated = last_step == steps > 0
        val_loss = last_loss if evaluated else None
        if status == "diverged" and not evaluated and "not finite" in reason:
            val_loss = math.nan
        finite = [x for step, x in self._evaluations if step <= steps and math.isfinite(x)]
        return Outcome(
            study=self.run.study,
            trial=self.run.trial,
            seed=self.run.seed,
            hyperparameters=self.run.columns(),
            status=status,
            diverged_at=diverged_at,
            reason=reason,
            init_loss=self.init_loss,
            val_loss=val_loss,
            val_bpb=None if val_loss is None else val_loss / (math.log(2) * bytes_per_token),
            best_loss=min(finite) if finite else None,
            spikes=len(find_spikes(curve.loss, self.study.spikes)),
            steps=steps,
            tokens=steps * self.run.architecture.tokens_per_step,
            seconds=time.monotonic() - self.entered_at,
            worker=worker,
            # Of a run that diverged no figure stands for all of its steps.
            evaluations={
                one.name: one.figures
                for one in self._sets
                if one.step == self.steps and status == "completed"
            },
        )
