import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from invented_study import ROLES, invent, lr_study, run_of
from scipy import stats

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.probe_statistics import FIGURES, run_figures
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.rows import Curve

LABELS = ("e", *(f"layers.{n}.{role}" for n in range(2) for role in ROLES), "p")
PROBES = 30


def probed(scale: dict[str, float], *, growth: dict[str, float] | None = None) -> Curve:
    """A run of 300 steps; ratios 1e-3 times `scale` of the role, twice as much in the warm-up."""
    curve = run_of(lr_study(), 0, 0, {"method": "he", "lr": 1e-3}, status="completed")[1]
    assert curve is not None
    roles = [label.split(".")[-1] for label in LABELS]
    ratios = np.full((PROBES, len(LABELS)), 1e-3) * [scale.get(role, 1.0) for role in roles]
    ratios[:2] *= 2
    rise = np.linspace(0, 1, PROBES)[:, None]
    norms = 3 * (1 + rise * [(growth or {}).get(role, 1.0) - 1 for role in roles])
    return replace(
        curve,
        probe_step=np.arange(0, 300, 10),
        probes={
            "update_ratio": ratios.astype(np.float32),
            "weight_norm": norms.astype(np.float32),
            "effective_norm": (norms * (1 + rise)).astype(np.float32),
        },
        probe_axes=dict.fromkeys(("update_ratio", "weight_norm", "effective_norm"), LABELS),
    )


def with_ratio(curve: Curve, place: int, label: str, value: float) -> Curve:
    ratios = curve.probes["update_ratio"].copy()
    ratios[place, LABELS.index(label)] = value
    return replace(curve, probes={**curve.probes, "update_ratio": ratios})


def test_figures_of_a_run_whose_truth_is_known() -> None:
    # Embedding and prediction are far off, and belong to no layer.
    found = run_figures(
        probed({"u": 3.0, "w": 0.5, "e": 100, "p": 1e-4}, growth={"u": 1.5, "w": 4.0}), warmup=20
    )
    assert found.keys() == FIGURES.keys()
    assert found["update_ratio_u"] == pytest.approx(3e-3)
    assert found["update_ratio_w"] == pytest.approx(5e-4)
    assert found["update_ratio"] == pytest.approx(1e-3)
    assert found["unevenness"] == pytest.approx(6)
    assert (found["weight_growth_u"], found["weight_growth_w"]) == pytest.approx((1.5, 4))
    assert (found["effective_growth_u"], found["effective_growth_w"]) == pytest.approx((3, 8))
    assert found["largest_over_median"] == pytest.approx(1)
    assert found["largest_jump"] == pytest.approx(1)


def test_uniform_ratios_and_flat_norms_are_one() -> None:
    found = run_figures(probed({}), warmup=20)
    assert (found["unevenness"], found["weight_growth_u"]) == pytest.approx((1, 1))


def test_probes_of_the_warm_up_are_left_out() -> None:
    curve = probed({})
    assert run_figures(curve, warmup=20)["largest_over_median"] == pytest.approx(1)
    assert run_figures(curve, warmup=0)["largest_over_median"] == pytest.approx(2), "the control"


def test_one_probe_of_one_layer_is_found_and_a_schedule_is_no_jump() -> None:
    spiked = with_ratio(probed({}), 17, "layers.1.w", 7e-3)
    found = run_figures(spiked, warmup=20)
    assert (found["largest_jump"], found["largest_over_median"]) == pytest.approx((7, 7))
    assert found["update_ratio_w"] == pytest.approx(1e-3)
    other = run_figures(with_ratio(probed({}), 17, "layers.1.q", 7e-3), warmup=20)
    assert other["largest_jump"] == pytest.approx(1), "q is neither u nor w"
    curve = probed({})
    falling = curve.probes["update_ratio"] * np.geomspace(1, 0.1, PROBES)[:, None]
    falls = replace(curve, probes={**curve.probes, "update_ratio": falling.astype(np.float32)})
    found = run_figures(falls, warmup=20)
    assert found["largest_over_median"] > 2.5 and found["largest_jump"] < 1


