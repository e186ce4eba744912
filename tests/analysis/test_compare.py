from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from invented_study import LRS, invent, lr_study
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.compare import Comparison, compare_cells
from wesar_sweep.analysis.differing import differing_settings
from wesar_sweep.config.data import FileTokenizer, TextData
from wesar_sweep.config.load import deciding
from wesar_sweep.config.study import Study
from wesar_sweep.reports.comparison import sentences
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Outcome

SAME = {
    "corpus": {"sha256": "ab"},
    "project": {"commit": "1"},
    "workers": {"w0": {"device": "cpu"}},
}


def study_of(rows: list[Outcome], study: Study) -> Analysis:
    return Analysis(study, outcomes_frame(rows))


def compared(
    a: list[Outcome],
    b: list[Outcome],
    *,
    study_a: Study,
    study_b: Study | None = None,
    facts_b: dict[str, Any] = SAME,
) -> Comparison:
    of_a, of_b = study_of(a, study_a), study_of(b, study_b or study_a)
    return Comparison(of_a, of_b, SAME, facts_b)


@pytest.fixture(scope="module")
def pair() -> Comparison:
    """The invented study beside itself with all losses of `he` 0.1 nats higher at other lr bits."""
    study = lr_study(replicates=4)
    rows, _ = invent(study, with_curves=False)
    bits = {0.1: 0.1 + 1e-16 * 2, 0.3: 0.1 * 3}
    other = [
        replace(
            row,
            hyperparameters=row.hyperparameters
            | {"lr": bits.get(row.hyperparameters["lr"], row.hyperparameters["lr"])},
            val_loss=row.val_loss + 0.1 + 1e-4 * row.seed
            if row.hyperparameters["method"] == "he" and row.val_loss is not None
            else row.val_loss,
        )
        for row in rows
    ]
    return compared(rows, other, study_a=study)


def test_cells_are_matched_by_their_knobs_and_never_by_bits(pair: Comparison) -> None:
    assert pair.knobs == ("method", "sigma2", "lr")
    assert pair.cells.height == 32
    assert pair.only_a.is_empty() and pair.only_b.is_empty()
    assert (pair.cells["trial_a"] == pair.cells["trial_b"]).all()
    lrs = {lr for lr in pair.b.cells["lr"].to_list()}
    assert 0.1 * 3 in lrs and 0.3 not in lrs


def test_the_planted_difference_is_found_and_nothing_else(pair: Comparison) -> None:
    trained = pair.cells.filter(pl.col("diverged_a") == 0)
    he = trained.filter(pl.col("method") == "he")
    assert he.height > 4
    assert pair.different["setting"].sort().to_list() == he["setting"].sort().to_list()
    assert he["difference"].to_list() == pytest.approx([0.10015] * he.height)
    others = trained.filter(pl.col("method") != "he")
    assert (others["equal_pairs"] == others["pairs"]).all()
    for row in he.head(2).iter_rows(named=True):
        losses = [
            side.cells.filter(pl.col("trial") == row["trial_a"])["losses"][0].to_numpy()
            for side in (pair.a, pair.b)
        ]
        assert row["p"] == pytest.approx(stats.ttest_rel(losses[1], losses[0]).pvalue)


def test_where_runs_diverged_the_counts_are_tested(pair: Comparison) -> None:
    lost = pair.cells.filter(pl.col("diverged_a") > 0)
    assert lost.height > 4 and set(lost["test"]) == {"Fisher"}
    assert lost["low"].null_count() == lost.height
    # Diverged runs stay in the means and in the counts.
    assert pair.overall.diverged_a == int(pair.a.cells["diverged"].sum()) > 0
    assert pair.overall.runs_a == 128


def test_the_mean_over_cells_is_tested_over_seeds(pair: Comparison) -> None:
    trained = pair.cells.filter(pl.col("diverged_a") == 0)
    share = trained.filter(pl.col("method") == "he").height / trained.height
    found = pair.overall
    assert found.trained is not None and found.trained_cells == trained.height
    by_seed = share * (0.1 + 1e-4 * np.arange(4))
    assert found.trained.mean == pytest.approx(by_seed.mean())
    assert found.trained.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)


