"""Studies whose truth is known: outcomes and curves drawn from a formula, on disk or in memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wesar_sweep.config import dump_study, grid_cells, make_run, parse_study, study_hash
from wesar_sweep.config.boundary import boundary_search
from wesar_sweep.config.study import Study
from wesar_sweep.stability.boundary import Tried, next_place, scale_of
from wesar_sweep.store.curves import write_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.store.provenance import write_provenance
from wesar_sweep.store.rows import Curve, Outcome
from wesar_sweep.store.searched import step_seeds

START = math.log(256)
LRS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
# (best log10 lr, loss there, curvature, log10 lr above which runs diverge) by series.
TRUTH: dict[tuple[str, float | None], tuple[float, float, float, float]] = {
    ("small", None): (-2.5, 1.33, 0.09, -0.75),
    ("he", None): (-2.5, 1.345, 0.10, -0.75),
    ("wesar", 4e-5): (-3.6, 1.35, 0.16, -1.3),
    ("wesar", 1e-3): (-2.9, 1.325, 0.10, -0.9),
}
ROLES = ("q", "k", "v", "o", "u", "w")


def lr_study(**changes: Any) -> Study:
    raw: dict[str, Any] = {
        "name": "invented",
        "title": "Which σ² and lr train stably?",
        "question": "Does WeSaR widen the range of learning rates that train, and at which σ²?",
        "space": {
            "method": ["small", "he", "wesar"],
            "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
            "lr": LRS,
        },
        "replicates": 3,
        "training": {"steps": 300, "warmup": 20},
        "evaluation": {"every": 100},
        "probes": {"every": 10},
    }
    return parse_study({**raw, **changes})


def run_of(
    study: Study,
    trial: int,
    seed: int,
    cell: dict[str, Any],
    *,
    status: str | None = None,
    with_curve: bool = True,
) -> tuple[Outcome, Curve | None]:
    """One run whose fate is decided by `TRUTH`, or by `status` where that is given."""
    run = make_run(study, trial, seed, cell)
    knobs = run.columns()
    rng = np.random.default_rng([trial, seed])
    truth = TRUTH.get((str(knobs["method"]), knobs["sigma2"]), (-2.5, 1.36, 0.1, -0.8))  # type: ignore[arg-type]
    best, floor, curvature, limit = truth
    log_lr = math.log10(float(str(knobs["lr"])))
    loss = floor + curvature * (log_lr - best) ** 2 + 0.006 * rng.standard_normal()
    loss += 0.01 * math.log2(64 / float(str(knobs["width"])))
    steps = int(str(knobs["steps"]))
    fate = status or ("diverged" if log_lr + 0.25 * rng.standard_normal() > limit else "completed")
    common: dict[str, Any] = {
        "study": study.name,
        "trial": trial,
        "seed": seed,
        "hyperparameters": knobs,
        "status": fate,
        "worker": "w0",
        "init_loss": START + 0.02 * rng.standard_normal(),
        "seconds": 3.0,
    }
    if fate == "failed":
        del common["init_loss"]
        return Outcome(**common, reason="OutOfMemoryError", attempt=1 + study.retries), None
    ended = steps
    reason, at, final = "", None, loss
    if fate == "diverged":
        ended = int(rng.integers(steps // 4, steps))
        at = ended - 1
        finite = rng.random() < 0.5
        final = None if finite else math.nan
        reason = (
            "smoothed loss 5.91 above the initial loss 5.55 for 50 steps"
            if finite
            else f"loss not finite at step {at}"
        )
    if fate == "pruned":
        ended, final, reason = 100, loss + 1.0, "pruned after 100 steps"
    curve = _curve(rng, seed, ended, steps, loss, fate) if with_curve else None
    outcome = Outcome(
        **common,
        diverged_at=at,
        reason=reason,
        val_loss=final,
        val_bpb=None if final is None else final / math.log(2),
        best_loss=min(loss, START),
        spikes=1 if fate == "diverged" else 0,
        steps=ended,
        tokens=ended * run.architecture.tokens_per_step,
    )
    return outcome, curve


def _curve(
    rng: np.random.Generator, seed: int, ended: int, steps: int, loss: float, fate: str
) -> Curve:
    step = np.arange(ended)
    # Batches belong to the seed, so their hardness is shared by all runs of it.
    hard = np.random.default_rng(seed).standard_normal(steps)[:ended] * 0.04
    series = loss + (START - loss) * np.exp(-step / (steps / 8)) + hard
    series += 0.01 * rng.standard_normal(ended)
    if ended > 150:
        series[140] += 0.9
    if fate == "diverged":
        series[-40:] += np.linspace(0, 4, 40)
        series[-1] = math.inf
    probed = np.arange(0, ended, 10)
    labels = ("e", *(f"layers.{n}.{role}" for n in range(2) for role in ROLES), "p")
    drift = np.linspace(0, 1, max(len(probed), 1))[: len(probed), None]
    base = rng.uniform(0.5, 2.0, len(labels))
    return Curve(
        loss=series.astype(np.float32),
        grad_norm=np.exp(0.2 * rng.standard_normal(ended)).astype(np.float32),
        eval_step=np.array([0, *range(100, ended + 1, 100)]),
        eval_loss=np.full(1 + ended // 100, loss, dtype=np.float32),
        probe_step=probed,
        probes={
            "update_ratio": (base * 1e-3 * np.exp(-2 * drift)).astype(np.float32),
            "weight_norm": (base * 8 * (1 + drift)).astype(np.float32),
            "effective_norm": (base * 4 * (1 + 2 * drift)).astype(np.float32),
        },
        probe_axes=dict.fromkeys(("update_ratio", "weight_norm", "effective_norm"), labels),
    )


def invent(
    study: Study, cells: list[dict[str, Any]] | None = None, *, with_curves: bool = True
) -> tuple[list[Outcome], dict[tuple[int, int], Curve]]:
    """Every run of a study; where `cells` is None, of its grid."""
    outcomes: list[Outcome] = []
    curves: dict[tuple[int, int], Curve] = {}
    for trial, cell in enumerate(grid_cells(study) if cells is None else cells):
        for seed in study.seeds:
            outcome, curve = run_of(study, trial, seed, cell, with_curve=with_curves)
            outcomes.append(outcome)
            if curve is not None:
                curves[trial, seed] = curve
    return outcomes, curves


def searched_study(limits: dict[str, float]) -> tuple[Study, list[Outcome]]:
    """A boundary search to its end, over 4 decades of lr at a resolution of a quarter.

    Args:
        limits: Method -> log10 lr around which its runs begin to diverge, spread by 0.03.
    """
    study = parse_study(
        {
            "name": "searched",
            "space": {"method": list(limits), "lr": {"low": 1e-4, "high": 1.0, "log": True}},
            "replicates": 3,
            "sampler": {"name": "boundary", "along": "lr", "options": {"resolution": 0.25}},
            "training": {"steps": 300, "warmup": 20},
        }
    )
    search = boundary_search(study)
    assert search is not None
    scale = scale_of(search, seeds=3)
    outcomes: list[Outcome] = []
    trial = 0
    for method, limit in limits.items():
        tried: tuple[Tried, ...] = ()
        while (place := next_place(tried, scale)) is not None:
            lr = search.values[scale.places.index(place)]
            draws = np.random.default_rng([trial]).normal(limit, 0.03, 3)
            fates = ["diverged" if place > draw else "completed" for draw in draws]
            for seed, fate in zip(step_seeds(study, len(tried)), fates, strict=True):
                run = run_of(study, trial, seed, {"method": method, "lr": lr}, status=fate)
                outcomes.append(run[0])
            tried += (Tried(place, 3, fates.count("diverged")),)
            trial += 1
    return study, outcomes


def write_study(
    root: Path,
    study: Study,
    outcomes: list[Outcome],
    curves: dict[tuple[int, int], Curve],
    *,
    command: str = "wesar-sweep run invented.yaml",
) -> StudyDirectory:
    """Put a study on disk as a worker and a driver would."""
    directory = StudyDirectory(root)
    directory.create()
    directory.study_file.write_text(dump_study(study))
    writer = OutcomeWriter(directory, "w0")
    for outcome in outcomes:
        if (outcome.trial, outcome.seed) in curves:
            write_curve(directory, outcome.trial, outcome.seed, curves[outcome.trial, outcome.seed])
        writer.append(outcome)
    facts = {
        "project": {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": True},
        "python": "3.11.2",
        "platform": "Linux",
        "cpu": "Some processor",
        "cores": 2,
        "libraries": {"torch": "2.13.0", "optuna": "5.0.0"},
        "command": command.split(),
        "study_hash": study_hash(study),
        "started_at": "2026-11-23T10:00:00+00:00",
        "corpus": {"description": "Python's standard library", "sha256": "ab" * 32},
        "workers": {"w0": {"device": "cpu", "torch": "2.13.0"}},
    }
    write_provenance(directory, facts=facts)
    return directory


def planted_spikes(
    *, runs: int = 6, felt_more_by: int = 0
) -> tuple[Study, list[Outcome], dict[tuple[int, int], Curve]]:
    """Runs of two seeds with spikes where we put them, one at each of `runs` learning rates.

    A hard batch of seed 0 lifts every run of it by 2 nats at step 120. Run (0, 1) is unstable at
    step 200 for 3 steps, by 1.5 nats; run (1, 0) at step 220 for 5, by 1 nat; run (2, 0) blows up
    at step 250, never to come back. The last `felt_more_by` runs of seed 0 feel its hard batch by
    another nat, one after the other.
    """
    lrs = np.logspace(-3, -2, runs).round(5).tolist()
    study = lr_study(space={"method": "he", "lr": lrs}, replicates=2)
    rng = np.random.default_rng(0)
    outcomes, curves = [], {}
    for trial, lr in enumerate(lrs):
        for seed in study.seeds:
            key = (trial, seed)
            fate = "diverged" if key == (2, 0) else "completed"
            outcome, curve = run_of(study, trial, seed, {"method": "he", "lr": lr}, status=fate)
            assert curve is not None
            loss = 2 + 0.02 * rng.standard_normal(300)
            loss[120] += 2.0 if seed == 0 else 0.0
            if seed == 0 and trial >= runs - felt_more_by:
                loss[120 + (trial % 2)] += 1.0
            if key == (0, 1):
                loss[200:203] += 1.5
            if key == (1, 0):
                loss[220:225] += 1.0
            if key == (2, 0):
                loss = np.concatenate([loss[:250], [math.inf]])
            probed = np.arange(0, len(loss), 10)
            curves[key] = replace(
                curve,
                loss=loss.astype(np.float32),
                grad_norm=np.ones(len(loss), dtype=np.float32),
                probe_step=probed,
                probes={
                    name: np.full((len(probed), len(labels)), 0.01, dtype=np.float32)
                    for name, labels in curve.probe_axes.items()
                },
            )
            outcomes.append(replace(outcome, diverged_at=250 if fate == "diverged" else None))
    return study, outcomes, curves
