"""The section “Cost” of a report: what runs cost by how they ended, and where time went."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import axis_title, format_value
from wesar_sweep.analysis.cost import STATUSES, Cost
from wesar_sweep.reports.drawing import IS_SHOWN, Chart, finish, inline, rounded, tooltips
from wesar_sweep.reports.figure import Figure, divergence_words
from wesar_sweep.reports.named_table import NamedTable
from wesar_sweep.reports.tables import Table

MAX_WORKERS = 20
"""Workers with a line of their own; of more, those that held a device longest."""

_LEFT = "not trained"
_COLOURS: Mapping[str, str] = {
    "completed": "#2f7dd1",
    "diverged": "#d1600f",
    "pruned": "#8a6fc0",
    "failed": "#b5548f",
    _LEFT: "#8b95a3",
}

ATTRIBUTION = (
    "Device time is what workers recorded, loading and evaluating included, divided among the runs "
    "of a worker by how long each held a slot; failed tries lie in that of the others."
)


def cost_figures(analysis: Analysis) -> list[Figure]:
    """Tokens trained and left, where any were."""
    cost = analysis.cost
    if analysis.outcomes.is_empty() or not int(cost.runs["tokens"].sum()):
        return []
    by = axis_title(_rows(analysis)[0])
    return [
        Figure(
            name="tokens-spent",
            section="cost",
            title="Where the tokens went",
            chart=tokens_spent(analysis),
            caption=(
                f"Tokens trained at each {by}, all runs together ({cost.outcomes.height} ended), "
                "by how the runs ended; the faint part was asked for and not trained, because "
                "runs diverged or were pruned before their end. "
                f"{divergence_words(analysis.study.divergence)}"
            ),
            alt=f"Bars of tokens for each {by}. {left_words(cost)}",
        )
    ]


def cost_tables(analysis: Analysis) -> list[NamedTable]:
    """Cost by status, and the time of each worker where it was recorded."""
    cost = analysis.cost
    if analysis.outcomes.is_empty():
        return []
    title = "What runs cost, by how they ended"
    table = _status_table(cost)
    found = [NamedTable("cost", cost_words(cost), table, cost.by_status, "cost", title)]
    if not cost.by_worker.is_empty():
        title = "Where the workers’ time went"
        words = _worker_words(cost)
        table = _worker_table(cost)
        found.append(NamedTable("cost-workers", words, table, cost.by_worker, "cost", title))
    return found


def tokens_spent(analysis: Analysis) -> Chart:
    """Stacked bars of tokens by status: a bar a value of the axis, or a method where none is."""
    knob, order = _rows(analysis)
    series = analysis.cells.select("trial", "series", pl.col(knob).alias("knob"))
    runs = analysis.cost.runs.join(series, on="trial", how="left")
    trained = runs.select("series", "knob", "tokens", kind="status")
    left = runs.select("series", "knob", kind=pl.lit(_LEFT), tokens="tokens_left")
    sums = (
        pl.concat([trained, left.select(trained.columns)])
        .group_by("series", "knob", "kind", maintain_order=True)
        .agg(pl.col("tokens").sum())
        .filter(pl.col("tokens") > 0)
    )
    rows = rounded(
        {**row, "at": format_value(row.pop("knob"), knob=knob)} for row in sums.rows(named=True)
    )
    kinds = [kind for kind in (*STATUSES, _LEFT) if kind in set(sums["kind"])]
    height = max(70, 26 * len({row["at"] for row in rows}))
    chart = (
        alt.Chart(inline(rows))
        .transform_filter(IS_SHOWN)
        .transform_aggregate(tokens="sum(tokens)", groupby=["at", "kind"])
        .transform_calculate(order=f"indexof({kinds}, datum.kind)")
        .mark_bar()
        .encode(
            x=alt.X("tokens:Q", title="tokens", axis=alt.Axis(format="~s", tickCount=6)),
            y=alt.Y("at:N", title=axis_title(knob), sort=order),
            color=alt.Color(
                "kind:N", scale=alt.Scale(domain=kinds, range=[_COLOURS[kind] for kind in kinds])
            ),
            opacity=alt.condition(f"datum.kind === '{_LEFT}'", alt.value(0.3), alt.value(0.9)),
            order="order:Q",
            tooltip=tooltips(("at", "N", axis_title(knob)), ("kind", "N", "runs"), ("tokens", "Q")),
        )
    )
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return finish(chart.properties(width=640, height=height + 40, autosize=fit))


def _rows(analysis: Analysis) -> tuple[str, list[str]]:
    """The knob that has a bar a value, and the values in their order."""
    layout = analysis.layout
    if layout.axis is None or not layout.gridded:
        return "method", analysis.cells["method"].unique(maintain_order=True).to_list()
    return layout.axis, [format_value(value, knob=layout.axis) for value in layout.axis_values]


def left_words(cost: Cost) -> str:
    """What diverged runs cost, and what ending runs early saved, in sentences."""
    by = {row["status"]: row for row in cost.by_status.iter_rows(named=True)}
    asked = int(cost.runs.select(pl.col("tokens").sum() + pl.col("tokens_left").sum()).item())
    found = []
    lost = by.get("diverged")
    if lost:
        share = lost["tokens"] / max(1, int(cost.runs["tokens"].sum()))
        text = f"Diverged runs took {_tokens(lost['tokens'])} tokens ({share:.0%} of all trained"
        if lost["device_seconds"] is not None:
            text += f", {duration(lost['device_seconds'])} of devices"
        found.append(
            f"{text}); ending them where they diverged left {_tokens(lost['tokens_left'])} "
            f"untrained ({lost['tokens_left'] / asked:.0%} of all that these runs were asked for)."
        )
    cut = [by[name] for name in ("pruned", "never started") if name in by]
    if cut:
        left = sum(row["tokens_left"] for row in cut)
        counts = " and ".join(f"{row['runs']} {row['status']}" for row in cut)
        text = f"Pruning ({counts}) left {_tokens(left)} tokens untrained ({left / asked:.0%}"
        if cost.tokens_per_second:
            hours = duration(left / cost.tokens_per_second)
            text += f"; about {hours} of devices at this study’s mean speed"
        found.append(f"{text}).")
    if found:
        return " ".join(found)
    failed = by["failed"]["runs"] if "failed" in by else 0
    if failed:
        return f"All runs here but the {failed} that failed trained to their end."
    return "Every run here trained to its end."


def cost_words(cost: Cost) -> str:
    """All that a reader must know of the table, what was not recorded included."""
    parts = [left_words(cost)]
    spent = cost.total
    if not cost.accounts.spent:
        why = f": {cost.accounts.problem}" if cost.accounts.problem else ""
        parts.append(f"Device time was not recorded{why}.")
    else:
        speed = cost.tokens_per_second
        rate = "" if speed is None else f" at {speed:,.0f} tokens a second"
        parts.append(
            f"All workers held devices for {duration(spent.device_seconds)} "
            f"({spent.device_hours:.3g} device hours; a device is a GPU, or a worker’s processor) "
            f"and trained {_tokens(spent.tokens)} tokens{rate}, all else included."
        )
        if cost.tokens_in_vain:
            parts.append(
                f"{_tokens(cost.tokens_in_vain)} of them are in no outcome: steps after a "
                "divergence that was not read yet, or lost with a worker, or of runs in training."
            )
        if cost.occupancy is None:
            parts.append("How full the slots were was not recorded for all of the study.")
        else:
            kept = int(cost.outcomes["steps_trained"].sum())
            parts.append(
                f"Slots were {cost.occupancy:.1%} full: {kept:,} steps of outcomes in "
                f"{spent.slot_steps:,} steps of slots."
            )
        parts.append(ATTRIBUTION)
    parts.append(_wall(cost))
    return " ".join(filter(None, parts))


def _wall(cost: Cost) -> str:
    drive = cost.accounts.drive
    if drive is None:
        return "Wall time was not recorded."
    if cost.wall_seconds is None:
        return "Wall time: the newest call has not ended, or was killed."
    calls = cost.accounts.calls
    newest = f" (of the newest of {calls} calls alone)" if calls > 1 else ""
    return f"Wall time {duration(cost.wall_seconds)}{newest}."


def _status_table(cost: Cost) -> Table:
    sums = cost.by_status.select(pl.exclude("status", "device_seconds").sum()).row(0, named=True)
    times = cost.by_status["device_seconds"]
    whole = {"status": "all", **sums, "device_seconds": None if times.has_nulls() else times.sum()}
    rows = [
        (
            row["status"],
            f"{row['runs']:,}",
            _hours(row["device_seconds"]),
            _share(row["device_seconds"], whole["device_seconds"]),
            f"{row['tokens']:,}",
            f"{row['steps']:,}",
            f"{row['steps_left']:,}",
            f"{row['tokens_left']:,}",
        )
        for row in [*cost.by_status.iter_rows(named=True), whole]
    ]
    time = ("runs", "device hours", "share")
    rest = ("tokens", "steps trained", "steps not trained", "tokens not trained")
    heads = ("runs ended as", *time, *rest)
    return Table(heads, tuple(rows), (False, *(True for _ in heads[1:])))


def _worker_table(cost: Cost) -> Table:
    found = cost.by_worker
    if found.height > MAX_WORKERS:
        found = found.sort("device_seconds", descending=True).head(MAX_WORKERS)
    rows = [
        (
            row["worker"],
            f"{row['runs']:,}",
            _hours(row["device_seconds"]),
            *(_share(row[name], row["device_seconds"]) for name in _PARTS),
            f"{row['tokens']:,}",
            "–" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
        )
        for row in found.iter_rows(named=True)
    ]
    time = ("device hours", "training", "evaluating", "other")
    heads = ("worker", "runs", *time, "tokens", "tokens a second")
    return Table(heads, tuple(rows), (False, *(True for _ in heads[1:])))


_PARTS = ("training_seconds", "evaluation_seconds", "other_seconds")


def _worker_words(cost: Cost) -> str:
    """The words of the table of workers."""
    all_ = cost.by_worker.height
    more = f" Of {all_} workers the {MAX_WORKERS} with most device time." * (all_ > MAX_WORKERS)
    unknown = " A dash: not recorded." if cost.by_worker["other_seconds"].has_nulls() else ""
    return (
        "Shares are of the time for which the worker held its device: in training steps, in "
        "evaluations, and all else (loading, compiling, the database, waiting for cells). Runs are "
        f"those it ended; tokens a second are of all its device time.{more}{unknown}"
    )


def duration(seconds: float) -> str:
    """``0.4 s``, ``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _hours(seconds: float | None) -> str:
    return "not recorded" if seconds is None else f"{seconds / 3600:.3g}"


def _share(part: float | None, whole: float | None) -> str:
    return "–" if part is None or not whole else f"{part / whole:.1%}"


def _tokens(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


# What was never started has no tokens of its own.
assert set(_COLOURS) == {*STATUSES[:4], _LEFT}
