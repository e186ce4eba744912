"""Samplers and pruners by name: what is refused, and in which words."""

from __future__ import annotations

import importlib.util
import inspect

import optuna
import pytest
from fabricated_runs import LR, make_study

from wesar_sweep.config.study import Study
from wesar_sweep.errors import ConfigError
from wesar_sweep.studies.check import check
from wesar_sweep.studies.options import offered
from wesar_sweep.studies.pruners import PRUNERS, build_pruner
from wesar_sweep.studies.samplers import SAMPLERS, build_sampler

HAS_CMAES = importlib.util.find_spec("cmaes") is not None


def searched(name: str, **options: object) -> Study:
    return make_study(space={"lr": LR}, sampler={"name": name, "cells": 9, "options": options})


def pruned(name: str, **options: object) -> Study:
    return make_study(pruner={"name": name, "options": options})


def problems(study: Study) -> str:
    with pytest.raises(ConfigError) as caught:
        check(study)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"cmaes"}))
def test_every_sampler_is_built_without_a_warning(name: str) -> None:
    study = make_study() if name == "grid" else searched(name)
    check(study)
    assert isinstance(build_sampler(study, number=0), SAMPLERS[name])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {"n_warmup_steps": 50}),
        ("percentile", {"percentile": 25}),
        ("sha", {"reduction_factor": 3, "min_resource": 20}),
        ("hyperband", {}),
        ("threshold", {"upper": 5.0}),
        ("wilcoxon", {"p_threshold": 0.2}),
    ],
)
def test_every_pruner_is_built_without_a_warning(name: str, options: dict[str, object]) -> None:
    study = pruned(name, **options)
    check(study)
    assert isinstance(build_pruner(study), PRUNERS[name])


def test_a_misspelt_option_gets_the_right_spelling() -> None:
    text = problems(searched("tpe", n_startup_trial=5))
    assert "sampler.options.n_startup_trial" in text
    assert "did you mean n_startup_trials?" in text
    assert "constant_liar, group, multivariate, n_ei_candidates, n_startup_trials" in text


def test_all_problems_at_once() -> None:
    study = searched("tpe", gama=1, group="yes").model_copy(
        update={"pruner": pruned("median", n_warmup_steps=1.5, x=1).pruner}
    )
    with pytest.raises(ConfigError) as caught:
        check(study)
    assert [problem.path for problem in caught.value.problems] == [
        "sampler.options.gama",
        "sampler.options.group",
        "pruner.options.n_warmup_steps",
        "pruner.options.x",
    ]


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (searched("tpe", n_startup_trials="ten"), "allowed: a whole number"),
        (searched("tpe", constant_liar=1), "allowed: true or false"),
        (searched("tpe", group=True, multivariate=False), "multivariate"),
        (searched("qmc", qmc_type="magic"), "magic"),
        (make_study(sampler={"name": "grid", "options": {"x": 1}}), "the grid has no options"),
        (pruned("percentile"), "needs this option"),
        (pruned("percentile", percentile=120), "between 0 and 100"),
        (pruned("threshold"), "Either"),
        (
            make_study(pruner={"name": "median"}, objectives=("val_loss", "spikes")),
            "one objective only",
        ),
        (
            make_study(pruner={"name": "median"}, objectives=("spikes",)),
            "not this study's objective",
        ),
    ],
)
def test_what_is_refused(study: Study, said: str) -> None:
    assert said in problems(study)


@pytest.mark.skipif(HAS_CMAES, reason="the package cmaes is installed")
def test_a_missing_package_names_the_extra() -> None:
    assert "pip install 'wesar-sweep[cmaes]'" in problems(searched("cmaes"))


def test_cmaes_knows_one_objective() -> None:
    study = searched("cmaes").model_copy(update={"objectives": ("val_loss", "spikes")})
    assert "one objective only" in problems(study)


@pytest.mark.parametrize("kind", [*SAMPLERS.values(), *PRUNERS.values()])
def test_offered_options_exist_and_need_no_object(kind: type) -> None:
    names = offered(kind)
    assert set(names) <= set(inspect.signature(kind).parameters)
    assert not {"seed", "constraints_func", "gamma", "weights", "independent_sampler"} & set(names)


def test_what_optuna_has_deprecated_is_not_offered() -> None:
    # Each of these draws a FutureWarning from Optuna 5, which would be an error here.
    with pytest.warns(FutureWarning):
        optuna.samplers.TPESampler(prior_weight=2.0)
    assert "prior_weight" not in offered(optuna.samplers.TPESampler)
