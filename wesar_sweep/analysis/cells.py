"""What each cell came to: its seeds counted, its loss with an interval, its divergence rate.

A cell is a trial; it is never found again by its lr, which is a float. Rules (SCIENCE, robustness
figures), all of which keep diverged runs in:

- n counts completed and diverged runs. Pruned runs were ended for being bad and failed runs by the
  machine: both are counted beside n and are in no mean.
- The *capped loss* of a run is min(validation loss, initial loss); what is not finite, or missing
  because the run diverged, is the initial loss. Each run is capped before the mean is taken.
- Intervals of means are Student's over seeds (`wesar_sweep.analysis.intervals`), cut at 0 and at
  the initial loss, which no capped loss passes; null for one seed. Perplexity is exp of the mean
  loss in nats a token, so its interval is that of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import Axes, with_series
from wesar_sweep.analysis.effective_lr import with_effective_lr
from wesar_sweep.analysis.intervals import Interval, student_mean, wilson
from wesar_sweep.config.study import Study
from wesar_sweep.store.frames import KNOBS

FIGURES: pl.Schema = pl.Schema(
    [
        ("n", pl.Int64()),
        ("diverged", pl.Int64()),
        ("pruned", pl.Int64()),
        ("failed", pl.Int64()),
        ("rate", pl.Float64()),
        ("rate_low", pl.Float64()),
        ("rate_high", pl.Float64()),
        ("loss", pl.Float64()),
        ("loss_low", pl.Float64()),
        ("loss_high", pl.Float64()),
        ("ppl", pl.Float64()),
        ("ppl_low", pl.Float64()),
        ("ppl_high", pl.Float64()),
        ("bpb", pl.Float64()),
        ("bpb_low", pl.Float64()),
        ("bpb_high", pl.Float64()),
        ("survivors", pl.Int64()),
        ("survivors_loss", pl.Float64()),
        ("start_loss", pl.Float64()),
        ("spikes", pl.Float64()),
        ("paired_spikes", pl.Float64()),
        ("seconds", pl.Float64()),
        ("seeds", pl.List(pl.Int64)),
        ("losses", pl.List(pl.Float64)),
        ("diverged_seeds", pl.List(pl.Int64)),
    ]
)
"""What `cells` adds to the key and the knobs. ``rate`` is of divergence; ``start_loss`` the mean
initial loss; ``spikes`` a mean a counted run; ``seeds`` and ``losses`` are the counted runs."""


def chance_loss(study: Study) -> float:
    """Nats a token of a uniform guess: stands in where a run has no finite initial loss."""
    return math.log(study.data.vocabulary)


def with_capped_loss(outcomes: pl.DataFrame, *, study: Study) -> pl.DataFrame:
    """The outcomes with ``start_loss``, ``counted`` and ``capped_loss`` (null where not counted).

    Args:
        outcomes: As `wesar_sweep.store.frames.outcomes_frame` gives them.
        study: For the loss of a uniform guess.
    """
    start = (
        pl.when(pl.col("init_loss").is_finite())
        .then(pl.col("init_loss"))
        .otherwise(pl.lit(chance_loss(study)))
    )
    # is_finite of null is null, which `when` takes for false: missing is as bad as not finite.
    capped = (
        pl.when(pl.col("val_loss").is_finite())
        .then(pl.min_horizontal(pl.col("val_loss"), start))
        .otherwise(start)
    )
    counted = pl.col("status").is_in(["completed", "diverged"])
    return outcomes.with_columns(
        start_loss=start, counted=counted, capped_loss=pl.when(counted).then(capped)
    )


def bytes_per_token(outcomes: pl.DataFrame) -> float:
    """Bytes a token of the held-out text, from runs that have both losses; 1 where none has."""
    ratio = outcomes.filter(pl.col("val_loss").is_finite() & (pl.col("val_bpb") > 0)).select(
        (pl.col("val_loss") / pl.col("val_bpb") / math.log(2)).alias("ratio")
    )["ratio"]
    found = ratio.drop_nans().median()
    return float(found) if isinstance(found, float) else 1.0


def cells(outcomes: pl.DataFrame, *, study: Study, layout: Axes) -> pl.DataFrame:
    """One row a cell, sorted by trial.

    Args:
        outcomes: One row a run, any number.
        study: The study they belong to.
        layout: `axes(study)`.

    Returns:
        trial, series, every knob, initial_gate and effective_lr (`analysis.effective_lr`), then the
        columns of `FIGURES`. A cell without a counted run has
        n = 0 and null figures.
    """
    runs = with_capped_loss(outcomes, study=study)
    per_token = bytes_per_token(outcomes)
    schema = pl.Schema(
        [
            ("trial", pl.Int64()),
            *((knob, outcomes.schema[knob]) for knob in KNOBS),
            *FIGURES.items(),
        ]
    )
    rows = [
        (trial, *part.select(KNOBS).row(0), *_figures(part.sort("seed"), per_token).values())
        for (trial,), part in runs.group_by(["trial"], maintain_order=True)
    ]
    frame = pl.DataFrame(rows, schema=schema, orient="row").sort("trial")
    named = with_effective_lr(with_series(frame, layout), study=study)
    return named.select("trial", "series", *KNOBS, "initial_gate", "effective_lr", *FIGURES)


def _figures(runs: pl.DataFrame, per_token: float) -> dict[str, object]:
    counted = runs.filter("counted")
    n = counted.height
    diverged = counted.filter(pl.col("status") == "diverged")
    rate = wilson(diverged.height, n)
    losses = counted["capped_loss"].to_numpy()
    loss = float(losses.mean()) if n else None
    highest = counted["start_loss"].max()
    spread = student_mean(losses, least=0.0, most=float(highest)) if n else None  # type: ignore[arg-type]
    survivors = counted.filter(pl.col("status") == "completed")
    per_nat = 1 / (math.log(2) * per_token)
    return {
        "n": n,
        "diverged": diverged.height,
        "pruned": runs.filter(pl.col("status") == "pruned").height,
        "failed": runs.filter(pl.col("status") == "failed").height,
        "rate": diverged.height / n if n else None,
        **_bounds("rate", rate),
        "loss": loss,
        **_bounds("loss", spread),
        "ppl": None if loss is None else _exp(loss),
        **_bounds("ppl", spread and Interval(_exp(spread.low), _exp(spread.high))),
        "bpb": None if loss is None else loss * per_nat,
        **_bounds("bpb", spread and Interval(spread.low * per_nat, spread.high * per_nat)),
        "survivors": survivors.height,
        "survivors_loss": survivors["capped_loss"].mean(),
        "start_loss": counted["start_loss"].mean(),
        "spikes": counted["spikes"].mean(),
        # The mean of a part of the seeds would not compare: all of them or none.
        "paired_spikes": None
        if counted["paired_spikes"].null_count()
        else counted["paired_spikes"].mean(),
        "seconds": counted["seconds"].sum(),
        "seeds": counted["seed"].to_list(),
        "losses": losses.tolist(),
        "diverged_seeds": diverged["seed"].to_list(),
    }


def _bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }


def _exp(loss: float) -> float:
    return float(np.exp(min(loss, 700.0)))


def ranked(frame: pl.DataFrame, *, by: str = "loss") -> pl.DataFrame:
    """The cells that have a figure, best first; of equals the one that diverged less.

    Cells that the pruner ended early stand behind all others: their figure is of a part of the
    seeds, and they were ended for being bad.
    """
    found = frame.filter(pl.col(by).is_not_null())
    return found.sort(pl.col("pruned") > 0, by, "rate", "trial")


def without_count(frame: pl.DataFrame) -> str:
    """``pruned or failed (3 cells)``: why cells have no counted run; empty for no such cell."""
    lost = frame.filter(pl.col("n") == 0)
    if lost.is_empty():
        return ""
    causes = [name for name in ("pruned", "failed") if int(lost[name].sum())]
    cells = f"{lost.height} cell{'' if lost.height == 1 else 's'}"
    return f"{' or '.join(causes) or 'not finished'} ({cells})"


def one_cell_a_place(frame: pl.DataFrame, *, layout: Axes) -> pl.DataFrame:
    """The cells of a grid with ``place``, their index along the axis; one a (series, place).

    A sampler may have asked for a setting twice, or a lost cell may have been asked for again: the
    one with the most runs stands, then the earlier one. Pooling them would count the same runs
    twice, since equal settings and seeds give equal runs.
    """
    axis = layout.axis
    place: Sequence[int]
    if axis is None:
        place = [0] * frame.height
    else:
        known = np.array([float(str(value)) for value in layout.axis_values])
        place = [
            int(np.argmin(np.abs(known - float(value)))) if len(known) else 0
            for value in frame[axis]
        ]
    return (
        frame.with_columns(pl.Series("place", place, dtype=pl.Int64))
        .sort("n", "trial", descending=[True, False])
        .unique(["series", "place"], keep="first", maintain_order=True)
        .sort("series", "place")
    )
