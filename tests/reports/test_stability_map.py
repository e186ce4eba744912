import json
import re
from typing import Any

import pytest
import vl_convert
from invented_study import invent, lr_study, run_of
from test_charts import data_sets, words_in

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import stability_map as module
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


def records(analysis: Analysis, across: str | None) -> list[dict[str, Any]]:
    (found,) = data_sets(module.stability_map(analysis, across=across).to_dict())
    return found


def test_the_boundary_lies_on_the_edge_between_two_cells(analysis: Analysis) -> None:
    rows = records(analysis, "sigma2")
    places = list(analysis.layout.axis_values)
    frame = analysis.stability_boundary(across="sigma2")
    for bound in frame.iter_rows(named=True):
        label = module._label(bound, "sigma2")
        brackets = [r for r in rows if r.get("kind") == "bracket" and r["row"] == label]
        assert len(brackets) == (None not in (bound["lr_below"], bound["lr_above"]))
        for bracket in brackets:
            assert bracket["left"] == places.index(bound["lr_below"]) + 0.5
            assert bracket["right"] == places.index(bound["lr_above"]) - 0.5
            assert bracket["series"] in analysis.series
        (spread,) = (r for r in rows if r.get("kind") == "interval" and r["row"] == label)
        ends = [bound["lr_low"], bound["lr_high"]]
        assert [spread["left"], spread["right"]] == [
            None if lr is None else places.index(lr) for lr in ends
        ]
    assert any(row.get("kind") == "bracket" for row in rows)
    cells = [row for row in rows if "words" in row]
    assert len(cells) == analysis.cells.height
    assert {row["words"] for row in cells} >= {"0/3", "3/3"}


def test_rows_are_grouped_by_panel_from_the_highest_value_down(analysis: Analysis) -> None:
    placed = analysis.stability_cells(across="sigma2")
    labels = module._row_labels(placed, "sigma2")
    assert [label for label in labels if label.strip()] == [
        "small",
        "he",
        "wesar σ²=1e-3",
        "wesar σ²=4e-5",
    ]
    assert [label.strip() for label in labels].index("") == 2
    assert {"wesar σ²=1e-3", "1e-4", "3e-1"} <= set(
        words_in(module.stability_map(analysis, across="sigma2"))
    )


def test_every_second_axis_has_its_map() -> None:
    study = lr_study(space={"method": "he", "width": [32, 64], "depth": [1, 2], "lr": [1e-3, 1.0]})
    one = Analysis(study, outcomes_frame(invent(study, with_curves=False)[0]))
    named = {figure.name: figure for figure in figures(one) if "stability" in figure.name}
    assert list(named) == ["stability-map", "stability-map-depth"]
    assert named["stability-map"].title == "Where runs diverge, by width"
    assert "he depth=1 width=64: between 1e-3 and 1" in named["stability-map"].alt
    # A grid's cells are chosen beforehand, and what all maps share is said once.
    assert "earlier outcomes" not in named["stability-map"].caption
    assert [module.limits(study) in figure.caption for figure in named.values()] == [True, False]


@pytest.mark.parametrize(
    ("changes", "held", "not_held"),
    [
        ({}, ("more than 99 %", "if runs at different lr are independent", "89 %"), "chosen"),
        ({"sampler": {"name": "random", "cells": 9}}, ("more than 99 %", "89 %"), "chosen"),
        ({"sampler": {"name": "tpe", "cells": 9}}, ("at least 97 %", "chosen by outcomes"), "99 %"),
        (
            {"replicates": {"min": 3, "max": 9, "until": {"divergence_halfwidth": 0.2}}},
            ("at least 97 %", "chosen by outcomes", "89 %"),
            "99 %",
        ),
        (
            {"sampler": {"name": "boundary", "along": "lr"}},
            ("at least 97 %", "chosen by outcomes"),
            "89 %",
        ),
        ({"pruner": {"name": "median"}}, ("no simulation says it",), "97 %"),
    ],
)
def test_what_is_promised_depends_on_how_n_and_lr_were_chosen(
    changes: dict[str, Any], held: tuple[str, ...], not_held: str
) -> None:
    words = module.limits(lr_study(**changes))
    assert all(word in words for word in held) and not_held not in words


