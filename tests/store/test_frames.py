import math

import numpy as np
import polars as pl
import pytest

from wesar_sweep.config import make_run, parse_study
from wesar_sweep.store.frames import (
    KNOBS,
    curves_frame,
    decimate,
    outcomes_frame,
    outcomes_schema,
    probes_frame,
    read_curves,
    read_outcomes_frame,
)
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.store.rows import Curve, Outcome

STUDY = parse_study({"space": {"method": ["he", "wesar"], "lr": [1e-3, 1e-2]}})


def outcome(trial: int, seed: int, **changes: object) -> Outcome:
    run = make_run(STUDY, trial, seed, {"method": "he", "lr": 1e-3})
    fields = {
        "study": "study",
        "trial": trial,
        "seed": seed,
        "hyperparameters": run.columns(),
        "status": "completed",
        "init_loss": 5.5,
        "val_loss": 1.5,
        "steps": 300,
    }
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


def curve(loss: list[float]) -> Curve:
    return Curve(
        loss=np.array(loss, dtype=np.float32),
        grad_norm=np.ones(len(loss), dtype=np.float32),
        eval_step=np.array([0]),
        eval_loss=np.array([5.5], dtype=np.float32),
        probe_step=np.array([0, 2]),
        probes={"gate": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)},
        probe_axes={"gate": ("e", "layers.0.u", "layers.11.w")},
    )


def test_no_outcome_gives_an_empty_typed_frame() -> None:
    frame = outcomes_frame([])
    assert frame.schema == outcomes_schema()
    assert frame.is_empty()


def test_columns_are_in_their_order_and_every_knob_is_there() -> None:
    names = outcomes_frame([outcome(0, 0)]).columns
    assert names[:4] == ["study", "trial", "seed", "method"]
    assert set(KNOBS) <= set(names)
    assert names.index("status") == 3 + len(KNOBS)
    assert len(names) == len(set(names))


def test_not_finite_stays_apart_from_missing() -> None:
    frame = outcomes_frame(
        [outcome(0, 0, val_loss=math.nan), outcome(0, 1, val_loss=None), outcome(0, 2)]
    )
    assert frame["val_loss"].is_nan().to_list() == [True, None, False]
    assert frame["val_ppl"].is_nan().to_list() == [True, None, False]
    assert frame["val_ppl"][2] == pytest.approx(math.exp(1.5))


def test_a_loss_too_high_for_a_perplexity_gives_infinity() -> None:
    assert outcomes_frame([outcome(0, 0, val_loss=1e4)])["val_ppl"][0] == math.inf


def test_steps_is_the_knob_and_steps_trained_the_deed() -> None:
    frame = outcomes_frame([outcome(0, 0, steps=17)])
    assert frame.select("steps", "steps_trained").row(0) == (300, 17)


def test_a_knob_that_a_method_ignores_is_null() -> None:
    assert outcomes_frame([outcome(0, 0)])["sigma2"].to_list() == [None]


def test_evaluation_sets_follow_and_are_null_where_missing() -> None:
    figures = {"loss": 2.5, "bpb": math.inf, "chance": 5.5}
    frame = outcomes_frame([outcome(0, 0, evaluations={"wiki": figures}), outcome(0, 1)])
    assert frame.columns[-3:] == ["eval_wiki", "eval_wiki.bpb", "eval_wiki.chance"]
    assert frame["eval_wiki"].to_list() == [2.5, None]
    assert frame["eval_wiki.bpb"].to_list() == [math.inf, None]


def test_reads_what_a_worker_wrote_and_tolerates_a_torn_tail(tmp_path) -> None:
    directory = StudyDirectory(tmp_path)
    writer = OutcomeWriter(directory, "w0")
    writer.append(outcome(1, 0, val_loss=math.inf))
    writer.append(outcome(0, 0))
    with directory.outcomes_file("w0").open("ab") as file:
        file.write(b'{"study": "stu')
    frame = read_outcomes_frame(directory)
    assert frame["trial"].to_list() == [0, 1]
    assert frame["val_loss"].to_list() == [1.5, math.inf]
    assert read_curves(directory, [(0, 0)]) == ({}, [])


def test_decimation_keeps_a_spike_of_one_step_where_every_nth_would_not() -> None:
    series = np.sin(np.arange(3000) / 500)
    series[1777] = 9.0
    kept = decimate(series, points=100)
    assert len(kept) <= 100
    assert kept[0] == 0 and kept[-1] == 2999
    assert 1777 in kept
    assert 1777 not in np.arange(0, 3000, 30)
    assert (np.diff(kept) > 0).all()


def test_decimation_for_a_log_axis_is_fine_at_the_start_and_loses_no_spike() -> None:
    series = np.random.default_rng(0).normal(1.0, 0.01, 3000)
    series[[1777, 5]] = 9.0
    kept = decimate(series, points=100, log=True)
    assert len(kept) <= 100
    assert kept[0] == 0 and kept[-1] == 2999 and {5, 1777} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    even = decimate(series, points=100)
    assert (kept < 30).sum() > 20 > (even < 30).sum()


def test_decimation_keeps_the_first_step_that_is_not_finite() -> None:
    series = np.ones(1000)
    series[500:520] = np.nan
    assert 500 in decimate(series, points=50)


def test_curves_are_nested_and_explode_to_the_long_frame() -> None:
    curves = {(0, 1): curve([3, 2, math.nan]), (0, 0): curve([5, 4])}
    frame = curves_frame(curves)
    assert frame["seed"].to_list() == [0, 1]
    long = frame.explode("step", "loss")
    assert long["step"].to_list() == [0, 1, 0, 1, 2]
    assert long["loss"].is_nan().sum() == 1
    assert curves_frame({}).schema == frame.schema


def test_probes_name_layer_and_role() -> None:
    frame = probes_frame({(0, 0): curve([1.0])}, probe="gate", roles=("e", "w"))
    assert frame.select("label", "role", "layer").rows() == [
        ("e", "e", None),
        ("layers.11.w", "w", 11),
    ]
    assert frame["value"].to_list() == [[1.0, 4.0], [3.0, 6.0]]
    assert frame["step"].to_list() == [[0, 2], [0, 2]]
    empty = probes_frame({(0, 0): curve([1.0])}, probe="absent")
    assert empty.is_empty() and empty.schema == pl.Schema(frame.schema)
