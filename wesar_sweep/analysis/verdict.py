"""The verdict: three sentences that are computed, for readers who read no further."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from wesar_sweep.analysis.axes import Axes, axis_title, format_value, searched_knobs
from wesar_sweep.analysis.intervals import wilson
from wesar_sweep.config.study import Study


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence (or two) a question; none is empty."""

    best: str
    """Which setting has the lowest loss, with its interval."""
    basin: str
    """Which series bears the widest range of lr."""
    stable: str
    """The highest lr that never diverged, and how sure n lets us be."""

    @property
    def sentences(self) -> tuple[str, str, str]:
        """All three, in the order in which they are read."""
        return (self.best, self.basin, self.stable)


def verdict(
    cells: pl.DataFrame,
    *,
    study: Study,
    layout: Axes,
    best: int | None,
    tied: int,
    basins: pl.DataFrame,
    stable: pl.DataFrame,
) -> Verdict:
    """Put the figures of a study into words.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: The study.
        layout: `axes(study)`.
        best: Trial of the best cell; None where no cell has a counted run, or every run diverged.
        tied: How many other cells cannot be told apart from it.
        basins: As `basin_width` gives them.
        stable: As `largest_stable_lr` gives them.
    """
    return Verdict(
        best=_best(cells, study=study, layout=layout, best=best, tied=tied),
        basin=_basin(basins, layout=layout),
        stable=_stable(stable, cells, layout=layout),
    )


def percent(share: float) -> str:
    """0.5615 -> ``56 %``."""
    return f"{share * 100:.0f} %"


def setting(cell: dict[str, object], *, study: Study, layout: Axes) -> str:
    """A cell in words: ``wesar σ²=4e-5 at lr 1e-3``, scattered knobs behind."""
    parts = [str(cell["series"])]
    names = [] if layout.axis is None else [layout.axis]
    for index, knob in enumerate([*names, *layout.scattered]):
        value = cell[knob]
        if value is None or knob not in searched_knobs(study):
            continue
        digits = None if layout.gridded else 3
        text = format_value(value, knob=knob, digits=digits)  # type: ignore[arg-type]
        parts.append(f"{'at' if index == 0 else 'and'} {axis_title(knob)} {text}")
    return " ".join(parts)


def _best(cells: pl.DataFrame, *, study: Study, layout: Axes, best: int | None, tied: int) -> str:
    n, k = int(cells["n"].sum()), int(cells["diverged"].sum())
    if n and k == n:
        return f"Every run diverged ({k} of {n}): no setting works."
    if best is None:
        if cells.is_empty():
            return "No run has ended yet."
        return (
            "No cell has a run that counts: every run so far failed or was pruned, "
            "so nothing can be said of the settings."
        )
    cell = cells.filter(pl.col("trial") == best).row(0, named=True)
    name = setting(cell, study=study, layout=layout)
    seeds = _count(cell["n"], "seed")
    if cell["loss_low"] is None:
        spread = "one seed, so there is no interval"
    else:
        spread = f"95 % interval {cell['loss_low']:.3f} to {cell['loss_high']:.3f}, {seeds}"
    lost = "none diverged" if cell["n"] > 1 else "it did not diverge"
    if cell["diverged"]:
        lost = f"{cell['diverged']} of {cell['n']} diverged"
    others = {
        0: "No other cell is tied with it." if cells.height > 1 else "It is the only cell.",
        1: "1 other cell is tied with it.",
    }.get(tied, f"{tied} other cells are tied with it.")
    return f"Lowest loss: {name}, {cell['loss']:.3f} nats a token ({spread}; {lost}). {others}"


def _basin(basins: pl.DataFrame, *, layout: Axes) -> str:
    if layout.axis != "lr":
        return "Basin width: the study does not search lr, so there is no basin to measure."
    if not layout.gridded:
        return "Basin width: lr was sampled, not laid out as a grid, so no width is given."
    known = basins.filter(pl.col("width").is_not_null())
    if known.is_empty():
        why = " and ".join(basins["note"].unique().sort().to_list()) or "no run has ended yet"
        return f"Basin width: none can be given ({why})."
    top = known.row(0, named=True)
    touches = top["touches_low"] or top["touches_high"]
    width = f"{'at least ' if touches else ''}{top['width']:.2f} decades of lr"
    if top["width_low"] is None:
        spread = "one seed, so there is no interval"
    else:
        spread = f"95 % interval {top['width_low']:.2f} to {top['width_high']:.2f}"
    within = f"within {top['tolerance']:g} nats of its own best"
    text = f"Widest basin: {top['series']}, {width} {within} ({spread}"
    if touches:
        ends = [word for word in ("low", "high") if top[f"touches_{word}"]]
        text += f"; the grid ends inside it at the {' and the '.join(ends)} end"
    text += ")."
    if known.height == 1:
        return text if basins.height == 1 else text + " No other series has one."
    near = [
        row["series"]
        for row in known.iter_rows(named=True)
        if row["series"] != top["series"] and _reaches(row, top)
    ]
    if not near:
        others = "every other" if known.height == basins.height else "every other that has one"
        return f"{text} It is wider than {others} by more than the intervals."
    names = ", ".join(near[:3]) + (f" and {len(near) - 3} more" if len(near) > 3 else "")
    return text + f" Not told apart from it: {names}."


def _reaches(row: dict[str, object], top: dict[str, object]) -> bool:
    """Whether a narrower basin may be as wide as the widest."""
    if row["touches_low"] or row["touches_high"] or row["width_high"] is None:
        return True
    low = top["width"] if top["width_low"] is None else top["width_low"]
    return float(str(row["width_high"])) >= float(str(low))


def _stable(stable: pl.DataFrame, cells: pl.DataFrame, *, layout: Axes) -> str:
    n, k = int(cells["n"].sum()), int(cells["diverged"].sum())
    if stable.is_empty():
        spread = wilson(k, n)
        if spread is None:
            return "Divergence: no run counts yet."
        bounds = f"95 % interval {percent(spread.low)} to {percent(spread.high)}"
        return f"Divergence: {k} of {_count(n, 'run')} diverged over all cells ({bounds})."
    known = stable.filter(pl.col("lr").is_not_null())
    if known.is_empty():
        return "Highest lr that never diverged: none; every series diverged at its lowest lr."
    top = known.row(0, named=True)
    same = known.filter(pl.col("lr") == top["lr"])["series"].to_list()
    names = same[0] if len(same) == 1 else ", ".join(same[:-1]) + " and " + same[-1]
    if len(same) > 4:
        names = f"{len(same)} of {stable.height} series"
    edge = " No higher lr was tried." if top["at_edge"] else ""
    lr = format_value(top["lr"], knob="lr")
    # Of several series the one with the fewest runs says least.
    least = known.filter(pl.col("lr") == top["lr"]).sort("n").row(0, named=True)
    runs = f"{_count(least['n'], 'run')} {'there' if len(same) == 1 else 'each'}"
    return (
        f"Highest lr that never diverged: {lr} ({names}; 0 of {runs}, "
        f"which leaves room for a true rate of up to {percent(least['rate_high'])}).{edge}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
