"""A published study: its outcomes and curves as four Parquet tables in place of a file a run.

Small enough to commit beside the source, and complete enough that every figure of the report is
computed from it anew. One run or one series of a run a row, series as lists:

============================  ====================================================================
file                          columns
============================  ====================================================================
``outcomes.parquet``          as `wesar_sweep.store.frames.outcomes_schema` says
``curves.parquet``            trial, seed, loss [S], grad_norm [S]; every step, the first is step 0
``evaluations.parquet``       trial, seed, set (null: the held-out text), figure, step, value
``probes.parquet``            trial, seed, probe, label (``layers.0.u``), step, value
============================  ====================================================================

Curves are rounded, not cut: every step of a loss is kept, so that spikes are counted on what was
seen, to `LOSS_BITS` significant bits; gradient norms and probes to `OTHER_BITS`. What is not finite
stays so. Numbers with few bits are what compresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_atomically
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.rows import Curve, Key

LOSS_BITS = 16
"""Of losses: within 1 part in 65,000, so that the rules of spikes see no other numbers but at
their very threshold."""

OTHER_BITS = 9
"""Of gradient norms and probes: within 1 part in 500."""

_COMPRESSION_LEVEL = 19

_KEY = (("trial", pl.Int64()), ("seed", pl.Int64()))
_STEPS = pl.List(pl.Int64)
_VALUES = pl.List(pl.Float32)
CURVES = pl.Schema([*_KEY, ("loss", _VALUES), ("grad_norm", _VALUES)])
EVALUATIONS = pl.Schema(
    [*_KEY, ("set", pl.String()), ("figure", pl.String()), ("step", _STEPS), ("value", _VALUES)]
)
PROBES = pl.Schema(
    [*_KEY, ("probe", pl.String()), ("label", pl.String()), ("step", _STEPS), ("value", _VALUES)]
)


def rounded_to_bits(values: ArrayLike, *, bits: int) -> NDArray[np.float32]:
    """The nearest numbers with so many significant bits; what is not finite stays as it is.

    Args:
        values: Any shape; float32 is taken of them.
        bits: From 2 to 24, of which the first is always one.
    """
    exact = np.ascontiguousarray(values, dtype=np.float32)
    dropped = 24 - bits
    if dropped == 0:
        return exact
    word = exact.view(np.uint32)
    half = np.uint32((1 << (dropped - 1)) - 1)
    # To even where two are as near, as IEEE 754 rounds.
    odd = (word >> np.uint32(dropped)) & np.uint32(1)
    kept = (word + half + odd) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return np.where(np.isfinite(exact), kept.view(np.float32), exact)


def write_published(
    directory: StudyDirectory,
    *,
    outcomes: pl.DataFrame,
    curves: Mapping[Key, Curve],
    words: Callable[[str], str] = str,
) -> None:
    """Write the four tables, each atomically; the outcomes, which mark a published study, last.

    Args:
        directory: Where to; its folder is made.
        outcomes: As `wesar_sweep.store.frames.outcomes_frame` gives them.
        curves: By (trial, seed), exact; rounded here.
        words: What becomes of the reason of each run, which may name files and hosts.

    Raises:
        StoreError: The disk is full or refuses.
    """
    ordered = dict(sorted(curves.items()))
    tables = {
        directory.curves_table: pl.DataFrame(
            [
                (
                    *key,
                    rounded_to_bits(curve.loss, bits=LOSS_BITS).tolist(),
                    rounded_to_bits(curve.grad_norm, bits=OTHER_BITS).tolist(),
                )
                for key, curve in ordered.items()
            ],
            schema=CURVES,
            orient="row",
        ),
        directory.evaluations_table: pl.DataFrame(
            [(*key, *row) for key, curve in ordered.items() for row in _evaluations(curve)],
            schema=EVALUATIONS,
            orient="row",
        ),
        directory.probes_table: pl.DataFrame(
            [(*key, *row) for key, curve in ordered.items() for row in _probes(curve)],
            schema=PROBES,
            orient="row",
        ),
        directory.outcomes_table: outcomes.with_columns(
            pl.Series("reason", [words(one) for one in outcomes["reason"]], dtype=pl.String)
        ),
    }
    for path, table in tables.items():
        _write(path, table)


def read_published_outcomes(directory: StudyDirectory) -> pl.DataFrame:
    """The outcomes of a published study, as they were.

    Raises:
        StoreError: The table is missing or damaged.
    """
    return _read(directory.outcomes_table)


def read_published_curves(directory: StudyDirectory) -> dict[Key, Curve]:
    """Every curve of a published study by (trial, seed), rounded as it was written.

    Raises:
        StoreError: A table is missing or damaged.
    """
    evaluations = _by_run(_read(directory.evaluations_table, EVALUATIONS))
    probes = _by_run(_read(directory.probes_table, PROBES))
    found = {}
    for trial, seed, loss, grad_norm in _read(directory.curves_table, CURVES).iter_rows():
        key = (trial, seed)
        found[key] = Curve(
            loss=np.array(loss, dtype=np.float32),
            grad_norm=np.array(grad_norm, dtype=np.float32),
            **_evaluated(evaluations.get(key, [])),
            **_probed(probes.get(key, [])),
        )
    return found


def _evaluations(curve: Curve) -> Iterator[tuple[str | None, str, list[int], list[float]]]:
    """set, figure, steps, values; values exact, because there are few."""
    exact = np.asarray(curve.eval_loss, dtype=np.float32)
    yield None, "loss", curve.eval_step.tolist(), exact.tolist()
    for name, values in curve.set_figures.items():
        chosen, _, figure = name.partition(".")
        yield chosen, figure, curve.set_step[chosen].tolist(), values.tolist()


def _evaluated(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "eval_step": np.array([], dtype=np.int64),
        "eval_loss": np.array([], dtype=np.float32),
        "set_step": {},
        "set_figures": {},
    }
    for name, figure, steps, values in rows:
        step, value = np.array(steps, dtype=np.int64), np.array(values, dtype=np.float32)
        if name is None:
            found |= {"eval_step": step, "eval_loss": value}
        else:
            found["set_step"][name] = step
            found["set_figures"][f"{name}.{figure}"] = value
    return found


def _probes(curve: Curve) -> Iterator[tuple[str, str, list[int], list[float]]]:
    """probe, label, steps, values."""
    steps = curve.probe_step.tolist()
    for probe, values_PX in curve.probes.items():
        rounded_PX = rounded_to_bits(values_PX, bits=OTHER_BITS)
        for column, label in enumerate(curve.probe_axes[probe]):
            yield probe, label, steps, rounded_PX[:, column].tolist()


def _probed(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    series: dict[str, dict[str, list[float]]] = {}
    steps: list[int] = []
    for probe, label, of_label, values in rows:
        series.setdefault(probe, {})[label] = values
        # Of all probes alike: they are taken together.
        steps = of_label
    return {
        "probe_step": np.array(steps, dtype=np.int64),
        "probes": {
            probe: np.array(list(one.values()), dtype=np.float32).reshape(len(one), -1).T
            for probe, one in series.items()
        },
        "probe_axes": {probe: tuple(one) for probe, one in series.items()},
    }


def _by_run(table: pl.DataFrame) -> dict[Key, list[tuple[Any, ...]]]:
    found: dict[Key, list[tuple[Any, ...]]] = {}
    for trial, seed, *rest in table.iter_rows():
        found.setdefault((trial, seed), []).append(tuple(rest))
    return found


def _write(path: Path, table: pl.DataFrame) -> None:
    write_atomically(
        path,
        lambda file: table.write_parquet(
            file, compression="zstd", compression_level=_COMPRESSION_LEVEL, statistics=False
        ),
    )


def _read(path: Path, schema: pl.Schema | None = None) -> pl.DataFrame:
    """The table; with a schema those of its columns, whatever others a later version added."""
    try:
        table = pl.read_parquet(path.read_bytes())
        return table if schema is None else table.select(schema.names())
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except pl.exceptions.PolarsError as error:
        raise StoreError(
            f"cannot read {path}: it is not a whole table ({error}). Restore it, or publish the "
            "study anew"
        ) from error
