import math

import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study, run_of
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cells import bytes_per_token, chance_loss, one_cell_a_place
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Outcome

STUDY = lr_study(space={"method": "he", "lr": [1e-3, 1e-2]}, replicates=5)


def one_cell(rows: list[dict[str, object]], study: Study = STUDY) -> dict[str, object]:
    """The figures of one cell whose runs are these."""
    outcomes = []
    for seed, changes in enumerate(rows):
        outcome, _ = run_of(study, 0, seed, {"method": "he", "lr": 1e-3}, with_curve=False)
        base = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
        outcomes.append(Outcome(**{**base, **changes}))
    return Analysis(study, outcomes_frame(outcomes)).cells.row(0, named=True)


def run(status: str, val: float | None, init: float | None = 5.0) -> dict[str, object]:
    bpb = None if val is None else val / math.log(2)
    return {"status": status, "val_loss": val, "init_loss": init, "val_bpb": bpb}


def test_a_cell_worked_by_hand_keeps_its_diverged_runs() -> None:
    cell = one_cell(
        [
            run("completed", 1.0),
            run("diverged", math.nan),
            run("diverged", None, init=4.0),
            run("diverged", 9.0, init=4.5),
            run("diverged", 2.0),
        ]
    )
    # Caps: 1.0, then the initial losses 5.0, 4.0 and 4.5, then 2.0 (finite and below its own).
    assert cell["losses"] == [1.0, 5.0, 4.0, 4.5, 2.0]
    assert cell["loss"] == pytest.approx(3.3)
    assert cell["ppl"] == pytest.approx(math.exp(3.3))
    assert cell["bpb"] == pytest.approx(3.3 / math.log(2))
    assert (cell["n"], cell["diverged"], cell["rate"]) == (5, 4, 0.8)
    assert (cell["survivors"], cell["survivors_loss"]) == (1, 1.0)
    # The control: the mean over survivors alone would have said 1.0.
    assert cell["loss"] != cell["survivors_loss"]


def test_the_interval_is_students_within_what_a_capped_loss_can_be() -> None:
    cell = one_cell([run("completed", loss) for loss in (1.0, 1.2, 1.1, 1.5)])
    theirs = stats.ttest_1samp([1.0, 1.2, 1.1, 1.5], 0).confidence_interval(0.95)
    assert (cell["loss_low"], cell["loss_high"]) == pytest.approx((theirs.low, theirs.high))
    mixed = one_cell([run("completed", 1.0), run("completed", 1.1), run("diverged", None)])
    # Student's alone would reach from -3.2 to 7.9 nats.
    assert (mixed["loss_low"], mixed["loss_high"], mixed["ppl_low"]) == (0.0, 5.0, 1.0)


def test_infinite_losses_count_as_the_initial_one() -> None:
    assert one_cell([run("completed", math.inf)])["losses"] == [5.0]
    assert one_cell([run("completed", -math.inf)])["losses"] == [5.0]


@pytest.mark.parametrize("init", [math.nan, math.inf, None])
def test_without_an_initial_loss_a_uniform_guess_stands_in(init: float | None) -> None:
    assert one_cell([run("diverged", math.nan, init=init)])["losses"] == [chance_loss(STUDY)]
    assert chance_loss(STUDY) == pytest.approx(math.log(256))


def test_pruned_and_failed_runs_are_counted_and_in_no_figure() -> None:
    alone = one_cell([run("completed", 1.0)])
    cell = one_cell([run("completed", 1.0), run("pruned", 4.0), run("failed", None, init=None)])
    assert (cell["n"], cell["pruned"], cell["failed"]) == (1, 1, 1)
    assert cell["loss"] == alone["loss"]
    assert cell["rate_high"] == alone["rate_high"]


def test_one_seed_has_no_interval() -> None:
    cell = one_cell([run("completed", 1.0)])
    assert (cell["loss_low"], cell["ppl_high"], cell["bpb_low"]) == (None, None, None)
    assert cell["rate_high"] == pytest.approx(0.7935, abs=1e-4)


def test_a_cell_of_failed_runs_has_no_figures() -> None:
    cell = one_cell([run("failed", None, init=None)] * 2)
    assert (cell["n"], cell["loss"], cell["rate"], cell["ppl"]) == (0, None, None, None)


def test_bytes_a_token_come_from_the_runs() -> None:
    frame = outcomes_frame([])
    assert bytes_per_token(frame) == 1.0
    rows = [{**run("completed", 3.0), "val_bpb": 3.0 / (math.log(2) * 4.2)}]
    assert one_cell(rows)["bpb"] == pytest.approx(3.0 / (math.log(2) * 4.2))


def test_every_cell_is_its_trial_even_where_two_have_one_lr() -> None:
    cell = {"method": "he", "lr": 1e-3}
    outcomes, _ = invent(STUDY, [cell, cell], with_curves=False)
    found = Analysis(STUDY, outcomes_frame(outcomes))
    assert found.cells["trial"].to_list() == [0, 1]
    placed = one_cell_a_place(found.cells, layout=found.layout)
    assert placed["trial"].to_list() == [0]


def test_places_are_found_for_an_lr_with_rounding_noise() -> None:
    # 0.1 * 3 is not 0.3: joining on the float would lose the cell.
    study = lr_study(space={"method": "he", "lr": [0.1, 0.3]})
    outcomes, _ = invent(study, [{"method": "he", "lr": 0.1 * 3}], with_curves=False)
    found = Analysis(study, outcomes_frame(outcomes))
    assert found.cells.filter(pl.col("lr") == 0.3).is_empty()
    assert one_cell_a_place(found.cells, layout=found.layout)["place"].to_list() == [1]


def test_means_agree_with_numpy_over_a_whole_study(analysis: Analysis) -> None:
    for cell in analysis.cells.iter_rows(named=True):
        runs = analysis.outcomes.filter(pl.col("trial") == cell["trial"])
        val = np.array(runs["val_loss"].fill_null(np.nan), dtype=float)
        init = runs["init_loss"].to_numpy()
        assert cell["loss"] == pytest.approx(
            np.where(np.isfinite(val), np.minimum(val, init), init).mean()
        )
    assert analysis.cells["diverged"].sum() > 5


def test_an_empty_study_has_typed_frames(analysis: Analysis) -> None:
    empty = Analysis(analysis.study, outcomes_frame([]))
    assert empty.cells.schema == analysis.cells.schema
    for name in ("basin_width", "largest_stable_lr", "lr_sensitivity"):
        assert getattr(empty, name)().schema == getattr(analysis, name)().schema
        assert getattr(empty, name)().is_empty()
    assert empty.lr_curves.schema == analysis.lr_curves.schema
    assert empty.verdict.best == "No run has ended yet."
