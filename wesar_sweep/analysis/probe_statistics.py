"""Update ratios and norms of every cell: how large, how even over matrices, how much they grow.

Figures 1, 3 and 9 of arXiv 2410.05052 in numbers. Each figure is found in each run and is then a
mean over seeds. Only completed runs count: the growth of a run that ended early is of another
length, and the last probes of a diverged one are its end. How many diverged stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.axes import Axes
from wesar_sweep.analysis.intervals import student_mean
from wesar_sweep.analysis.matrix_probes import (
    ROLES,
    Values,
    columns_by_role,
    finite_median,
    finite_values,
    jumps,
    largest,
    together,
)
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

FIGURES: Mapping[str, float] = {
    "update_ratio_u": 0.0,
    "update_ratio_w": 0.0,
    "update_ratio": 0.0,
    "unevenness": 1.0,
    "weight_growth_u": 0.0,
    "weight_growth_w": 0.0,
    "effective_growth_u": 0.0,
    "effective_growth_w": 0.0,
    "largest_over_median": 1.0,
    "largest_jump": 0.0,
}
"""Figure of a run -> the least that it can be.

- ``update_ratio_u``, ``_w`` and without a role that of all matrices of the layers: the median of
  ‖ΔW‖/‖W‖ over layers and over the probes after the warm-up.
- ``unevenness``: of these medians by role, the largest over the smallest; 1 is uniform.
- ``weight_growth_…``, ``effective_growth_…``: ‖W‖ and ‖W̄‖ at the last finite probe over the first,
  mean over layers.
- ``largest_over_median``: of all probes of u and w after the warm-up the largest update ratio, over
  the run's own median of that matrix; ``largest_jump``: over the median of the probes just before
  it (`matrix_probes.jumps`), which a schedule of lr or a growing norm hardly moves.
"""


def probes_schema(cells: pl.DataFrame, *, layout: Axes) -> pl.Schema:
    """Columns of `probe_statistics`: the cell, ``n`` and ``diverged``, `FIGURES` with intervals."""
    along = [] if layout.axis is None else [(layout.axis, cells.schema[layout.axis])]
    return pl.Schema(
        [
            ("series", pl.String()),
            ("method", pl.String()),
            *along,
            ("trial", pl.Int64()),
            ("best", pl.Boolean()),
            ("n", pl.Int64()),
            ("diverged", pl.Int64()),
            *((f"{name}{end}", pl.Float64()) for name in FIGURES for end in ("", "_low", "_high")),
        ]
    )


def probe_statistics(
    cells: pl.DataFrame, best: pl.DataFrame, curves: Mapping[Key, Curve], *, layout: Axes
) -> pl.DataFrame:
    """A row for every cell of which a counted run was probed, in the order of trials.

    Args:
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        best: Those of `cells` that are the best of their series.
        curves: By (trial, seed).
        layout: `axes(study)`.

    Returns:
        As `probes_schema` says. ``n`` completed runs were probed, and ``diverged`` runs are left
        out. A figure is null where one of the n runs does not have it, as the mean of a part of the
        seeds would not compare; an interval is Student's over seeds, null for one.
    """
    chosen = set(best["trial"])
    names = ["series", "method", *([] if layout.axis is None else [layout.axis]), "trial"]
    rows = []
    for cell in cells.sort("trial").iter_rows(named=True):
        keys = [(cell["trial"], seed) for seed in cell["seeds"]]
        probed = [key for key in keys if key in curves and is_probed(curves[key])]
        if not probed:
            continue
        completed = [key for key in probed if key[1] not in cell["diverged_seeds"]]
        found = [run_figures(curves[key], warmup=cell["warmup"]) for key in completed]
        row = {name: cell[name] for name in names}
        row |= {"best": cell["trial"] in chosen, "n": len(found), "diverged": cell["diverged"]}
        for name, least in FIGURES.items():
            row |= _mean(name, np.array([one[name] for one in found]), least=least)
        rows.append(row)
    return pl.DataFrame(rows, schema=probes_schema(cells, layout=layout))


def is_probed(curve: Curve) -> bool:
    """Whether update ratios of its layers were recorded."""
    return bool(len(curve.probe_step)) and bool(columns_by_role(curve, "update_ratio"))


def run_figures(curve: Curve, *, warmup: int) -> dict[str, float]:
    """`FIGURES` of one run that `is_probed`; NaN for what it does not have.

    Args:
        curve: The run's.
        warmup: Its steps of warm-up, in which lr and with it every update ratio rises.
    """
    columns = columns_by_role(curve, "update_ratio")
    ratios_PX = finite_values(curve, "update_ratio")[np.asarray(curve.probe_step) >= warmup]
    by_role = {role: float(finite_median(ratios_PX[:, own])) for role, own in columns.items()}
    medians = np.array(list(by_role.values()))
    # A matrix without a finite median leaves it unknown how even all of them are.
    known = bool(np.isfinite(medians).all()) and medians.min() > 0
    pair_PX = ratios_PX[:, together(columns, ("u", "w"))]
    usual_X = finite_median(pair_PX, axis=0)
    over_PX = pair_PX / np.where(usual_X > 0, usual_X, np.nan)
    figures = {
        "update_ratio_u": by_role.get("u", math.nan),
        "update_ratio_w": by_role.get("w", math.nan),
        "update_ratio": float(finite_median(ratios_PX[:, together(columns, ROLES)])),
        "unevenness": float(medians.max() / medians.min()) if known else math.nan,
        "largest_over_median": float(largest(over_PX)),
        "largest_jump": float(largest(jumps(pair_PX))),
    }
    for name, probe in (("weight", "weight_norm"), ("effective", "effective_norm")):
        norms = columns_by_role(curve, probe)
        for role in ("u", "w"):
            grown = _growth(finite_values(curve, probe)[:, norms[role]]) if role in norms else None
            figures[f"{name}_growth_{role}"] = math.nan if grown is None else grown
    return figures


def _growth(norm_PX: Values) -> float:
    """The last finite value over the first, mean over matrices; NaN where one has none."""
    there_PX: NDArray[np.bool_] = np.isfinite(norm_PX)
    each = np.arange(norm_PX.shape[1])
    first_X = norm_PX[there_PX.argmax(axis=0), each]
    last_X = norm_PX[len(norm_PX) - 1 - there_PX[::-1].argmax(axis=0), each]
    return float(np.mean(last_X / np.where(first_X > 0, first_X, np.nan)))


def _mean(name: str, values: Values, *, least: float) -> dict[str, Any]:
    usable = bool(len(values)) and bool(np.isfinite(values).all())
    spread = student_mean(values, least=least) if usable else None
    return {
        name: float(values.mean()) if usable else None,
        f"{name}_low": spread.low if spread else None,
        f"{name}_high": spread.high if spread else None,
    }
