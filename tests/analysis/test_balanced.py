import numpy as np
import polars as pl
import pytest

from wesar_sweep.analysis.balanced import balanced, balanced_mean, by_seed


def spikes(seeds_of_last: int) -> pl.DataFrame:
    """8 cells with 3 seeds and no spike, but for the last: 8 spikes a run, and more seeds."""
    rows = [(trial, seed, 0) for trial in range(7) for seed in range(3)]
    rows += [(7, seed, 8) for seed in range(seeds_of_last)]
    return pl.DataFrame(rows, schema=["trial", "seed", "spikes"], orient="row")


def test_later_seeds_of_selected_cells_do_not_move_the_mean() -> None:
    assert spikes(12)["spikes"].mean() == pytest.approx(96 / 33), "the control: by runs"
    for seeds in (3, 12):
        assert balanced_mean(spikes(seeds), "spikes", cell="trial") == 1
        assert by_seed(spikes(seeds), "spikes", cell="trial").tolist() == [1, 1, 1]


def test_without_a_seed_in_every_cell_the_cells_weigh_alike() -> None:
    # A boundary search: the seeds of a step are in no other step.
    apart = pl.DataFrame({"trial": [0, 0, 0, 1], "seed": [0, 1, 2, 3], "spikes": [3, 3, 3, 1]})
    assert balanced(apart, cell="trial").is_empty()
    assert len(by_seed(apart, "spikes", cell="trial")) == 0
    assert balanced_mean(apart, "spikes", cell="trial") == 2
    assert balanced_mean(apart.clear(), "spikes", cell="trial") is None


def test_means_are_in_the_order_of_the_seeds() -> None:
    frame = pl.DataFrame(
        {"trial": [0, 0, 1, 1], "seed": [1, 0, 0, 1], "loss": [4.0, 1.0, 2.0, 6.0]}
    )
    assert np.allclose(by_seed(frame, "loss", cell="trial"), [1.5, 5.0])
