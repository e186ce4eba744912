"""Two studies cell by cell: what differs, and by how much more than chance.

Cells are matched by the knobs that either study searches; a knob that both fix may differ, as may
everything else in their files: that is what a comparison is about. Numbers are equal within
`RELATIVE`, never by their bits. Cells of a study with one setting are pooled where they share no
seed; else the one with the most runs stands.

Runs are *paired* by seed where both studies have the same corpus (by its hash) and the two cells
the same batch and context: then equal seeds saw the same tokens at every step. Else the two samples
are compared unpaired, and so are cells of which a run diverged whose seed the other study lacks, or
that have one pair and further runs: the pairs would leave out what tells them apart.

One test a matched cell. Where no run diverged in either study: the paired t-test of the capped
losses (Welch's where unpaired). Where any did: Fisher's exact test of the counts, because the loss
is then a mixture of two, of which a t-test cries wolf. The p of all cells are adjusted by Holm, so
that two studies of one truth have a cell called different in at most 5 % of cases. Left out of that
family are tests that cannot reach 5 % by themselves. Cells that a pruner cut short are not tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from wesar_sweep.analysis.axes import format_value, searched_knobs, series_label
from wesar_sweep.analysis.balanced import by_seed
from wesar_sweep.analysis.differing import Differing, differing_provenance, differing_settings
from wesar_sweep.analysis.intervals import Vector, sign_test
from wesar_sweep.analysis.results import Analysis
from wesar_sweep.analysis.significance import (
    ALPHA,
    Difference,
    fisher,
    holm,
    least_fisher,
    paired_t,
    welch_t,
)
from wesar_sweep.analysis.verdict_changes import (
    VerdictChange,
    compare_series,
    verdict_changes,
)
from wesar_sweep.config.knobs import Scalar, knob_table
from wesar_sweep.config.load import deciding
from wesar_sweep.store.frames import KNOBS

RELATIVE = 1e-6
"""Two values of a number's knob are one setting where they differ by no more than this share."""

_ORDER = ("batch", "context")
"""With the seed and the corpus, what decides which tokens a run sees at a step."""

CELLS = pl.Schema(
    [
        ("setting", pl.String()),
        ("trial_a", pl.Int64()),
        ("trial_b", pl.Int64()),
        ("n_a", pl.Int64()),
        ("n_b", pl.Int64()),
        ("diverged_a", pl.Int64()),
        ("diverged_b", pl.Int64()),
        ("pruned_a", pl.Int64()),
        ("pruned_b", pl.Int64()),
        ("loss_a", pl.Float64()),
        ("loss_b", pl.Float64()),
        ("pairs", pl.Int64()),
        ("difference", pl.Float64()),
        ("low", pl.Float64()),
        ("high", pl.Float64()),
        ("equal_pairs", pl.Int64()),
        ("test", pl.String()),
        ("p", pl.Float64()),
        ("p_holm", pl.Float64()),
        ("differs", pl.Boolean()),
    ]
)
"""``loss_a`` and ``loss_b`` are means over all counted runs; ``difference`` is b − a, over the
pairs where there are any (``pairs`` is null where the cell is unpaired). The interval is Student's
or Welch's, 95 %, not adjusted for the number of cells, and null where a run diverged.
``equal_pairs``: those of the same loss to the last bit. ``test``: ``paired t``, ``Welch``,
``Fisher``, or null where nothing can be tested. ``p_holm`` is null where the test cannot reach 5 %
by itself."""


@dataclass(frozen=True, slots=True)
class Overall:
    """All matched cells together, with seeds as what is independent."""

    cells: int
    """Matched cells with a counted run in both studies."""
    difference: float | None
    """Mean over those of the cells' differences, diverged runs at their initial loss."""
    trained_cells: int
    """Those of them in which no run diverged and none was pruned in either study."""
    trained: Difference | None
    """Over the latter: by seed, the mean over cells; then `paired_t` (or `welch_t`) over seeds."""
    trained_seeds: int
    """Seeds behind ``trained``: common ones, or where unpaired the fewer of the two."""
    trained_paired: bool
    """Whether ``trained`` is of pairs, as where each of those cells has some."""
    diverged_a: int
    runs_a: int
    diverged_b: int
    runs_b: int
    sign_test_p: float | None
    """Exact sign test over common seeds of which study diverged more often; None where unpaired."""
    sign_seeds: int
    """Seeds of which they differ, which are all that the test goes by."""
    equal_pairs: int
    """Of the same loss to the last bit."""
    pairs: int

    @property
    def identical(self) -> bool:
        """Whether every counted run of the matched cells has a pair of the same loss."""
        return 0 < self.equal_pairs == self.pairs == self.runs_a == self.runs_b


