"""Every sampler and pruner that a study can name, with real training on tiny models."""

import math

import optuna
import pytest

import wesar_sweep as ws
from wesar_sweep.config import parse_study
from wesar_sweep.config.sweep import Sweep

SPACE = {
    "space": {
        "lr": {"low": 1e-4, "high": 1e3, "log": True},
        "weight_decay": {"low": 0.0, "high": 0.5},
    },
    "replicates": 2,
    "sampler": {"name": "random", "cells": 8},
    "model": {"width": 8, "depth": 1, "heads": 2, "context": 16},
    "training": {"steps": 40, "batch": 4, "warmup": 4},
    "data": {"source": "synthetic", "symbols": 32, "length": 20_000},
    "evaluation": {"sequences": 8, "every": 10},
    "divergence": {"window": 4, "patience": 8},
}


def train(tmp_path, **changes):
    """Train in this process; returns the result and Optuna's trials."""
    study = parse_study({**SPACE, **changes})
    sweep = Sweep(launcher="inline", slots=4)
    result = ws.run(study, on=sweep, out=tmp_path / "out", quiet=True)
    storage = f"sqlite:///{result.directory.database_file}"
    return result, optuna.load_study(study_name=study.name, storage=storage).trials


@pytest.mark.parametrize("name", ["random", "tpe", "qmc", "cmaes", "gp", "nsga2"])
def test_samplers(tmp_path, name):
    if name == "cmaes":
        pytest.importorskip("cmaes", reason="the extra wesar-sweep[cmaes] is not installed")
    result, trials = train(tmp_path, sampler={"name": name, "cells": 8})
    assert result.summary.complete and result.summary.runs == 16
    assert len(trials) == 8 and all(math.isfinite(trial.value) for trial in trials)
    assert len({trial.params["lr"] for trial in trials}) == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {"n_startup_trials": 2}),
        ("percentile", {"percentile": 50, "n_startup_trials": 2}),
        ("sha", {"min_resource": 10}),
        ("hyperband", {"min_resource": 10, "max_resource": 40}),
        ("threshold", {"upper": 3.4}),
    ],
)
def test_pruners(tmp_path, name, options):
    result, trials = train(
        tmp_path,
        space={"lr": {"low": 1e-4, "high": 3e-2, "log": True}},
        pruner={"name": name, "options": options},
        sampler={"name": "random", "cells": 12},
    )
    summary = result.summary
    assert summary.complete and summary.pruned > 0
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(pruned) == summary.cells_pruned > 0
    early = [o for o in result.outcomes.to_dicts() if o["status"] == "pruned"]
    assert early and all(o["steps_trained"] < 40 for o in early)


def test_wilcoxon_compares_replicates(tmp_path):
    """Cells that lose on every seed are given up before their last replicate."""
    result, trials = train(
        tmp_path,
        space={"lr": {"low": 1e-6, "high": 3e-2, "log": True}},
        pruner={"name": "wilcoxon", "options": {"p_threshold": 0.3, "n_startup_steps": 2}},
        replicates=6,
        evaluation={"sequences": 8},
    )
    assert result.summary.complete
    assert result.summary.cells_pruned > 0
    assert any(trial.state == optuna.trial.TrialState.PRUNED for trial in trials)
    rows = result.outcomes.to_dicts()
    never = [row for row in rows if row["status"] == "pruned" and row["steps_trained"] == 0]
    assert len(rows) == 8 * 6 and never, "replicates that were never started have their rows too"
    assert "partial" not in result.report(format="md").read_text().lower()


def test_several_objectives(tmp_path):
    result, trials = train(
        tmp_path,
        objectives=["val_loss", "divergence_rate", "spikes"],
        sampler={"name": "nsga2", "cells": 8},
    )
    assert result.summary.complete
    assert all(len(t.values) == 3 and all(map(math.isfinite, t.values)) for t in trials)
    rates = {trial.values[1] for trial in trials}
    assert max(rates) == 1.0 and min(rates) == 0.0, "the space holds both kinds of lr"
