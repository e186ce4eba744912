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
    assert said(paths=["a.txt"]).endswith("10% held out for validation; tokens: bytes")
    own = said(paths=["a.txt"], validation=["b.txt", "c.txt"])
    assert own == "text files (a.txt); validation on b.txt, c.txt; tokens: bytes"


def test_every_source_and_tokenizer_has_words():
    bpe = said(paths=["a.txt"], tokenizer={"kind": "bpe", "vocabulary": 8192}, mask_documents=True)
    assert bpe.endswith(
        "tokens: BPE of 8,192, trained on the training documents; attention kept within documents"
    )
    named = {"kind": "file", "path": "llama.json", "vocabulary": 32_000}
    assert said(paths=["a.txt"], tokenizer=named).endswith("llama.json, vocabulary 32,000")
    assert said(source="huggingface", name="a/b", subset="en", tokens=10**9).startswith(
        "Hugging Face data set (a/b, en, train), up to 1,000,000,000 tokens of it; 10% held out"
    )
    assert said(source="stdlib").startswith("Python's standard library; ")
    assert said(source="synthetic") == (
        "synthetic (Markov chain of 16 symbols); 10% held out for validation"
    )


def test_epochs_are_told_and_that_data_repeat():
    space = {"lr": {"choices": [1e-3]}, "steps": {"choices": [10, 1000]}}
    study = Study(name="test", space=space, training={"batch": 2, "warmup": 0})
    few = dict(question(study, provenance={"corpus": {"train_tokens": 64 * 101}}))["epochs"]
    assert few.startswith("A run sees its 6,464 training tokens 0.2 to 20 times over. Beyond")
    assert "the data repeat" in few
    many = dict(question(study, provenance={"corpus": {"train_tokens": 10**9}}))["epochs"]
    assert many.endswith("times over: none twice.")
    assert "epochs" not in dict(question(study))


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
