"""What a report says that was asked."""

from dataclasses import replace

from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.config.study import Study
from wesar_sweep.reports.asked import methods_and_limits, question
from wesar_sweep.reports.figure import interval_words
from wesar_sweep.store.frames import outcomes_frame


def said(**data):
    study = Study(name="test", space={"lr": {"choices": [1e-3]}}, data={"source": "text", **data})
    return dict(question(study))["data"]


def test_cells_without_a_run_and_of_one_seed_hide_no_warning() -> None:
    study = lr_study(space={"method": "he", "lr": [1e-4, 1e-3, 1e-2]})
    rows, _ = invent(study, with_curves=False)
    failed = [replace(row, status="failed", attempt=9) if row.trial == 0 else row for row in rows]
    facts = dict(methods_and_limits(Analysis(study, outcomes_frame(failed))))
    assert "one seed" not in facts["Basin width"] and "With 3 seeds" in facts["Basin width"]
    single = [row for row in rows if row.trial or not row.seed]
    assert "at most 75 %" in interval_words(Analysis(study, outcomes_frame(single)))


def test_seeds_of_a_boundary_search_go_on() -> None:
    study = lr_study(sampler={"name": "boundary", "along": "lr"})
    assert "the next ones for each further value" in dict(question(study))["replicates"]


def test_validation_files_are_named_and_a_share_is_not():
    assert said(paths=["a.txt"]).endswith("10% held out for validation")
    own = said(paths=["a.txt"], validation=["b.txt", "c.txt"])
    assert own == "text files (a.txt); validation on b.txt, c.txt"
