"""The verdict: three sentences that are computed, for readers who read no further."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from wesar_sweep.analysis.axes import Axes, axis_title, format_value, searched_knobs
from wesar_sweep.analysis.choice import placed_words
from wesar_sweep.analysis.finished import Finished
from wesar_sweep.analysis.intervals import CONFIDENCE, bootstrap_coverage_bound, wilson
from wesar_sweep.analysis.paired import MIN_MARKED_SEEDS, Ties
from wesar_sweep.config.study import Study
from wesar_sweep.stability.boundary import BEYOND, NARROW


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence (or two) a question; none is empty."""

    best: str
    """Which setting has the lowest loss, with its interval."""
    basin: str
    """Which series bears the widest range of lr."""
    stable: str
    """The highest lr that never diverged, and how sure n lets us be."""
    hidden: str = ""
    """What pruning hid, of a study that finishes a search; empty elsewhere."""

    @property
    def sentences(self) -> tuple[str, str, str]:
        """Three, in the order in which they are read."""
        if self.hidden:
            # Its cells were chosen by a pruner: no basin is to be had of them.
            return (self.hidden, self.best, self.stable)
        return (self.best, self.basin, self.stable)


def verdict(
    cells: pl.DataFrame,
    *,
    study: Study,
    layout: Axes,
    ties: Ties,
    basins: pl.DataFrame,
    stable: pl.DataFrame,
    boundary: pl.DataFrame,
    finished: Finished | None = None,
    partial: bool = False,
) -> Verdict:
    """Put the figures of a study into words.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        study: The study.
        layout: `axes(study)`.
        ties: The best cell and those that cannot be told apart from it.
        basins: As `basin_width` gives them.
        stable: As `largest_stable_lr` gives them.
        boundary: As `wesar_sweep.analysis.boundary.boundaries` gives them.
        finished: As `wesar_sweep.analysis.finished.finished` gives it.
        partial: Whether runs are still to come, so that nothing said is final.
    """
    so_far = " so far" if partial else ""
    return Verdict(
        best=_best(cells, study=study, layout=layout, ties=ties, so_far=so_far),
        basin=_basin(basins, study=study, layout=layout, so_far=so_far),
        stable=_boundary(boundary, so_far=so_far)
        if not boundary.is_empty()
        else _stable(stable, cells, layout=layout, so_far=so_far),
        hidden=""
        if finished is None or finished.cells.is_empty()
        else f"What pruning hid{so_far}: {hidden_words(finished)}.",
    )


def percent(share: float) -> str:
    """0.5615 -> ``56 %``."""
    return f"{share * 100:.0f} %"


def hidden_words(found: Finished) -> str:
    """How many finished cells came below the search's best, as the end of a sentence."""
    many, best = found.cells.height, f"the search's best ({found.search.best.loss:.3f})"
    if found.share is None:
        words = f"{found.below or 'none'} of all {many} pruned settings, trained to the end, came "
        words += f"below {best}"
    else:
        words = (
            f"{found.below} of {many} pruned settings, drawn at random and trained to the end, "
            f"came below {best}: {percent(found.below / many)}, Wilson's 95 % interval "
            f"{percent(found.share.low)} to {percent(found.share.high)}"
        )
    if hidden := found.hidden_methods:
        words += f"; the lowest mean of {' and '.join(hidden)}, though, was among them"
    return words


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


def _bears_interval(n: int) -> bool:
    """Whether a bootstrap over n seeds can cover as often as an interval of its name must."""
    return bootstrap_coverage_bound(n) >= CONFIDENCE


def _spread(low: str, high: str, *, n: int) -> str:
    """What a bootstrap over n seeds says: an interval, or with few seeds no more than a range."""
    if _bears_interval(n):
        return f"95 % interval {low} to {high}, {_count(n, 'seed')}"
    bound = percent(bootstrap_coverage_bound(n))
    words = f"range of the resampled seeds {low} to {high}"
    return f"{words}; with {_count(n, 'seed')} it covers at most {bound}"


