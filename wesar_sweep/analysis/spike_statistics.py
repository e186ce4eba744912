"""What the spikes of a series come to, and which spikes of a study were the worst.

A run counts that completed or diverged and has a curve. A spike without a recovery takes longer to
recover than any that has one, and a height that is not finite is above all others: both are in the
medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.balanced import balanced_mean, by_seed
from wesar_sweep.analysis.intervals import Interval, Vector, student_mean
from wesar_sweep.analysis.run_spikes import EVENTS, SHARED_BY, RunSpikes
from wesar_sweep.stability.spike_score import OLMO_2_WINDOW, olmo_2_spike_score
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

KINDS = {"raw": "spikes", "paired": "paired_spikes", "lone": "lone_spikes"}
"""Kind -> the column of `RunSpikes.runs` that counts it. Paired ones are raw ones with the median
over the other runs taken out; lone ones those of them that hardly another run shares
(`wesar_sweep.analysis.run_spikes`)."""

STATISTICS = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        ("n_seeds", pl.Int64()),
        *(
            (f"{kind}_{name}", dtype)
            for kind in KINDS
            for name, dtype in (
                ("n", pl.Int64()),
                ("spikes", pl.Int64()),
                ("per_run", pl.Float64()),
                ("per_run_low", pl.Float64()),
                ("per_run_high", pl.Float64()),
                ("per_thousand", pl.Float64()),
                ("per_thousand_low", pl.Float64()),
                ("per_thousand_high", pl.Float64()),
                ("runs", pl.Int64()),
                ("height", pl.Float64()),
                ("recovery", pl.Float64()),
            )
        ),
        ("lone_in_completed", pl.Int64()),
        ("olmo_2_n", pl.Int64()),
        ("olmo_2_loss", pl.Float64()),
        ("olmo_2_grad_norm", pl.Float64()),
        ("olmo_2_window", pl.Int64()),
    ]
)
"""A row a series. Of each kind: ``n`` runs that could be judged, ``spikes`` in all of them,
``per_run`` the mean a run over the seeds that every cell has, with Student's interval over these
(null where they are equal; where there is none, the mean over cells), ``per_thousand`` the same a
thousand steps trained, so that a run that ended early counts by its steps, ``runs`` with any, the
median ``height`` in nats and the median ``recovery`` in steps (inf where the median spike never
recovered; null without a spike). ``lone_in_completed``: the lone spikes of runs that completed; the
others end in a divergence or lie before one. ``olmo_2_loss`` and ``olmo_2_grad_norm`` are the mean
OLMo-2 spike scores, in percent, of the ``olmo_2_n`` runs that are longer than the window."""

WORST = pl.Schema([("rank", pl.Int64()), *EVENTS.items(), ("status", pl.String())])


def spike_statistics(
    found: RunSpikes, outcomes: pl.DataFrame, cells: pl.DataFrame, curves: Mapping[Key, Curve]
) -> pl.DataFrame:
    """The spikes of every series, in the order of their trials.

    Args:
        found: `run_spikes` of the study.
        outcomes: One row a run.
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        curves: By (trial, seed).

    Returns:
        As `STATISTICS` says.
    """
    runs = _counted(found.runs, outcomes).join(
        cells.select("trial", "series", "method"), on="trial", how="left"
    )
    window = olmo_2_window(runs["steps"].to_list())
    rows = []
    for (series,), part in runs.sort("trial", "seed").group_by(["series"], maintain_order=True):
        events = found.events.join(part.select("trial", "seed"), on=["trial", "seed"])
        row = {"series": series, "method": part["method"][0], "n_seeds": part["seed"].n_unique()}
        paired = events.filter(kind="paired")
        lone = paired.filter(pl.col("shared_by") < SHARED_BY)
        of_kind = {"raw": events.filter(kind="raw"), "paired": paired, "lone": lone}
        for kind, count in KINDS.items():
            judged = part.filter(pl.col(count).is_not_null())
            row |= {f"{kind}_{k}": v for k, v in _kind(judged, of_kind[kind], count).items()}
        completed = part.filter(status="completed").select("trial", "seed")
        row["lone_in_completed"] = lone.join(completed, on=["trial", "seed"]).height
        keys = part.select("trial", "seed").rows()
        rows.append(row | _olmo_2(keys, curves, window=window))
    return pl.DataFrame(rows, schema=STATISTICS)


def worst_spikes(found: RunSpikes, outcomes: pl.DataFrame, *, count: int = 5) -> pl.DataFrame:
    """The highest spikes of a study, worst first: of each run its highest, and no more.

    Where a run could be paired its paired spikes are taken, from which hard batches are out, and
    else its raw ones. Runs that completed come first: the last spike of a diverged run is its end.

    Args:
        found: `run_spikes` of the study.
        outcomes: One row a run.
        count: At most so many.

    Returns:
        As `WORST` says; ``rank`` from 1.
    """
    status = outcomes.select("trial", "seed", "status")
    worst = (
        found.own.join(status, on=["trial", "seed"])
        .sort("height", "trial", "seed", "start", descending=[True, False, False, False])
        .unique(["trial", "seed"], keep="first", maintain_order=True)
        .sort(pl.col("status") != "completed", maintain_order=True)
        .head(count)
    )
    return worst.with_row_index("rank", offset=1).cast({"rank": pl.Int64}).select(WORST.names())


def olmo_2_window(steps: Sequence[int]) -> int:
    """OLMo 2's 1,000 steps where a run is longer, else the largest round one half a run long."""
    longest = max(steps, default=0)
    if longest > OLMO_2_WINDOW:
        return OLMO_2_WINDOW
    return next((window for window in (500, 200, 100, 50) if 2 * window <= longest), 20)


