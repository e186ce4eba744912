"""`status`: how far a study is and what each worker does, for people and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wesar_sweep.store.beat import Beat, is_alive, living_beats, read_beats
from wesar_sweep.store.locks import is_held
from wesar_sweep.store.outcomes import read_outcomes

if TYPE_CHECKING:
    from wesar_sweep.api import Result

_WATCH_EVERY_S = 2.0
_SHOWN_FAILURES = 5


def facts(result: Result) -> dict[str, Any]:
    """Everything `status` knows, as plain values."""
    summary = result.summary
    directory = result.directory
    return {
        "study": result.study.name,
        "directory": str(directory.root),
        "driver_alive": is_held(directory.driver_lock_file),
        "complete": summary.complete,
        **asdict(summary),
        "runs_done": summary.runs_done,
        "workers": [
            {**asdict(beat), "alive": is_alive(directory, beat)} for beat in read_beats(directory)
        ],
        "failures": [
            {"trial": row.trial, "seed": row.seed, "attempt": row.attempt, "reason": row.reason}
            for row in read_outcomes(directory)
            if row.status == "failed"
        ],
    }


def show(result: Result) -> None:
    """Print it once."""
    Console().print(_view(result, facts(result)))


def watch(result: Result) -> None:
    """Show it until the study is complete or nobody runs it any more, or Ctrl-C."""
    with Live(console=Console(), auto_refresh=False) as live:
        try:
            while True:
                known = facts(result)
                live.update(_view(result, known), refresh=True)
                if known["complete"] or not known["driver_alive"]:
                    return
                time.sleep(_WATCH_EVERY_S)
        except KeyboardInterrupt:
            return


def _view(result: Result, known: dict[str, Any]) -> Group:
    state = "running" if known["driver_alive"] else "stopped; resume goes on"
    state = "complete" if known["complete"] else state
    counts = Table(box=None, show_header=False, pad_edge=False)
    counts.add_row("cells", f"{known['cells_done']} of {known['cells']} done")
    counts.add_row("runs", f"{known['runs_done']} of {known['runs']} done")
    for name in ("completed", "diverged", "pruned", "failed", "retrying", "running", "waiting"):
        if known[name]:
            counts.add_row("", f"{known[name]} {name}")
    counts.add_row("tokens", f"{known['tokens']:,}")
    parts: list[Any] = [Text(f"{known['study']}: {state}", style="bold"), counts]
    alive = living_beats(result.directory)
    if alive:
        parts.append(_workers(alive))
    for failure in known["failures"][:_SHOWN_FAILURES]:
        parts.append(
            Text(
                f"failed: trial {failure['trial']} seed {failure['seed']} "
                f"(attempt {failure['attempt']}): {failure['reason']}"
            )
        )
    hidden = len(known["failures"]) - _SHOWN_FAILURES
    if hidden > 0:
        parts.append(Text(f"… and {hidden} more failures; --json lists all"))
    return Group(*parts)


def _workers(alive: list[Beat]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "device", "state", "slots", "tokens/s", "trains (trial/seed: step)"):
        table.add_column(column)
    for beat in alive:
        slots = ", ".join(f"{s.trial}/{s.seed}: {s.step} of {s.steps}" for s in beat.slots[:4])
        more = f" … {len(beat.slots) - 4} more" if len(beat.slots) > 4 else ""
        rate = f"{beat.tokens_per_second:,.0f}" if beat.tokens_per_second else ""
        table.add_row(
            beat.worker, beat.device_name, beat.state, str(len(beat.slots)), rate, slots + more
        )
    return table