def _best(cells: pl.DataFrame, *, study: Study, layout: Axes, ties: Ties, so_far: str) -> str:
    n, k = int(cells["n"].sum()), int(cells["diverged"].sum())
    if n and k == n:
        if so_far:
            return f"Every run so far diverged ({k} of {n}); others are still to come."
        return f"Every run diverged ({k} of {n}): no setting works."
    if ties.best is None:
        if cells.is_empty():
            return "No run has ended yet."
        return (
            "No cell has a run that counts: every run so far failed or was pruned, "
            "so nothing can be said of the settings."
        )
    cell = cells.filter(pl.col("trial") == ties.best).row(0, named=True)
    name = setting(cell, study=study, layout=layout)
    if cell["loss_low"] is None:
        spread = "one seed, so there is no interval"
    else:
        low, high = f"{cell['loss_low']:.3f}", f"{cell['loss_high']:.3f}"
        spread = f"95 % interval {low} to {high}, {_count(cell['n'], 'seed')}"
    lost = "none diverged" if cell["n"] > 1 else "it did not diverge"
    if cell["diverged"]:
        lost = f"{cell['diverged']} of {cell['n']} diverged"
    alone = cells.height == 1
    others = " ".join(
        _others(ties, cell, alone=alone, replicates=study.least_replicates, so_far=so_far)
    )
    if not cells.filter((pl.col("rate") == 1) & (pl.col("loss") < cell["loss"])).is_empty():
        others += " Cells whose every run diverged are left out."
    loss = f"{cell['loss']:.3f} nats a token"
    return f"Lowest loss{so_far}: {name}, {loss} ({spread}; {lost}). {others}"


def ties_words(ties: Ties) -> str:
    """What the marks in a table say of ties, or why there are none."""
    if not ties.compared:
        if not ties.uncompared:
            return ""
        return "No cell is marked as tied: cells with one seed cannot be told apart."
    fewest, most = min(ties.compared.values()), max(ties.compared.values())
    if most < MIN_MARKED_SEEDS:
        return f"No cell is marked as tied: {_FEW_SEEDS}."
    text = "Tied cells cannot be told apart from it."
    if fewest < MIN_MARKED_SEEDS or ties.uncompared:
        text += f" Only cells with {MIN_MARKED_SEEDS} seeds in common with it are marked so."
    return text


_FEW_SEEDS = "with 2 seeds hardly any two cells can be told apart"


def _others(
    ties: Ties, best: dict[str, object], *, alone: bool, replicates: int, so_far: str
) -> Iterator[str]:
    """How the other cells stand to the best one, a sentence at a time."""
    if best["pruned"]:
        finished = f"{best['n']} of {_count(replicates, 'seed')} finished"
        yield f"The pruner ended this cell early ({finished}); no whole cell trained."
    if alone:
        yield f"It is the only cell{so_far}."
    if ties.compared:
        tied = len(ties.tied)
        cells = {0: "No other cell is", 1: "1 other cell is"}.get(tied, f"{tied} other cells are")
        text = f"{cells} tied with it"
        few = sum(ties.compared[trial] < MIN_MARKED_SEEDS for trial in ties.tied)
        if few and few == tied:
            text = f"{_FEW_SEEDS.capitalize()}: {cells} not told from it"
        elif few:
            text += f", {few} of them by 2 seeds alone ({_FEW_SEEDS})"
        yield f"{text}."
    if ties.uncompared and not ties.compared:
        if best["n"] == 1:
            yield "One seed a cell: cells cannot be told apart from it."
        else:
            yield "No other cell has 2 seeds in common with it: cells cannot be told apart from it."
    elif ties.uncompared:
        cells = "1 cell has" if len(ties.uncompared) == 1 else f"{len(ties.uncompared)} cells have"
        yield f"{cells} fewer than 2 seeds in common with it and cannot be told apart from it."
    behind = len(ties.cut_short - {ties.best})
    if behind and not best["pruned"]:
        are = (
            "cell that the pruner ended early is"
            if behind == 1
            else ("cells that the pruner ended early are")
        )
        yield f"{behind} {are} ranked behind and not compared."