def test_other_text_batch_or_seeds_are_not_paired() -> None:
    study = lr_study(space={"method": ["he", "small"], "lr": [1e-3, 3e-3]})
    rows, _ = invent(study, with_curves=False)
    assert compared(rows, rows, study_a=study).cells["pairs"].to_list() == [3] * 4
    other_text = compared(rows, rows, study_a=study, facts_b={"corpus": {"sha256": "cd"}})
    assert other_text.same_corpus is False
    unknown = compared(rows, rows, study_a=study, facts_b={})
    assert unknown.same_corpus is None
    batch = [replace(r, hyperparameters=r.hyperparameters | {"batch": 16}) for r in rows]
    seeds = [replace(r, seed=r.seed + 10) for r in rows]
    for found in (
        other_text,
        unknown,
        compared(rows, batch, study_a=study, study_b=lr_study(training={"batch": 16})),
        compared(rows, seeds, study_a=study),
    ):
        assert found.cells["pairs"].null_count() == 4 and not found.paired
        assert set(found.cells["test"]) == {"Welch"}
        assert found.overall.sign_test_p is None
        assert found.overall.trained is not None and found.overall.trained.p > 0.05


def test_what_only_one_has_is_listed_and_a_partial_study_compares() -> None:
    study = lr_study(space={"method": "he", "lr": LRS[:4]})
    rows, _ = invent(study, with_curves=False)
    found = compared(rows, [row for row in rows if row.trial in (1, 2)][:4], study_a=study)
    assert found.only_a["trial"].to_list() == [0, 3] and found.only_b.is_empty()
    # One seed in common tells nothing, and says so by having no test.
    assert found.cells.select("pairs", "test").rows() == [(3, "paired t"), (None, None)]
    assert found.cells["difference"].null_count() == 0
    assert found.b.completeness.partial


def test_pruned_cells_are_shown_and_not_tested() -> None:
    study = lr_study(space={"method": "he", "lr": LRS[:2]})
    rows, _ = invent(study, with_curves=False)
    cut = [replace(r, status="pruned") if (r.trial, r.seed) == (0, 2) else r for r in rows]
    found = compared(rows, cut, study_a=study)
    assert found.cells["test"].to_list() == [None, "paired t"]
    assert found.cells["pruned_b"].to_list() == [1, 0]


def test_a_setting_that_both_fix_may_differ_and_one_that_is_searched_matches() -> None:
    long = lr_study(space={"method": ["he", "small"], "lr": LRS[:2]}, training={"warmup": 40})
    short = lr_study(space={"lr": LRS[:2]}, method="he", replicates=2)
    rows = [invent(study, with_curves=False)[0] for study in (long, short)]
    found = compared(*rows, study_a=long, study_b=short, facts_b=SAME | {"python": "3.12"})
    assert found.cells["method"].to_list() == ["he", "he"]
    assert set(found.only_a["method"]) == {"small"}
    differing = {one.key: (one.a, one.b, one.effect) for one in found.settings}
    assert differing["training.warmup"] == ("40", "20", "the training")
    assert differing["replicates"] == ("3", "2", "which seeds")
    assert "title" not in differing
    assert [(one.key, one.a, one.b) for one in found.provenance] == [("python", "–", "3.12")]


def test_verdicts_that_change_are_told_from_those_that_seeds_do_not_tell_apart() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3, 3e-3, 1e-2]}, replicates=6)
    rows, _ = invent(study, with_curves=False)

    def with_losses(*loss_n: np.ndarray) -> list[Outcome]:
        return [
            replace(r, status="completed", val_loss=float(loss_n[r.trial][r.seed])) for r in rows
        ]

    flat_n, wild_n = np.linspace(0, 1e-3, 6), np.tile([-0.1, 0.1], 3)
    clear = compared(
        with_losses(1 + flat_n, 1.5 + flat_n, 2 + flat_n[::-1]),
        with_losses(2 + flat_n[::-1], 1.5 + flat_n, 1 + flat_n),
        study_a=study,
    )
    best = clear.verdicts[0]
    assert best.changed and best.words == "changed; in A they differ; in B they differ"
    assert clear.different["setting"].to_list() == ["lr 1e-3", "lr 1e-2"]
    near = compared(
        with_losses(1 + flat_n, 1.01 + wild_n, 2 + flat_n),
        with_losses(1 + flat_n, 0.99 + wild_n, 2 + flat_n),
        study_a=study,
    )
    assert near.verdicts[0].words == "changed; in A the two are tied; in B the two are tied"
    assert not compared(rows, rows, study_a=study).verdicts[0].changed


