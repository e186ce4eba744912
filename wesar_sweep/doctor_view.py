"""What `doctor` prints: its facts as a few short tables, and last whether the machine is fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from wesar_sweep.doctor import OPTIONAL


def show(facts: Mapping[str, Any]) -> None:
    """Print it."""
    console = Console(highlight=False)
    for part in _parts(facts):
        console.print(part)
        console.print()
    console.print(_verdict(facts))


def _parts(facts: Mapping[str, Any]) -> Iterator[Table | Group]:
    yield _machine(facts)
    if facts["kernels"] and facts["kernels"]["used"]:
        yield _kernels(facts["kernels"])
    if facts["slots"]:
        yield _slots(facts["slots"])


def _table(*columns: str) -> Table:
    table = Table(box=None, show_header=bool(columns), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _machine(facts: Mapping[str, Any]) -> Table:
    machine, here = facts["machine"], facts["versions"]
    table = _table()
    if "gpu" in machine:
        several = f", the first of {machine['gpus']}" if machine["gpus"] > 1 else ""
        table.add_row("GPU", f"{machine['gpu']}{several}")
        table.add_row(
            "",
            f"driver {machine['driver'] or 'unknown'}, CUDA {machine['cuda']}, compute capability "
            f"{machine['compute_capability']}",
        )
        table.add_row(
            "",
            f"{machine['gpu_memory_gb']:.1f} GB, {machine['free_gpu_memory_gb']:.1f} GB of it free",
        )
    table.add_row("CPU", f"{machine['cpu']}, {_count(machine['cores'], 'core')}")
    memory = f"{machine['memory_gb']:.1f} GB, {machine['free_memory_gb']:.1f} GB of it free"
    table.add_row("memory", memory)
    room = f"{facts['results']['free_gb']:.1f} GB free for {facts['results']['path']}"
    table.add_row("disk", room)
    table.add_row("versions", ", ".join(f"{name} {one}" for name, one in here.items() if one))
    absent = [f"{name} ({what})" for name, what in OPTIONAL.items() if not here.get(name)]
    if absent:
        table.add_row("absent", f"{', '.join(absent)}: optional")
    for row in facts["speed"]:
        known = f"; known of its kind: {_span(*row['known'])}" if row["known"] else ""
        table.add_row(row["what"], f"{row['value']:.3g} {row['unit']} ({row['how']}{known})")
    if "batched_products_independent" in facts:
        same = "do not depend" if facts["batched_products_independent"] else "depend"
        table.add_row("stacking", f"batched products {same} on the number of runs")
    if facts["kernels"] and not facts["kernels"]["used"]:
        table.add_row("kernels", f"not used: {facts['kernels']['why']}")
    return table


def _kernels(kernels: Mapping[str, Any]) -> Table:
    """A row an op and type; the message of one that failed on a line of its own."""
    table = _table("kernel", "type", "largest error", "allowed", "")
    for row in kernels["checks"]:
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        word = Text("ok", "green") if row["ok"] else Text("FAILED", "bold red")
        allowed = f"{row['tolerance']:.0e}" if row["tolerance"] else "none"
        table.add_row(row["op"], row["dtype"], error, allowed, word)
        if row["message"]:
            # Compilers are long-winded; all of it is in --json.
            table.add_row(Text(f"  {row['message'].splitlines()[0][:200]}"))
    return table


def _slots(slots: Mapping[str, Any]) -> Group:
    table = _table("width", "depth", "context", "batch", "slots", "GB a run", "GB to fill", "why")
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    for row in slots["rows"]:
        table.add_row(
            *(str(row[name]) for name in ("width", "depth", "context", "batch", "slots")),
            f"{row['run_gb']:.3g}",
            f"{row['room_gb']:.1f}",
            row["why"],
        )
    head = (
        f"{slots['study']}: slots of each of {_count(slots['workers'], 'worker')}, in "
        f"{slots['precision']}, from {slots['memory_fraction']:.0%} of the free memory"
    )
    if slots["architectures"] > len(slots["rows"]):
        head += f"; {len(slots['rows'])} of its {slots['architectures']} architectures"
    if slots["slots_set"] is not None:
        head += f"; the sweep file sets {slots['slots_set']} instead"
    return Group(head, table)


def _verdict(facts: Mapping[str, Any]) -> Group:
    lines: list[Text] = []
    for problem in facts["problems"]:
        word = Text("FAILED: ", "bold red") if problem["failed"] else Text("note: ", "yellow")
        lines += [word + Text(problem["what"]), Text(f"    to do: {problem['do']}")]
    fit = Text("This machine is fit to train.", "bold green")
    return Group(*lines, fit if facts["fit"] else Text("This machine is not fit.", "bold red"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