def _basin(basins: pl.DataFrame, *, study: Study, layout: Axes, so_far: str) -> str:
    if layout.axis != "lr" and "lr" in searched_knobs(study):
        return "Basin width: the study is not laid out along lr, so no width is given."
    if layout.axis != "lr":
        return "Basin width: the study does not search lr, so there is no basin to measure."
    if not layout.gridded:
        return (
            f"Basin width: lr {placed_words(study)}, not laid out as a grid, so no width is given."
        )
    known = basins.filter(pl.col("width").is_not_null())
    if known.is_empty():
        why = " and ".join(basins["note"].unique().sort().to_list()) or "no run has ended yet"
        return f"Basin width: none can be given{so_far} ({why})."
    top = known.row(0, named=True)
    ends = [word for word in ("low", "high") if top[f"touches_{word}"]]
    width = f"{'at least ' if is_lower_bound(top) else ''}{top['width']:.2f} decades of lr"
    if top["width_low"] is None:
        lone = "one seed" if "one seed: " in top["note"] else "an lr has one seed"
        spread = f"{lone}, so there is no interval"
    else:
        low, high = f"{top['width_low']:.2f}", f"{top['width_high']:.2f}"
        spread = _spread(low, high, n=top["n_seeds"])
    within = f"within {top['tolerance']:g} nats of its own best"
    text = f"Widest basin{so_far}: {top['series']}, {width} {within} ({spread}"
    if ends:
        grid = "the lr tried so far end" if so_far else "the grid ends"
        text += f"; {grid} inside it at the {' and the '.join(ends)} end"
    text += ")."
    beyond = [word for word, end in (("lower", "low"), ("higher", "high")) if top[f"lost_{end}"]]
    if beyond:
        text += f" {' and '.join(beyond).capitalize()} lr were tried, but {top['lost']}."
    elif top["lost"]:
        text += f" Some of its lr have no counted run: {top['lost']}."
    if known.height == 1:
        return text if basins.height == 1 else text + " No other series has one."
    open_ended = sum(
        is_lower_bound(row) for row in known.iter_rows(named=True) if row["series"] != top["series"]
    )
    if open_ended:
        others = "another series" if open_ended == 1 else f"{open_ended} other series"
        text += f" The lr tried end inside the basin of {others}, which may be wider."
    few = int(known["n_seeds"].min())  # type: ignore[arg-type]
    if not _bears_interval(few):
        return f"{text} With {_count(few, 'seed')} a series the others are not told apart from it."
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


def is_lower_bound(basin: Mapping[str, object]) -> bool:
    """Whether a row of `basin_width` is open at an end, so that the basin may be wider."""
    ends = ("touches_low", "touches_high", "lost_low", "lost_high")
    return any(bool(basin[end]) for end in ends)


def _reaches(row: dict[str, object], top: dict[str, object]) -> bool:
    """Whether a narrower basin may be as wide as the widest."""
    if is_lower_bound(row) or row["width_high"] is None:
        return True
    low = top["width"] if top["width_low"] is None else top["width_low"]
    return float(str(row["width_high"])) >= float(str(low))


def boundary_words(row: Mapping[str, object]) -> str:
    """``3.2e-1 (2.5e-1 to 4.1e-1)``; of one that lies beyond the values tried, that it does."""
    knob = str(row["along"])
    median, low, high = (
        format_value(row[name], knob=knob, digits=2)  # type: ignore[arg-type]
        for name in ("boundary", "low", "high")
    )
    if row["ended"] in BEYOND:
        return str(row["ended"])
    return f"{median} ({low} to {high})"


