import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from invented_study import ROLES, lr_study, run_of

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.spike_ratios import CONTROLS, FIGURES, SPIKE_RATIOS
from wesar_sweep.store.frames import Key, outcomes_frame

LABELS = ("e", *(f"layers.{n}.{role}" for n in range(2) for role in ROLES), "p")
HARD = 120
SPIKES: Mapping[Key, tuple[int, ...]] = {
    (0, 0): (305, 401),
    (1, 0): (350,),
    (2, 0): (275,),
    (3, 1): (333, 450),
    (4, 1): (390,),
    (5, 1): (408,),
}
"""(trial, seed) -> where the loss rises by 1.5 nats for 4 steps; 350, 390 and 450 are probed
at their start, 408 is followed by a probe inside it and the others by one after it."""


def planted(
    jump: float,
    *,
    spikes: Mapping[Key, tuple[int, ...]] = SPIKES,
    after: float = 1.0,
    trials: int = 6,
    end: Mapping[Key, int] | None = None,
) -> Analysis:
    """Runs of two seeds: u of layer 1 is `jump` times as large at the last probe before a spike.

    And `after` times at the first probe that follows. Everything else scatters by 2 %. All runs of
    seed 0 rise at the hard batch of step 120, where update ratios are ten times as large.
    """
    lrs = np.logspace(-3, -2, trials).round(5).tolist()
    study = lr_study(
        space={"method": "he", "lr": lrs},
        replicates=2,
        training={"steps": 500, "warmup": 20},
        probes={"every": 10},
    )
    rng = np.random.default_rng(0)
    outcomes, curves = [], {}
    for trial, lr in enumerate(lrs):
        for seed in study.seeds:
            key = (trial, seed)
            ended = (end or {}).get(key, 500)
            fate = "completed" if ended == 500 else "diverged"
            outcome, curve = run_of(study, trial, seed, {"method": "he", "lr": lr}, status=fate)
            assert curve is not None
            loss = 2 + 0.02 * rng.standard_normal(500)
            probe_step = np.arange(0, 500, 10)
            ratios = 1e-3 * np.exp(0.02 * rng.standard_normal((50, len(LABELS))))
            if seed == 0:
                loss[HARD : HARD + 4] += 1.5
                ratios[11:13] *= 10
            for start in spikes.get(key, ()):
                loss[start : start + 4] += 1.5
                place = math.ceil(start / 10)
                ratios[place - 1, LABELS.index("layers.1.u")] *= jump
                ratios[place, LABELS.index("layers.1.u")] *= after
            kept = probe_step < ended
            curves[key] = replace(
                curve,
                loss=loss[:ended].astype(np.float32),
                grad_norm=np.ones(ended, dtype=np.float32),
                probe_step=probe_step[kept],
                probes={"update_ratio": ratios[kept].astype(np.float32)},
                probe_axes={"update_ratio": LABELS},
            )
            outcomes.append(replace(outcome, diverged_at=None if fate == "completed" else ended))
    return Analysis(study, outcomes_frame(outcomes), curves)


def test_a_jump_before_spikes_is_found_in_the_role_that_has_it() -> None:
    (row,) = planted(3.0, after=1.5).spike_ratios.to_dicts()
    assert (row["n"], row["spikes"], row["runs"], row["not_probed"]) == (12, 8, 6, 0)
    assert (row["before_spikes"], row["before_runs"]) == (8, 6)
    assert (row["at_spikes"], row["at_runs"]) == (8, 6)
    assert row["at_inside"] == 4
    assert row["u_before"] == pytest.approx(3.0, rel=0.04)
    assert row["u_at"] == pytest.approx(1.5, rel=0.04)
    assert row["u_before_low"] > 2.8 and row["u_before_high"] < 3.3
    for name in ("w_before", "w_at", *(f"control_{name}" for name in FIGURES)):
        assert row[name] == pytest.approx(1.0, abs=0.04)
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert (row["control_steps"], row["control_runs"]) == (8 * CONTROLS, 6)


def test_without_a_jump_spikes_are_as_the_control() -> None:
    (row,) = planted(1.0).spike_ratios.to_dicts()
    assert row["spikes"] == 8
    for name in FIGURES:
        assert row[name] == pytest.approx(row[f"control_{name}"], abs=0.03)
        # The largest of two layers is above 1 by chance; a control that is not would be another.
        assert row[f"{name}_low"] < row[f"control_{name}_high"]
        assert row[f"control_{name}_low"] < row[f"{name}_high"]


