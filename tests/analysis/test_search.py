from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import START, invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.importance import importance
from wesar_sweep.analysis.search import HISTORY, dimensions, search_history
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import KNOBS, outcomes_frame
from wesar_sweep.store.rows import Outcome
from wesar_sweep.studies.cells import aggregate, chance_loss

SPACE: dict[str, Any] = {
    "method": ["he", "small", "wesar"],
    "lr": {"low": 1e-4, "high": 1.0, "log": True},
    "warmup": {"low": 0, "high": 100, "step": 10},
    "sigma2": {"low": 1e-5, "high": 1e-2, "log": True, "when": {"method": "wesar"}},
}


def searched(cells: int = 60, **changes: Any) -> Study:
    raw: dict[str, Any] = {"space": SPACE, "sampler": {"name": "random", "cells": cells}}
    if "warmup" in changes.get("space", SPACE):
        raw["training"] = {"steps": 300}
    return lr_study(**{**raw, **changes})


def random_cells(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(count):
        method = str(rng.choice(["he", "small", "wesar"]))
        cell = {"method": method, "lr": float(10 ** rng.uniform(-4, 0))}
        cell["warmup"] = int(rng.integers(11) * 10)
        if method == "wesar":
            cell["sigma2"] = float(10 ** rng.uniform(-5, -2))
        cells.append(cell)
    return cells


def rows_of(study: Study, count: int, loss: Any, *, seed: int = 0) -> list[Outcome]:
    """Every run of random cells, with the loss that a function gives a cell and a generator."""
    rng = np.random.default_rng(1000 + seed)
    rows, _ = invent(study, random_cells(count, seed=seed), with_curves=False)
    return [
        replace(row, status="completed", val_loss=float(loss(row.hyperparameters, rng)))
        for row in rows
    ]


def by_lr(knobs: dict[str, Any], rng: np.random.Generator) -> float:
    return 1.3 + 0.3 * (np.log10(knobs["lr"]) + 2) ** 2 + 0.02 * rng.standard_normal()


def by_nothing(knobs: dict[str, Any], rng: np.random.Generator) -> float:
    return 1.3 + 0.1 * rng.standard_normal()


def test_history_is_what_the_sampler_was_told() -> None:
    study = searched(objectives=["val_loss", "divergence_rate", "spikes"])
    rows, _ = invent(study, random_cells(20), with_curves=False)
    rows = [
        replace(row, status="pruned" if row.trial == 3 else "failed", val_loss=None)
        if (row.trial, row.seed) in ((3, 1), (4, 0))
        else row
        for row in rows
    ]
    found = search_history(outcomes_frame(rows), study=study)
    assert found["diverged"].sum() > 0
    for row in found.iter_rows(named=True):
        told = aggregate([r for r in rows if r.trial == row["trial"]], chance=chance_loss(study))
        assert told is not None
        values = [row[name] for name in study.objectives]
        assert values == pytest.approx(told.objectives(study.objectives))
        assert (row["n"], row["diverged"]) == (told.n, told.diverged)


def test_the_best_so_far_never_rises_and_is_of_no_cell_that_was_cut_short() -> None:
    study = searched(10)
    rows = rows_of(study, 10, by_lr)
    best = min(rows, key=lambda row: row.val_loss or 9)
    rows = [replace(r, status="pruned") if r.trial == best.trial else r for r in rows]
    found = search_history(outcomes_frame(rows), study=study)
    known = found["best"].drop_nulls().to_numpy()
    assert (np.diff(known) <= 0).all()
    whole = found.filter(pl.col("pruned") == 0)
    assert known[-1] == whole["val_loss"].min() > found["val_loss"].min()


def test_the_front_by_hand() -> None:
    study = searched(4, objectives=["val_loss", "spikes"], replicates=1)
    rows = rows_of(study, 5, by_nothing)
    losses, spikes = [1.0, 2.0, 1.5, 1.0, 0.5], [4, 1, 2, 5, 9]
    rows = [replace(r, val_loss=losses[r.trial], spikes=spikes[r.trial]) for r in rows]
    found = search_history(outcomes_frame(rows), study=study)
    # Trial 3 has the loss of trial 0 and more spikes.
    assert found["on_front"].to_list() == [True, True, True, False, True]
    assert search_history(outcomes_frame(rows), study=searched())["on_front"].null_count() == 5


def test_nothing_ended_is_an_empty_history() -> None:
    found = search_history(outcomes_frame([]), study=searched())
    assert found.is_empty() and found.columns == [*KNOBS, *HISTORY.names()]
    assert importance(found, study=searched()).is_empty()


def test_places_along_a_knob() -> None:
    study = searched(60)
    history = search_history(outcomes_frame(rows_of(study, 60, by_lr)), study=study)
    found = {one.knob: one for one in dimensions(history, study=study)}
    assert list(found) == list(SPACE)
    lr = found["lr"]
    logs = np.log10(history["lr"].to_numpy())
    assert lr.places == pytest.approx(((logs - logs.min()) / np.ptp(logs)).tolist())
    assert [value for _, value in lr.ticks] == pytest.approx([1e-3, 1e-2, 1e-1])
    assert set(found["method"].places) == {0.0, 0.5, 1.0}
    none = [place is None for place in found["sigma2"].places]
    assert none == [method != "wesar" for method in history["method"]]


def test_the_planted_knob_is_found_and_the_others_are_not_told_from_chance() -> None:
    study = searched(60)
    found = Analysis(study, outcomes_frame(rows_of(study, 60, by_lr))).importance
    first = found.row(0, named=True)
    assert first["knob"] == "lr" and first["share"] > 0.6 and first["p_holm"] < 0.05
    assert (found["p_holm"][1:] > 0.05).all()
    assert found["share"].sum() == pytest.approx(1)
    assert (found["share_low"] <= found["share_high"]).all()
    assert set(found["cells"]) == {60} and set(found["best_cells"]) == {6}


def test_it_is_optunas_own_figure() -> None:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = {knob: SPACE[knob] for knob in ("method", "lr", "warmup")}
    study = searched(60, space=space)
    rows = rows_of(study, 60, by_lr)
    history = search_history(outcomes_frame(rows), study=study)
    found = dict(importance(history, study=study).select("knob", "importance").rows())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = optuna.create_study()
    lrs = history["lr"]
    kinds = {
        "method": CategoricalDistribution(["he", "small", "wesar"]),
        "lr": FloatDistribution(lrs.min(), lrs.max(), log=True),  # type: ignore[arg-type]
        "warmup": IntDistribution(0, 100),
    }
    for row in history.iter_rows(named=True):
        params = {knob: row[knob] for knob in kinds}
        own.add_trial(
            optuna.create_trial(params=params, distributions=kinds, value=row["val_loss"])
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.1)
    assert found == pytest.approx(evaluator.evaluate(own))


def test_where_nothing_matters_the_alarm_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wesar_sweep.analysis.importance.RESAMPLES", 2)
    study = searched(20, replicates=1)
    alarms = 0
    for seed in range(8):
        rows = rows_of(study, 20, by_nothing, seed=seed)
        found = importance(search_history(outcomes_frame(rows), study=study), study=study)
        alarms += bool((found["p_holm"] <= 0.05).any())
    # Of 8 at 5 % each, 3 or more come up 6 times in 1,000.
    assert alarms <= 2


def test_diverged_cells_speak_and_cut_short_ones_are_behind() -> None:
    # Only that high lr diverges tells lr from the others: were those dropped, nothing would.
    def loss(knobs: dict[str, Any], rng: np.random.Generator) -> float:
        return 1.3 + 0.01 * rng.standard_normal()

    study = searched(60, space={knob: SPACE[knob] for knob in ("method", "lr")})
    rows = rows_of(study, 60, loss)
    lost = [
        replace(row, status="diverged", val_loss=np.nan)
        if row.hyperparameters["lr"] > 1e-3  # type: ignore[operator]
        else row
        for row in rows
    ]
    history = search_history(outcomes_frame(lost), study=study)
    assert history.filter(pl.col("diverged") > 0)["val_loss"].min() > START - 0.2  # type: ignore[operator]
    found = importance(history, study=study)
    assert found.row(0, named=True)["knob"] == "lr" and found["p_holm"][0] < 0.05
    # The same cells, pruned with a low loss: as little of the best.
    cut = [
        replace(row, status="pruned", val_loss=1.0) if row.status == "diverged" else row
        for row in lost
    ]
    found = importance(search_history(outcomes_frame(cut), study=study), study=study)
    assert found.row(0, named=True)["knob"] == "lr" and found["p_holm"][0] < 0.05


def test_too_few_cells_or_equal_values_have_no_importance() -> None:
    study = searched(9)
    few = search_history(outcomes_frame(rows_of(study, 9, by_lr)), study=study)
    assert importance(few, study=study).is_empty()
    flat = search_history(
        outcomes_frame(rows_of(study, 20, lambda knobs, rng: 2.0)), study=study
    ).with_columns(val_loss=2.0)
    assert importance(flat, study=study).is_empty()


def test_replicates_that_were_never_started_are_in_no_loss() -> None:
    study = searched(cells=1)
    rows, _ = invent(study, random_cells(1), with_curves=False)
    cut = replace(rows[0], status="pruned", val_loss=2.9)
    spared = [replace(row, status="pruned", val_loss=None, steps=0, tokens=0) for row in rows[1:]]
    found = search_history(outcomes_frame([cut, *spared]), study=study).row(0, named=True)
    assert (found["val_loss"], found["n"], found["pruned"]) == (2.9, 1, 1)
