"""How often a boundary search's 95 % interval holds the truth, and what the search costs.

``python benchmarks/boundary_search.py [--studies 1000]`` prints a Markdown table, a row a slope of
the invented truth; some minutes on one core. Divergence is logistic in log10 lr over 4 decades, the
boundary uniform in the inner 3.4 of them; 3 seeds a value, the default resolution (0.2 decades) and
the default of at most 12 values. Beside it stand a grid of the same resolution, judged by the same
rule, and the search with the same three seeds at every value, each seed with a threshold of its own
that it keeps: what would come of not giving each value seeds of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.stability import boundary
from wesar_sweep.stability.boundary import Scale, Tried, known, next_place

SLOPES = (0.01, 0.05, 0.1, 0.2)
LOW, HIGH = -4.0, 0.0
RESOLUTION = 0.2
SEEDS = 3
MOST = 12
GRID = tuple(np.round(np.linspace(LOW, HIGH, 21), 9).tolist())
SCALE = Scale(tuple(np.round(np.linspace(LOW, HIGH, 81), 9).tolist()), RESOLUTION, MOST, SEEDS)

Draw = Callable[[float], int]
"""A place -> how many of the seeds diverge there."""


@dataclass(frozen=True, slots=True)
class Found:
    """Means over invented studies."""

    coverage: float
    width: float
    runs: float


def thresholds(rng: np.random.Generator, truth: float, slope: float) -> NDArray[np.float64]:
    """[seeds] where runs of as many seeds begin to diverge."""
    return truth + slope * rng.logistic(size=SEEDS)


def searched(slope: float, *, studies: int, shared: bool = False, scale: Scale = SCALE) -> Found:
    """What searches come to; with `shared` the seeds keep their thresholds at every value."""
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(studies):
        truth = float(rng.uniform(LOW + 0.3, HIGH - 0.3))
        kept = thresholds(rng, truth, slope)
        tried: tuple[Tried, ...] = ()
        while (place := next_place(tried, scale)) is not None:
            limits = kept if shared else thresholds(rng, truth, slope)
            tried += (Tried(place, SEEDS, int((place > limits).sum())),)
        rows.append(_judged(tried, truth, scale))
    return _mean(rows)


def gridded(slope: float, *, studies: int, scale: Scale = SCALE) -> Found:
    """What a grid of the same resolution comes to, by the same rule."""
    rng = np.random.default_rng(8)
    rows = []
    for _ in range(studies):
        truth = float(rng.uniform(LOW + 0.3, HIGH - 0.3))
        tried = tuple(
            Tried(place, SEEDS, int((place > thresholds(rng, truth, slope)).sum()))
            for place in GRID
        )
        rows.append(_judged(tried, truth, scale))
    return _mean(rows)


def _judged(tried: tuple[Tried, ...], truth: float, scale: Scale) -> tuple[float, float, float]:
    found = known(tried, scale)
    return (found.low <= truth <= found.high, found.high - found.low, SEEDS * len(tried))


def _mean(rows: list[tuple[float, float, float]]) -> Found:
    # Memories of studies that do not come again.
    boundary.next_place.cache_clear()
    boundary.known.cache_clear()
    return Found(*(float(one) for one in np.mean(rows, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    heads = ("coverage", "width", "runs")
    names = [f"{kind}: {head}" for kind in ("search", "grid", "shared seeds") for head in heads]
    print(f"| slope, {studies} studies | " + " | ".join(names) + " |")
    print("|---:" + "|---:" * len(names) + "|", flush=True)
    for slope in SLOPES:
        every = (
            searched(slope, studies=studies),
            gridded(slope, studies=studies),
            searched(slope, studies=studies, shared=True),
        )
        words = [f"{100 * f.coverage:.1f} | {f.width:.2f} | {f.runs:.1f}" for f in every]
        print(f"| {slope:g} | " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    main()
