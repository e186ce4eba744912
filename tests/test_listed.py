"""A study of written cells, trained: like a grid of just these."""

import optuna

import wesar_sweep as ws
from wesar_sweep.config import parse_study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.doctor import architectures
from wesar_sweep.plan_view import facts

TINY = {
    "name": "written",
    "model": {"depth": 1, "heads": 2, "context": 16},
    "training": {"steps": 8, "batch": 4, "warmup": 2},
    "data": {"source": "synthetic", "symbols": 32, "length": 20_000},
    "evaluation": {"sequences": 8, "every": 4},
    "probes": {"every": None},
    "replicates": 2,
}
SPACE = {
    "method": ["he", "wesar"],
    "lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "width": [8, 16],
    "sigma2": {"choices": [4e-5, 1e-3], "when": {"method": "wesar"}},
}
CELLS = [
    {"method": "wesar", "lr": 0.0123456789, "width": 8, "sigma2": 1e-3},
    {"method": "he", "lr": 1e-3, "width": 8},
    {"method": "he", "lr": 1e-1, "width": 8},
]
SWEEP = Sweep(launcher="inline", slots=4, device="cpu")


def written(**changes):
    listed = {"name": "listed", "listed": CELLS}
    return parse_study({**TINY, "space": SPACE, "sampler": listed, **changes})


def test_every_listed_cell_is_trained_once_and_no_other(tmp_path):
    study = written()
    result = ws.run(study, on=SWEEP, out=tmp_path / "out", quiet=True)
    rows = result.outcomes.sort("trial", "seed").select("trial", "seed", "method", "lr", "sigma2")
    assert rows.rows() == [
        (trial, seed, cell["method"], cell["lr"], cell.get("sigma2"))
        for trial, cell in enumerate(CELLS)
        for seed in (0, 1)
    ]
    assert result.summary.complete and result.summary.cells == 3
    # Gone on with, it has nothing left, and no cell is queued again.
    ws.resume(result.directory.root, on=SWEEP, quiet=True)
    storage = f"sqlite:///{result.directory.database_file}"
    trials = optuna.load_study(study_name=study.name, storage=storage).trials
    assert [trial.params for trial in trials] == CELLS
    page = result.report(format="md").read_text()
    assert "partial" not in page.lower() and "listed, 3 cells" in page
    assert not result.analysis.layout.gridded and len(result.analysis.series) == 2
    assert "search-history" not in result.figures()
    assert "written out one by one" in result.report().read_text()


def test_it_is_planned_by_its_own_cells():
    planned = facts(written(), sweep=SWEEP, probe=False)
    assert (planned["cells"], planned["runs"], planned["upper_bound"]) == (3, 6, False)
    assert planned["architectures"] == 1, "width 16 is in the space and in no cell"
    assert [one.width for one in architectures(written())] == [8]


def test_it_goes_with_adaptive_replicates_and_with_a_pruner(tmp_path):
    more = {"min": 2, "max": 3, "until": {"divergence_halfwidth": 0.01}}
    result = ws.run(written(replicates=more), on=SWEEP, out=tmp_path / "more", quiet=True)
    assert result.summary.complete and result.summary.runs == 9
    pruner = {"name": "threshold", "options": {"upper": 0.1}}
    result = ws.run(written(pruner=pruner), on=SWEEP, out=tmp_path / "cut", quiet=True)
    assert result.summary.complete and result.summary.cells_pruned == 3
