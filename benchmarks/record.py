"""Rows of results/benchmarks.csv: what was measured, on what, from which commit.

python benchmarks/record.py FILE.csv appends the rows of another such file that are not there yet:
for measurements of a machine whose own copy of results/ does not come back.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "results" / "benchmarks.csv"
COLUMNS = (
    "date", "benchmark", "figure", "p20", "p50", "p80", "n",
    "device", "cores", "python", "torch", "wesar_sweep", "commit",
    "case", "triton", "cuda",
)  # fmt: skip
"""New ones are added at the end: older rows are then still true, with nothing in the new ones."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one benchmark, measured n times in one call."""

    benchmark: str
    figure: str
    values: tuple[float, ...]
    case: str = ""
    """Shape and size that it was measured at, where the benchmark has several."""

    def quantile(self, share: float) -> float:
        """By linear interpolation between the ordered values."""
        ordered = sorted(self.values)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True, slots=True)
class Device:
    """What a row was measured on."""

    name: str
    triton: str = ""
    cuda: str = ""


def this_cpu() -> Device:
    """The processor."""
    from wesar_sweep.store.provenance import cpu_model

    return Device(cpu_model())


def this_gpu() -> Device:
    """The GPU that torch uses, with the versions that matter on it."""
    import torch

    return Device(
        torch.cuda.get_device_name(),
        triton=_version("triton"),
        cuda=str(torch.version.cuda),
    )


def append(
    measurements: Sequence[Measurement],
    *,
    device: Device | None = None,
    files: Sequence[Path] = (FILE,),
    say: Callable[[str], object] = print,
) -> None:
    """Say the medians and append a row for each figure.

    Args:
        measurements: What was measured.
        device: On what; None: on this processor.
        files: Where to; each is made, or brought up to the present columns.
        say: Told the medians, a line each.
    """
    from wesar_sweep.launchers.devices import cpu_cores

    device = device or this_cpu()
    rows = []
    for m in measurements:
        quantiles = [f"{m.quantile(share):.6g}" for share in (0.2, 0.5, 0.8)]
        rows.append(
            [
                datetime.now(UTC).isoformat(timespec="seconds"),
                m.benchmark,
                m.figure,
                *quantiles,
                str(len(m.values)),
                device.name,
                str(cpu_cores()),
                platform.python_version(),
                _version("torch"),
                _version("wesar-sweep"),
                commit(),
                m.case,
                device.triton,
                device.cuda,
            ]
        )
        case = f" {m.case}" if m.case else ""
        median = statistics.median(m.values)
        say(f"{m.benchmark}{case} {m.figure}: {median:,.4g} (n {len(m.values)})")
    for file in files:
        append_rows(file, rows)


def append_rows(file: Path, rows: Sequence[Sequence[str]]) -> None:
    """Add rows of the present columns to a file of the present or fewer columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    there = read_rows(file) if file.exists() else None
    if there is None or there[0] != list(COLUMNS):
        width = len(COLUMNS)
        old = [] if there is None else [row + [""] * (width - len(row)) for row in there[1:]]
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([COLUMNS, *old])
    with file.open("a", newline="") as out:
        csv.writer(out).writerows(rows)


def read_rows(file: Path) -> list[list[str]]:
    """The header and the rows."""
    with file.open(newline="") as text:
        rows = list(csv.reader(text))
    header = tuple(rows[0])
    assert header == COLUMNS[: len(header)], f"{file} has other columns: {header}"
    return rows


def merge(file: Path, *, into: Path = FILE) -> int:
    """Append the rows of a file that `into` has not; returns how many."""
    there = {tuple(row) for row in read_rows(into)[1:]} if into.exists() else set()
    new = [row for row in read_rows(file)[1:] if tuple(row) not in there]
    append_rows(into, new)
    return len(new)


def commit() -> str:
    """What is checked out; on a machine without git or repository WESAR_COMMIT says it."""
    told = os.environ.get("WESAR_COMMIT")
    if told:
        return told
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        if name != "wesar-sweep":
            return ""
        # Run from the source tree, without being installed.
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    print(f"{merge(parser.parse_args().file)} rows appended to {FILE}")
