"""Every two series compared at their best cells, seed by seed."""

from __future__ import annotations

from itertools import combinations

import polars as pl

from wesar_sweep.analysis.paired import best_difference

PAIRWISE = pl.Schema(
    [
        ("a", pl.String()),
        ("b", pl.String()),
        ("trial_a", pl.Int64()),
        ("trial_b", pl.Int64()),
        ("n", pl.Int64()),
        ("difference", pl.Float64()),
        ("difference_low", pl.Float64()),
        ("difference_high", pl.Float64()),
        ("sign_test_p", pl.Float64()),
        ("differences", pl.List(pl.Float64)),
        ("refused", pl.Int64()),
    ]
)
"""``difference`` is the loss of b minus that of a in nats, above 0 where a is better; its interval
and p are those of `wesar_sweep.analysis.paired.PairedDifference`. ``differences`` are those of the
``n`` common seeds, ascending in the seed; ``refused`` seeds saw other batches in the two cells."""


def pairwise(cells: pl.DataFrame, best: pl.DataFrame) -> pl.DataFrame:
    """One row for every two series, better ones first.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        best: The best cell of every series, best first.

    Returns:
        Columns as `PAIRWISE` says; n = 0 and nulls where no seed is in common.
    """
    rows = []
    for (a, first), (b, second) in combinations(best.select("series", "trial").rows(), 2):
        found = best_difference(cells, first, second)
        rows.append(
            (
                a,
                b,
                first,
                second,
                found.n,
                found.mean,
                found.low,
                found.high,
                found.sign_test_p,
                found.pairs.sort("seed")["difference"].to_list(),
                found.refused,
            )
        )
    return pl.DataFrame(rows, schema=PAIRWISE, orient="row")
