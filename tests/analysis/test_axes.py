import pytest
from invented_study import lr_study

from wesar_sweep.analysis.axes import (
    asked_places,
    axes,
    expected_series,
    format_value,
    series_label,
)
from wesar_sweep.config.study import Study


@pytest.mark.parametrize(
    ("value", "knob", "words"),
    [
        (4e-5, "sigma2", "4e-5"),
        (1e-2, "lr", "1e-2"),
        (1e-1, "lr", "1e-1"),
        (1.0, "lr", "1"),
        (3.162e-4, "lr", "3.162e-4"),
        (0.95, "beta2", "0.95"),
        (1e-8, "eps", "1e-8"),
        (64, "width", "64"),
        (None, "clip", "off"),
        (True, "tied", "true"),
        (9.999999e-4, "lr", "9.999999e-4"),
    ],
)
def test_values_as_labels(value: object, knob: str, words: str) -> None:
    assert format_value(value, knob=knob) == words  # type: ignore[arg-type]


def test_labels_of_neighbouring_floats_differ() -> None:
    assert format_value(0.1 + 0.2, knob="beta1") != ""
    assert format_value(1.0000001e-3, knob="lr") != format_value(1e-3, knob="lr")


def test_sigma2_is_named_only_where_it_means_something() -> None:
    names = ("method", "sigma2", "width")
    assert series_label({"method": "wesar", "sigma2": 4e-5, "width": 64}, names) == (
        "wesar σ²=4e-5 width=64"
    )
    assert series_label({"method": "he", "sigma2": None, "width": 64}, names) == "he width=64"


def test_the_axis_is_lr_where_it_is_searched() -> None:
    study = lr_study()
    layout = axes(study)
    assert (layout.axis, layout.series, layout.gridded) == ("lr", ("method", "sigma2"), True)
    assert expected_series(study, layout) == ("small", "he", "wesar σ²=4e-5", "wesar σ²=1e-3")


def test_without_lr_the_axis_is_another_number_or_none() -> None:
    assert axes(lr_study(space={"method": ["he", "wesar"], "width": [32, 64]})).axis == "width"
    alone = axes(lr_study(space={"method": ["he", "wesar"]}))
    assert (alone.axis, alone.gridded) == (None, False) or alone.gridded


def test_a_continuous_space_is_no_grid() -> None:
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "sigma2": {"low": 1e-5, "high": 1e-2, "log": True, "when": {"method": "wesar"}},
        },
        sampler={"name": "tpe", "cells": 8},
    )
    layout = axes(study)
    assert (layout.axis, layout.series, layout.scattered) == ("lr", ("method",), ("sigma2",))
    assert not layout.gridded


def test_a_number_that_a_cell_may_lack_is_no_axis() -> None:
    off = axes(lr_study(space={"clip": [None, 0.5, 1.0]}))
    assert (off.axis, off.series) == (None, ("method", "clip"))
    other = axes(lr_study(space={"clip": [None, 0.5], "beta2": [0.9, 0.95]}))
    assert (other.axis, other.series) == ("beta2", ("method", "clip"))
    # The control: never off, it is one.
    assert axes(lr_study(space={"clip": [0.5, 1.0]})).axis == "clip"

    asked = {"choices": [4e-5, 1e-3]}
    sampler = {"name": "tpe", "cells": 3}
    ignored = lr_study(space={"method": ["he", "wesar"], "sigma2": asked}, sampler=sampler)
    assert axes(ignored).axis is None
    assert axes(lr_study(space={"sigma2": asked}, sampler=sampler)).axis == "sigma2"


def test_the_series_of_a_width_by_default_is_named_as_its_runs_name_it() -> None:
    study = lr_study(space={"method": "he", "ffn_width": [None, 96], "lr": [1e-3, 1e-2]})
    assert expected_series(study, axes(study)) == ("he ffn_width=256", "he ffn_width=96")


def _listed(*cells: tuple[str, float, float | None]) -> Study:
    listed = [
        {"method": method, "lr": lr} | ({} if sigma2 is None else {"sigma2": sigma2})
        for method, lr, sigma2 in cells
    ]
    return lr_study(sampler={"name": "listed", "listed": listed})


def test_cells_written_out_are_a_matrix_where_they_fill_half_of_it() -> None:
    half = axes(_listed(("small", 1e-4, None), ("small", 1e-3, None), ("wesar", 1e-4, 4e-5)))
    # The columns are those of the list: the space has more.
    assert half.gridded and half.axis_values == (1e-4, 1e-3)
    few = axes(_listed(("small", 1e-4, None), ("he", 1e-3, None), ("wesar", 1e-2, 4e-5)))
    assert not few.gridded


def test_places_of_a_grid_and_of_a_list() -> None:
    study = _listed(("wesar", 1e-3, 4e-5), ("he", 1e-3, None), ("wesar", 1e-4, 4e-5))
    names = axes(study).series
    places = asked_places(study, series=names, axis="lr")
    assert list(places) == [("wesar σ²=4e-5", 1e-3), ("he", 1e-3), ("wesar σ²=4e-5", 1e-4)]
    assert len(asked_places(lr_study(), series=names, axis="lr")) == 32
    drawn = lr_study(sampler={"name": "random", "cells": 4})
    assert not asked_places(drawn, series=names, axis="lr")
