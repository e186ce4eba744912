"""Rows of results/benchmarks.csv: what was measured, on what, from which commit."""

from __future__ import annotations

import csv
import platform
import statistics
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "results" / "benchmarks.csv"
COLUMNS = (
    "date", "benchmark", "figure", "p20", "p50", "p80", "n",
    "device", "cores", "python", "torch", "wesar_sweep", "commit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one benchmark, measured n times in one call."""

    benchmark: str
    figure: str
    values: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """By linear interpolation between the ordered values."""
        ordered = sorted(self.values)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def append(measurements: list[Measurement]) -> None:
    """Print the medians and append a row for each figure."""
    from wesar_sweep.launchers.devices import cpu_cores
    from wesar_sweep.store.provenance import cpu_model

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    facts = [
        cpu_model(),
        str(cpu_cores()),
        platform.python_version(),
        metadata.version("torch"),
        metadata.version("wesar-sweep"),
        commit,
    ]
    new = not FILE.exists()
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        for m in measurements:
            quantiles = [f"{m.quantile(share):.6g}" for share in (0.2, 0.5, 0.8)]
            date = datetime.now(UTC).isoformat(timespec="seconds")
            writer.writerow([date, m.benchmark, m.figure, *quantiles, len(m.values), *facts])
            print(
                f"{m.benchmark} {m.figure}: {statistics.median(m.values):,.4g} (n {len(m.values)})"
            )