def test_basins_differ_only_where_enough_seeds_say_so() -> None:
    wide, narrow = ({"space": {"method": "he", "lr": LRS}, "replicates": n} for n in (6, 3))
    for raw, expected in ((wide, True), (narrow, None)):
        study = lr_study(**raw)
        rows, _ = invent(study, with_curves=False)
        curved = [
            replace(r, val_loss=r.val_loss + 0.3 * abs(np.log10(r.hyperparameters["lr"]) + 2.5))
            if r.status == "completed" and r.val_loss is not None
            else r
            for r in rows
        ]
        found = compared(rows, curved, study_a=study).series.row(0, named=True)
        assert found["width_b"] < found["width_a"]
        assert found["basins_differ"] is expected
    same = compared(rows, rows, study_a=study)
    assert not same.series["basins_differ"].any()


def minimal(losses_Ln: np.ndarray, lost_Ln: np.ndarray) -> pl.DataFrame:
    """Cells [lr, seed] with what `compare_cells` reads."""
    n = losses_Ln.shape[1]
    rows = [
        (
            *(trial, "he", 1e-4 * 2.0**trial, 8, 64, n, int(lost.sum()), 0, float(losses.mean())),
            *(list(range(n)), losses.tolist(), np.flatnonzero(lost).tolist()),
        )
        for trial, (losses, lost) in enumerate(zip(losses_Ln, lost_Ln, strict=True))
    ]
    names = ["trial", "method", "lr", "batch", "context", "n", "diverged", "pruned", "loss"]
    names += ["seeds", "losses", "diverged_seeds"]
    return pl.DataFrame(rows, schema=names, orient="row")


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("paired", [True, False])
def test_two_studies_of_one_truth_rarely_raise_an_alarm(seeds: int, paired: bool) -> None:
    # 12 cells; in half of them runs diverge at rates up to a half, elsewhere the noise has heavy
    # tails; what a seed's batches do to a run is common to both studies where these are paired.
    rng = np.random.default_rng(seeds + 100 * paired)
    rates_L = np.concatenate([np.zeros(6), np.linspace(0.02, 0.5, 6)])
    studies, alarms, naive = 250, 0, 0
    for _ in range(studies):
        common_n = rng.standard_normal(seeds)
        sides = []
        for _ in range(2):
            hard_n = common_n if paired else rng.standard_normal(seeds)
            lost_Ln = rng.random((12, seeds)) < rates_L[:, None]
            noise_Ln = rng.standard_t(4, size=(12, seeds))
            losses_Ln = 2 + 0.02 * hard_n + 0.02 * noise_Ln
            sides.append(minimal(np.where(lost_Ln, 5.5, losses_Ln), lost_Ln))
        cells, _, _ = compare_cells(*sides, knobs=("lr",), same_corpus=paired)
        alarms += bool(cells["differs"].any())
        naive += bool((cells["p"] <= 0.05).any())
    # At most 5 %, and two standard errors of a share of 0.05 over 250 studies.
    assert alarms / studies <= 0.05 + 0.028
    # The control: without the adjustment most pairs of studies would cry wolf now and then.
    assert naive / studies > 0.15


def test_control_a_t_test_of_mixtures_would_cry_wolf() -> None:
    # Why diverged cells are tested by their counts: at a rate of a half, three seeds of each.
    rng = np.random.default_rng(3)
    lost = rng.random((400, 2, 3)) < 0.5
    losses = np.where(lost, 5.5, 2 + 0.001 * rng.standard_normal(lost.shape))
    p = stats.ttest_rel(losses[:, 1], losses[:, 0], axis=1).pvalue
    # 12 such cells: a p below 0.05 / 12 comes up far more often than its nominal 5 % a study.
    assert (p.reshape(-1, 10) < 0.05 / 12).any(axis=1).mean() > 0.1


def one_lr(lost: set[int], *, seeds: int) -> list[Outcome]:
    """Runs of one cell, equal in both studies but for the seeds that are lost."""
    study = lr_study(space={"method": "he", "lr": [1e-3]}, replicates=seeds)
    rows, _ = invent(study, with_curves=False)
    return [
        replace(r, status="diverged", val_loss=None)
        if r.seed in lost
        else replace(r, status="completed", val_loss=1.0 + 0.01 * r.seed)
        for r in rows
    ]


