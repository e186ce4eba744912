"""Adaptive replicates in the figures: who got seeds, and what stopping does to the intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from invented_study import lr_study, run_of
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.replicates import (
    RATES,
    falsely_apart,
    fixed_coverage,
    stopped_coverage,
)
from wesar_sweep.config import grid_cells
from wesar_sweep.config.replicates import AdaptiveReplicates, Until
from wesar_sweep.store.frames import outcomes_frame

RULE = AdaptiveReplicates(min=3, max=12, until=Until(divergence_halfwidth=0.15))


def simulated(rule: AdaptiveReplicates, rate: float, *, studies: int) -> float:
    """The share of cells whose interval, by scipy, holds the rate after stopping seed by seed."""
    held = 0
    for diverged in np.random.default_rng(3).random((studies, rule.max)) < rate:
        n = rule.min
        while True:
            k = int(diverged[:n].sum())
            found = stats.binomtest(k, n).proportion_ci(method="wilson")
            if n == rule.max or found.high - found.low <= 2 * 0.15:
                break
            n += 1
        held += found.low <= rate <= found.high
    return held / studies


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_coverage_after_stopping_is_what_a_simulation_finds(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = simulated(RULE, rate, studies=400)
    monkeypatch.setattr("wesar_sweep.analysis.replicates.RATES", np.array([rate]))
    computed = stopped_coverage(RULE).mean
    assert found == pytest.approx(computed, abs=3 * np.sqrt(computed * (1 - computed) / 400) + 1e-9)


def test_coverage_that_the_documentation_states() -> None:
    stopped, fixed = stopped_coverage(RULE), fixed_coverage(12)
    assert (round(stopped.mean, 3), round(stopped.worst, 3)) == (0.955, 0.914)
    assert (round(fixed.mean, 3), round(fixed.worst, 3)) == (0.955, 0.886)
    # A rule that never stops early is a fixed number.
    never = RULE.model_copy(update={"until": Until(divergence_halfwidth=0.01)})
    assert stopped_coverage(never).mean == pytest.approx(fixed.mean, abs=1e-12)
    assert stopped_coverage(never).seeds == pytest.approx(12)
    assert len(RATES) == 99


def test_looking_again_and_again_tells_equal_methods_apart_too_often() -> None:
    once = falsely_apart(3, 3)
    assert once == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 20_000))
    assert falsely_apart(3, 12) == pytest.approx(0.19, abs=0.01)
    draws = np.random.default_rng(5).standard_normal((600, 6))
    seen = [any(stats.ttest_1samp(row[:n], 0).pvalue < 0.05 for n in range(3, 7)) for row in draws]
    assert falsely_apart(3, 6) == pytest.approx(np.mean(seen), abs=3 * np.sqrt(0.12 * 0.88 / 600))


def invented(counts: dict[float, tuple[int, int]], **until: object) -> Analysis:
    """One method; lr -> (diverged, runs)."""
    rule = {"min": 3, "max": 8, "until": until or {"divergence_halfwidth": 0.22}}
    study = lr_study(space={"method": "he", "lr": list(counts)}, replicates=rule)
    rows = [
        run_of(
            study,
            trial,
            seed,
            {"method": "he", "lr": lr},
            status="diverged" if seed < diverged else "completed",
        )[0]
        for trial, (lr, (diverged, runs)) in enumerate(counts.items())
        for seed in range(runs)
    ]
    return Analysis(study, outcomes_frame(rows))


def test_who_got_further_seeds_and_why() -> None:
    found = invented({1e-3: (0, 5), 1e-2: (1, 8), 1e-1: (2, 5)})
    rows = found.further_seeds.select("trial", "seeds", "further", "missing", "ended").rows()
    assert rows == [
        (1, 8, 5, 0, "8 seeds, the most allowed"),
        (2, 8, 5, 3, "3 still to come"),
        (0, 5, 2, 0, "half-width 0.22, at most 0.22"),
    ]
    assert found.further_seeds["for_width"].to_list() == [5, 5, 2]
    whole = found.completeness
    assert (whole.expected_runs, whole.expected_at_most, whole.ended) == (21, 24, 18)
    assert whole.partial and whole.expected == "21 to 24"
    done = invented({1e-3: (0, 5), 1e-2: (1, 8), 1e-1: (2, 8)}).completeness
    assert not done.partial and done.expected == "21"


@pytest.mark.parametrize(
    ("apart", "seeds", "words"),
    [
        ((0.01, -0.01, 0.01, -0.01), 4, "4 seeds, the most allowed, still tied"),
        ((0.01, -0.01, 0.02, 0.05), 4, "4 seeds, the most allowed, still tied"),
        # Apart with three seeds is not asked for a fourth; apart with four only just.
        ((0.01, 0.02, 0.0155), 3, "told apart"),
        ((0.01, 0.04, 0.02, 0.025), 4, "4 seeds, the most allowed, told apart"),
    ],
)
def test_whether_the_last_seed_told_methods_apart(
    apart: tuple[float, ...], seeds: int, words: str
) -> None:
    study = lr_study(
        space={"method": ["small", "he"], "lr": [1e-3]},
        replicates={"min": 2, "max": 4, "until": {"told_apart": True}},
    )
    rows = []
    for trial, cell in enumerate(grid_cells(study)):
        for seed, more in enumerate(apart):
            one, _ = run_of(study, trial, seed, cell, status="completed", with_curve=False)
            rows.append(replace(one, val_loss=2.0 + trial * more))
    found = Analysis(study, outcomes_frame(rows)).further_seeds
    assert found.select("seeds", "ended").unique().rows() == [(seeds, words)]


def test_a_fixed_number_has_none() -> None:
    study = lr_study()
    assert Analysis(study, outcomes_frame([])).further_seeds.is_empty()


def test_what_asks_for_seeds_and_what_the_report_calls_tied_are_one() -> None:
    """Two rooms that may not import each other judge the same."""
    study = lr_study(
        space={"method": ["small", "he"], "lr": [1e-3, 3e-3, 1e-2]},
        replicates={"min": 3, "max": 4, "until": {"told_apart": True}},
    )
    asked = 0
    for draw in range(30):
        rng = np.random.default_rng(draw)
        rows = []
        for trial, cell in enumerate(grid_cells(study)):
            for seed in range(3):
                fate = "diverged" if rng.random() < 0.15 else "completed"
                one, _ = run_of(study, trial, seed, cell, status=fate, with_curve=False)
                loss = 2 + 0.05 * (trial % 3) + 0.05 * float(rng.standard_normal())
                rows.append(replace(one, val_loss=loss) if fate == "completed" else one)
        found = Analysis(study, outcomes_frame(rows))
        best = found.ties.best
        method = dict(found.cells.select("trial", "method").rows())
        rival = next(t for t in found.ranked["trial"] if method[t] != method[best])
        tied = {best, rival} if rival in found.ties.tied else set()
        assert set(found.further_seeds["trial"]) == tied, draw
        asked += bool(tied)
    assert 5 < asked < 25
