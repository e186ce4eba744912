"""Update ratios just before and at spikes, against what they are elsewhere in the same runs.

Figures 1 and 2 of arXiv 2410.05052 in numbers: do the update ratios of u and w jump where the loss
does? Of each matrix a *jump* is its update ratio over the median of the probes before it
(`wesar_sweep.analysis.matrix_probes.jumps`), and of a role the largest over layers, since one layer
may be enough. So a jump is above 1 by chance alone, the more so the more layers there are: it says
something only beside that of control steps. And it is below 1 where update ratios fall with lr, the
more so the further back the past reaches; so a control step has as long a past as its spike.

Probes of the warm-up, in which update ratios rise with lr, are neither judged nor judge others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from wesar_sweep.analysis.intervals import bootstrap_pooled_median
from wesar_sweep.analysis.matrix_probes import (
    HISTORY,
    MIN_HISTORY,
    Values,
    columns_by_role,
    finite_values,
    jumps,
    largest,
)
from wesar_sweep.analysis.probe_statistics import is_probed
from wesar_sweep.analysis.run_spikes import RunSpikes
from wesar_sweep.store.frames import Key
from wesar_sweep.store.rows import Curve

PAIR = ("u", "w")

CONTROLS = 10
"""Control steps drawn for each spike."""

MIN_RUNS = 5
"""Runs with a spike below which no interval is given: a bootstrap would resample too few."""

LEAST_REACH = 10
"""Steps within which a probe is near a spike in any case; else two probing intervals."""

_FAR = 10**9
"""More steps than there are: where a run has no probe."""

FIGURES = tuple(f"{role}_{when}" for when in ("before", "at") for role in PAIR)

SPIKE_RATIOS = pl.Schema(
    [
        ("series", pl.String()),
        ("method", pl.String()),
        *(
            (name, pl.Int64())
            for name in (
                "n",
                "spikes",
                "runs",
                "not_probed",
                "before_spikes",
                "before_runs",
                "at_spikes",
                "at_runs",
                "at_inside",
                "control_steps",
                "control_runs",
            )
        ),
        *(
            (f"{control}{name}{end}", pl.Float64())
            for name in FIGURES
            for control in ("", "control_")
            for end in ("", "_low", "_high")
        ),
    ]
)
"""A row a series. ``n`` completed and diverged runs were probed; they have ``spikes`` spikes, in
``runs`` of them. Of these spikes ``not_probed`` have no usable probe before them, which leaves
``before_spikes`` in ``before_runs``; ``at_spikes`` in ``at_runs`` of those have one at the start or
after it, of which ``at_inside`` came before the loss had recovered. ``u_before`` and so on are
medians over spikes of the jump, largest over layers; ``control_u_before`` and so on the same over
``control_steps`` other steps of ``control_runs`` runs. Intervals are bootstraps over runs, null
below `MIN_RUNS`."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """Jumps of one run; columns are `FIGURES`."""

    spikes_SF: Values
    """NaN for what was not probed."""
    inside_S: NDArray[np.bool_]
    """Whether the probe at the spike came before its recovery."""
    controls_CF: Values


def spike_ratios(
    found: RunSpikes,
    outcomes: pl.DataFrame,
    cells: pl.DataFrame,
    curves: Mapping[Key, Curve],
    *,
    every: int | None,
) -> pl.DataFrame:
    """Jumps of update ratios before and at the own spikes of every series, in order of trials.

    Args:
        found: `run_spikes` of the study.
        outcomes: One row a run.
        cells: As `wesar_sweep.analysis.cells.cells` gives them.
        curves: By (trial, seed).
        every: Steps between probes; None: nothing was probed.

    Returns:
        As `SPIKE_RATIOS` says.
    """
    ended = outcomes.filter(pl.col("status").is_in(["completed", "diverged"]))
    runs = ended.select("trial", "seed", "warmup").join(
        cells.select("trial", "series", "method"), on="trial", how="left"
    )
    own, any_kind = _by_run(found.own), _by_run(found.events)
    rows = []
    for (series,), part in runs.sort("trial", "seed").group_by(["series"], maintain_order=True):
        measured: list[_Measured] = []
        n = 0
        for trial, seed, warmup in part.select("trial", "seed", "warmup").rows():
            key = (trial, seed)
            if every is None or key not in curves or not is_probed(curves[key]):
                continue
            n += 1
            if key in own:
                measured.append(
                    _measured(
                        curves[key],
                        own=own[key],
                        avoid=any_kind[key],
                        warmup=warmup,
                        every=every,
                        rng=np.random.default_rng(key),
                    )
                )
        if n:
            rows.append({"series": series, "method": part["method"][0], "n": n, **_row(measured)})
    return pl.DataFrame(rows, schema=SPIKE_RATIOS)


def _by_run(events: pl.DataFrame) -> dict[Key, NDArray[np.int64]]:
    """(trial, seed) -> [S, 3] start, peak, and first step after the spike."""
    # One that never recovered lasts for as long as there are probes.
    end = pl.col("start") + pl.col("steps_to_recover")
    told = events.with_columns(end=end.fill_null(np.iinfo(np.int64).max))
    return {
        (trial, seed): part.select("start", "peak", "end").to_numpy()
        for (trial, seed), part in told.group_by(["trial", "seed"])
    }


def _measured(
    curve: Curve,
    *,
    own: NDArray[np.int64],
    avoid: NDArray[np.int64],
    warmup: int,
    every: int,
    rng: np.random.Generator,
) -> _Measured:
    """One run; spikes with an equally long past together."""
    # What was probed in the warm-up is no part of any past.
    kept = np.asarray(curve.probe_step) >= warmup
    probe_step = np.asarray(curve.probe_step)[kept]
    ratios_PX = finite_values(curve, "update_ratio")[kept]
    columns = columns_by_role(curve, "update_ratio")
    past_S = np.searchsorted(probe_step, own[:, 0], side="left") - 1
    past_S = np.clip(past_S, MIN_HISTORY, HISTORY)
    parts = [
        _measure(
            _jumps(ratios_PX, columns, history=history),
            probe_step,
            own=own[past_S == history],
            avoid=avoid,
            history=history,
            every=every,
            rng=rng,
        )
        for history in np.unique(past_S).tolist()
    ]
    return _Measured(
        np.concatenate([part.spikes_SF for part in parts]),
        np.concatenate([part.inside_S for part in parts]),
        np.concatenate([part.controls_CF for part in parts]),
    )


def _jumps(ratios_PX: Values, columns: Mapping[str, NDArray[np.int64]], *, history: int) -> Values:
    """[P, 2] the largest jump over layers of u and of w; all NaN where the run has no such."""
    none = np.empty(0, dtype=np.int64)
    each = [jumps(ratios_PX[:, columns.get(role, none)], history=history) for role in PAIR]
    return np.stack([largest(one, axis=1) for one in each], axis=1)


def _measure(
    jumps_P2: Values,
    probe_step: NDArray[np.int64],
    *,
    own: NDArray[np.int64],
    avoid: NDArray[np.int64],
    history: int,
    every: int,
    rng: np.random.Generator,
) -> _Measured:
    """Look up the probes around each spike, and draw control steps between other ones."""
    reach = max(2 * every, LEAST_REACH)
    # A step belongs to the interval that ends at the first probe at or after it. A probe beyond
    # either end of the run tells nothing.
    nothing = np.full((1, 2), np.nan)
    padded = np.concatenate([nothing, jumps_P2, nothing])
    # Both roles or none, so that their figures are of the same spikes.
    padded[~np.isfinite(padded).all(axis=1)] = np.nan
    steps = np.concatenate([[-_FAR], probe_step, [_FAR]])
    start_S, peak_S, end_S = own.T
    ends_S = np.searchsorted(probe_step, start_S, side="left")
    before_S2 = np.where((start_S - steps[ends_S] <= reach)[:, None], padded[ends_S], np.nan)
    at_step_S = steps[ends_S + 1]
    near_S = (at_step_S <= peak_S + every) & (at_step_S - start_S <= reach)
    known_S = np.isfinite(before_S2).all(axis=1)
    at_S2 = np.where((near_S & known_S)[:, None], padded[ends_S + 1], np.nan)
    # Between two probes that are near each other and in no spike.
    calm_P = np.isfinite(padded[1:-1]).all(axis=1) & ~_touched(probe_step, avoid)
    usable_P = calm_P & np.concatenate([[False], calm_P[:-1]])
    usable_P &= np.diff(probe_step, prepend=-_FAR) <= reach
    (places,) = usable_P.nonzero()
    places = places[places > history]
    drawn = [np.empty(0, dtype=np.int64)]
    for place in ends_S[known_S]:
        # From the spike's own stretch of the run, so that both have about the same lr and age.
        nearby = places[np.abs(places - place) <= HISTORY]
        if len(nearby):
            drawn.append(rng.choice(nearby, CONTROLS))
    control_C = np.concatenate(drawn)
    return _Measured(
        spikes_SF=np.concatenate([before_S2, at_S2], axis=1),
        inside_S=(at_step_S < end_S) & np.isfinite(at_S2).all(axis=1),
        controls_CF=np.concatenate([jumps_P2[control_C - 1], jumps_P2[control_C]], axis=1),
    )


def _touched(probe_step: NDArray[np.int64], spikes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[P] from the last probe before a spike to the first one after it."""
    touched_P = np.zeros(len(probe_step), dtype=bool)
    for start, _, end in spikes:
        first, last = np.searchsorted(probe_step, (start, end), side="left")
        touched_P[max(first - 1, 0) : last + 1] = True
    return touched_P


