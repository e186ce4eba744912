import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vl_convert
from invented_study import planted_spikes

from wesar_sweep.analysis import Analysis
from wesar_sweep.reports import spike_charts
from wesar_sweep.reports.figures import figures
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.frames import outcomes_frame


def rows_of(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that a part of a chart draws."""
    names = dict.fromkeys(re.findall(r'"name": "(data-[0-9a-f]+)"', json.dumps(part)))
    return [row for name in names for row in spec["datasets"][name]]


@pytest.fixture(scope="module")
def planted() -> Analysis:
    study, outcomes, curves = planted_spikes()
    return Analysis(study, outcomes_frame(outcomes), curves)


def test_the_gallery_shows_each_spike_with_its_probes_and_its_neighbours(planted: Analysis) -> None:
    spec = spike_charts.worst_spikes(planted).to_dict()
    # Loss, gradient norm and update ratio: attention logits were not recorded.
    assert spec["columns"] == 3 and len(spec["concat"]) == 9
    rules = [[r["step"] for r in rows_of(spec, one) if "what" in r] for one in spec["concat"][::3]]
    assert rules == [[200, 203], [220, 225], [250]]
    assert not any(120 in moments for moments in rules), "the hard batch is nobody's own spike"
    lines = [row for row in rows_of(spec, spec["concat"][0]) if "own" in row]
    (own,) = (row for row in lines if row["own"])
    curve = planted.curves[0, 1]
    assert (own["trial"], own["seed"]) == (0, 1)
    assert own["value"] == pytest.approx(
        curve.loss[own["step"][0] : own["step"][-1] + 1].tolist(), rel=5e-4
    )
    assert own["step"][0] <= 200 - 3 * 10 and own["step"][-1] >= 203
    others = [row for row in lines if not row["own"]]
    assert len(others) == 5 and {row["seed"] for row in others} == {1}
    assert all(max(v for v in row["value"] if v) < 2.2 for row in others), "they do not rise"
    svg = vl_convert.vegalite_to_svg(spec)
    assert "1: he at lr 1e-3" in svg and "seed 1, step 200" in svg


def test_the_words_say_which_run_when_how_high_and_how_long(planted: Analysis) -> None:
    found = {table.name: table for table in tables(planted)}
    rows = found["worst-spikes"].table.rows
    assert rows[0][:5] == ("1", "he at lr 1e-3", "1", "paired", "200")
    assert rows[0][6:] == ("after 3 steps", "completed")
    assert rows[2][5:] == ("not finite", "never", "diverged")
    caption = found["spikes"].caption
    assert "rule v1 (window 64 steps, z 6, least jump 0.3 nats)" in caption
    assert "n = 2 seeds a cell" in caption and "the 100 before" in caption
    (row,) = found["spikes"].table.rows
    assert row[:4] == ("he", "12", "2.56 (0.00–28.06)", "7/12")
    assert row[4:7] == ("12", "0.85 (0.00–4.58)", "3/12")


def test_a_study_without_spikes_says_so_and_draws_no_empty_chart(planted: Analysis) -> None:
    calm = {
        key: replace(curve, loss=np.full(300, 2.0, dtype=np.float32))
        for key, curve in planted.curves.items()
    }
    still = Analysis(planted.study, planted.raw_outcomes, calm)
    assert "worst-spikes" in [figure.name for figure in figures(planted)]
    assert "worst-spikes" not in [figure.name for figure in figures(still)]
    found = {table.name: table for table in tables(still)}
    assert "No run has a spike by this rule." in found["spikes"].caption
    assert "worst-spikes" not in found


def test_a_run_without_probes_has_loss_and_gradient_norm_alone(planted: Analysis) -> None:
    bare = {k: replace(c, probes={}, probe_axes={}) for k, c in planted.curves.items()}
    chart = spike_charts.worst_spikes(Analysis(planted.study, planted.raw_outcomes, bare))
    assert chart.to_dict()["columns"] == 2
