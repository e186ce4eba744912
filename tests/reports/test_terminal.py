import io
import re

import pytest
from invented_study import invent, lr_study
from rich.console import Console

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.terminal import print_summary
from wesar_sweep.store.frames import outcomes_frame

WIDTHS = (60, 80, 120)


def printed(analysis: Analysis, width: int) -> str:
    stream = io.StringIO()
    print_summary(analysis, console=Console(file=stream, width=width, color_system=None))
    text = stream.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def sampled() -> Analysis:
    """Cells that fill no matrix, one of them with a perplexity of five digits."""
    range_ = {"low": 1e-5, "high": 1e-1, "log": True}
    study = lr_study(
        space={
            "method": ["he", "wesar"],
            "lr": range_,
            "sigma2": {**range_, "when": {"method": "wesar"}},
            "beta2": {"low": 0.9, "high": 0.999},
        },
        sampler={"name": "tpe", "cells": 12},
    )
    cells = [
        {"method": "wesar", "lr": 1.2345e-5 * 2**n, "sigma2": 4.321e-5, "beta2": 0.95123}
        for n in range(12)
    ]
    outcomes, _ = invent(study, cells, with_curves=False)
    return Analysis(study, outcomes_frame(outcomes))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_figure_of_the_best_cells_is_cut_or_broken(width: int) -> None:
    found = sampled()
    text = printed(found, width)
    assert "…" not in text and "perplexity" not in text
    for place, row in enumerate(found.ranked.head(10).iter_rows(named=True), start=1):
        figures = (
            rf"{row['trial']}\s+[*~]?{row['loss']:.3f}\s+"
            rf"{row['loss_low']:.3f}–{row['loss_high']:.3f}\s+{row['diverged']}/{row['n']}\s*$"
        )
        assert re.search(rf"^\s*{place} .*\s{figures}", text, re.M), (place, text)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_figure_of_a_wide_matrix_is_cut_or_broken(width: int) -> None:
    methods = ["small", "he", "xavier", "wesar", "weight_norm", "sigma_reparam"]
    lrs = [10.0**-place for place in range(11)]
    study = lr_study(space={"method": methods, "lr": lrs}, replicates=12)
    outcomes, _ = invent(study, with_curves=False)
    found = Analysis(study, outcomes_frame(outcomes))
    text = printed(found, width)
    whole = re.findall(r"(\d\.\d{3}) (\d+/12)(?!\d)", text)
    cells = found.cells.select("loss", "diverged").rows()
    assert sorted(whole) == sorted((f"{loss:.3f}", f"{lost}/12") for loss, lost in cells)


def test_a_tie_is_explained_only_where_one_is_marked() -> None:
    study = lr_study(replicates=2)
    outcomes, _ = invent(study, with_curves=False)
    text = " ".join(printed(Analysis(study, outcomes_frame(outcomes)), 120).split())
    assert "~" not in text and "With 2 seeds hardly any two cells can be told apart" in text
    assert "~ tied" in printed(sampled(), 120)
