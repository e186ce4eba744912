"""Curves on disk: one .npz part a run, complete or absent, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_atomically
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Curve

_PROBE = "probes/"
_AXIS = "probe_axes/"
_SET_STEP = "set_step/"
_SET = "set_figures/"
_SERIES = {
    "loss": np.float32,
    "grad_norm": np.float32,
    "eval_step": np.int64,
    "eval_loss": np.float32,
    "probe_step": np.int64,
}


def write_curve(directory: StudyDirectory, trial: int, seed: int, curve: Curve) -> Path:
    """Write one run's curves, atomically.

    Args:
        directory: The study's directory.
        trial: The run's cell.
        seed: The run's seed.
        curve: The series; float32 and int64 as `Curve` says.

    Returns:
        The file.

    Raises:
        StoreError: The disk is full or refuses; an older file of that name is as it was.
    """
    path = directory.curve_file(trial, seed)
    arrays: dict[str, NDArray[Any]] = {
        name: np.asarray(getattr(curve, name), dtype=kind) for name, kind in _SERIES.items()
    }
    for name, probe in curve.probes.items():
        arrays[_PROBE + name] = np.asarray(probe, dtype=np.float32)
    for name, steps in curve.set_step.items():
        arrays[_SET_STEP + name] = np.asarray(steps, dtype=np.int64)
    for name, figures in curve.set_figures.items():
        arrays[_SET + name] = np.asarray(figures, dtype=np.float32)
    for name, labels in curve.probe_axes.items():
        arrays[_AXIS + name] = np.asarray(labels, dtype=np.str_)

    def fill(file: BinaryIO) -> None:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, fill)
    return path


def read_curve(directory: StudyDirectory, trial: int, seed: int) -> Curve:
    """Read one run's curves.

    Raises:
        StoreError: The file is missing, damaged, or not a curve.
    """
    path = directory.curve_file(trial, seed)
    try:
        # Opened here: numpy leaves the file open where it turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Curve(
                **{name: arrays[name] for name in _SERIES},
                probes=_below(arrays, _PROBE),
                set_step=_below(arrays, _SET_STEP),
                set_figures=_below(arrays, _SET),
                probe_axes={
                    name.removeprefix(_AXIS): tuple(str(label) for label in arrays[name])
                    for name in arrays
                    if name.startswith(_AXIS)
                },
            )
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"cannot read {path}: it is not a whole curve file ({error})") from error


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin so, by the rest of their names; none in older files."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
