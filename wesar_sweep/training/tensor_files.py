"""Writing tensors as safetensors: whole or not at all, and a full disk said as everywhere else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from wesar_sweep.store.atomic import write_atomically


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]
) -> None:
    """Put tensors in a file, atomically.

    Args:
        path: The file to make or replace.
        tensors: By name, contiguous, on the CPU; no two may overlap in memory.
        metadata: What the file's header says beside them.

    Raises:
        StoreError: The disk is full or refuses; `path` is as it was before.
    """

    def fill(file: BinaryIO) -> None:
        try:
            save_file(dict(tensors), file.name, metadata=dict(metadata))
        except SafetensorError as error:
            # It keeps the system's error number in its words alone.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        # It has put another file in the place of the open one, which nobody else may read.
        os.chmod(file.name, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        with Path(file.name).open("rb") as written:
            os.fsync(written.fileno())

    write_atomically(path, fill)
