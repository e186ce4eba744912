"""How often the report's 95 % intervals hold the truth, on invented studies whose truth is known.

``python benchmarks/interval_coverage.py [--studies 1000]`` prints a Markdown table, a row an
interval and kind of losses, a column a number of seeds; a minute or two on one core. Shares are in
percent; of 1,000 studies a share of 95 is known to 0.7 points (one standard error). Wilson's is no
simulation: its share is summed over the binomial distribution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.basin import basin_width, basins
from wesar_sweep.analysis.intervals import Interval, bootstrap_mean, student_mean, wilson
from wesar_sweep.analysis.lr_curves import SeriesLosses
from wesar_sweep.analysis.lr_sensitivity import lr_sensitivity
from wesar_sweep.analysis.paired import MIN_BOOTSTRAP_SEEDS, paired_difference
from wesar_sweep.analysis.stable_lr import largest_stable_lr

SEEDS = (2, 3, 5, 8, 20)
START = 5.55
"""Nats at initialisation: what a diverged run counts as."""

LRS = np.logspace(-4, -0.5, 8)
BOWL_L = 1.4 + 0.1 * (np.log10(LRS) + 2.2) ** 2
RATES_L = np.array([0.0, 0.0, 0.0, 0.02, 0.1, 0.3, 0.8, 1.0])
"""True divergence rate at each of `LRS`."""

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]


def normal(rng: np.random.Generator, n: int) -> Array:
    """[n] losses with a standard deviation of 0.02 nats; mean 1.4."""
    return 1.4 + 0.02 * rng.standard_normal(n)


def skewed(rng: np.random.Generator, n: int) -> Array:
    """[n] losses that are lognormal (skewness 3.7) above their least; mean 1.4."""
    return 1.4 + 0.02 * (rng.lognormal(0, 0.8, n) - np.exp(0.32))


def capped(rate: float) -> Draw:
    """Losses of which a share diverged and counts as `START`; mean 1.4 + rate · (START − 1.4)."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        return np.where(rng.random(n) < rate, START, normal(rng, n))

    return draw


LOSSES: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 1.4),
    "skewed": (skewed, 1.4),
    "1 in 10 diverges": (capped(0.1), 1.4 + 0.1 * (START - 1.4)),
    "half diverge": (capped(0.5), 1.4 + 0.5 * (START - 1.4)),
}


def of_a_cell(values: Array) -> Interval | None:
    """Student's interval as the report's cells have it: between 0 and the initial loss."""
    return student_mean(values, least=0.0, most=START)


def mean_coverage(
    interval: Callable[[Array], Interval | None], draw: Draw, truth: float, *, n: int, studies: int
) -> float:
    """Share of intervals of a mean over n seeds that hold the truth."""
    rng = np.random.default_rng(n)
    return float(np.mean([_holds(interval(draw(rng, n)), truth) for _ in range(studies)]))


def wilson_coverage(rate: float, n: int) -> float:
    """Share of Wilson's intervals of n runs that hold the true rate, summed without chance."""
    held = [_holds(wilson(k, n), rate) for k in range(n + 1)]
    return float(stats.binom.pmf(np.arange(n + 1), n, rate) @ held)


def bowl(rng: np.random.Generator, n: int, *, noise: float) -> SeriesLosses:
    """A series with mean `BOWL_L`: a shift of each seed at all lr, and noise at each (nats)."""
    loss_Ln = BOWL_L[:, None] + noise * rng.standard_normal((1, n))
    loss_Ln = loss_Ln + noise * rng.standard_normal((len(LRS), n))
    return SeriesLosses("he", "he", LRS, tuple(range(n)), loss_Ln, START)


def basin_coverage(*, n: int, noise: float, studies: int) -> float:
    """Share of the intervals of the basin width that hold the width of the true means."""
    truth = float(basins(np.log10(LRS), BOWL_L[None]).width[0])
    rng = np.random.default_rng(n)
    frame = basin_width([bowl(rng, n, noise=noise) for _ in range(studies)])
    return _share(frame, "width", truth)


def sensitivity_coverage(*, n: int, noise: float, studies: int) -> float:
    """Share of the intervals of LR sensitivity that hold that of the true means."""
    truth = float(BOWL_L.mean() - BOWL_L.min())
    rng = np.random.default_rng(n)
    frame = lr_sensitivity([bowl(rng, n, noise=noise) for _ in range(studies)])
    return _share(frame, "sensitivity", truth)