def _counted(runs: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    ended = outcomes.filter(pl.col("status").is_in(["completed", "diverged"]))
    return runs.join(ended.select("trial", "seed", "status"), on=["trial", "seed"])


def _kind(judged: pl.DataFrame, events: pl.DataFrame, count: str) -> dict[str, Any]:
    means = by_seed(judged, count, cell="trial")
    spread = _spread(means)
    steps = by_seed(judged, "steps", cell="trial")
    rates = 1000 * means / steps if (steps > 0).all() else means[:0]
    rate_spread = _spread(rates)
    recovery = events["steps_to_recover"].cast(pl.Float64).fill_null(np.inf)
    return {
        "n": judged.height,
        "spikes": int(judged[count].sum()),
        "per_run": balanced_mean(judged, count, cell="trial"),
        "per_run_low": spread.low if spread else None,
        "per_run_high": spread.high if spread else None,
        "per_thousand": float(rates.mean()) if len(rates) else _rate(judged, count),
        "per_thousand_low": rate_spread.low if rate_spread else None,
        "per_thousand_high": rate_spread.high if rate_spread else None,
        "runs": int((judged[count] > 0).sum()),
        "height": _median(events["height"]),
        "recovery": _median(recovery),
    }


def _spread(means: Vector) -> Interval | None:
    """Student's interval; equal seeds, as where no run has a spike, are no sign of certainty."""
    return student_mean(means, least=0.0) if len(set(means)) > 1 else None


def _rate(judged: pl.DataFrame, count: str) -> float | None:
    """Spikes a thousand steps over all runs, where no seed is in every cell."""
    steps = float(judged["steps"].sum())
    return 1000 * float(judged[count].sum()) / steps if steps else None


def _median(values: pl.Series) -> float | None:
    return float(np.median(values.to_numpy())) if len(values) else None


def _olmo_2(keys: Sequence[Key], curves: Mapping[Key, Curve], *, window: int) -> dict[str, Any]:
    def mean(series: Callable[[Curve], Any]) -> tuple[int, float | None]:
        scores = [olmo_2_spike_score(series(curves[key]), window=window) for key in keys]
        known = [score for score in scores if score is not None]
        return len(known), float(np.mean(known)) if known else None

    n, loss = mean(lambda curve: curve.loss)
    grad_norm = mean(lambda curve: curve.grad_norm)[1]
    return {
        "olmo_2_n": n,
        "olmo_2_loss": loss,
        "olmo_2_grad_norm": grad_norm,
        "olmo_2_window": window,
    }