@pytest.mark.parametrize(
    ("sampler", "objective", "said"),
    [
        ({"name": "tpe", "cells": 9}, "val_loss", "leaves out where runs diverge"),
        ({"name": "tpe", "cells": 9}, "divergence_rate", "beforehand; intervals"),
        ({"name": "boundary", "along": "lr"}, "val_loss", "beforehand; intervals"),
    ],
)
def test_only_a_search_for_low_losses_leaves_out_where_runs_diverge(
    sampler: dict[str, Any], objective: str, said: str
) -> None:
    assert said in module._choice_words(lr_study(sampler=sampler, objectives=[objective]))


def test_a_caption_states_n_rule_interval_and_rows_that_fall(analysis: Analysis) -> None:
    (figure,) = (one for one in figures(analysis) if one.name == "stability-map")
    for words in ("n = 3 seeds", "rule v1 (window 20", "95 % interval", "more than 99 %"):
        assert words in figure.caption
    falls = analysis.stability_boundary(across="sigma2")["fall_from_lr"].drop_nulls().len()
    assert figure.caption.count("the rate falls") == falls


def sampled() -> Analysis:
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "lr": {"low": 1e-4, "high": 1.0, "log": True},
            "weight_decay": {"low": 0.0, "high": 0.2},
        },
        sampler={"name": "tpe", "cells": 40},
        pruner={"name": "median"},
    )
    rows = []
    for trial in range(40):
        lr, decay = 10 ** (-4 + 4 * ((trial * 0.618) % 1)), 0.2 * ((trial * 0.755) % 1)
        cell = {"method": ["he", "wesar"][trial % 2], "lr": lr, "weight_decay": decay}
        rows += [run_of(study, trial, seed, cell, with_curve=False)[0] for seed in range(3)]
    return Analysis(study, outcomes_frame(rows))


def test_a_sampled_study_is_drawn_as_points_at_its_lr() -> None:
    one = sampled()
    rows = records(one, "weight_decay")
    cells = [row for row in rows if "words" in row]
    assert len(cells) == 40
    assert sorted(row["middle"] for row in cells) == pytest.approx(
        sorted(one.cells["lr"]), rel=1e-4
    )
    chart = module.stability_map(one, across="weight_decay").to_dict()
    assert vl_convert.vegalite_to_svg(chart).count("circle") >= 40
    assert '"zero"' not in json.dumps(chart, allow_nan=False), "log axes warn of it"
    (figure,) = (one for one in figures(one) if one.name == "stability-map")
    assert "leaves out where runs diverge" in figure.caption
    assert "Pruned runs count nowhere" in figure.caption


def test_the_table_says_what_the_map_shows(analysis: Analysis) -> None:
    (named,) = (one for one in tables(analysis) if one.name == "stability-boundary")
    assert named.table.columns[:2] == ("method", "σ²")
    assert named.section == "loss" and "n = 3 seeds" in named.caption
    for words, row in zip(named.table.rows, named.frame.iter_rows(named=True), strict=True):
        assert words[0] == row["panel"] and words[4] == f"{row['diverged']}/{row['n']}"
        assert re.match(r"between \S+ and \S+$|above \S+$", words[2])


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 10.0, "1e-1 to 10"), (0.1, None, "above 1e-1"), (None, 0.1, "below 1e-1")],
)
def test_open_intervals_in_words(low: float | None, high: float | None, words: str) -> None:
    assert module.interval_words({"lr_low": low, "lr_high": high}) == words


def test_a_study_that_never_diverged_has_no_map() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-3, 1e-2]})
    rows = [
        run_of(study, trial, seed, {"lr": lr}, status="completed", with_curve=False)[0]
        for trial, lr in enumerate((1e-3, 1e-2))
        for seed in range(3)
    ]
    found = Analysis(study, outcomes_frame(rows))
    assert not [one for one in figures(found) if "stability" in one.name]
    assert not [one for one in tables(found) if "stability" in one.name]
