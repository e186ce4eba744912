"""Writing files so that a reader sees the old one or the new one, never a half of either."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from wesar_sweep.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space, then resume the study",
    errno.EDQUOT: "your disk quota is used up; free some space, then resume the study",
    errno.EROFS: "the file system is read-only; choose another results directory",
    errno.EACCES: "you may not write there; choose another results directory",
    errno.EPERM: "you may not write there; choose another results directory",
    errno.EIO: "the disk reports an input/output error; check it before you resume",
}


def store_error(error: OSError, *, path: Path, action: str = "write") -> StoreError:
    """The error for people: what could not be done to which file, why, and what to do.

    Args:
        error: What the operating system said.
        path: The file that was meant.
        action: A verb, such as "write" or "read".
    """
    said = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return StoreError(f"cannot {action} {path}: {said}" + (f"; {advice}" if advice else ""))


def write_atomically(path: Path, fill: bytes | Callable[[BinaryIO], None]) -> None:
    """Put bytes under a temporary name beside `path`, flush them to the disk, then rename.

    Args:
        path: The file to make or replace; its folder is made where it is missing.
        fill: The bytes, or a function that writes them to an open file.

    Raises:
        StoreError: The disk is full or refuses; `path` is as it was before.
    """
    # The process number keeps two writers of one name from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if callable(fill):
                fill(file)
            else:
                file.write(fill)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # On a read-only file system even this refuses, and would hide why.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise store_error(error, path=path) from error


def write_folder_atomically(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder with all its files, or nothing: filled under another name beside, then renamed.

    Args:
        folder: The folder to make; it may be there if it is empty.
        fill: Writes the files into the folder that it is given.

    Raises:
        StoreError: There is something in its place, or the disk is full or refuses; nothing of it
            is left.
    """
    # The working directory's relative name, ".", has no other name beside it.
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent)
    except OSError as error:
        raise store_error(error, path=folder) from error
    temporary = Path(made)
    try:
        # Made for its owner alone; what comes of it is to be as other folders are.
        temporary.chmod(0o777 & ~_umask())
        fill(temporary)
        # Refuses where there is anything but an empty folder.
        os.rename(temporary, folder)
    except OSError as error:
        raise store_error(error, path=folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically. NaN and infinity are refused: JSON has none.

    Raises:
        StoreError: As `write_atomically`.
    """
    text = json.dumps(dict(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