def _row(measured: Sequence[_Measured]) -> dict[str, Any]:
    """What the runs with spikes of a series come to."""
    empty = np.empty((0, len(FIGURES)))
    spikes_SF = np.concatenate([empty, *(run.spikes_SF for run in measured)])
    controls_CF = np.concatenate([empty, *(run.controls_CF for run in measured)])
    of_spike_S = np.repeat(np.arange(len(measured)), [len(run.spikes_SF) for run in measured])
    of_control_C = np.repeat(np.arange(len(measured)), [len(run.controls_CF) for run in measured])
    before_S, at_S = (np.isfinite(spikes_SF[:, column]) for column in (0, len(PAIR)))
    row: dict[str, Any] = {
        "spikes": len(spikes_SF),
        "runs": len(measured),
        "not_probed": int((~before_S).sum()),
        "before_spikes": int(before_S.sum()),
        "before_runs": len(np.unique(of_spike_S[before_S])),
        "at_spikes": int(at_S.sum()),
        "at_runs": len(np.unique(of_spike_S[at_S])),
        "at_inside": sum(int(run.inside_S.sum()) for run in measured),
        "control_steps": len(controls_CF),
        "control_runs": len(np.unique(of_control_C)),
    }
    for column, name in enumerate(FIGURES):
        known_S = np.isfinite(spikes_SF[:, column])
        row |= _median(name, spikes_SF[known_S, column], of_spike_S[known_S])
        row |= _median(f"control_{name}", controls_CF[:, column], of_control_C)
    return row


def _median(name: str, values: Values, run: NDArray[np.int64]) -> dict[str, float | None]:
    runs, group = np.unique(run, return_inverse=True)
    spread = bootstrap_pooled_median(values, group) if len(runs) >= MIN_RUNS else None
    return {
        name: float(np.median(values)) if len(values) else None,
        f"{name}_low": spread.low if spread else None,
        f"{name}_high": spread.high if spread else None,
    }
