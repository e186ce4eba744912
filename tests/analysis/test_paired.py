import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.paired import paired_spikes
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Curve


def flat(loss: np.ndarray) -> Curve:
    none = np.zeros(0)
    return Curve(
        loss=loss.astype(np.float32),
        grad_norm=np.ones(len(loss), dtype=np.float32),
        eval_step=none.astype(np.int64),
        eval_loss=none.astype(np.float32),
        probe_step=none.astype(np.int64),
    )


def planted(runs: int) -> tuple[pl.DataFrame, dict[tuple[int, int], Curve]]:
    """Runs of one seed: a hard batch at 120 in all of them, an instability of run 0 at 200."""
    lrs = np.logspace(-3, -2, runs).round(5).tolist()
    study = lr_study(space={"method": "he", "lr": lrs}, replicates=1)
    outcomes, _ = invent(study, with_curves=False)
    rng = np.random.default_rng(0)
    curves = {}
    for trial in range(runs):
        loss = 2 + 0.02 * rng.standard_normal(300)
        loss[120] += 2.0
        if trial == 0:
            loss[200:203] += 1.5
        curves[trial, 0] = flat(loss)
    return outcomes_frame(outcomes), curves


def test_paired_spikes_find_the_instability_and_not_the_hard_batch() -> None:
    outcomes, curves = planted(6)
    found = paired_spikes(outcomes, curves, study=lr_study())
    assert found["spikes"].to_list() == [2, 1, 1, 1, 1, 1]
    assert found["paired_spikes"].to_list() == [1, 0, 0, 0, 0, 0]
    assert found["group_runs"].to_list() == [6] * 6


def test_with_too_few_runs_only_raw_spikes_are_given() -> None:
    outcomes, curves = planted(4)
    found = paired_spikes(outcomes, curves, study=lr_study())
    assert found["paired_spikes"].to_list() == [None] * 4
    assert found["spikes"].to_list() == [2, 1, 1, 1]


def test_other_seeds_and_other_batches_are_not_compared() -> None:
    outcomes, curves = planted(6)
    apart = outcomes.with_columns(batch=pl.col("batch") + (pl.col("trial") < 3).cast(pl.Int64))
    found = paired_spikes(apart, curves, study=lr_study())
    assert found["group_runs"].to_list() == [3] * 6
    assert found["paired_spikes"].null_count() == 6


def test_runs_without_a_curve_are_left_out() -> None:
    outcomes, curves = planted(6)
    del curves[5, 0]
    assert paired_spikes(outcomes, curves, study=lr_study())["trial"].to_list() == [0, 1, 2, 3, 4]
    assert paired_spikes(outcomes, {}, study=lr_study()).is_empty()


def test_difference_pairs_by_seed_and_place(analysis: Analysis) -> None:
    found = analysis.paired_difference("small", "he")
    assert found.n == 24
    a, b = (
        analysis.seed_points.filter(pl.col("series") == name).sort("lr", "seed")["capped_loss"]
        for name in ("small", "he")
    )
    assert found.pairs["difference"].to_list() == pytest.approx((b - a).to_list())
    assert found.mean == pytest.approx(float((b - a).mean()))  # type: ignore[arg-type]
    assert found.low is not None and found.low < found.mean < found.high  # type: ignore[operator]
    signs = int((b - a > 0).sum())
    assert found.sign_test_p == pytest.approx(stats.binomtest(signs, 24).pvalue)


def test_few_pairs_have_a_sign_test_and_no_interval(analysis: Analysis) -> None:
    best = analysis.best_cells["trial"].to_list()
    found = analysis.best_difference(best[0], best[1])
    assert (found.n, found.low) == (3, None)
    assert found.sign_test_p == pytest.approx(0.25)


def test_no_common_seed_gives_no_figure(analysis: Analysis) -> None:
    found = analysis.paired_difference("small", "absent")
    assert (found.n, found.mean, found.sign_test_p) == (0, None, None)


def test_ties_against_a_paired_t_test(analysis: Analysis) -> None:
    best, tied = analysis.best_and_tied
    assert best == analysis.ranked["trial"][0]
    cells = {row["trial"]: row for row in analysis.cells.iter_rows(named=True)}
    for trial, cell in cells.items():
        if trial == best:
            assert trial not in tied
            continue
        p = stats.ttest_rel(cell["losses"], cells[best]["losses"]).pvalue
        assert (trial in tied) == (p >= 0.05 and cell["diverged"] == 0), trial
    assert tied


def test_where_everything_diverged_nothing_is_best() -> None:
    study = lr_study(space={"method": "he", "lr": [10.0, 30.0]})
    outcomes, _ = invent(study, with_curves=False)
    found = Analysis(study, outcomes_frame(outcomes))
    assert found.best_and_tied == (None, frozenset())
    assert found.verdict.best == "Every run diverged (6 of 6): no setting works."