@dataclass(frozen=True)
class Comparison:
    """Study b against study a; differences are b − a, so above 0 where a is better."""

    a: Analysis
    b: Analysis
    provenance_a: Mapping[str, Any]
    provenance_b: Mapping[str, Any]
    name_a: str = "A"
    name_b: str = "B"

    @cached_property
    def knobs(self) -> tuple[str, ...]:
        """The knobs that match cells: searched in one study or in both."""
        searched = {*searched_knobs(self.a.study), *searched_knobs(self.b.study)}
        return tuple(name for name in KNOBS if name in searched)

    @cached_property
    def same_corpus(self) -> bool | None:
        """Whether both trained on the same tokens; None where a study has not recorded its own."""
        hashes = [
            facts.get("corpus", {}).get("sha256")
            for facts in (self.provenance_a, self.provenance_b)
        ]
        return None if None in hashes else hashes[0] == hashes[1]

    @cached_property
    def cells(self) -> pl.DataFrame:
        """Every matched cell: the knobs that match it as in a, then `CELLS`."""
        return self._matched[0]

    @cached_property
    def only_a(self) -> pl.DataFrame:
        """Cells that b lacks, as `Analysis.cells` has them."""
        return self._matched[1]

    @cached_property
    def only_b(self) -> pl.DataFrame:
        """Cells that a lacks, as `Analysis.cells` has them."""
        return self._matched[2]

    @cached_property
    def _matched(self) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        a, b = self._pooled
        return compare_cells(a, b, knobs=self.knobs, same_corpus=bool(self.same_corpus))

    @cached_property
    def _pooled(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        return pooled(self.a.cells, knobs=self.knobs), pooled(self.b.cells, knobs=self.knobs)

    @cached_property
    def overall(self) -> Overall:
        """All matched cells together."""
        return overall(self.cells, *self._pooled)

    @property
    def paired(self) -> bool:
        """Whether any matched cell has pairs."""
        return self.cells["pairs"].is_not_null().any()

    @property
    def tested(self) -> pl.DataFrame:
        """The family of tests: the cells of which one can reach 5 %."""
        return self.cells.filter(pl.col("p_holm").is_not_null())

    @property
    def different(self) -> pl.DataFrame:
        """The cells called different, the surest first."""
        return self.cells.filter("differs").sort("p_holm", "p")

    @cached_property
    def verdicts(self) -> tuple[VerdictChange, ...]:
        """What each study concludes, side by side."""
        matched = dict(self.cells.select("trial_a", "trial_b").rows())
        return verdict_changes(self.a, self.b, matched=matched)

    @cached_property
    def series(self) -> pl.DataFrame:
        """Basin, largest stable lr and divergence of every series that both studies have."""
        return compare_series(self.a, self.b)

    @cached_property
    def settings(self) -> tuple[Differing, ...]:
        """Keys of the study files that differ."""
        return differing_settings(deciding(self.a.study), deciding(self.b.study))

    @cached_property
    def provenance(self) -> tuple[Differing, ...]:
        """Code, versions, machines and corpus, where they differ."""
        return differing_provenance(self.provenance_a, self.provenance_b)


def compare_cells(
    a: pl.DataFrame, b: pl.DataFrame, *, knobs: Sequence[str], same_corpus: bool
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Match the cells of two studies and test each match once.

    Args:
        a: As `wesar_sweep.analysis.cells.cells` gives them.
        b: The same of the other study.
        knobs: What matches cells.
        same_corpus: Whether equal seeds of both saw the same tokens, batch and context permitting.

    Returns:
        The matched cells, as `Comparison.cells` says; the cells of a without a match; those of b.
    """
    found_a, found_b = _by_setting(a, b, knobs)
    rows = []
    for key, row_a in found_a.items():
        if key in found_b:
            figures = _compared(row_a, found_b[key], same_corpus=same_corpus)
            named = {knob: row_a[knob] for knob in knobs}
            rows.append({**named, "setting": setting_words(row_a, knobs), **figures})
    family = [row for row in rows if row["in_family"]]
    for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
        row |= {"p_holm": p, "differs": p <= ALPHA}
    schema = pl.Schema([*((knob, a.schema[knob]) for knob in knobs), *CELLS.items()])
    values = [tuple(row.get(name) for name in schema) for row in rows]
    matched = pl.DataFrame(values, schema=schema, orient="row")
    lone = [
        frame.filter(pl.col("trial").is_in([r["trial"] for k, r in own.items() if k not in other]))
        for frame, own, other in ((a, found_a, found_b), (b, found_b, found_a))
    ]
    return matched.with_columns(pl.col("differs").fill_null(False)), lone[0], lone[1]


def pooled(cells: pl.DataFrame, *, knobs: Sequence[str]) -> pl.DataFrame:
    """The cells with those of one setting made one, where their seeds are not the same.

    A boundary search may try a value twice, with new seeds; none of these runs is to be lost. Cells
    that share a seed are left alone, because equal settings and seeds give equal runs.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        knobs: What makes a setting.

    Returns:
        The cells, a pooled one as the first of the most runs, with the counts, the runs and the
        mean loss of all; its other figures stay those of that cell.
    """
    kept: list[dict[str, Any]] = []
    by_key: dict[tuple[Scalar, ...], dict[str, Any]] = {}
    alike = _alike([cells], knobs)
    for row in cells.sort("n", "trial", descending=[True, False]).iter_rows(named=True):
        key = _key(row, knobs, alike)
        first = by_key.setdefault(key, row)
        if first is row or set(first["seeds"]) & set(row["seeds"]):
            kept.append(row)
            continue
        for name in ("n", "diverged", "pruned", "failed", "seeds", "losses", "diverged_seeds"):
            if name in row:
                first[name] = first[name] + row[name]
        if first["n"]:
            first["loss"] = float(np.mean(first["losses"]))
    return pl.DataFrame(kept, schema=cells.schema, orient="row").sort("trial")


def _alike(frames: Sequence[pl.DataFrame], knobs: Sequence[str]) -> dict[str, dict[float, float]]:
    """Knob -> each of its values in all the frames -> the one that stands for its equals."""
    return {
        knob: _merged([value for frame in frames for value in frame[knob].drop_nulls()])
        for knob in knobs
        if knob_table()[knob].kind == "number"
    }


def _key(
    row: Mapping[str, Any], knobs: Sequence[str], alike: Mapping[str, Mapping[float, float]]
) -> tuple[Scalar, ...]:
    return tuple(alike.get(knob, {}).get(row[knob], row[knob]) for knob in knobs)


def _by_setting(
    a: pl.DataFrame, b: pl.DataFrame, knobs: Sequence[str]
) -> tuple[dict[tuple[Scalar, ...], dict[str, Any]], dict[tuple[Scalar, ...], dict[str, Any]]]:
    """The cells of both by their setting, in the order of their trials."""
    alike = _alike([a, b], knobs)
    found = []
    for frame in (a, b):
        own: dict[tuple[Scalar, ...], dict[str, Any]] = {}
        for row in frame.sort("n", "trial", descending=[True, False]).iter_rows(named=True):
            own.setdefault(_key(row, knobs, alike), row)
        found.append(dict(sorted(own.items(), key=lambda item: item[1]["trial"])))
    return found[0], found[1]


def _merged(values: Iterable[float]) -> dict[float, float]:
    """Each value -> the one that stands for all that equal it within `RELATIVE`."""
    stands: dict[float, float] = {}
    last: float | None = None
    for value in sorted(set(values)):
        if last is None or value - last > RELATIVE * max(abs(value), abs(last)):
            last = value
        stands[value] = last
    return stands


def setting_words(row: Mapping[str, Any], knobs: Sequence[str]) -> str:
    """A cell in words by the knobs that match it: ``wesar σ²=4e-5 at lr 1e-3``."""
    named = tuple(knob for knob in knobs if knob not in ("method", "lr") and row[knob] is not None)
    words = series_label(row, named)
    if "method" not in knobs:
        words = words.removeprefix(str(row["method"])).strip()
    along = f"lr {format_value(row['lr'], knob='lr', digits=4)}" if "lr" in knobs else ""
    return " at ".join(filter(None, [words, along])) or "the only cell"


def _compared(a: Mapping[str, Any], b: Mapping[str, Any], *, same_corpus: bool) -> dict[str, Any]:
    """The figures of one matched cell, before the adjustment."""
    found: dict[str, Any] = {
        f"{name}_{side}": row[name]
        for side, row in (("a", a), ("b", b))
        for name in ("trial", "n", "diverged", "pruned", "loss")
    }
    found |= {"test": None, "p": None, "in_family": False}
    if not (a["n"] and b["n"]):
        return found
    of_a, of_b = (dict(zip(r["seeds"], r["losses"], strict=True)) for r in (a, b))
    common = [seed for seed in of_a if seed in of_b]
    paired = same_corpus and bool(common) and all(a[name] == b[name] for name in _ORDER)
    if paired and not len(common) == a["n"] == b["n"]:
        # Adaptive replicates: the pairs must be of all that diverged, and more than one.
        lost = {*a["diverged_seeds"], *b["diverged_seeds"]}
        paired = len(common) > 1 and lost <= set(common)
    if paired:
        losses_a = np.array([of_a[seed] for seed in common])
        losses_b = np.array([of_b[seed] for seed in common])
        found |= {"pairs": len(common), "equal_pairs": int((losses_a == losses_b).sum())}
        found["difference"] = float(np.mean(losses_b - losses_a))
    else:
        losses_a, losses_b = np.array(list(of_a.values())), np.array(list(of_b.values()))
        found["difference"] = float(np.mean(losses_b) - np.mean(losses_a))
    if a["pruned"] or b["pruned"]:
        return found
    lost = a["diverged"] + b["diverged"]
    if lost:
        p = fisher(a["diverged"], a["n"], b["diverged"], b["n"])
        reachable = least_fisher(lost, a["n"], b["n"]) <= ALPHA
        return found | {"test": "Fisher", "p": p, "in_family": reachable}
    spread = paired_t(losses_b - losses_a) if paired else welch_t(losses_a, losses_b)
    if spread is None:
        return found
    return found | {
        "low": spread.interval.low,
        "high": spread.interval.high,
        "test": "paired t" if paired else "Welch",
        "p": spread.p,
        "in_family": True,
    }


def overall(matched: pl.DataFrame, a: pl.DataFrame, b: pl.DataFrame) -> Overall:
    """All matched cells together.

    Args:
        matched: As `compare_cells` gives them.
        a: The cells of the one study.
        b: The cells of the other.
    """
    both = matched.filter((pl.col("n_a") > 0) & (pl.col("n_b") > 0))
    lost = pl.col("diverged_a") + pl.col("diverged_b") + pl.col("pruned_a") + pl.col("pruned_b")
    trained = both.filter(lost == 0)
    paired = both["pairs"].null_count() == 0 and not both.is_empty()
    long = pl.concat(
        [
            frame.select(trial="trial", seed="seeds", loss="losses")
            .explode("seed", "loss")
            .join(trained.select(trial=f"trial_{side}", cell="trial_a"), on="trial")
            .select("cell", "seed", "loss", side=pl.lit(side))
            for side, frame in (("a", a), ("b", b))
        ]
    )
    trained_paired = trained["pairs"].null_count() == 0 and not trained.is_empty()
    spread, seeds = _over_seeds(long, paired=trained_paired)
    signs = _signs(both, a, b) if paired else None
    totals = both.select("diverged_a", "n_a", "diverged_b", "n_b").sum().row(0)
    mean = both["difference"].mean()
    return Overall(
        cells=both.height,
        difference=mean if isinstance(mean, float) else None,
        trained_cells=trained.height,
        trained=spread,
        trained_seeds=seeds,
        trained_paired=trained_paired,
        diverged_a=totals[0],
        runs_a=totals[1],
        diverged_b=totals[2],
        runs_b=totals[3],
        sign_test_p=None if signs is None else sign_test(signs),
        sign_seeds=0 if signs is None else int((signs != 0).sum()),
        equal_pairs=int(both["equal_pairs"].sum()),
        pairs=int(both["pairs"].sum()),
    )


def _over_seeds(long: pl.DataFrame, *, paired: bool) -> tuple[Difference | None, int]:
    """The difference over cells (cell, seed, loss, side), one figure a seed that all cells have."""
    if paired:
        wide = long.filter(pl.col("side") == "a").join(
            long.filter(pl.col("side") == "b"), on=["cell", "seed"], suffix="_b"
        )
        wide = wide.with_columns(d=pl.col("loss_b") - pl.col("loss"))
        differences = by_seed(wide, "d", cell="cell")
        return paired_t(differences), len(differences)
    sides = [by_seed(long.filter(pl.col("side") == s), "loss", cell="cell") for s in ("a", "b")]
    return welch_t(*sides), min(map(len, sides))


def _signs(both: pl.DataFrame, a: pl.DataFrame, b: pl.DataFrame) -> Vector:
    """(Diverged in b) − (diverged in a) of each common seed, summed over cells."""
    totals: dict[int, int] = {}
    rows_a, rows_b = ({row["trial"]: row for row in f.iter_rows(named=True)} for f in (a, b))
    for trial_a, trial_b in both.select("trial_a", "trial_b").rows():
        row_a, row_b = rows_a[trial_a], rows_b[trial_b]
        for seed in set(row_a["seeds"]) & set(row_b["seeds"]):
            step = (seed in row_b["diverged_seeds"]) - (seed in row_a["diverged_seeds"])
            totals[seed] = totals.get(seed, 0) + step
    return np.array(list(totals.values()), dtype=np.float64)
