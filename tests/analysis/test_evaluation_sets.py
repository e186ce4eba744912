import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study, write_study
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.evaluation_sets import evaluation_sets, set_unit, with_words
from wesar_sweep.analysis.step_time import relative_step_time
from wesar_sweep.store.beat import Beat, write_beat
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.spent import Spent, write_spent

SIZED = {"width": [16, 32], "method": ["he", "wesar"], "lr": [1e-3, 3e-3]}


def measured(**changes: Any) -> Analysis:
    """Two sizes and methods whose losses are known, evaluated on one more set."""
    study = lr_study(space=SIZED, replicates=3)
    rows = []
    for row in invent(study, with_curves=False)[0]:
        knobs = row.hyperparameters
        loss = 2 + (knobs["lr"] == 1e-3) + 0.5 * (knobs["width"] == 16) + 0.1 * row.seed  # type: ignore[operator]
        rows.append(
            replace(
                row,
                status="completed",
                val_loss=loss,
                init_loss=5.0,
                evaluations={"novels": {"loss": loss + 0.25, "chance": 5.5}},
            )
        )
    if changes:
        rows = [replace(row, **changes[f"t{row.trial}s{row.seed}"])
                if f"t{row.trial}s{row.seed}" in changes else row for row in rows]  # fmt: skip
    return Analysis(study, outcomes_frame(rows))


def test_each_line_is_at_its_best_lr_at_every_size_on_every_set() -> None:
    found = measured().best_evaluations
    assert found.height == 2 * 2 * 2
    assert set(found["lr"]) == {3e-3} and set(found["n"]) == {3}
    for row in found.iter_rows(named=True):
        losses = np.array([2.0, 2.1, 2.2]) + 0.5 * (row["width"] == 16)
        losses += 0.25 * (row["evaluation"] == "novels")
        assert row["loss"] == pytest.approx(losses.mean())
        assert row["ppl"] == pytest.approx(math.exp(losses.mean()))
        spread = stats.ttest_1samp(losses, 0).confidence_interval(0.95)
        assert row["ppl_low"] == pytest.approx(math.exp(spread.low))
    validation = found.filter(evaluation="validation")
    cells = measured().cells
    for row in validation.iter_rows(named=True):
        assert row["ppl"] == pytest.approx(cells.filter(trial=row["trial"])["ppl"][0], rel=1e-12)


def test_a_diverged_run_counts_at_its_initial_loss_and_on_sets_at_chance() -> None:
    trial = int(measured().best_evaluations["trial"][0])
    lost = {"status": "diverged", "val_loss": math.nan, "evaluations": {}}
    found = measured(**{f"t{trial}s1": lost}).best_evaluations.filter(trial=trial)
    start = found["width"][0] == 16
    assert set(found["diverged"]) == {1} and set(found["n"]) == {3}
    caps = ((0.0, 5.0), (0.25, 5.5))
    for row, (more, cap) in zip(found.iter_rows(named=True), caps, strict=True):
        kept = np.array([2.0, 2.2]) + 0.5 * start + more
        assert row["loss"] == pytest.approx((kept.sum() + cap) / 3)
        assert row["loss_high"] == cap, "no capped loss passes it"


@pytest.mark.parametrize("loss", [9.0, math.nan, math.inf])
def test_no_loss_on_a_set_counts_more_than_chance(loss: float) -> None:
    trial = int(measured().best_evaluations["trial"][0])
    bad = {"evaluations": {"novels": {"loss": loss, "chance": 5.5}}}
    found = measured(**{f"t{trial}s1": bad}).cell_evaluations
    row = found.filter(trial=trial, evaluation="novels").row(0, named=True)
    kept = np.array([2.25, 2.45]) + 0.5 * (measured().best_evaluations["width"][0] == 16)
    assert row["loss"] == pytest.approx((kept.sum() + 5.5) / 3)


def test_every_cell_is_there_and_the_best_are_among_them() -> None:
    every, best = measured().cell_evaluations, measured().best_evaluations
    assert every.height == 8 * 2 and best.height == 4 * 2
    names = ["trial", "evaluation", "n", "diverged", "loss", "loss_low", "ppl", "ppl_high"]
    joined = best.select(names).join(every.select(names), on=names)
    assert joined.height == best.height