def _boundary(boundary: pl.DataFrame, *, so_far: str) -> str:
    known = boundary.filter(pl.col("boundary").is_not_null())
    if known.is_empty():
        return "Boundary: no run counts yet."
    top, last = known.row(0, named=True), known.row(-1, named=True)
    along = axis_title(str(top["along"]))
    runs, grid = int(known["runs"].sum()), int(known["grid_runs"].sum())
    text = f"Highest {along} at which half of the seeds diverge{so_far}: {top['series']}, "
    text += f"{boundary_words(top)}"
    if known.height > 1:
        text += f"; lowest: {last['series']}, {boundary_words(last)}"
        apart = last["high"] < top["low"]
        text += f". Their 95 % intervals {'do not overlap' if apart else 'overlap'}"
    elif top["ended"] not in BEYOND:
        text += ", 95 % interval"
    reached = known["ended"].is_in([NARROW, *BEYOND]).fill_null(value=False)
    saved = ""
    if not reached.all():
        saved = f"; {(~reached).sum()} of them did not reach the resolution{so_far}"
    elif runs < grid:
        saved = f" (a grid of the same resolution: {grid})"
    boundaries = "1 boundary" if known.height == 1 else f"{known.height} boundaries"
    return f"{text}. {_count(runs, 'run')} for {boundaries}{saved}."


def _stable(stable: pl.DataFrame, cells: pl.DataFrame, *, layout: Axes, so_far: str) -> str:
    n, k = int(cells["n"].sum()), int(cells["diverged"].sum())
    if stable.is_empty():
        spread = wilson(k, n)
        if spread is None:
            return "Divergence: no run counts yet."
        text = f"Divergence{so_far}: {k} of {_count(n, 'run')} diverged"
        if cells.filter(pl.col("n") > 0).height > 1:
            # Cells have rates of their own: their sum is no binomial.
            return f"{text} over all cells."
        bounds = f"95 % interval {percent(spread.low)} to {percent(spread.high)}"
        return f"{text} ({bounds})."
    known = stable.filter(pl.col("lr").is_not_null())
    if known.is_empty():
        counted = stable.filter(pl.col("next_n") > 0)
        if counted.is_empty():
            why = " and ".join(stable["note"].unique().sort().to_list())
            return f"Highest lr that never diverged: none can be given{so_far} ({why})."
        every = "every series" if counted.height == stable.height else "every series that counts"
        where = "its lowest lr"
        if not counted["from_lowest"].all():
            # A lower one that has not run, or whose runs were pruned or failed, may be stable.
            where = "the lowest lr at which it has a counted run"
        return f"Highest lr that never diverged: none{so_far}; {every} diverged at {where}."
    top = known.row(0, named=True)
    # Of several series the one with the fewest runs says least.
    there = known.filter(pl.col("lr") == top["lr"])
    least, most = there.sort("n").row(0, named=True), int(there["n"].max())  # type: ignore[arg-type]
    same = there["series"].to_list()
    names = same[0] if len(same) == 1 else ", ".join(same[:-1]) + " and " + same[-1]
    if len(same) > 4:
        names = f"{len(same)} of {stable.height} series"
    edge = f" No higher lr was tried{so_far}." if top["at_edge"] else ""
    if top["lost_above"]:
        edge = f" {top['note'][0].upper()}{top['note'][1:]}."
    lr = format_value(top["lr"], knob="lr")
    counts = _count(most, "run")
    if least["n"] < most:
        counts = f"{least['n']} to {counts}"
    runs = f"{counts} {'there' if len(same) == 1 else 'each'}"
    unasked = known.filter((pl.col("lr") < top["lr"]) & pl.col("at_edge"))
    if unasked.height and not so_far:
        end = format_value(unasked["lr"].max(), knob="lr")  # type: ignore[arg-type]
        edge += f" {unasked.height} of {stable.height} series were not tried above {end}."
    return (
        f"Highest lr that never diverged{so_far}: {lr} ({names}; 0 of {runs}, "
        f"which leaves room for a true rate of up to {percent(least['rate_high'])}).{edge}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