def test_what_is_not_finite_spoils_nothing_but_what_it_alone_could_tell() -> None:
    curve = with_ratio(probed({"u": 3.0}), 20, "layers.0.u", math.inf)
    norms = curve.probes["weight_norm"].copy()
    norms[-1] = math.nan
    curve = replace(curve, probes={**curve.probes, "weight_norm": norms})
    found = run_figures(curve, warmup=20)
    assert found["update_ratio_u"] == pytest.approx(3e-3)
    assert found["weight_growth_u"] == pytest.approx(1)
    still = probed({"o": 0.0})
    assert math.isnan(run_figures(still, warmup=20)["unevenness"]), "nothing is over 0"
    late = run_figures(probed({}), warmup=10_000)
    assert math.isnan(late["update_ratio_u"]) and math.isnan(late["largest_jump"])
    assert late["weight_growth_u"] == pytest.approx(1)


def analysis_of(scales: dict[tuple[int, int], float], **changes: Any) -> Analysis:
    """Two cells of three seeds; the ratios of u by run."""
    study = lr_study(space={"method": "he", "lr": [1e-3, 3e-3]})
    fates = changes.pop("fates", {})
    outcomes, curves = [], {}
    for trial, lr in enumerate((1e-3, 3e-3)):
        for seed in study.seeds:
            fate = fates.get((trial, seed), "completed")
            cell = {"method": "he", "lr": lr}
            outcomes.append(run_of(study, trial, seed, cell, status=fate)[0])
            curves[trial, seed] = probed({"u": scales.get((trial, seed), 1.0)})
    return Analysis(study, outcomes_frame(outcomes), curves)


def test_a_cell_is_the_mean_over_seeds_with_students_interval() -> None:
    scales = {(0, 0): 2.0, (0, 1): 3.0, (0, 2): 4.5}
    first, second = analysis_of(scales).probe_statistics.to_dicts()
    assert (first["series"], first["lr"], first["trial"], first["n"]) == ("he", 1e-3, 0, 3)
    spread = stats.ttest_1samp([2.0, 3.0, 4.5], 0).confidence_interval(0.95)
    assert first["unevenness"] == pytest.approx(9.5 / 3)
    # No unevenness is below 1.
    assert spread.low < 1
    assert (first["unevenness_low"], first["unevenness_high"]) == pytest.approx((1, spread.high))
    assert first["update_ratio_u_high"] == pytest.approx(spread.high * 1e-3)
    assert second["unevenness"] == pytest.approx(1)
    assert [first["best"], second["best"]].count(True) == 1


def test_diverged_runs_are_counted_and_left_out() -> None:
    fates = {(0, 1): "diverged", **{(1, seed): "diverged" for seed in range(3)}}
    first, second = analysis_of({(0, 1): 50.0}, fates=fates).probe_statistics.to_dicts()
    assert (first["n"], first["diverged"]) == (2, 1)
    assert first["unevenness"] == pytest.approx(1)
    assert (second["n"], second["diverged"], second["unevenness"]) == (0, 3, None)
    (control, _) = analysis_of({(0, 1): 50.0}).probe_statistics.to_dicts()
    assert control["unevenness"] > 10, "the control: had it completed"


def test_one_seed_has_no_interval_and_no_mean_is_of_a_part_of_the_seeds() -> None:
    found = analysis_of({})
    one = {key: curve for key, curve in found.curves.items() if key[1] == 0}
    row = replace(found, curves=one).probe_statistics.row(0, named=True)
    assert (row["n"], row["unevenness_low"]) == (1, None) and row["unevenness"] == pytest.approx(1)
    part = dict(found.curves) | {(0, 1): probed({"u": 0.0})}
    row = replace(found, curves=part).probe_statistics.row(0, named=True)
    assert row["n"] == 3 and row["unevenness"] is None
    assert row["weight_growth_u"] == pytest.approx(1)


def test_without_probes_there_is_nothing_to_say() -> None:
    study = lr_study()
    bare = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    assert bare.probe_statistics.is_empty() and "unevenness_low" in bare.probe_statistics.columns
    found = analysis_of({})
    blind = {k: replace(c, probes={}, probe_axes={}) for k, c in found.curves.items()}
    assert replace(found, curves=blind).probe_statistics.is_empty()
