import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from invented_study import invent, lr_study, planted_spikes
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.spike_statistics import (
    STATISTICS,
    olmo_2_window,
    spike_statistics,
    worst_spikes,
)
from wesar_sweep.stability.spike_score import olmo_2_spike_score
from wesar_sweep.store.frames import outcomes_frame


def planted(runs: int = 6) -> Analysis:
    study, outcomes, curves = planted_spikes(runs=runs)
    return Analysis(study, outcomes_frame(outcomes), curves)


def test_every_spike_is_a_row_with_its_place_and_height() -> None:
    events = planted().run_spikes.events
    raw = events.filter(kind="raw")
    assert raw.filter(start=120).select("trial", "seed").rows() == [(n, 0) for n in range(6)]
    own = raw.filter(pl.col("start") != 120).select("trial", "seed", "start").rows()
    assert own == [(0, 1, 200), (1, 0, 220), (2, 0, 250)]
    paired = events.filter(kind="paired")
    found = paired.select("trial", "seed", "start", "steps_to_recover").rows()
    assert found == [(0, 1, 200, 3), (1, 0, 220, 5), (2, 0, 250, None)]
    heights = paired["height"].to_list()
    assert heights[:2] == pytest.approx([1.5, 1.0], abs=0.1) and heights[2] == math.inf


def test_statistics_of_planted_spikes_by_hand() -> None:
    (row,) = planted().spike_statistics.to_dicts()
    curves = planted_spikes()[2]
    # Raw: 6 runs feel the hard batch, 3 are unstable. Seed 0 has 8 in 6 runs, seed 1 has 1.
    assert (row["raw_n"], row["raw_spikes"], row["raw_runs"]) == (12, 9, 7)
    assert row["raw_per_run"] == pytest.approx(9 / 12)
    spread = stats.ttest_1samp([8 / 6, 1 / 6], 0).confidence_interval(0.95)
    # Fewer than none there are not.
    assert (row["raw_per_run_low"], row["raw_per_run_high"]) == pytest.approx((0.0, spread.high))
    # A thousand steps: one run of seed 0 ended early, which makes its spikes the more frequent.
    steps = {seed: sum(len(c.loss) for (_, s), c in curves.items() if s == seed) for seed in (0, 1)}
    assert steps[0] < steps[1]
    rates = [8000 / steps[0], 1000 / steps[1]]
    assert row["raw_per_thousand"] == pytest.approx(sum(rates) / 2)
    limit = stats.ttest_1samp(rates, 0).confidence_interval(0.95).high
    assert row["raw_per_thousand_high"] == pytest.approx(limit)
    assert (row["paired_n"], row["paired_spikes"], row["paired_runs"]) == (12, 3, 3)
    # Of 1, 1.5 and inf; of 3, 5 and never: what never ended is in the median.
    assert row["paired_height"] == pytest.approx(1.5, abs=0.1)
    assert row["paired_recovery"] == 5
    assert row["n_seeds"] == 2


def test_lone_spikes_are_those_that_hardly_another_run_shares() -> None:
    """A hard batch lifts bad runs above the median of all: pairing alone takes it for their own."""
    study, outcomes, curves = planted_spikes(runs=9, felt_more_by=3)
    analysis = Analysis(study, outcomes_frame(outcomes), curves)
    events = analysis.run_spikes.events.filter(kind="paired")
    shared = {(t, s): by for t, s, by in events.select("trial", "seed", "shared_by").rows()}
    # Runs 6, 7 and 8 of seed 0, a step apart, share it with each other.
    assert shared == {(0, 1): 0, (1, 0): 0, (2, 0): 0, (6, 0): 2, (7, 0): 2, (8, 0): 2}
    assert events.filter(pl.col("trial") >= 6)["start"].sort().to_list() == [120, 120, 121]
    (row,) = analysis.spike_statistics.to_dicts()
    assert (row["paired_spikes"], row["lone_spikes"], row["lone_runs"]) == (6, 3, 3)
    assert row["lone_in_completed"] == 2, "the one of run (2, 0) is its end"
    # Two that share are too few to blame the batch.
    study, outcomes, curves = planted_spikes(runs=9, felt_more_by=2)
    (row,) = Analysis(study, outcomes_frame(outcomes), curves).spike_statistics.to_dicts()
    assert (row["paired_spikes"], row["lone_spikes"]) == (5, 5)