def test_hard_batches_are_out_where_runs_are_paired_and_in_where_they_are_not() -> None:
    (paired,) = planted(1.0).spike_ratios.to_dicts()
    few = planted(1.0, spikes={}, trials=3)
    (raw,) = few.spike_ratios.to_dicts()
    assert paired["u_before"] < 1.1
    # Of 6 runs too few saw the same batches: the 3 of seed 0 have the hard batch alone.
    assert (raw["spikes"], raw["runs"]) == (3, 3)
    assert raw["u_before"] == pytest.approx(10, rel=0.1)


def probed_at(analysis: Analysis, key: Key, *steps: int, rows: bool = False) -> Analysis:
    """The study with one run's probes finite at these steps alone, or with only these `rows`."""
    curve = analysis.curves[key]
    kept = np.isin(curve.probe_step, steps)
    ratios = np.where(kept[:, None], curve.probes["update_ratio"], np.nan).astype(np.float32)
    changed = replace(
        curve,
        probe_step=curve.probe_step[kept] if rows else curve.probe_step,
        probes={"update_ratio": ratios[kept] if rows else ratios},
    )
    return replace(analysis, curves={**analysis.curves, key: changed})


def controls(analysis: Analysis, *finite: int) -> int:
    """How many control steps run (0, 0), the only one with a spike, gives with these probes."""
    (row,) = probed_at(analysis, (0, 0), *finite).spike_ratios.to_dicts()
    assert (row["spikes"], row["before_spikes"]) == (1, 1)
    return int(row["control_steps"])


