"""A smaller version of `make chaos`: each database under a dozen faults."""

import random

import pytest

from tests.chaos import assert_undisturbed, disturbed, undisturbed_of, write_study


@pytest.mark.slow
@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def test_a_disturbed_study_ends_as_an_undisturbed_one(database, request, tmp_path):
    if database == "postgres":
        request.getfixturevalue("postgres")  # Skipped, with the reason, where there is none.
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    done = disturbed(
        tmp_path, database=database, faults=12, seed=seed, lrs=3, replicates=1, steps=400, workers=2
    )
    assert done.faults.total() >= 6 and len(done.faults) >= 3, done.faults


def test_control_what_is_compared_can_differ(tmp_path):
    """A run that stands twice, or with other bits, does not pass."""
    study, runs = write_study(tmp_path, lrs=1, replicates=1, steps=5)
    one = undisturbed_of(study, tmp_path)
    assert_undisturbed(one, one, runs=runs)
    (file,) = one.outcomes_folder.glob("*.jsonl")
    text = file.read_text()
    file.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(AssertionError):
        assert_undisturbed(one, one, runs=runs)
    file.write_text(text)
    (tmp_path / "other").mkdir()
    other, _ = write_study(tmp_path / "other", lrs=1, replicates=1, steps=6)
    with pytest.raises(AssertionError):
        assert_undisturbed(undisturbed_of(other, tmp_path / "other"), one, runs=runs)
