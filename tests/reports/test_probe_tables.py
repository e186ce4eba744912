from dataclasses import replace

import numpy as np
import pytest
from invented_study import planted_spikes

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


def named(analysis: Analysis) -> dict[str, NamedTable]:
    return {table.name: table for table in tables(analysis)}


@pytest.fixture(scope="module")
def planted() -> Analysis:
    study, outcomes, curves = planted_spikes()
    return Analysis(study, outcomes_frame(outcomes), curves)


def test_the_best_cell_of_each_series_is_shown_and_the_numbers_hold_all(analysis: Analysis) -> None:
    table = named(analysis)["probes"]
    assert [row[0] for row in table.table.rows] == [
        "wesar σ²=1e-3 at lr 1e-3",
        "small at lr 3e-3",
        "he at lr 3e-3",
        "wesar σ²=4e-5 at lr 3e-4",
    ]
    assert table.frame.height == 32 and int(table.frame["best"].sum()) == 4
    (row, *_) = table.table.rows
    assert len(row) == len(table.table.columns) and row[1:3] == ("3", "0")
    # The norms of every invented run double, and threefold.
    assert row[7:11] == ("2.00 (2.00–2.00)",) * 2 + ("3.00 (3.00–3.00)",) * 2
    assert "n = 3 seeds a cell" in table.caption and "Probed every 10 steps." in table.caption
    assert "runs that diverged are counted and left out" in table.caption
    assert (table.section, table.title) == ("inside", "Update ratios and norms")


def test_ratios_at_spikes_stand_between_the_counts_and_the_worst(planted: Analysis) -> None:
    names = [table.name for table in tables(planted) if table.section == "spikes"]
    assert names == ["spikes", "spike-ratios", "worst-spikes"]
    table = named(planted)["spike-ratios"]
    (row,) = table.table.rows
    assert len(row) == len(table.table.columns)
    # Three runs with a spike have no interval; nothing moves, and the control neither.
    assert row[:6] == ("he", "12", "3", "3", "0", "3 in 3 runs")
    assert row[6:10] == ("1.00",) * 4
    assert row[-1] == "30 in 3 runs"
    assert "within 20 steps" in table.caption and "below 5 runs" in table.caption


def test_a_study_without_probes_or_without_spikes_has_no_such_table(planted: Analysis) -> None:
    bare = {k: replace(c, probes={}, probe_axes={}) for k, c in planted.curves.items()}
    found = named(replace(planted, curves=bare))
    assert "spikes" in found and not {"probes", "spike-ratios"} & found.keys()
    calm = {
        key: replace(curve, loss=np.full(len(curve.loss), 2.0, dtype=np.float32))
        for key, curve in planted.curves.items()
    }
    found = named(replace(planted, curves=calm))
    assert "probes" in found and "spike-ratios" not in found
