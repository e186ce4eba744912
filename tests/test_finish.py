"""Pruned cells of a search by TPE and Hyperband, trained to the end for real."""

import json
import math
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import wesar_sweep as ws
from wesar_sweep.cli import app
from wesar_sweep.config import load_study, parse_study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import StoreError
from wesar_sweep.store.finished_search import read_finished_search

SEARCH = {
    "name": "search",
    "title": "Which lr?",
    "space": {
        "method": ["he", "wesar"],
        "lr": {"low": 1e-5, "high": 3e-2, "log": True},
        # Of he it changes nothing: such cells are asked for, and have none in their outcomes.
        "sigma2": {"low": 1e-5, "high": 1e-2, "log": True},
    },
    "replicates": 2,
    "sampler": {"name": "tpe", "cells": 14},
    "pruner": {"name": "hyperband", "options": {"min_resource": 10, "max_resource": 40}},
    "model": {"width": 8, "depth": 1, "heads": 2, "context": 16},
    "training": {"steps": 40, "batch": 4, "warmup": 4},
    "data": {"source": "synthetic", "symbols": 32, "length": 20_000},
    "evaluation": {"sequences": 8, "every": 10},
    "divergence": {"window": 4, "patience": 8},
    "probes": {"every": None},
}
SWEEP = Sweep(launcher="inline", slots=4, device="cpu")


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A search of which at least three cells were pruned."""
    out = tmp_path_factory.mktemp("search") / "out"
    result = ws.run(parse_study(SEARCH), on=SWEEP, out=out, quiet=True)
    assert result.summary.complete and result.summary.cells_pruned >= 3
    return result


@pytest.fixture(scope="module")
def finished(search, tmp_path_factory):
    """Three of them, trained to the end; the search is not there any more when it is looked at."""
    to = tmp_path_factory.mktemp("finished") / "new"
    there = to.parent / "copy"
    shutil.copytree(search.directory.root, there)
    ws.finish(there, to=to, cells=3, seed=5, on=SWEEP, quiet=True)
    shutil.rmtree(there)
    return ws.open_result(to)


def test_the_study_is_the_search_with_other_cells_and_no_pruner(search, finished):
    new, old = finished.study, search.study
    assert new.pruner is None and new.sampler.name == "listed" and len(new.sampler.listed) == 3
    assert (new.name, new.title) == ("search-finished", "Pruned cells of Which lr?, finished")
    whose = new.finishes
    assert (whose.study, whose.drawn, whose.seed) == ("search", 3, 5)
    assert whose.pruned == search.summary.cells_pruned
    # What the search left to the device is what it was then.
    assert (old.training.precision, new.training.precision) == (None, "fp32")
    kept = ("space", "replicates", "first_seed", "model", "data", "evaluation", "divergence")
    assert all(getattr(new, name) == getattr(old, name) for name in kept)
    assert new.training.model_copy(update={"precision": None}) == old.training


def test_each_drawn_cell_goes_on_where_it_was_pruned(search, finished):
    """The same cell and seeds repeat the pruned run: its loss then is met again, bit for bit."""
    record = read_finished_search(finished.directory)
    rows = search.outcomes.to_dicts()
    for trial, cut in enumerate(record.cells):
        told = [r for r in rows if r["trial"] == cut.trial and r["steps_trained"] > 0]
        assert any(row["status"] == "pruned" for row in told) and cut.step < 40
        losses = []
        for row in told:
            curve = finished.curve(trial=trial, seed=row["seed"])
            (at,) = np.flatnonzero(curve.eval_step == cut.step)
            losses.append(min(float(curve.eval_loss[at]), row["init_loss"]))
        assert (cut.n, cut.loss) == (len(told), np.mean(losses))
        assert all(curve.eval_step[-1] == 40 for curve in [curve])


def test_the_table_says_what_pruning_hid(search, finished):
    assert finished.summary.complete and finished.summary.runs == 6
    frame = finished.tables()["finished"]
    assert frame.height == 3 and frame["loss"].is_sorted()
    whole = search.analysis.cells.filter(search.analysis.cells["pruned"] == 0)
    best = float(whole["loss"].min())
    assert frame["difference"].to_list() == pytest.approx((frame["loss"] - best).to_list())
    below = int((frame["loss"] < best).sum())
    page = finished.report(format="md").read_text()
    assert "What pruning hid" in page
    assert f"{below} of 3 pruned settings, drawn at random and trained to the end, came" in page
    assert "What pruning hid" in finished.report().read_text()
    assert "of the pruner of search" not in page
    assert "drawn (seed 5) from the" in page, "what was asked names the search"


def test_it_is_resumed_and_drawn_again_the_same(search, finished, tmp_path):
    root = finished.directory.root
    before = finished.directory.finished_search_file.read_bytes()
    ws.resume(root, on=SWEEP, quiet=True)
    ws.finish(search, to=root, cells=3, seed=5, on=SWEEP, quiet=True)
    assert finished.directory.finished_search_file.read_bytes() == before
    assert len(ws.open_result(root).outcomes) == 6
    with pytest.raises(StoreError, match="holds another study"):
        ws.finish(search, to=root, cells=2, on=SWEEP, quiet=True)
    assert finished.directory.finished_search_file.read_bytes() == before


def test_a_published_search_is_finished_as_the_search_itself(search, finished, tmp_path):
    """Whoever has only what was published draws the same cells, and publishes the same table."""
    folder = tmp_path / "published"
    ws.publish(search.directory.root, to=folder)
    new = ws.finish(folder, to=tmp_path / "new", cells=3, seed=5, on=SWEEP, quiet=True)
    assert new.study.sampler.listed == finished.study.sampler.listed
    one, other = new.tables()["finished"], finished.tables()["finished"]
    timed = ("seconds",)
    numbers = [k for k, kind in other.schema.items() if kind.is_numeric() and k not in timed]
    assert one.select(numbers).equals(other.select(numbers)) and numbers
    ws.publish(new.directory.root, to=tmp_path / "kept")
    kept = ws.open_result(tmp_path / "kept").tables()["finished"]
    assert kept.select(numbers).equals(other.select(numbers))


def test_what_cannot_be_finished_is_refused_and_nothing_is_written(search, finished, tmp_path):
    root, to = search.directory.root, tmp_path / "to"
    with pytest.raises(StoreError, match="the search itself"):
        ws.finish(search, to=root / ".." / root.name, on=SWEEP)
    with pytest.raises(StoreError, match="has no pruner"):
        ws.finish(finished, to=to, on=SWEEP)
    # The search without one of its outcomes has not ended.
    shutil.copytree(root, half := tmp_path / "half")
    for file in (half / "outcomes").glob("*.jsonl"):
        rows = file.read_text().splitlines(keepends=True)
        kept = [row for row in rows if json.loads(row)["trial"] != 3]
        file.write_text("".join(kept))
    with pytest.raises(StoreError, match="has not ended"):
        ws.finish(half, to=to, on=SWEEP)
    assert not to.exists()


def test_nothing_pruned_is_nothing_hidden(tmp_path):
    never = {"name": "threshold", "options": {"upper": 1e6}}
    study = parse_study({**SEARCH, "pruner": never, "sampler": {"name": "random", "cells": 2}})
    whole = ws.run(study, on=SWEEP, out=tmp_path / "whole", quiet=True)
    with pytest.raises(StoreError, match="ended no cell"):
        ws.finish(whole, to=tmp_path / "to", on=SWEEP)
    always = {"name": "threshold", "options": {"upper": 1e-6}}
    study = study.model_copy(update={"pruner": parse_study({**SEARCH, "pruner": always}).pruner})
    none = ws.run(study, on=SWEEP, out=tmp_path / "none", quiet=True)
    with pytest.raises(StoreError, match="no best to compare"):
        ws.finish(none, to=tmp_path / "to", on=SWEEP)


def test_other_text_is_refused(search, tmp_path):
    root = tmp_path / "search"
    shutil.copytree(search.directory.root, root)
    facts = json.loads((root / "provenance.json").read_text())
    facts["corpus"]["sha256"] = "0" * 64
    (root / "provenance.json").write_text(json.dumps(facts))
    with pytest.raises(StoreError, match="corpus has changed since search was trained"):
        ws.finish(root, to=tmp_path / "to", cells=1, on=SWEEP, quiet=True)
    assert not (tmp_path / "to" / "study.yaml").exists(), "so it can be finished elsewhere"


def test_the_command_draws_all_where_there_are_fewer(search, tmp_path):
    new = tmp_path / "new"
    root = str(search.directory.root)
    words = ["finish", root, "--to", str(new), "--cells", "99", "--device", "cpu", "--workers", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    study = load_study(new / "study.yaml")
    assert study.finishes.drawn == study.finishes.pruned == search.summary.cells_pruned
    frame = ws.open_result(new).tables()["finished"]
    assert frame.height == study.finishes.pruned
    assert all(map(math.isfinite, frame["difference"]))
    page = ws.open_result(new).report(format="md").read_text()
    assert "All of them were finished" in page