def difference_coverage(*, n: int, studies: int) -> float:
    """Share of the intervals of a paired difference of two series that hold the true one, 0.1.

    A seed shifts all its pairs alike, as its batches do, and noise comes to each.
    """
    rng = np.random.default_rng(n)
    layout = Axes("lr", ("method",), (), gridded=True, axis_values=tuple(LRS.tolist()))
    held = 0
    for _ in range(studies):
        shift = 0.1 + 0.03 * rng.standard_normal((1, n))
        pairs_Ln = shift + 0.02 * rng.standard_normal((len(LRS), n))
        found = paired_difference(two_series(pairs_Ln), "a", "b", layout=layout)
        held += found.low is not None and found.high is not None and found.low <= 0.1 <= found.high
    return held / studies


def two_series(difference_Ln: Array) -> pl.DataFrame:
    """Cells of series a, whose losses are all 0, and of series b, which has these, [lr, seed]."""
    n = difference_Ln.shape[1]
    frames = [
        pl.DataFrame({"lr": LRS, "losses": loss_Ln.tolist()}).with_columns(series=pl.lit(series))
        for series, loss_Ln in (("a", 0 * difference_Ln), ("b", difference_Ln))
    ]
    rows = pl.concat(frames).with_row_index("trial")
    seeds = pl.Series("seeds", [list(range(n))] * rows.height)
    return rows.with_columns(seeds, n=pl.lit(n), batch=pl.lit(8), context=pl.lit(64))


def stable_coverage(*, n: int, studies: int) -> tuple[float, float]:
    """The largest stable lr over n runs an lr whose true rates are `RATES_L`.

    Returns:
        Share of the intervals of the rate at it that hold the true rate there; and share of studies
        that name an lr whose true rate is 0, as the first three of `LRS` are.
    """
    rng = np.random.default_rng(n)
    parts = []
    for study in range(studies):
        diverged = rng.binomial(n, RATES_L)
        parts.append(
            pl.DataFrame({"trial": np.arange(len(LRS)), "lr": LRS, "diverged": diverged})
            .with_columns(series=pl.lit(str(study)), method=pl.lit("he"), n=pl.lit(n))
            .with_columns(rate=pl.col("diverged") / n, pruned=pl.lit(0), failed=pl.lit(0))
        )
    layout = Axes("lr", ("method",), (), gridded=True, axis_values=tuple(LRS.tolist()))
    found = largest_stable_lr(pl.concat(parts), layout=layout)
    place = np.searchsorted(LRS, found["lr"].to_numpy() * (1 - 1e-9))
    true = RATES_L[place]
    held = (found["rate_low"].to_numpy() <= true) & (true <= found["rate_high"].to_numpy())
    return float(held.mean()), float((true == 0).mean())


def _share(frame: pl.DataFrame, figure: str, truth: float) -> float:
    held = frame.select((pl.col(f"{figure}_low") <= truth) & (pl.col(f"{figure}_high") >= truth))
    return float(held.to_series().cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]


def _holds(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high


def table(studies: int) -> list[tuple[str, list[float]]]:
    """Every row of the table: what was measured, and its shares for `SEEDS`."""
    rows: list[tuple[str, list[float]]] = []
    grid = np.linspace(0.01, 0.99, 99)
    wilsons = [[wilson_coverage(rate, n) for rate in grid] for n in SEEDS]
    rows.append(("divergence rate, Wilson, mean over rates", [float(np.mean(w)) for w in wilsons]))
    rows.append(("divergence rate, Wilson, the worst rate", [float(np.min(w)) for w in wilsons]))
    for kind, (draw, truth) in LOSSES.items():
        for name, interval in (("Student", of_a_cell), ("bootstrap", bootstrap_mean)):
            shares = [mean_coverage(interval, draw, truth, n=n, studies=studies) for n in SEEDS]
            rows.append((f"mean, {name}, {kind}", shares))
    for noise in (0.01, 0.03):
        nats = f"noise {noise:g} nats"
        basin = [basin_coverage(n=n, noise=noise, studies=studies) for n in SEEDS]
        rows.append((f"basin width, {nats}", basin))
        sensitivity = [sensitivity_coverage(n=n, noise=noise, studies=studies) for n in SEEDS]
        rows.append((f"LR sensitivity, {nats}", sensitivity))
    pairs = [
        difference_coverage(n=n, studies=studies) if n >= MIN_BOOTSTRAP_SEEDS else float("nan")
        for n in SEEDS
    ]
    rows.append(("paired difference", pairs))
    stable = [stable_coverage(n=n, studies=studies) for n in SEEDS]
    rows.append(("rate at the largest stable lr", [held for held, _ in stable]))
    rows.append(("largest stable lr has true rate 0", [zero for _, zero in stable]))
    return rows


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print(f"| 95 % interval of, {studies} studies | " + " | ".join(f"n {n}" for n in SEEDS) + " |")
    print("|---" + "|---:" * len(SEEDS) + "|")
    for name, shares in table(studies):
        print(f"| {name} | " + " | ".join(_percent(share) for share in shares) + " |")


if __name__ == "__main__":
    main()
