"""Which seeds a study wants: one answer from the outcomes, whoever trained them and when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from scipy import stats

from wesar_sweep.config.replicates import AdaptiveReplicates, Until
from wesar_sweep.config.study import Study
from wesar_sweep.store.rows import Status
from wesar_sweep.store.wanted import Ended, expected_cells, seeds_wanted

METHODS = ("he", "small", "wesar")
LRS = (1e-3, 1e-2)
CELLS = [(method, lr) for method in METHODS for lr in LRS]


def study(**until: object) -> Study:
    replicates = AdaptiveReplicates(min=3, max=8, until=Until.model_validate(until))
    space = {"method": {"choices": METHODS}, "lr": {"choices": LRS}}
    return Study.model_validate(
        {"name": "s", "space": space, "replicates": replicates, "first_seed": 10}
    )


def fate(trial: int, index: int, *, gap: float = 0.0) -> Ended:
    """Run `index` of a cell: losses of standard deviation 0.1, lr 1e-2 diverges now and then."""
    method, lr = CELLS[trial]
    draw = random.Random(f"{trial} {index}")
    status: Status = "diverged" if lr == 1e-2 and draw.random() < 0.4 else "completed"
    loss = 1.0 + (lr == 1e-2) + gap * METHODS.index(method) + draw.gauss(0, 0.1)
    return Ended(trial, 10 + index, method, status, 5.5 if status == "diverged" else loss)


def trained(asked: Study, *, order: int, gap: float = 0.0) -> set[tuple[int, int]]:
    """Train runs one at a time in a random order among those that are wanted, to the end."""
    draw = random.Random(order)
    runs: dict[tuple[int, int], Ended] = {}
    waiting = [(trial, index) for trial in range(len(CELLS)) for index in range(3)]
    while waiting:
        trial, index = waiting.pop(draw.randrange(len(waiting)))
        runs[trial, index] = fate(trial, index, gap=gap)
        wanted = seeds_wanted(runs.values(), study=asked, cells=len(CELLS))
        new = {(trial, index) for trial, one in wanted.items() for index in range(one.seeds)}
        waiting = sorted((new | set(waiting)) - set(runs))
    return set(runs)


def test_a_number_wants_that_many_of_each() -> None:
    plain = study(divergence_halfwidth=0.2).model_copy(update={"replicates": 5})
    runs = [fate(0, 0), fate(0, 1), fate(1, 0)]
    wanted = seeds_wanted(runs, study=plain, cells=6)
    assert {trial: (one.seeds, one.missing) for trial, one in wanted.items()} == {
        0: (5, 3),
        1: (5, 4),
    }


def test_each_cell_widens_by_itself() -> None:
    asked = study(divergence_halfwidth=0.22)
    stable = [fate(0, index) for index in range(3)]
    wanted = seeds_wanted(stable, study=asked, cells=6)
    assert (wanted[0].seeds, wanted[0].for_width, wanted[0].missing) == (5, 2, 2)
    # Others still lack their least; it does not wait for them.
    assert seeds_wanted(stable[:2], study=asked, cells=6)[0].seeds == 3


@pytest.mark.parametrize(
    "until",
    [
        {"divergence_halfwidth": 0.22},
        {"told_apart": True},
        {"divergence_halfwidth": 0.25, "told_apart": True},
    ],
)
@pytest.mark.parametrize("gap", [0.0, 0.08])
def test_the_same_seeds_in_whatever_order_runs_end(until: dict[str, object], gap: float) -> None:
    asked = study(**until)
    sets = [trained(asked, order=order, gap=gap) for order in range(4)]
    assert all(found == sets[0] for found in sets)
    assert len(sets[0]) > 18


def best_first(runs: set[tuple[int, int]], gap: float) -> Iterator[tuple[str, list[float]]]:
    """Method and losses of the better lr, which is trial 0, 2 and 4."""
    for trial in (0, 2, 4):
        seeds = sorted(index for t, index in runs if t == trial)
        yield CELLS[trial][0], [fate(trial, index, gap=gap).loss for index in seeds]


def test_methods_that_differ_are_told_apart_and_no_further_seed_is_spent() -> None:
    runs = trained(study(told_apart=True), order=0, gap=0.08)
    losses = dict(best_first(runs, 0.08))
    best = min(losses, key=lambda method: sum(losses[method]) / len(losses[method]))
    for method in set(losses) - {best}:
        common = min(len(losses[method]), len(losses[best]))
        p = stats.ttest_rel(losses[method][:common], losses[best][:common]).pvalue
        assert p < 0.05 or common == 8
    # The worse lr of each method takes no part.
    assert {len([1 for t, _ in runs if t == trial]) for trial in (1, 3, 5)} == {3}


def test_methods_that_do_not_differ_go_to_the_most() -> None:
    asked = study(told_apart=True)
    runs = [
        Ended(
            trial, 10 + index, CELLS[trial][0], "completed", 1.0 + (index % 2) * 0.1 * (trial - 2)
        )
        for trial, index in itertools.product(range(6), range(8))
    ]
    wanted = seeds_wanted(runs, study=asked, cells=6)
    assert sorted(one.seeds for one in wanted.values())[-2:] == [8, 8]


def test_nothing_is_told_apart_before_all_cells_have_their_least() -> None:
    runs = [fate(trial, index) for trial in range(5) for index in range(3)]
    asked = study(told_apart=True)
    assert {one.seeds for one in seeds_wanted(runs, study=asked, cells=6).values()} == {3}
    runs += [fate(5, index) for index in range(3)]
    assert max(one.seeds for one in seeds_wanted(runs, study=asked, cells=6).values()) == 4


def test_pruned_and_failed_cells_get_no_more() -> None:
    asked = study(divergence_halfwidth=0.1)
    lost = [Ended(0, 10 + i, "he", "failed", 0.0) for i in range(3)]
    pruned = [Ended(1, 10 + i, "he", "pruned", 1.0) for i in range(3)]
    part = [Ended(2, 10 + i, "he", "completed" if i else "failed", 1.0) for i in range(3)]
    wanted = seeds_wanted([*lost, *pruned, *part], study=asked, cells=6)
    assert [wanted[trial].seeds for trial in range(3)] == [3, 3, 8]


def test_expected_cells() -> None:
    assert expected_cells(study(told_apart=True), failed=2) == 6
    sampled = Study.model_validate(
        {"name": "s", "space": {"lr": LRS}, "sampler": {"name": "random", "cells": 3}}
    )
    assert [expected_cells(sampled, failed=failed) for failed in (0, 2, 9)] == [3, 5, 6]
