"""Adaptive replicates: their words, and the seeds that one cell asks for."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from wesar_sweep.config import dump_study, parse_study, study_hash
from wesar_sweep.config.replicates import AdaptiveReplicates, Until, wilson_halfwidth
from wesar_sweep.config.yaml12 import parse
from wesar_sweep.errors import ConfigError

RULE = {"min": 3, "max": 12, "until": {"divergence_halfwidth": 0.15}}


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 9), (1, 3), (5, 12), (12, 12), (40, 137)])
def test_the_halfwidth_is_that_of_scipys_wilson_interval(k: int, n: int) -> None:
    found = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_halfwidth(k, n) == pytest.approx((found.high - found.low) / 2, rel=1e-9)
    assert wilson_halfwidth(0, 0) == 0.5


@pytest.mark.parametrize("bound", [0.1, 0.15, 0.22, 0.3])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_seeds_asked_for_at_once_are_those_asked_for_one_by_one(bound: float, rate: float) -> None:
    rule = AdaptiveReplicates(min=3, max=40, until=Until(divergence_halfwidth=bound))
    for seed in range(20):
        draw = random.Random(seed)
        fate = [draw.random() < rate for _ in range(rule.max)]
        one_by_one = rule.min
        while (
            one_by_one < rule.max and wilson_halfwidth(sum(fate[:one_by_one]), one_by_one) > bound
        ):
            one_by_one += 1
        asked = rule.min
        while more := rule.further(sum(fate[:asked]), asked, asked=asked):
            asked += more
        assert asked == one_by_one


def test_the_first_seeds_alone_can_be_known_to_need_more() -> None:
    rule = AdaptiveReplicates(min=3, max=12, until=Until(divergence_halfwidth=0.15))
    # 0 of 9 is the first at or below 0.15; 0 of 8 is 0.162.
    assert rule.further(0, 3, asked=3) == 6
    assert rule.further(0, 9, asked=9) == 0
    assert rule.further(1, 9, asked=9) == 3
    # Failed seeds are asked for and not counted; the most is of those asked for.
    assert rule.further(0, 3, asked=10) == 2
    assert rule.further(0, 0, asked=3) == 0


def test_a_study_keeps_it_and_its_hash_differs() -> None:
    study = parse_study({"name": "s", "space": {"lr": [1e-3]}, "replicates": RULE})
    assert study.seeds == (0, 1, 2)
    assert (study.least_replicates, study.most_replicates) == (3, 12)
    assert parse_study(parse(dump_study(study)).value) == study
    plain = parse_study({"name": "s", "space": {"lr": [1e-3]}, "replicates": 3})
    assert plain.adaptive is None and study_hash(plain) != study_hash(study)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"max": 3}, "replicates.max", "max 3 leaves nothing to add to min 3"),
        ({"until": {}}, "replicates.until", "until says nothing"),
        (
            {"until": {"told_apart": True}},
            "replicates.until.told_apart",
            "there is but one method",
        ),
        (
            {"until": {"divergence_halfwidth": 0.5}},
            "replicates.until.divergence_halfwidth",
            "the number is too large",
        ),
        ({"most": 12}, "replicates.most", "unknown key"),
    ],
)
def test_what_is_refused(changes: dict[str, object], path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study({"space": {"lr": [1e-3]}, "replicates": {**RULE, **changes}})
    (problem,) = caught.value.problems
    assert problem.path == path and message in problem.message


@pytest.mark.parametrize("name", ["wilcoxon", "median"])
def test_a_pruner_is_refused_beside_it(name: str) -> None:
    raw = {"space": {"lr": [1e-3]}, "replicates": RULE, "pruner": {"name": name}}
    raw["evaluation"] = {"every": 10}
    with pytest.raises(ConfigError, match="adaptive replicates add to them by their results"):
        parse_study(raw)
    parse_study({**raw, "replicates": 3})
