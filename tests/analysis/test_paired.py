import itertools
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study, run_of
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.intervals import bootstrap_mean
from wesar_sweep.analysis.paired import paired_difference, paired_spikes
from wesar_sweep.analysis.verdict import ties_words
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.reports.tables import best_cells_table, csv_frame
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
    assert (found.n, found.n_pairs, found.n_words) == (3, 24, "3 seeds, 24 pairs")
    a, b = (
        analysis.seed_points.filter(pl.col("series") == name).sort("lr", "seed")["capped_loss"]
        for name in ("small", "he")
    )
    assert found.pairs["difference"].to_list() == pytest.approx((b - a).to_list())
    assert found.mean == pytest.approx(float((b - a).mean()))  # type: ignore[arg-type]
    # The 24 pairs are of 3 seeds: no interval, and 3 signs.
    assert found.low is None
    by_seed = found.pairs.group_by("seed").agg(pl.col("difference").mean())["difference"]
    signs = int((by_seed > 0).sum())
    assert found.sign_test_p == pytest.approx(stats.binomtest(signs, 3).pvalue)


def test_few_pairs_have_a_sign_test_and_no_interval(analysis: Analysis) -> None:
    best = analysis.best_cells["trial"].to_list()
    found = analysis.best_difference(best[0], best[1])
    assert (found.n, found.low) == (3, None)
    assert found.sign_test_p == pytest.approx(0.25)


def test_no_common_seed_gives_no_figure(analysis: Analysis) -> None:
    found = analysis.paired_difference("small", "absent")
    assert (found.n, found.mean, found.sign_test_p) == (0, None, None)


def test_ties_against_a_paired_t_test(analysis: Analysis) -> None:
    best, tied = analysis.ties.best, analysis.ties.tied
    assert best == analysis.ranked["trial"][0]
    cells = {row["trial"]: row for row in analysis.cells.iter_rows(named=True)}
    for trial, cell in cells.items():
        if trial == best:
            assert trial not in tied
            continue
        p = stats.ttest_rel(cell["losses"], cells[best]["losses"]).pvalue
        assert (trial in tied) == (p >= 0.05 and cell["diverged"] == 0), trial
    assert tied
    # Three seeds are enough for the word to be written.
    assert analysis.ties.marked == tied


def test_where_everything_diverged_nothing_is_best() -> None:
    study = lr_study(space={"method": "he", "lr": [10.0, 30.0]})
    outcomes, _ = invent(study, with_curves=False)
    found = Analysis(study, outcomes_frame(outcomes))
    assert (found.ties.best, found.ties.tied) == (None, frozenset())
    assert found.verdict.best == "Every run diverged (6 of 6): no setting works."


def test_a_loss_that_is_nan_spikes_as_one_that_is_infinite() -> None:
    outcomes, curves = planted(7)
    for trial, value in ((1, np.nan), (2, np.inf)):
        loss = np.asarray(curves[trial, 0].loss, dtype=np.float64)
        loss[250:] = value
        curves[trial, 0] = flat(loss)
    found = paired_spikes(outcomes, curves, study=lr_study())
    assert found["spikes"].to_list() == [2, 2, 2, 1, 1, 1, 1]
    assert found["paired_spikes"].to_list() == [1, 1, 1, 0, 0, 0, 0]


PLACES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
ALONG_LR = Axes(axis="lr", series=("method",), scattered=(), gridded=True, axis_values=PLACES)