def test_further_figures_are_no_sets_and_words_have_a_perplexity_of_their_own() -> None:
    figures = {"loss": 2.0, "word_ppl": math.exp(2.0 * 4.5), "bpb": 2.8, "chance": 5.5}
    study = lr_study(space=SIZED, replicates=3)
    rows = [
        replace(row, status="completed", evaluations={"wiki": figures, "last": {"loss": 20.0,
                "accuracy": 0.5, "chance": 30.0}})
        for row in invent(study, with_curves=False)[0]
    ]  # fmt: skip
    frame = outcomes_frame(rows)
    assert evaluation_sets(frame) == ("validation", "last", "wiki")
    assert with_words(frame) == {"wiki"}
    found = Analysis(study, frame).cell_evaluations
    wiki = found.filter(evaluation="wiki").row(0, named=True)
    assert wiki["ppl"] == pytest.approx(math.exp(2.0))
    assert wiki["word_ppl"] == pytest.approx(math.exp(9.0))
    last = found.filter(evaluation="last").row(0, named=True)
    assert last["ppl"] == pytest.approx(math.exp(20.0)) and last["word_ppl"] is None
    sets = {"last": {"kind": "lambada", "paths": ["a"]}, "wiki": {"kind": "text", "paths": ["a"]}}
    named = lr_study(space=SIZED, evaluation={"sets": sets})
    assert [set_unit(named, name) for name in ("last", "wiki", "validation")] == [
        "word", "token", "token"
    ]  # fmt: skip


def test_a_set_on_which_a_completed_run_was_not_evaluated_has_no_figure() -> None:
    trial = int(measured().best_evaluations["trial"][0])
    part = measured(**{f"t{trial}s1": {"evaluations": {}}}).best_evaluations.filter(trial=trial)
    assert part.filter(evaluation="novels")["ppl"].to_list() == [None]
    assert part.filter(evaluation="validation")["ppl"][0] > 1


def test_step_time_is_the_ratio_of_medians_seed_by_seed() -> None:
    frame = pl.DataFrame(
        {
            "trial": [0, 1, 1, 2, 2, 3, 3, 4, 4, 1],
            "seed": [0, *[0, 1] * 4, 2],
            "status": ["completed"] * 8 + ["diverged", "completed"],
            "steps_trained": [100] * 8 + [1, 100],
            "seconds": [500.0, 10.0, 20.0, 14.0, 24.0, 15.0, 33.0, 15.0, 999.0, 50.0],
            "worker": ["w0"] * 9 + ["w1"],
        }
    )
    # Seed 0: the median of 0.15 and 0.15 over that of 0.10 and 0.14; seed 1: 0.33 over 0.22.
    found = relative_step_time(frame, [3, 4], [1, 2])
    assert found is not None
    value, spread = found
    assert value == pytest.approx((0.15 / 0.12 + 0.33 / 0.22) / 2)
    theirs = stats.ttest_1samp([0.15 / 0.12, 0.33 / 0.22], 0).confidence_interval(0.95)
    assert spread is not None and spread.high == pytest.approx(theirs.high)
    assert theirs.low < 0 == spread.low
    assert relative_step_time(frame.filter(status="failed"), [3], [1]) is None
    # The first run of a worker loads kernels: of trial 0, and of seed 2, there is no other.
    assert relative_step_time(frame, [0], [1]) is None
    extra = [{**frame.row(9, named=True), "trial": trial} for trial in (1, 2)]
    later = pl.concat([frame, pl.DataFrame(extra)])
    counted = relative_step_time(later, [2], [1])
    assert counted is not None and counted[0] == pytest.approx((1.4 + 1.2 + 1.0) / 3)


@pytest.mark.parametrize(
    ("slots", "lived", "alone"), [(1, 3.0 * 24, True), (4, 3.0 * 24, False), (1, 40.0, False)]
)
def test_a_step_time_is_known_only_of_runs_one_at_a_time(
    tmp_path: Path, slots: int, lived: float, alone: bool
) -> None:
    study = lr_study(space=SIZED, replicates=3)
    outcomes, _ = invent(study, with_curves=False)
    assert sum(row.seconds for row in outcomes) == 3.0 * 24
    directory = write_study(tmp_path, study, outcomes, {})
    assert not Analysis.read(directory).one_at_a_time, "nothing is known of its workers"
    write_beat(directory, beat=Beat(worker="w0", pid=1, host="box", slot_count=slots))
    write_spent(directory, worker="w0", spent=Spent(device_seconds=lived))
    assert Analysis.read(directory).one_at_a_time is alone
