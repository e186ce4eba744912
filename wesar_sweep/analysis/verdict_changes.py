"""What two studies conclude, side by side, and whether seeds tell the two conclusions apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from wesar_sweep.analysis.axes import format_value
from wesar_sweep.analysis.intervals import CONFIDENCE, bootstrap_coverage_bound
from wesar_sweep.analysis.results import Analysis
from wesar_sweep.analysis.verdict import is_lower_bound, percent, setting

SERIES = pl.Schema(
    [
        ("series", pl.String()),
        ("n_a", pl.Int64()),
        ("n_b", pl.Int64()),
        ("diverged_a", pl.Int64()),
        ("diverged_b", pl.Int64()),
        ("width_a", pl.Float64()),
        ("width_low_a", pl.Float64()),
        ("width_high_a", pl.Float64()),
        ("open_a", pl.Boolean()),
        ("width_b", pl.Float64()),
        ("width_low_b", pl.Float64()),
        ("width_high_b", pl.Float64()),
        ("open_b", pl.Boolean()),
        ("basins_differ", pl.Boolean()),
        ("stable_lr_a", pl.Float64()),
        ("stable_lr_b", pl.Float64()),
    ]
)
"""``n`` and ``diverged`` count all runs of the series. ``open``: the basin's width is a lower
bound. ``basins_differ``: the two 95 % intervals do not meet; null where a study has too few seeds
(or none) for an interval of that name."""


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """One question that every report answers."""

    question: str
    """``best cell``, ``widest basin`` or ``largest stable lr``."""
    a: str
    b: str
    changed: bool
    """Whether the two name another cell, series or lr."""
    words: str
    """What that means: ``same``, or whether chance alone could have changed it."""


def verdict_changes(
    a: Analysis, b: Analysis, *, matched: Mapping[int, int]
) -> tuple[VerdictChange, ...]:
    """The three verdicts of two studies.

    Args:
        a: The one study.
        b: The other.
        matched: Trial of a -> trial of b, of cells with the same setting.
    """
    return (_best(a, b, matched), _basin(a, b), _stable(a, b))


def compare_series(a: Analysis, b: Analysis) -> pl.DataFrame:
    """One row a series that both studies have, as `SERIES` says, in the order of a."""
    sides = [{row["series"]: row for row in _series_rows(study)} for study in (a, b)]
    rows = []
    for name in a.series:
        if name in sides[0] and name in sides[1]:
            row_a, row_b = sides[0][name], sides[1][name]
            row = {f"{key}_a": value for key, value in row_a.items()}
            row |= {f"{key}_b": value for key, value in row_b.items()}
            row |= {"series": name, "basins_differ": _basins_differ(row_a, row_b)}
            rows.append(tuple(row[key] for key in SERIES))
    return pl.DataFrame(rows, schema=SERIES, orient="row")


def _series_rows(study: Analysis) -> list[dict[str, Any]]:
    basins = {row["series"]: row for row in study.basin_width().iter_rows(named=True)}
    stable = dict(study.largest_stable_lr().select("series", "lr").rows())
    counts = study.cells.group_by("series", maintain_order=True).agg(pl.col("n", "diverged").sum())
    rows = []
    for name, n, diverged in counts.rows():
        basin = basins.get(name, {})
        rows.append(
            {
                "series": name,
                "n": n,
                "diverged": diverged,
                **{key: basin.get(key) for key in ("width", "width_low", "width_high", "n_seeds")},
                "open": is_lower_bound(basin) if basin else None,
                "stable_lr": stable.get(name),
            }
        )
    return rows


def _basins_differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool | None:
    for row in (a, b):
        if row["width_low"] is None or bootstrap_coverage_bound(row["n_seeds"]) < CONFIDENCE:
            return None
    narrow, wide = (a, b) if a["width"] <= b["width"] else (b, a)
    # A lower bound may be as wide as the other.
    return not narrow["open"] and bool(narrow["width_high"] < wide["width_low"])


def _best(a: Analysis, b: Analysis, matched: Mapping[int, int]) -> VerdictChange:
    words = [_best_words(study) for study in (a, b)]
    best_a, best_b = a.ties.best, b.ties.best
    if best_a is None or best_b is None:
        return VerdictChange("best cell", words[0], words[1], best_a != best_b, "one has none")
    if matched.get(best_a) == best_b:
        return VerdictChange("best cell", words[0], words[1], False, "same")
    backwards = {trial_b: trial_a for trial_a, trial_b in matched.items()}
    places = ((a, backwards.get(best_b), "A"), (b, matched.get(best_a), "B"))
    said = []
    for study, other, name in places:
        if other is None:
            said.append(f"{name} lacks the other’s best cell")
        elif other in study.ties.tied:
            said.append(f"in {name} the two are tied")
        elif other in study.ties.compared:
            said.append(f"in {name} they differ")
        else:
            said.append(f"in {name} they cannot be compared")
    return VerdictChange("best cell", words[0], words[1], True, f"changed; {'; '.join(said)}")


def _best_words(study: Analysis) -> str:
    if study.ties.best is None:
        return "none"
    cell = study.cells.filter(pl.col("trial") == study.ties.best).row(0, named=True)
    return f"{setting(cell, study=study.study, layout=study.layout)}, {cell['loss']:.3f} nats"


def _basin(a: Analysis, b: Analysis) -> VerdictChange:
    tops = [
        next(iter(study.basin_width().filter(pl.col("width").is_not_null()).rows(named=True)), None)
        for study in (a, b)
    ]
    words = ["none" if top is None else f"{top['series']}, {basin_words(top)}" for top in tops]
    names = [None if top is None else top["series"] for top in tops]
    if names[0] == names[1]:
        return VerdictChange(
            "widest basin", words[0], words[1], False, "same series" if names[0] else "same"
        )
    if None in names:
        return VerdictChange("widest basin", words[0], words[1], True, "one has none")
    few = any(bootstrap_coverage_bound(top["n_seeds"]) < CONFIDENCE for top in tops if top)
    why = "too few seeds to tell series apart" if few else "see each report for the others"
    return VerdictChange("widest basin", words[0], words[1], True, f"changed; {why}")


def basin_words(row: Mapping[str, Any], *, side: str = "") -> str:
    """``≥ 1.52 (1.40–1.61) decades``."""
    width, low, high = (row[f"{key}{side}"] for key in ("width", "width_low", "width_high"))
    if width is None:
        return "–"
    is_open = row[f"open{side}"] if f"open{side}" in row else is_lower_bound(row)
    spread = "" if low is None else f" ({low:.2f}–{high:.2f})"
    return f"{'≥ ' if is_open else ''}{width:.2f}{spread} decades"


def _stable(a: Analysis, b: Analysis) -> VerdictChange:
    tops = [
        next(iter(study.largest_stable_lr().drop_nulls("lr").rows(named=True)), None)
        for study in (a, b)
    ]
    words = [
        "none"
        if top is None
        else f"{top['series']} at {format_value(top['lr'], knob='lr')} "
        f"({top['diverged']}/{top['n']}, rate ≤ {percent(top['rate_high'])})"
        for top in tops
    ]
    keys = [None if top is None else (top["series"], format_value(top["lr"])) for top in tops]
    if keys[0] == keys[1]:
        return VerdictChange("largest stable lr", words[0], words[1], False, "same")
    if None in keys:
        return VerdictChange("largest stable lr", words[0], words[1], True, "one has none")
    edges = [name for name, top in zip("AB", tops, strict=True) if top and top["at_edge"]]
    edge = f"; {' and '.join(edges)} tried no higher lr" if edges else ""
    why = f"changed; with few seeds one diverged run moves it{edge}"
    return VerdictChange("largest stable lr", words[0], words[1], True, why)
