"""Two studies side by side, for a terminal, as Markdown, CSV or JSON."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import format_value
from wesar_sweep.analysis.compare import Comparison, setting_words
from wesar_sweep.analysis.significance import ALPHA, Difference
from wesar_sweep.analysis.verdict_changes import basin_words
from wesar_sweep.errors import ConfigError, Problem
from wesar_sweep.reports import markdown
from wesar_sweep.reports.replicates import STOPPED
from wesar_sweep.reports.tables import Table
from wesar_sweep.store.atomic import write_atomically

Format = Literal["text", "md", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

SHOWN = 12
"""Cells that a terminal shows: those with the least p."""

LISTED = 8
"""Cells without a match that a terminal names."""

FILE_WIDTH = 140
"""Columns of a text file."""

RULE = (
    "Each cell is tested once: by the paired t-test of the losses (Welch’s where unpaired), or, "
    "where a run diverged, by Fisher’s exact test of the counts. p is adjusted by Holm over the "
    f"cells tested; * marks p ≤ {ALPHA:.2g}. Intervals are 95 %, of one cell alone."
)


def write(comparison: Comparison, *, format: str = "text", out: Path | None = None) -> None:
    """Print the comparison, or write it to a file.

    Args:
        comparison: The two studies.
        format: One of `FORMATS`: ``text`` for a terminal, ``md`` the same with every cell, ``csv``
            the matched cells as numbers, ``json`` everything.
        out: The file; None prints.

    Raises:
        ConfigError: There is no such format.
        StoreError: The file cannot be written.
    """
    if format not in FORMATS:
        problem = Problem(
            "there is no such format of a comparison",
            value=repr(format),
            allowed=", ".join(FORMATS),
        )
        raise ConfigError(problem)
    if format == "text" and out is None:
        Console().print(summary(comparison))
        return
    if format == "text":
        stream = io.StringIO()
        Console(file=stream, width=FILE_WIDTH).print(summary(comparison))
        text = stream.getvalue()
    else:
        text = {"md": _markdown, "csv": _csv, "json": _json}[format](comparison)
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text.encode())


def summary(comparison: Comparison) -> RenderableType:
    """The comparison, to be printed by a rich console."""
    parts: list[RenderableType] = [Text(line, style="bold") for line in heads(comparison)]
    parts += [Text(line, style="yellow") for line in cautions(comparison)]
    parts += [Text(f"• {line}") for line in sentences(comparison)]
    for title, table in _tables(comparison, count=SHOWN):
        parts += [Text(f"\n{title}", style="bold"), _drawn(table)]
    for name, frame in _lone(comparison):
        words = _only(frame, comparison)
        more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
        parts.append(Text(f"\nOnly in {name}: {', '.join(words[:LISTED])}{more}"))
    parts.append(Text(f"\n{RULE}", style="dim"))
    return Group(*parts)


def heads(comparison: Comparison) -> list[str]:
    """Which study is A and which is B."""
    sides = (("A", comparison.name_a, comparison.a), ("B", comparison.name_b, comparison.b))
    return [f"{letter}: {name}, {_runs(study)}" for letter, name, study in sides]


def _other_tokens(comparison: Comparison) -> bool:
    """Whether the two studies cut text into other tokens."""
    tokenizers = [
        None if data is None else data.model_dump(exclude={"path"})
        for data in (
            getattr(side.study.data, "tokenizer", None) for side in (comparison.a, comparison.b)
        )
    ]
    return tokenizers[0] != tokenizers[1]


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know before any number: parts missing, what was not alike."""
    found = []
    for name, study in (("A", comparison.a), ("B", comparison.b)):
        counts = study.completeness
        if counts.partial:
            found.append(
                f"{name} is not finished: {counts.ended} of {counts.expected_runs} runs have "
                "ended, and only those are compared."
            )
        found += _adaptive_cautions(name, study)
        if counts.failed:
            found.append(f"{name} has {counts.failed} runs that failed; they are in no figure.")
    if comparison.same_corpus is None:
        found.append("A corpus was not recorded, so that no run is known to be paired.")
    elif _other_tokens(comparison):
        found.append(
            "Their tokens are not the same, so nats a token are not comparable, nor what is said "
            "of them below: compare bits a byte (`val_bpb`, `eval_NAME.bpb` of `export`)."
        )
    elif not comparison.same_corpus:
        found.append(
            "The corpora differ, and with them the held-out text: losses are of different text, "
            "and no run is paired."
        )
    if _lone(comparison):
        found.append("Verdicts and series are of each study’s own cells, which are not the same.")
    changed = {one.key for one in comparison.settings}
    if any(key.startswith("divergence.") for key in changed):
        found.append("The divergence rules differ: “diverged” does not mean the same in A and B.")
    if "evaluation.sequences" in changed and comparison.same_corpus:
        found.append("The evaluations differ: final losses are of other held-out sequences.")
    lone = comparison.cells.filter(comparison.cells["pairs"].is_null()).height
    if comparison.same_corpus and comparison.paired and lone:
        found.append(
            f"{_count(lone, 'matched cell')} without pairs: other batch, or too few "
            "seeds common to speak for all runs."
        )
    elif comparison.same_corpus and not comparison.paired and comparison.cells.height:
        found.append("No run is paired: too few seeds in common, or another batch or context.")
    return found


