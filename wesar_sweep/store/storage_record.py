"""Which database a study is kept in, as far as its directory may know: never with the password.

A directory without the file has its study in its own SQLite file. What a database is and how to
come in is not decided here (`config.storage_url`, `studies.storage`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.layout import StudyDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRecord:
    """A study's place in a database that other studies may share."""

    url: str
    """Without the password."""
    study: str
    """The study's name there: its own and some digits, since two directories may hold one name."""
    heartbeat_grace_s: float
    """A worker that was not heard of for so long counts as dead."""


def read_storage_record(directory: StudyDirectory) -> StorageRecord | None:
    """What the directory knows; None where the study is in its own SQLite file.

    Raises:
        StoreError: The file is damaged or cannot be read.
    """
    path = directory.storage_file
    try:
        values = json.loads(path.read_text())
        return StorageRecord(**values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path} does not say in which database the study is: {error}. It holds url (without "
            "the password), study and heartbeat_grace_s; mend it from a copy"
        ) from error


def make_storage_record(
    directory: StudyDirectory, *, url: str, name: str, heartbeat_grace_s: float
) -> StorageRecord:
    """Settle which database the study is in, once: where several do so at once, the first one's.

    Raises:
        StoreError: The disk is full or refuses.
    """
    record = StorageRecord(
        url=url, study=f"{name}.{secrets.token_hex(4)}", heartbeat_grace_s=heartbeat_grace_s
    )
    path = directory.storage_file
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    write_json(temporary, asdict(record))
    try:
        # A link, unlike a renaming, refuses where the name is taken; on network disks as well.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise store_error(error, path=path) from error
    finally:
        temporary.unlink(missing_ok=True)
    settled = read_storage_record(directory)
    assert settled is not None, "it was made a moment ago"
    return settled


def replace_storage_record(directory: StudyDirectory, record: StorageRecord) -> None:
    """Write a changed record, atomically; for the process that runs the study alone.

    Raises:
        StoreError: The disk is full or refuses.
    """
    write_json(directory.storage_file, asdict(record))
