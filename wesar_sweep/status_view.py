"""`status`: how far a study is and what each worker does, for people and as JSON.

Reads what is on disk alone, and writes nothing: a study may be looked at by those who may not write
to it.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wesar_sweep import workers_view
from wesar_sweep.progress import fraction_running
from wesar_sweep.store.beat import living_beats
from wesar_sweep.store.drive import Drive, read_drive
from wesar_sweep.store.locks import is_held
from wesar_sweep.store.spent import Spent, read_spent, total
from wesar_sweep.studies.progress import Progress, Summary

if TYPE_CHECKING:
    from wesar_sweep.api import Result

_SHOWN_FAILURES = 5
_SHOWN_LOGS = 2
_STATES = ("completed", "diverged", "pruned", "failed", "retrying", "running", "waiting")


def facts(result: Result, *, progress: Progress | None = None) -> dict[str, Any]:
    """Everything `status` knows, as plain values.

    Args:
        result: The study.
        progress: Its reader, where it is looked at again and again; a row is then parsed once.
    """
    directory = result.directory
    progress = progress or Progress(directory, result.study)
    # First, so that one that has ended is not seen with the counts of before its end.
    alive = is_held(directory.driver_lock_file)
    drive = read_drive(directory)
    summary = progress.read()
    workers = workers_view.facts(directory)
    spent = total(read_spent(directory).values())
    seconds_left = _seconds_left(result, progress, summary)
    return {
        "study": result.study.name,
        "directory": str(directory.root),
        "driver_alive": alive,
        "driver": None if drive is None else asdict(drive) | {"budget": drive.budget.model_dump()},
        "driver_log": str(directory.driver_log_file)
        if directory.driver_log_file.exists()
        else None,
        "ended": "" if drive is None or alive else drive.ended,
        "complete": summary.complete,
        **asdict(summary),
        "runs_done": summary.runs_done,
        "device_hours": spent.device_hours,
        "tokens_spent": spent.tokens,
        "budget": _budget(drive, spent, trials=len({trial for trial, _ in progress.rows})),
        "tokens_per_second": sum(w["tokens_per_second"] or 0.0 for w in workers if w["alive"]),
        "seconds_left": seconds_left,
        "expected_end": None if seconds_left is None else time.time() + seconds_left,
        "workers": workers,
        "failures": [
            {
                "trial": row.trial,
                "seed": row.seed,
                "attempt": row.attempt,
                "reason": row.reason,
                "worker": row.worker,
                "log": str(directory.log_file(row.worker)),
            }
            for _, row in sorted(progress.rows.items())
            if row.status == "failed"
        ],
    }


def show(result: Result) -> None:
    """Print it once."""
    Console().print(_view(facts(result)))


def watch(result: Result, *, every_s: float = 2.0) -> int:
    """Show it until the study is complete or nobody runs it any more, or Ctrl-C.

    Returns:
        The exit code: 0 where the study is complete, 1 where it stopped before, 130 after Ctrl-C.
    """
    console = Console()
    progress = Progress(result.directory, result.study)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    known = facts(result, progress=progress)
                    live.update(_view(known), refresh=True)
                    if known["complete"] or not known["driver_alive"]:
                        break
                    time.sleep(every_s)
        else:
            before: list[str] = []
            while True:
                known = facts(result, progress=progress)
                lines = _lines(known)
                if lines != before:
                    print("\n".join(lines), flush=True)
                before = lines
                if known["complete"] or not known["driver_alive"]:
                    break
                time.sleep(every_s)
            for text in _trouble(known):
                print(text)
    except KeyboardInterrupt:
        return 130
    return 0 if known["complete"] else 1


def _budget(drive: Drive | None, spent: Spent, *, trials: int) -> dict[str, dict[str, float]]:
    """Limit, used and left of every budget that is set."""
    if drive is None:
        return {}
    wall = ((drive.ended_at or time.time()) - drive.started_at) / 3600
    used: dict[str, float] = {
        "gpu_hours": spent.device_hours,
        "wall_hours": wall,
        # A worker killed within a second of starting a cell did not count it.
        "trials": max(spent.cells, trials),
        "tokens": spent.tokens,
    }
    limits = drive.budget.model_dump()
    return {
        name: {"limit": limit, "used": used[name], "left": max(0, limit - used[name])}
        for name, limit in limits.items()
        if limit is not None
    }


def _seconds_left(result: Result, progress: Progress, summary: Summary) -> float | None:
    """Until the study is complete: by the mean length of the runs that ended, at this speed."""
    beats = living_beats(result.directory)
    rate = sum(beat.tokens_per_second or 0.0 for beat in beats)
    tokens = [row.tokens for row in progress.rows.values() if row.status != "failed"]
    tokens = [count for count in tokens if count]
    if not rate or not tokens:
        return None
    left = summary.runs - summary.runs_done - fraction_running(beats)
    return max(0.0, left) * sum(tokens) / len(tokens) / rate


def _state(known: dict[str, Any]) -> str:
    if known["complete"]:
        return "complete"
    if known["driver_alive"]:
        return "running"
    return "stopped; resume goes on" + (f" ({known['ended']})" if known["ended"] else "")


def _spent(known: dict[str, Any]) -> str:
    words = [f"{hours(known['device_hours'])} of devices, {known['tokens_spent']:,} tokens trained"]
    for name, budget in known["budget"].items():
        words.append(f"{name} {budget['used']:,.4g} of {budget['limit']:,.4g}")
    return "; ".join(words)


def _left(known: dict[str, Any]) -> str:
    end = known["expected_end"]
    if known["complete"] or end is None:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
    return f"about {hours(known['seconds_left'] / 3600)} left: {when}"


def hours(value: float) -> str:
    """A time in words, in the unit that fits."""
    seconds = value * 3600
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{value:,.1f} h"


def _view(known: dict[str, Any]) -> Group:
    counts = Table(box=None, show_header=False, pad_edge=False)
    counts.add_row("cells", f"{known['cells_done']} of {known['cells']} done")
    more = known["runs_at_most"] > known["runs"] and not known["complete"]
    at_most = f" (at most {known['runs_at_most']} in all)" if more else ""
    counts.add_row("runs", f"{known['runs_done']} of {known['runs']} done{at_most}")
    for name in _STATES:
        if known[name]:
            counts.add_row("", f"{known[name]} {name}")
    counts.add_row("tokens", f"{known['tokens']:,}")
    counts.add_row("spent", _spent(known))
    if _left(known):
        counts.add_row("end", _left(known))
    parts: list[Any] = [Text(f"{known['study']}: {_state(known)}", style="bold"), counts]
    alive = [worker for worker in known["workers"] if worker["alive"]]
    if alive:
        parts.append(_workers(alive))
    parts += [Text(text) for text in _trouble(known)]
    return Group(*parts)


def _trouble(known: dict[str, Any]) -> list[str]:
    """Failures with their reasons, and the end of the log of the workers that were lost last."""
    found = [
        f"failed: trial {failure['trial']} seed {failure['seed']} "
        f"(attempt {failure['attempt']}, {failure['worker']}): {failure['reason']}"
        for failure in known["failures"][:_SHOWN_FAILURES]
    ]
    hidden = len(known["failures"]) - _SHOWN_FAILURES
    if hidden > 0:
        found.append(f"… and {hidden} more failures; --json lists all")
    lost = sorted((w for w in known["workers"] if w["lost"]), key=lambda w: w["updated_at"])
    for worker in lost[-_SHOWN_LOGS:]:
        found.append(f"worker {worker['worker']} {worker['ended']}; log {worker['log']}")
        found += [f"    {text}" for text in worker["log_tail"].splitlines()]
    if len(lost) > _SHOWN_LOGS:
        found.append(f"… and {len(lost) - _SHOWN_LOGS} more; `wesar-sweep workers` lists all")
    return found


def _lines(known: dict[str, Any]) -> list[str]:
    """The state in plain lines, the same as long as nothing happens."""
    counts = [f"{known['runs_done']} of {known['runs']} runs"]
    counts += [f"{known[name]} {name}" for name in _STATES if known[name]]
    rate = known["tokens_per_second"]
    words = [*counts, f"{rate:,.0f} tokens/s" if rate else "", _spent(known), _left(known)]
    lines = [f"{known['study']}: {_state(known)} · " + " · ".join(word for word in words if word)]
    lines += [
        f"  {worker['worker']} {worker['state']}: {worker['runs_done']} runs done; "
        + (workers_view.what(worker) or "trains nothing yet")
        for worker in known["workers"]
        if worker["alive"]
    ]
    return lines


def _workers(alive: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    heads = ("worker", "host", "device", "state", "beat", "slots", "runs done")
    for column in (*heads, "trains (trial/seed: step)"):
        table.add_column(column)
    for worker in alive:
        table.add_row(
            worker["worker"],
            worker["host"],
            worker["device_name"],
            worker["state"],
            f"{workers_view.age(worker)} ago",
            f"{len(worker['slots'])} of {worker['slot_count'] or '?'}",
            str(worker["runs_done"]),
            workers_view.what(worker),
        )
    return table
