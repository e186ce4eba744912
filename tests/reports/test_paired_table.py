"""What the table of series compared seed by seed says where nothing can be compared."""

from __future__ import annotations

from wesar_sweep.reports.paired_table import _row


def test_seeds_that_saw_other_batches_are_not_said_to_be_missing() -> None:
    none = {"a": "he", "b": "small", "n": 0, "refused": 0}
    assert _row(none)[3] == "no seed in common"
    assert _row({**none, "refused": 3})[3] == "3 seeds in common, of other batches"
