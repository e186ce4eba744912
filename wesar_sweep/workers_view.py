"""`workers`: every worker a study has had, one line each, for people and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from wesar_sweep.launchers.base import tail
from wesar_sweep.liveness import worker_end, worker_lives
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.spent import Spent, read_spent

_TAIL_LINES = 8


def facts(directory: StudyDirectory) -> list[dict[str, Any]]:
    """What each worker does or how it ended, sorted by name; dead ones too."""
    spent = read_spent(directory)
    found = []
    for beat in sorted(read_beats(directory), key=lambda beat: _order(beat.worker)):
        alive = worker_lives(directory, beat)
        log = directory.log_file(beat.worker)
        ended = worker_end(beat, alive=alive)
        lost = bool(ended) and beat.state not in ("finished", "stopping")
        found.append(
            {
                **asdict(beat),
                "slots": [list(slot) for slot in beat.slots],
                "alive": alive,
                "age_s": max(0.0, time.time() - beat.updated_at),
                "device_seconds": spent.get(beat.worker, Spent()).device_seconds,
                "ended": ended,
                "lost": lost,
                "log": str(log),
                "log_tail": tail(log, lines=_TAIL_LINES) if lost else "",
            }
        )
    return found


def show(workers: list[dict[str, Any]]) -> None:
    """Print them as a table on a terminal, else as plain lines that no width breaks."""
    console = Console()
    if not console.is_terminal:
        for worker in workers:
            print(line(worker))
        if not workers:
            print("no worker has started yet")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "host", "process", "device", "state", "beat", "runs", "what", "log"):
        table.add_column(column, overflow="fold")
    for worker in workers:
        table.add_row(
            worker["worker"],
            worker["host"],
            str(worker["pid"]),
            worker["device"],
            worker["state"] if worker["alive"] else "dead" if worker["lost"] else "ended",
            f"{age(worker)} ago",
            str(worker["runs_done"]),
            worker["ended"] or what(worker),
            worker["log"],
        )
    console.print(table)


def line(worker: dict[str, Any]) -> str:
    """One worker on one line, without the path of its log where it lives."""
    state = worker["state"] if worker["alive"] else "dead" if worker["lost"] else "ended"
    words = [
        f"{worker['worker']} on {worker['host']} (process {worker['pid']})",
        worker["device"] or "no device yet",
        state,
        f"beat {age(worker)} ago",
        f"{worker['runs_done']} runs done",
        f"{worker['tokens']:,} tokens",
        worker["ended"] or what(worker),
    ]
    return " · ".join([word for word in words if word] + [f"log {worker['log']}"])


def what(worker: dict[str, Any], *, most: int = 4) -> str:
    """What a worker's slots train: ``trial/seed: step of steps``, and how fast."""
    slots = worker["slots"]
    shown = ", ".join(
        f"{trial}/{seed}: {step} of {steps}" for trial, seed, step, steps in slots[:most]
    )
    more = f" … {len(slots) - most} more" if len(slots) > most else ""
    rate = worker["tokens_per_second"]
    return (f"{rate:,.0f} tokens/s, trains " if rate and slots else "") + shown + more


def age(worker: dict[str, Any]) -> str:
    """The age of a worker's last beat in words."""
    seconds = worker["age_s"]
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _order(name: str) -> tuple[str, int, str]:
    """Names in the order of their numbers: w2 before w10."""
    letters = name.rstrip("0123456789")
    number = name[len(letters) :]
    return letters, int(number or 0), name