def _adaptive_cautions(name: str, study: Analysis) -> list[str]:
    adaptive = study.study.adaptive
    if adaptive is None:
        return []
    words = (
        f"{name} chose its numbers of seeds by outcomes: intervals and p of its cells promise less "
        "than they say."
    )
    return [f"{words} {STOPPED}" if adaptive.until.told_apart else words]


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison comes to, a sentence or two each."""
    found = [_matched(comparison), _different(comparison)]
    both = comparison.overall
    if both.cells:
        if not both.identical:
            found.append(_overall(comparison))
        lost = f"A {both.diverged_a}/{both.runs_a}, B {both.diverged_b}/{both.runs_b}"
        text = f"Diverged runs of the matched cells: {lost}"
        if both.sign_test_p is not None and both.diverged_a + both.diverged_b:
            seeds = _count(both.sign_seeds, "differing seed")
            text += f" (exact sign test over {seeds}: p = {both.sign_test_p:.2g})"
        found.append(f"{text}.")
    return found


def _matched(comparison: Comparison) -> str:
    cells = comparison.cells.height
    lone = [f"{frame.height} only in {name}" for name, frame in _lone(comparison)]
    by = f" by {', '.join(comparison.knobs)}" if comparison.knobs else ""
    return f"{_count(cells, 'cell')} matched{by}{''.join(f', {words}' for words in lone)}."


def _different(comparison: Comparison) -> str:
    tested, both = comparison.tested, comparison.overall
    if both.identical:
        return f"All {both.pairs} pairs of runs have the same loss to the last bit."
    if not both.cells:
        return "No cell has a counted run in both."
    if tested.is_empty():
        return "No cell could be tested: too few seeds."
    m, k = tested.height, comparison.different.height
    raw = tested.filter(tested["p"] <= ALPHA).height
    text = (
        f"{k} of {_count(m, 'tested cell')} {'differs' if k == 1 else 'differ'} (Holm). "
        f"Unadjusted it would be {raw}; chance alone shows about {ALPHA * m:.1f}"
    )
    if left := both.cells - m:
        text += (
            f". {_count(left, 'more cell')} could not show a difference: too few seeds or pruned"
        )
    if both.equal_pairs:
        text += f". {both.equal_pairs} of {both.pairs} pairs are equal to the last bit"
    return f"{text}."


def _overall(comparison: Comparison) -> str:
    both = comparison.overall
    text = (
        f"Mean difference B − A over {_count(both.cells, 'cell')}: {_signed(both.difference)} "
        "nats, diverged runs at min(final, initial) loss"
    )
    if both.trained is None:
        return f"{text}; too few seeds for an interval."
    test = f"{'paired ' if both.trained_paired else ''}t over {_count(both.trained_seeds, 'seed')}"
    return (
        f"{text}; over the {both.trained_cells} in which no run diverged {_spread(both.trained)} "
        f"(95 %, {test}; p = {both.trained.p:.2g})."
    )


def _tables(comparison: Comparison, *, count: int | None) -> list[tuple[str, Table]]:
    found = [
        ("Settings that differ", _differing(comparison.settings)),
        ("Provenance that differs", _differing(comparison.provenance)),
        ("Verdicts", _verdicts(comparison)),
        ("Series", _series(comparison)),
    ]
    cells = comparison.cells.height
    title = "Cells" if count is None or cells <= count else f"Cells, {count} of {cells} by p"
    found.append((title, cells_table(comparison, count=count)))
    return [(title, table) for title, table in found if table.rows]


def _lone(comparison: Comparison) -> list[tuple[str, pl.DataFrame]]:
    """The cells that only one study has."""
    sides = (("A", comparison.only_a), ("B", comparison.only_b))
    return [(name, frame) for name, frame in sides if frame.height]


def _only(frame: pl.DataFrame, comparison: Comparison) -> list[str]:
    return [setting_words(row, comparison.knobs) for row in frame.iter_rows(named=True)]


def cells_table(comparison: Comparison, *, count: int | None = None) -> Table:
    """Every matched cell, or those with the least p in their order."""
    cells = comparison.cells.with_row_index("place")
    if count is not None and cells.height > count:
        cells = cells.sort("p_holm", "p", nulls_last=True).head(count).sort("place")
    rows = [
        (
            row["setting"],
            _number(row["loss_a"]),
            _number(row["loss_b"]),
            _signed(row["difference"]),
            _interval(row),
            f"{row['diverged_a']}/{row['n_a']}, {row['diverged_b']}/{row['n_b']}",
            "" if row["p_holm"] is None else f"{row['p_holm']:.2g}{' *' if row['differs'] else ''}",
        )
        for row in cells.iter_rows(named=True)
    ]
    heads = ("setting", "loss A", "loss B", "B − A", "95 %", "div. A, B", "p (Holm)")
    return Table(heads, tuple(rows), (False, *(True for _ in heads[1:])))


def _interval(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "by Fisher" if row["test"] == "Fisher" else ""
    return f"{_signed(row['low'])} to {_signed(row['high'])}"


def _verdicts(comparison: Comparison) -> Table:
    rows = [(one.question, one.a, one.b, one.words) for one in comparison.verdicts]
    return Table(("verdict", "A", "B", "changed?"), tuple(rows), (False,) * 4)


def _series(comparison: Comparison) -> Table:
    differ = {True: "differ", False: "not told apart", None: ""}
    # Without an interval of that name in both studies there is nothing to say.
    said = comparison.series["basins_differ"].is_not_null().any()
    rows = []
    for row in comparison.series.iter_rows(named=True):
        lrs = [row[f"stable_lr{s}"] for s in ("_a", "_b")]
        rows.append(
            (
                row["series"],
                *(basin_words(row, side=s).removesuffix(" decades") for s in ("_a", "_b")),
                *([differ[row["basins_differ"]]] if said else []),
                ", ".join("–" if lr is None else format_value(lr, knob="lr") for lr in lrs),
                ", ".join(f"{row[f'diverged{s}']}/{row[f'n{s}']}" for s in ("_a", "_b")),
            )
        )
    heads = ("series", "basin A", "basin B", *(["basins"] if said else []))
    heads = (*heads, "stable lr A, B", "div. A, B")
    return Table(heads, tuple(rows), tuple(name not in ("series", "basins") for name in heads))


def _differing(rows: Any) -> Table:
    words = tuple((one.key, one.a, one.b, one.effect) for one in rows)
    return Table(("key", "A", "B", "bears on"), words, (False,) * 4)


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head, numeric in zip(table.columns, table.numeric, strict=True):
        side: Literal["left", "right"] = "right" if numeric else "left"
        drawn.add_column(Text(head, style="dim"), justify=side, no_wrap=numeric, overflow="fold")
    for row in table.rows:
        # Text, never markup: a method's name may hold brackets.
        style = "bold" if row[-1].endswith("*") else ""
        drawn.add_row(*(Text(word, style=style) for word in row))
    return drawn


def _markdown(comparison: Comparison) -> str:
    lines = ["# Comparison", ""]
    lines += [f"- **{line[0]}**{markdown.escape(line[1:])}" for line in heads(comparison)]
    lines += ["", *(f"> {markdown.escape(line)}\n" for line in cautions(comparison))]
    lines += [f"- {markdown.escape(line)}" for line in sentences(comparison)]
    for title, table in _tables(comparison, count=None):
        lines += ["", f"## {title}", "", markdown.table(table)]
        if title == "Cells":
            lines += ["", markdown.escape(RULE)]
    for name, frame in _lone(comparison):
        lines += ["", f"## Only in {name}", ""]
        lines += [f"- {markdown.escape(words)}" for words in _only(frame, comparison)]
    return "\n".join([*lines, ""])


def _csv(comparison: Comparison) -> str:
    return str(comparison.cells.write_csv())


def _json(comparison: Comparison) -> str:
    both = comparison.overall
    facts = {
        "a": comparison.name_a,
        "b": comparison.name_b,
        "partial": {"a": _partial(comparison.a), "b": _partial(comparison.b)},
        "same_corpus": comparison.same_corpus,
        "cautions": cautions(comparison),
        "sentences": sentences(comparison),
        "rule": RULE,
        "overall": asdict(both),
        "verdicts": [asdict(one) for one in comparison.verdicts],
        "series": comparison.series.to_dicts(),
        "cells": comparison.cells.to_dicts(),
        "only_a": _only(comparison.only_a, comparison),
        "only_b": _only(comparison.only_b, comparison),
        "settings": [asdict(one) for one in comparison.settings],
        "provenance": [asdict(one) for one in comparison.provenance],
    }
    return json.dumps(_finite(facts), ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _partial(study: Analysis) -> dict[str, Any]:
    counts = study.completeness
    return {"partial": counts.partial, "ended": counts.ended, "expected": counts.expected_runs}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _runs(study: Analysis) -> str:
    counts = study.completeness
    cells, ended = study.cells.height, counts.ended
    return f"{_count(cells, 'cell')}, {ended} of {counts.expected_runs} runs ended"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _spread(spread: Difference) -> str:
    low, high = _signed(spread.interval.low), _signed(spread.interval.high)
    return f"{_signed(spread.mean)} ({low} to {high})"
