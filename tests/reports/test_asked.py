"""What a report says that was asked."""

from dataclasses import replace

from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.config.study import Study
from wesar_sweep.reports.asked import evaluation_sets, methods_and_limits, question
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


def test_evaluation_sets_are_told_with_what_they_came_to():
    sets = {
        "wiki": {"kind": "wikitext", "paths": ["w.txt"], "every": 50, "stride": 16},
        "last": {"kind": "lambada", "paths": ["l.txt"]},
    }
    study = lr_study(evaluation={"sets": sets})
    facts = {"documents": 5153, "tokens": 34275, "normalisation": "word", "chance": 36.8836}
    known = {"evaluation_sets": {"last": {**facts, "sha256": "ab" * 32}}}
    found = dict(evaluation_sets(study, provenance=known))
    assert found == {
        "evaluation set wiki": "wikitext (w.txt); stride 16; judged at the end of completed runs, "
        "every 50 steps",
        "evaluation set last": "lambada (l.txt); 5,153 documents, 34,275 tokens scored; judged at "
        "the end of completed runs; perplexity a word; a uniform guess has 36.88 nats a word; "
        "sha256 abababababab",
    }
    rows, _ = invent(study, with_curves=False)
    methods = dict(methods_and_limits(Analysis(study, outcomes_frame(rows))))
    assert "lm-evaluation-harness" in methods["Evaluation sets"]
    without = lr_study()
    assert evaluation_sets(without, provenance=known) == []
    assert "Evaluation sets" not in dict(
        methods_and_limits(Analysis(without, outcomes_frame(invent(without, with_curves=False)[0])))
    )
