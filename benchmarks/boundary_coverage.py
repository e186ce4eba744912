"""How often the stability boundary's 95 % interval holds the truth, and how wide it is.

``python benchmarks/boundary_coverage.py [--studies 1000]`` prints a Markdown table, a row a rate of
divergence, a column a number of seeds; some minutes on one core. Eleven lr, half a decade apart;
the rate is logistic in log lr and passes one half at a place drawn evenly between the third and the
ninth, or just at one of them, where an interval is hardest put to it. Beside it stands the interval
that was not chosen, the profile likelihood of a logistic curve with χ²: here it assumes the true
shape (but of a plateau), and gets a step of `_CENTRES` at either end.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, log_expit

from wesar_sweep.analysis.monotone_boundary import monotone_boundary

SEEDS = (3, 5, 10)
LOG_LR = np.linspace(-4, 1, 11)
KINDS = {"step": 0.01, "steep": 0.25, "shallow": 1.5, "very shallow": 3.0, "plateau": 0.01}
"""Decades of lr in which the rate rises from 10 to 90 %. A plateau is a step below which three in
ten runs diverge for two decades, as where now and then a run is lost long before all are."""

_CENTRES = np.linspace(-5, 2, 141)
_SLOPES = np.concatenate([[0.0], np.geomspace(0.3, 3000, 50)])
_LOG_RATE_CSL = log_expit(_SLOPES[:, None] * (LOG_LR - _CENTRES[:, None, None]))
_LOG_REST_CSL = log_expit(-_SLOPES[:, None] * (LOG_LR - _CENTRES[:, None, None]))

Array = NDArray[np.float64]
Ends = tuple[float, float]


def isotonic(k_L: NDArray[np.int64], n: int) -> Ends:
    """The report's interval; infinite where a side is open."""
    found = monotone_boundary(LOG_LR, k_L, np.full(len(LOG_LR), n))
    low = -np.inf if found.low is None else found.low
    return low, np.inf if found.high is None else found.high


def logistic_profile(k_L: NDArray[np.int64], n: int) -> Ends:
    """Where the profile likelihood of the centre, over slopes of at least 0, is within χ²/2."""
    profile_C = (_LOG_RATE_CSL @ k_L + _LOG_REST_CSL @ (n - k_L)).max(axis=1)
    kept = _CENTRES[profile_C >= profile_C.max() - stats.chi2.ppf(0.95, 1) / 2]
    low, high = float(kept[0]), float(kept[-1])
    step = _CENTRES[1] - _CENTRES[0]
    return (
        -np.inf if low <= _CENTRES[0] else low - step,
        np.inf if high >= _CENTRES[-1] else high + step,
    )


METHODS = {"isotonic, exact": isotonic, "logistic, profile": logistic_profile}


def truth(rng: np.random.Generator, *, kind: str, at_place: bool) -> tuple[float, Array]:
    """log10 of the boundary, and [L] the rates."""
    centre = float(rng.choice(LOG_LR[2:9])) if at_place else rng.uniform(LOG_LR[2], LOG_LR[8])
    rate_L = expit(2 * np.log(9) / KINDS[kind] * (LOG_LR - centre))
    if kind == "plateau":
        rate_L = np.maximum(rate_L, np.where(centre - 2 < LOG_LR, 0.3, 0.0))
    return centre, rate_L


def coverage(
    method: str, *, n: int, kind: str, studies: int, at_place: bool = False
) -> tuple[float, float, float]:
    """Of many studies of n seeds an lr.

    Args:
        method: One of `METHODS`.
        n: Seeds.
        kind: One of `KINDS`.
        studies: How many are invented.
        at_place: The boundary lies just at a place of the grid.

    Returns:
        Share of intervals that hold the boundary; their median width in decades; share that are
        open at an end.
    """
    rng = np.random.default_rng([n, list(KINDS).index(kind)])
    ends = []
    held = 0
    for _ in range(studies):
        centre, rate_L = truth(rng, kind=kind, at_place=at_place)
        low, high = METHODS[method](rng.binomial(n, rate_L), n)
        held += low - 1e-9 <= centre <= high + 1e-9
        ends.append(high - low)
    return held / studies, float(np.median(ends)), float(np.isinf(ends).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print("| covered / median decades / open | " + " | ".join(f"n {n}" for n in SEEDS) + " |")
    print("|---" + "|---:" * len(SEEDS) + "|")
    for method in METHODS:
        for kind in KINDS:
            for at_place in (False, True):
                words = []
                for n in SEEDS:
                    share, wide, opened = coverage(
                        method, n=n, kind=kind, studies=studies, at_place=at_place
                    )
                    words.append(f"{100 * share:.1f} % / {wide:.1f} / {100 * opened:.0f} %")
                where = ", at a place" if at_place else ""
                print(f"| {method}, {kind}{where} | {' | '.join(words)} |")


if __name__ == "__main__":
    main()
