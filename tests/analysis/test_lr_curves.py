import math

import numpy as np
import pytest
from invented_study import LRS, lr_study
from sized_studies import parabola, with_losses

from wesar_sweep.analysis.intervals import resamples
from wesar_sweep.analysis.lr_curves import SeriesLosses, series_losses


def two_seeds() -> SeriesLosses:
    loss_Ln = np.array([[1.0, 3.0], [2.0, np.nan]])
    diverged_Ln = np.array([[0.0, 1.0], [0.0, np.nan]])
    axis_L = np.array([1e-3, 1e-2])
    return SeriesLosses("he", "he", axis_L, (1, 4), loss_Ln, 5.0, diverged_Ln=diverged_Ln)


def test_fates_stand_beside_losses_and_are_resampled_with_them() -> None:
    study = lr_study(space={"method": "he", "lr": LRS}, replicates=3)
    found = with_losses(
        study,
        parabola,
        status=lambda knobs, seed: (
            "diverged"
            if knobs["lr"] > 1e-2 and seed == 1
            else "failed"
            if knobs["lr"] == 1e-2 and seed == 2
            else "completed"
        ),
    )
    (one,) = series_losses(found.cells, layout=found.layout)
    assert one.seeds == (0, 1, 2)
    for place, lr in enumerate(LRS):
        wanted = [0, int(lr > 1e-2), math.nan if lr == 1e-2 else 0]
        np.testing.assert_array_equal(one.diverged_Ln[place], wanted)
    assert np.isnan(one.loss_Ln).tolist() == np.isnan(one.diverged_Ln).tolist()
    share_B = resamples(3).weights[:, 1] / 3
    np.testing.assert_allclose(one.resampled_rate()[:, -1], share_B)
    assert (one.resampled_rate()[:, 0] == 0).all()


def test_over_more_seeds_a_resample_takes_its_own_seeds_and_keeps_a_mean_without_any() -> None:
    one = two_seeds()
    wide = one.over((1, 2, 4))
    assert wide.n == one.n == 1 and wide.seeds == (1, 2, 4)
    np.testing.assert_array_equal(wide.mean_L, one.mean_L)
    drawn = resamples(3).weights
    sample_BL, rate_BL = wide.resampled(), wide.resampled_rate()
    for weights, means, rates in zip(drawn, sample_BL, rate_BL, strict=True):
        own = weights[[0, 2]]
        if own.sum():
            assert means[0] == pytest.approx((own @ [1.0, 3.0]) / own.sum())
            assert rates[0] == pytest.approx(own[1] / own.sum())
        else:
            assert means.tolist() == [2.0, 2.0] and rates.tolist() == [0.5, 0.0]


def test_over_the_same_seeds_nothing_changes_and_a_seed_cannot_be_dropped() -> None:
    one = two_seeds()
    np.testing.assert_array_equal(one.over((1, 4)).resampled(), one.resampled())
    with pytest.raises(AssertionError):
        one.over((1,))