def two_series(loss_b: np.ndarray, batch_b: int = 8) -> pl.DataFrame:
    """Cells of series a, whose losses are all 0, and of series b: [lr, seed] its losses."""
    rows: list[tuple[object, ...]] = []
    for series, loss_Ln, batch in (("a", loss_b * 0, 8), ("b", loss_b, batch_b)):
        for lr, losses in zip(PLACES, loss_Ln.tolist(), strict=False):
            seeds = list(range(len(losses)))
            rows.append((len(rows), series, len(seeds), lr, batch, 64, seeds, losses))
    names = ["trial", "series", "n", "lr", "batch", "context", "seeds", "losses"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_the_interval_covers_where_pairs_of_a_seed_are_alike() -> None:
    # The truth is 0. A seed shifts all its 8 pairs alike, as a batch or an initial draw does.
    rng = np.random.default_rng(7)
    trials, controls, by_seed, by_pair = 200, 40, 0, 0
    for trial in range(trials):
        loss_Ln = rng.standard_normal((1, 8)) + 0.3 * rng.standard_normal((8, 8))
        found = paired_difference(two_series(loss_Ln), "a", "b", layout=ALONG_LR)
        assert found.low is not None and found.high is not None
        by_seed += found.low <= 0 <= found.high
        # The control: pairs resampled as if each were independent of its seed.
        if trial < controls:
            old = bootstrap_mean(loss_Ln.ravel())
            assert old is not None
            by_pair += old.low <= 0 <= old.high
    # Two standard errors of a share of 0.95 over 200 trials are 0.03.
    assert 0.91 <= by_seed / trials <= 0.985
    assert by_pair / controls < 0.75


def test_the_interval_against_every_resample_written_out() -> None:
    loss_Ln = np.random.default_rng(3).standard_normal((8, 6))
    found = paired_difference(two_series(loss_Ln), "a", "b", layout=ALONG_LR)
    by_seed = [sum(column) / 8 for column in loss_Ln.T.tolist()]
    assert found.mean == pytest.approx(sum(by_seed) / 6)
    means = np.sort([sum(draw) / 6 for draw in itertools.product(by_seed, repeat=6)])
    # Hesterberg's expanded tail, of 6^6 resamples of equal weight.
    left_out = int(len(means) * stats.norm.cdf(-math.sqrt(6 / 5) * stats.t.ppf(0.975, 5)))
    expected = means[left_out], means[-1 - left_out]
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


def test_every_two_series_at_their_best_against_numpy_and_scipy(analysis: Analysis) -> None:
    found = analysis.pairwise
    series = analysis.best_cells["series"].to_list()
    assert found.select("a", "b").rows() == list(itertools.combinations(series, 2))
    losses = dict(analysis.cells.select("trial", "losses").rows())
    for row in found.iter_rows(named=True):
        differences = np.subtract(losses[row["trial_b"]], losses[row["trial_a"]])
        assert row["n"] == 3 and row["differences"] == pytest.approx(differences.tolist())
        assert row["difference"] == pytest.approx(differences.mean())
        higher = int((differences > 0).sum())
        assert row["sign_test_p"] == pytest.approx(stats.binomtest(higher, 3).pvalue)
        assert row["difference_low"] is None, "three seeds are no bootstrap"
    (table,) = (one for one in tables(analysis) if one.name == "paired")
    assert len(table.table.rows) == found.height and "all differences are listed" in table.caption
    assert table.table.rows[0][3].count(",") == 2


def test_what_does_not_exist_is_named(analysis: Analysis) -> None:
    with pytest.raises(ValueError, match="this study has no trial 99"):
        analysis.best_difference(0, 99)
    with pytest.raises(ValueError, match=r"rate must be between 0 and 1, not 1\.5"):
        analysis.stability_boundary(rate=1.5)


def test_a_seed_has_one_sign_however_many_pairs_it_has() -> None:
    loss_Ln = np.tile(np.array([[0.1, 0.2, 0.3]]), (8, 1))
    found = paired_difference(two_series(loss_Ln), "a", "b", layout=ALONG_LR)
    assert (found.n, found.n_pairs, found.low) == (3, 24, None)
    assert found.sign_test_p == pytest.approx(0.25)


def test_runs_that_saw_other_batches_are_not_paired() -> None:
    found = paired_difference(two_series(np.ones((8, 3)), batch_b=16), "a", "b", layout=ALONG_LR)
    assert (found.n, found.n_pairs, found.refused, found.mean) == (0, 0, 24, None)
    alike = paired_difference(two_series(np.ones((8, 3))), "a", "b", layout=ALONG_LR)
    assert (alike.n_pairs, alike.refused) == (24, 0)


def of_losses(losses: list[list[float]], *, pruned: tuple[int, ...] = ()) -> Analysis:
    """A study whose cells have these losses, a seed each; cells of `pruned` lack one replicate."""
    replicates = max(map(len, losses)) + bool(pruned)
    lrs = [10.0**-place for place in range(1, 1 + len(losses))]
    study = lr_study(space={"method": "he", "lr": lrs}, replicates=replicates)
    outcomes = []
    for trial, (lr, cell) in enumerate(zip(lrs, losses, strict=True)):
        for seed, loss in enumerate(cell):
            outcome, _ = run_of(study, trial, seed, {"method": "he", "lr": lr}, status="completed")
            outcomes.append(replace(outcome, val_loss=loss))
        if trial in pruned:
            outcome, _ = run_of(
                study, trial, len(cell), {"method": "he", "lr": lr}, status="pruned"
            )
            outcomes.append(outcome)
    return Analysis(study, outcomes_frame(outcomes))


def marks_of(found: Analysis) -> list[str]:
    return [mark for mark in csv_frame(found)["mark"] if mark]


def test_one_seed_a_cell_tells_no_cells_apart() -> None:
    found = of_losses([[2.0], [2.1], [5.0]])
    assert found.verdict.best.endswith("One seed a cell: cells cannot be told apart from it.")
    assert marks_of(found) == ["best"]
    assert (found.ties.tied, found.ties.uncompared) == (frozenset(), {1, 2})
    assert ties_words(found.ties).startswith("No cell is marked as tied: cells with one seed")


def test_two_seeds_tie_almost_anything_and_the_verdict_says_so() -> None:
    found = of_losses([[2.25, 2.29], [3.1, 3.3], [5.00, 5.04]])
    # The definition stays: 1 nat worse by both seeds and yet tied, with one degree of freedom.
    assert found.ties.tied == {1}
    assert "With 2 seeds hardly any two cells can be told apart: 1 other cell is not told" in (
        found.verdict.best
    )
    assert marks_of(found) == ["best"]
    assert "with 2 seeds hardly any" in ties_words(found.ties)


def test_from_three_seeds_on_ties_are_marked() -> None:
    found = of_losses([[2.0, 2.1, 2.2], [2.1, 2.05, 2.2], [3.0, 3.1, 3.2]])
    assert found.verdict.best.endswith("1 other cell is tied with it.")
    assert marks_of(found) == ["best", "tied"]
    assert ties_words(found.ties) == "Tied cells cannot be told apart from it."


def test_a_cell_that_the_pruner_ended_is_not_ranked_as_a_whole_one() -> None:
    found = of_losses([[1.9, 1.9], [2.0, 2.1, 2.2], [2.0, 2.1, 2.3]], pruned=(0,))
    assert found.ranked["trial"].to_list() == [1, 2, 0]
    assert (found.ties.best, found.ties.cut_short) == (1, {0})
    assert 0 not in found.ties.tied
    assert "1 cell that the pruner ended early is ranked behind" in found.verdict.best
    assert best_cells_table(found).rows[-1][-1] == "1 pruned"


def test_where_only_pruned_cells_have_runs_the_verdict_says_so() -> None:
    found = of_losses([[1.9, 1.9], [2.0, 2.2]], pruned=(0, 1))
    assert found.ties.best == 0
    assert "The pruner ended this cell early (2 of 3 seeds finished)" in found.verdict.best


def test_the_best_is_a_cell_that_trained_even_where_a_lost_one_has_less_loss() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3, 1e-2]}, replicates=1)
    lost, _ = run_of(study, 0, 0, {"method": "he", "lr": 1e-3}, status="diverged")
    kept, _ = run_of(study, 1, 0, {"method": "he", "lr": 1e-2}, status="completed")
    rows = [replace(lost, val_loss=2.0), replace(kept, val_loss=3.0)]
    found = Analysis(study, outcomes_frame(rows))
    assert found.ties.best == 1
    assert found.verdict.best.startswith("Lowest loss: he at lr 1e-2")
    assert found.verdict.best.endswith("Cells whose every run diverged are left out.")


def uneven(difference: float = 1.0) -> pl.DataFrame:
    """Two series at 8 lr with 3 seeds, 12 at the last lr, which alone differs."""
    loss_Ln = np.zeros((8, 12))
    loss_Ln[-1] = difference
    cells = two_series(loss_Ln)
    few = [pl.col(name).list.head(3) for name in ("seeds", "losses")]
    at_last = pl.col("lr") == pl.col("lr").max()
    return cells.with_columns(
        *(
            pl.when(at_last).then(pl.col(name)).otherwise(one).alias(name)
            for name, one in zip(("seeds", "losses"), few, strict=True)
        )
    )


def test_places_with_more_seeds_weigh_no_more() -> None:
    found = paired_difference(uneven(), "a", "b", layout=ALONG_LR)
    # Each of the nine later seeds would say 1.0.
    assert found.mean == pytest.approx(1 / 8)
    assert (found.n, found.n_pairs, found.low) == (3, 24, None)


def test_sampled_values_have_no_place_in_common() -> None:
    found = paired_difference(uneven(), "a", "b", layout=replace(ALONG_LR, gridded=False))
    assert (found.n, found.mean, found.sign_test_p) == (0, None, None)