def test_diverged_runs_of_seeds_that_only_one_study_has_are_in_the_difference() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3]}, replicates=3)
    few, many = one_lr(set(), seeds=3), one_lr(set(range(3, 12)), seeds=12)
    found = compared(few, many, study_a=study, study_b=lr_study(
        space={"method": "he", "lr": [1e-3]}, replicates=12
    ))  # fmt: skip
    row = found.cells.row(0, named=True)
    assert (row["n_a"], row["n_b"], row["diverged_b"], row["pairs"]) == (3, 12, 9, None)
    assert row["difference"] == pytest.approx(row["loss_b"] - row["loss_a"])
    assert row["difference"] > 1 and not found.overall.identical
    assert "last bit" not in " ".join(sentences(found))
    # The control: pairs that hold every diverged run stay pairs.
    same = compared(one_lr({1}, seeds=3), one_lr({2}, seeds=3), study_a=study)
    assert same.cells["pairs"].to_list() == [3]


def test_equal_pairs_are_all_the_same_only_where_all_runs_are_paired() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3]}, replicates=3)
    rows = one_lr(set(), seeds=3)
    assert compared(rows, rows, study_a=study).overall.identical
    more = compared(rows, one_lr(set(), seeds=4), study_a=study)
    assert more.cells["pairs"].to_list() == [3] and not more.overall.identical
    assert "All " not in " ".join(sentences(more))
    # Of a cell with one other seed the others are told, too.
    one = [replace(row, val_loss=1.5) if row.seed == 1 else row for row in rows]
    assert "2 of 3 pairs are equal to the last bit" in " ".join(
        sentences(compared(rows, one, study_a=study))
    )


def test_a_value_tried_twice_with_new_seeds_loses_no_run() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3]}, replicates=3)
    rows = one_lr(set(), seeds=3)
    again = [replace(r, trial=1, seed=r.seed + 3, status="diverged", val_loss=None) for r in rows]
    found = compared([*rows, *again], rows, study_a=study)
    row = found.cells.row(0, named=True)
    assert (found.cells.height, row["n_a"], row["diverged_a"], row["n_b"]) == (1, 6, 3, 3)
    losses = [loss for cell in found.a.cells["losses"] for loss in cell]
    assert row["loss_a"] == pytest.approx(np.mean(losses))
    assert (found.overall.runs_a, found.overall.diverged_a) == (6, 3)
    assert found.only_a.is_empty()
    # The control: a setting that was asked for again with the same seeds gives the same runs.
    same = [replace(r, trial=1) for r in rows]
    assert compared([*rows, *same], rows, study_a=study).cells["n_a"].to_list() == [3]


def test_cells_with_more_seeds_weigh_no_more_over_all_cells() -> None:
    study = lr_study(space={"method": "he", "lr": LRS[:4]}, replicates=12)
    rows, _ = invent(study, with_curves=False)
    uneven = [
        replace(r, status="completed", val_loss=1.0 + 0.001 * r.seed)
        for r in rows
        if r.seed < 3 or r.trial == 3
    ]
    other = [replace(r, val_loss=r.val_loss + (r.trial == 3)) for r in uneven if r.val_loss]
    overall = compared(uneven, other, study_a=study).overall
    assert overall.trained is not None and overall.trained_seeds == 3
    # Each of the nine later seeds would say 1.0.
    assert overall.trained.mean == pytest.approx(1 / 4)


def test_a_cell_without_pairs_leaves_the_trained_ones_paired() -> None:
    study = lr_study(space={"method": "he", "lr": LRS[:2]}, replicates=4)
    rows, _ = invent(study, with_curves=False)
    whole = [replace(r, status="completed", val_loss=1.0 + 0.01 * r.seed) for r in rows]
    few = [r for r in whole if r.trial == 0 or r.seed < 3]
    lost = [
        replace(r, status="diverged", val_loss=None)
        if (r.trial, r.seed) == (1, 3)
        else replace(r, val_loss=1.1 + 0.011 * r.seed)
        for r in whole
    ]
    found = compared(few, lost, study_a=study)
    assert found.cells["pairs"].to_list() == [4, None]
    assert found.overall.trained_paired and found.overall.trained_seeds == 4
    assert "paired t over 4 seeds" in " ".join(sentences(found))
    assert found.overall.sign_test_p is None


def test_where_a_tokenizer_lies_is_no_difference() -> None:
    def lies(path: str, vocabulary: int = 300) -> dict[str, Any]:
        tokenizer = FileTokenizer(kind="file", path=path, vocabulary=vocabulary)
        data = TextData(source="text", paths=("corpus.txt",), tokenizer=tokenizer)
        return deciding(lr_study().model_copy(update={"data": data}))

    assert differing_settings(lies("a/tokenizer.json"), lies("b/tokenizer.json")) == ()
    (found,) = differing_settings(lies("a/tokenizer.json"), lies("a/tokenizer.json", 400))
    assert found.key == "data.tokenizer" and found.effect == "the text"
