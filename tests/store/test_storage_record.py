"""Where a study's database is, as its directory says: settled once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.storage_record import (
    StorageRecord,
    make_storage_record,
    read_storage_record,
    replace_storage_record,
)


def make(directory: StudyDirectory) -> StorageRecord:
    return make_storage_record(
        directory, url="postgresql://u@h/d", name="s", heartbeat_grace_s=60.0
    )


def test_of_many_that_begin_one_settles_it(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    assert read_storage_record(directory) is None
    with ThreadPoolExecutor(8) as pool:
        records = set(pool.map(make, [directory] * 32))
    assert len(records) == 1
    (record,) = records
    assert record.study.startswith("s.") and read_storage_record(directory) == record
    assert [path.name for path in tmp_path.iterdir()] == ["storage.json"]
    changed = replace(record, heartbeat_grace_s=5.0)
    replace_storage_record(directory, changed)
    assert read_storage_record(directory) == changed == make(directory)


@pytest.mark.parametrize("text", ["", "[]", '{"url": "postgresql://h/d"}'])
def test_a_damaged_one_is_an_error_for_people(tmp_path: Path, text: str) -> None:
    directory = StudyDirectory(tmp_path)
    directory.storage_file.write_text(text)
    with pytest.raises(StoreError, match=r"storage\.json does not say in which database"):
        read_storage_record(directory)
