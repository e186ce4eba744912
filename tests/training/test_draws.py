"""Draws of whole runs: the same bits from any thread, and no more kept than there is room for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wesar_sweep.model.initialisation import standard_normal
from wesar_sweep.model.layout import Layout
from wesar_sweep.training import draws as draws_module
from wesar_sweep.training.draws import Draws


@pytest.fixture
def layout(study_of, runs_of):
    (run,) = runs_of(study_of(model={"width": 24, "ffn": "swiglu"}), {"method": "he"})
    return Layout(run.architecture, with_row_gains=True)


@pytest.mark.parametrize("threads", [None, 1, 5])
@pytest.mark.parametrize("task_values", [1, 1000, 2**18])
def test_every_matrix_is_the_draw_of_its_seed_and_name(layout, threads, task_values, monkeypatch):
    monkeypatch.setattr(draws_module, "_TASK_VALUES", task_values)
    draws = Draws(layout)
    with ThreadPoolExecutor(threads or 1) as pool:
        draws.begin([7, 8], pool if threads else None)
        rows = [draws.row(seed) for seed in (7, 8)]
    for seed, row in zip((7, 8), rows, strict=True):
        for group in layout.groups:
            w_MOI = group.view(row.unsqueeze(0))[0]
            for w_OI, label in zip(w_MOI, group.labels, strict=True):
                assert torch.equal(w_OI, standard_normal(w_OI.shape, seed=seed, name=label))


def test_the_latest_seeds_are_kept(layout, monkeypatch):
    monkeypatch.setattr(draws_module, "_KEPT_BYTES", 2 * 4 * layout.size)
    drawn = []
    honest = draws_module._draw

    def counted(into, labels, seed):
        drawn.append(seed)
        honest(into, labels, seed)

    monkeypatch.setattr(draws_module, "_draw", counted)
    draws = Draws(layout)
    draws.begin([1, 2, 1, 2], None)
    once = len(drawn)
    draws.begin([2, 1], None)
    assert len(drawn) == once, "both were there"
    draws.begin([3], None)
    draws.begin([1], None)
    assert set(drawn[once:]) == {3}, "the one not asked for lately went, the other stayed"
    draws.begin([2], None)
    assert drawn[-1] == 2
    draws.begin([1, 4], None)
    draws.row(1), draws.row(4)  # What was asked for together is there together.


def test_a_draw_that_fails_is_told_and_tried_again(layout, monkeypatch):
    honest = draws_module._draw

    def failing(into, labels, seed):
        raise MemoryError("no room")

    monkeypatch.setattr(draws_module, "_draw", failing)
    draws = Draws(layout)
    with ThreadPoolExecutor(2) as pool:
        draws.begin([1], pool)
        with pytest.raises(MemoryError, match="no room"):
            draws.row(1)
        monkeypatch.setattr(draws_module, "_draw", honest)
        draws.begin([1], pool)
        assert draws.row(1).isfinite().all()