def test_no_control_step_is_near_a_spike_of_the_run_be_it_a_hard_batch() -> None:
    one = planted(1.0, spikes={(0, 0): (311,)})
    # Probes have a past from the sixth on: 300, 310, … The spike takes 310 and 320.
    assert controls(one, *range(250, 330, 10)) == 0
    assert controls(one, *range(250, 340, 10)) == 0
    assert controls(one, *range(250, 350, 10)) == CONTROLS, "between 330 and 340"
    apart = (*range(250, 340, 10), 360)
    (row,) = probed_at(one, (0, 0), *apart, rows=True).spike_ratios.to_dicts()
    assert row["control_steps"] == 0, "no probe is near a step between 330 and 360"
    # A hard batch at 335 is no spike of the run's own; it takes 330 and 340.
    hard = {
        key: replace(curve, loss=curve.loss + 1.5 * (np.arange(500) // 4 == 84))
        for key, curve in one.curves.items()
        if key[1] == 0
    }
    assert controls(replace(one, curves={**one.curves, **hard}), *range(250, 350, 10)) == 0


def test_control_steps_are_of_the_spikes_own_stretch() -> None:
    one = planted(1.0, spikes={(0, 0): (411,)})
    near, far = range(350, 430, 10), range(180, 300, 10)
    assert controls(one, *near) == 0
    # 290 and 220 are 13 and 20 intervals before the spike's, 140 is 28 before.
    assert controls(one, *near, *far) == CONTROLS
    assert controls(one, *near, *range(30, 150, 10)) == 0


def test_a_falling_update_ratio_moves_spikes_and_their_control_alike() -> None:
    # The last probe before has 12 others behind it since the warm-up, or more than 20.
    for start, back in ((141, 6.5), (341, 10.5)):
        one = planted(1.0, spikes={(0, 1): (start,)})
        curve = one.curves[0, 1]
        falling = np.exp(-0.05 * np.arange(50))[:, None] * np.ones(len(LABELS))
        curve = replace(curve, probes={"update_ratio": falling.astype(np.float32)})
        found = replace(one, curves={**one.curves, (0, 1): curve})
        (row,) = found.spike_ratios.to_dicts()
        assert row["u_before"] == pytest.approx(math.exp(-0.05 * back), rel=2e-3)
        for name in FIGURES:
            assert row[f"control_{name}"] == pytest.approx(row[name], rel=1e-5)
    # Before it every step has a shorter past, and after it the run ends.
    last = planted(1.0, spikes={(0, 1): (141,)}, end={(0, 1): 155})
    (row,) = last.spike_ratios.to_dicts()
    assert (row["before_spikes"], row["control_steps"]) == (1, 0)


def test_a_probe_long_after_the_peak_is_not_at_the_spike() -> None:
    one = planted(1.0, spikes={(0, 0): (341,)})
    every = range(0, 500, 10)
    for lost, found in (((), 1), ((350,), 0), ((360,), 1)):
        steps = [step for step in every if step not in lost]
        (row,) = probed_at(one, (0, 0), *steps, rows=True).spike_ratios.to_dicts()
        assert (row["before_spikes"], row["at_spikes"]) == (1, found)


def test_too_few_runs_have_figures_and_no_interval() -> None:
    part = {key: SPIKES[key] for key in list(SPIKES)[:4]}
    (row,) = planted(3.0, spikes=part).spike_ratios.to_dicts()
    assert row["runs"] == 4 and row["u_before"] == pytest.approx(3, rel=0.05)
    assert row["u_before_low"] is None and row["control_u_before_low"] is None
    (enough,) = planted(3.0).spike_ratios.to_dicts()
    assert enough["u_before_low"] is not None, "the control"


def test_a_spike_without_a_usable_probe_is_counted_and_left_out() -> None:
    # Step 64 has probes at 20, 30, 40, 50, 60 since the warm-up: four before the last.
    early = dict(SPIKES) | {(5, 0): (64,)}
    (row,) = planted(3.0, spikes=early).spike_ratios.to_dicts()
    assert (row["spikes"], row["runs"]) == (9, 7)
    assert (row["not_probed"], row["before_spikes"], row["before_runs"]) == (1, 8, 6)
    # A run that ended in its warm-up has no probe that counts.
    (row,) = planted(3.0, spikes={(2, 0): (12,)}, end={(2, 0): 15}).spike_ratios.to_dicts()
    assert (row["n"], row["spikes"], row["not_probed"], row["control_steps"]) == (12, 1, 1, 0)
    whole = planted(3.0)
    # The probes of a stretch before the spike at 350 are lost: that at 310 is too far away.
    steps = [step for step in range(0, 500, 10) if step not in (320, 330, 340)]
    lost = probed_at(whole, (1, 0), *steps, rows=True)
    (row,) = lost.spike_ratios.to_dicts()
    assert (row["spikes"], row["not_probed"], row["before_runs"]) == (8, 1, 5)


def test_a_run_that_ends_in_its_spike_has_a_probe_before_it_and_none_at_it() -> None:
    last = dict(SPIKES) | {(2, 0): (275,)}
    found = planted(3.0, spikes=last, end={(2, 0): 279})
    (row,) = found.spike_ratios.to_dicts()
    assert (row["spikes"], row["before_spikes"], row["at_spikes"]) == (8, 8, 7)
    assert row["at_runs"] == 5
    # A probe that is not finite is none.
    curve = found.curves[3, 1]
    ratios = curve.probes["update_ratio"].copy()
    ratios[33] = math.nan
    broken = {**found.curves, (3, 1): replace(curve, probes={"update_ratio": ratios})}
    (row,) = replace(found, curves=broken).spike_ratios.to_dicts()
    assert (row["not_probed"], row["before_spikes"], row["at_spikes"]) == (1, 7, 6)


def test_a_diverged_run_counts_and_a_pruned_one_does_not() -> None:
    found = planted(3.0, end={(2, 0): 279})
    pruned = found.raw_outcomes.with_columns(
        status=pl.when(pl.col("status") == "diverged")
        .then(pl.lit("pruned"))
        .otherwise(pl.col("status"))
    )
    (whole,) = found.spike_ratios.to_dicts()
    (part,) = replace(found, raw_outcomes=pruned).spike_ratios.to_dicts()
    assert (whole["n"], whole["spikes"], part["n"], part["spikes"]) == (12, 8, 11, 7)


def test_the_same_study_has_the_same_control() -> None:
    assert planted(3.0).spike_ratios.equals(planted(3.0).spike_ratios)


def test_without_probes_or_without_spikes_there_is_little_to_say() -> None:
    found = planted(1.0, spikes={})
    (calm,) = found.spike_ratios.to_dicts()
    assert (calm["n"], calm["spikes"], calm["u_before"]) == (12, 0, None)
    blind = {k: replace(c, probes={}, probe_axes={}) for k, c in found.curves.items()}
    none = replace(found, curves=blind).spike_ratios
    assert none.is_empty() and none.schema == SPIKE_RATIOS
    assert replace(found, curves={}).spike_ratios.is_empty()
