"""What a report says that was asked."""

from wesar_sweep.config.study import Study
from wesar_sweep.reports.asked import question


def said(**data):
    study = Study(name="test", space={"lr": {"choices": [1e-3]}}, data={"source": "text", **data})
    return dict(question(study))["data"]


def test_validation_files_are_named_and_a_share_is_not():
    assert said(paths=["a.txt"]).endswith("10% held out for validation")
    own = said(paths=["a.txt"], validation=["b.txt", "c.txt"])
    assert own == "text files (a.txt); validation on b.txt, c.txt"