def test_a_diverged_run_counts_and_a_pruned_one_does_not() -> None:
    study, outcomes, curves = planted_spikes()
    pruned = [replace(o, status="pruned") if o.status == "diverged" else o for o in outcomes]
    (whole,) = planted().spike_statistics.to_dicts()
    (part,) = Analysis(study, outcomes_frame(pruned), curves).spike_statistics.to_dicts()
    assert (whole["raw_n"], part["raw_n"]) == (12, 11)
    assert whole["paired_spikes"] - part["paired_spikes"] == 1
    assert part["paired_height"] == pytest.approx(1.25, abs=0.1), "the control: without the inf"


def test_the_gallery_takes_the_instability_and_not_the_hard_batch() -> None:
    worst = planted().worst_spikes
    found = worst.select("rank", "trial", "seed", "start", "kind", "status").rows()
    assert found == [
        (1, 0, 1, 200, "paired", "completed"),
        (2, 1, 0, 220, "paired", "completed"),
        (3, 2, 0, 250, "paired", "diverged"),
    ]


def test_where_too_few_runs_are_paired_the_gallery_is_of_raw_spikes() -> None:
    few = planted(4)
    (row,) = few.spike_statistics.to_dicts()
    assert row["paired_n"] == 0 and row["paired_per_run"] is None and row["paired_height"] is None
    worst = few.worst_spikes
    assert set(worst["kind"]) == {"raw"}
    # The control: unpaired, the hard batch of 2 nats stands above the instability of 1.5.
    assert worst.filter(start=120).height == 3 and worst["start"][0] == 120
    keys = worst.select("trial", "seed").rows()
    assert len(set(keys)) == len(keys) == 5, "one spike a run"
    assert worst_spikes(few.run_spikes, few.raw_outcomes, count=2).equals(worst.head(2))


def test_the_olmo_2_score_is_the_mean_over_runs_longer_than_the_window() -> None:
    analysis = planted()
    (row,) = analysis.spike_statistics.to_dicts()
    assert row["olmo_2_window"] == 100 and row["olmo_2_n"] == 12
    scores = [olmo_2_spike_score(curve.loss, window=100) for curve in analysis.curves.values()]
    assert row["olmo_2_loss"] == pytest.approx(np.mean(scores)) and row["olmo_2_loss"] > 0
    assert row["olmo_2_grad_norm"] == 0
    assert [olmo_2_window([n]) for n in (30, 120, 400, 1000, 1001, 3000)] == [
        20, 50, 200, 500, 1000, 1000,
    ]  # fmt: skip


def test_without_a_curve_there_is_nothing_to_say() -> None:
    study = lr_study()
    outcomes, _ = invent(study, with_curves=False)
    bare = Analysis(study, outcomes_frame(outcomes))
    assert bare.spike_statistics.is_empty() and bare.spike_statistics.schema == STATISTICS
    assert bare.worst_spikes.is_empty()


def test_cells_with_more_seeds_weigh_no_more_and_equal_seeds_have_no_interval() -> None:
    found = planted()
    runs = found.run_spikes.runs
    # Nine further seeds of the one cell of which seed 1 was unstable, with 8 spikes a run.
    more = [
        runs.filter(trial=0, seed=0).with_columns(
            seed=pl.lit(seed, dtype=runs.schema["seed"]),
            spikes=pl.lit(8, dtype=runs.schema["spikes"]),
        )
        for seed in range(2, 11)
    ]
    outcomes = found.raw_outcomes
    ended = [
        outcomes.filter(trial=0, seed=0).with_columns(
            seed=pl.lit(seed, dtype=outcomes.schema["seed"])
        )
        for seed in range(2, 11)
    ]
    curves = dict(found.curves) | {(0, seed): found.curves[0, 0] for seed in range(2, 11)}
    (row,) = spike_statistics(
        replace(found.run_spikes, runs=pl.concat([runs, *more])),
        pl.concat([outcomes, *ended]),
        found.cells,
        curves,
    ).to_dicts()
    (even,) = found.spike_statistics.to_dicts()
    assert row["raw_n"] == even["raw_n"] + 9
    for name in ("raw_per_run", "raw_per_run_low", "raw_per_run_high"):
        assert row[name] == even[name]
    none = replace(found.run_spikes, runs=runs.with_columns(spikes=pl.col("spikes") * 0))
    (row,) = spike_statistics(none, outcomes, found.cells, found.curves).to_dicts()
    assert (row["raw_per_run"], row["raw_per_run_low"]) == (0.0, None)
