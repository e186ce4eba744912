"""The files of checkpoints: a folder a worker, their order, and clearing them away.

What is in them is `training.checkpoints`'s, which needs torch; a driver does without.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from wesar_sweep.store.atomic import store_error
from wesar_sweep.store.layout import StudyDirectory

_SUFFIX = ".safetensors"


def all_of(directory: StudyDirectory) -> list[Path]:
    """Every checkpoint of a study, sorted by name; none that is still being written."""
    found = directory.checkpoints_folder.glob(f"*/*{_SUFFIX}")
    return sorted(path for path in found if not path.name.startswith("."))


def written_by(directory: StudyDirectory, worker: str) -> list[Path]:
    """A worker's checkpoints, oldest first."""
    return [path for path in all_of(directory) if path.parent.name == worker]


def next_of(directory: StudyDirectory, worker: str) -> Path:
    """The file for a worker's next checkpoint."""
    own = written_by(directory, worker)
    number = int(own[-1].stem) + 1 if own else 0
    return directory.checkpoints_folder / worker / f"{number:06d}{_SUFFIX}"


def clear_unfinished(directory: StudyDirectory, worker: str) -> None:
    """Delete what a worker of this name was writing when it was killed."""
    for leftover in (directory.checkpoints_folder / worker).glob(".*"):
        leftover.unlink(missing_ok=True)


def clear_all(directory: StudyDirectory) -> None:
    """Delete all checkpoints, those half written too: for a study that is complete.

    Raises:
        StoreError: The file system refuses.
    """
    folder = directory.checkpoints_folder
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(error, path=folder, action="clear") from error
