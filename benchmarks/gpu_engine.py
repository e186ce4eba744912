"""Tokens a second of the engine on a GPU, end to end, beside the best single run of plain torch.

    python benchmarks/gpu_engine.py                  (make bench-gpu)
    python benchmarks/gpu_engine.py --only d128 --no-baseline --no-cold-start --profile --out DIR

Everything runs in processes of its own, which wait for a word before they measure: the baselines
are compiled all at once at the start; then engine and baseline of a case take turns on the device,
alone. Each engine process is started twice, first with an empty kernel cache, then with the one
that the first has filled; the time to its first finished step counts from before its start.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gpu
import plain_step
import torch
from counts import engine, floor_bytes_a_token, flops_a_token, one_kernel_an_op
from engine_child import Child, ChildError, child

from wesar_sweep.config.methods import BUILT_IN_METHODS

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
"""Where compiled kernels are kept between processes."""

NOT_THE_ENGINE = ("process", "imports", "device")
"""Parts of the way to the first step that any program of torch has: Python's start, torch's import
and the device's context (with the engine's modules, which are few beside it)."""

BUDGET_S = 230.0
"""After so long no further case is begun; one takes half a minute."""

TURN_S = 1.5
"""Of measuring, for each of two that take turns."""


class Table:
    """Measures case after case and prints the table at the end."""

    def __init__(
        self, arguments: argparse.Namespace, results: gpu.Results, device: torch.device
    ) -> None:
        self._arguments, self._results, self._device = arguments, results, device
        self._rows: list[dict[str, Any]] = []
        self._matrix: list[float] = []
        self._copy: list[float] = []

    def measure(self, cases: Sequence[gpu.Case]) -> None:
        """Everything that was asked for."""
        plain: dict[str, Child] = {}
        try:
            if not self._arguments.no_baseline:
                for case in cases:
                    plain[case.name] = Child(
                        self._task("plain", case, compile_mode=self._arguments.compile_mode)
                    )
            with child(self._task("ceilings")) as ceilings:
                for name in list(plain):
                    with self._results.part(f"baseline of {name}"):
                        marks = plain[name].expect("first_step")["marks"]
                        spent = marks["first step"] - plain[name].started_at
                        self._results.say(
                            f"baseline of {name} ready after {spent:.0f} s, "
                            f"{len(plain)} being compiled at once"
                        )
                        continue
                    # It failed: its case is measured without it.
                    plain.pop(name).end()
                self._measure_ceilings(ceilings)
                for case in cases:
                    with self._results.part(case.name):
                        if self._results.elapsed_s > self._arguments.budget_s:
                            raise ChildError("left out, the time is up (--budget-s)")
                        self._measure_case(case, plain.get(case.name))
                    if case.name in plain:
                        plain.pop(case.name).end()
                self._measure_ceilings(ceilings)
        finally:
            for process in plain.values():
                process.end()
        self._print()

    def _task(self, part: str, case: gpu.Case | None = None, **more: Any) -> dict[str, Any]:
        described = asdict(case) if case is not None else None
        return {"part": part, "case": described, "device": self._device.type, **more}

    def _measure_ceilings(self, ceilings: Child) -> None:
        with self._results.part("copy bandwidth and matrix peak"):
            found = ceilings.ask("measure")
            self._matrix += found["matrix"]
            self._copy += found["copy"]
            self._results.record(
                "", copy_bytes_per_second=found["copy"], matrix_flops_per_second=found["matrix"]
            )

    def _measure_case(self, case: gpu.Case, plain: Child | None) -> None:
        results, task = self._results, self._engine_task(case)
        first: dict[str, dict[str, float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            caches = {name: str(Path(folder) / name.lower()) for name in CACHES}
            if self._arguments.no_cold_start:
                caches = {}
            else:
                with (
                    results.part(f"{case.name} from a cold cache"),
                    child(task, environment=caches) as cold,
                ):
                    first["cold"] = self._first_step(cold, "cold")
            with child(task, environment=caches) as warm:
                first["warm"] = self._first_step(warm, "warm" if caches else "own")
                series: dict[str, list[float]] = {"engine": [], "plain": []}
                last: dict[str, dict[str, Any]] = {}
                for _ in range(2):
                    for name, process in (("plain", plain), ("engine", warm)):
                        if process is None:
                            continue
                        answer = process.ask("measure", seconds=self._arguments.seconds)
                        self._require_plausible(name, case, answer["loss"])
                        series[name] += answer["step_seconds"]
                        last[name] = answer
                self._record(case, series, last, first)
                for name, process in (("engine", warm), ("plain", plain)):
                    if self._arguments.profile and process is not None:
                        with results.part(f"profile of {case.name}, {name}"):
                            text = process.ask("profile")["text"]
                            results.note(f"\n== {name} {case.label}\n{text}\n")
                            top = "\n".join(text.splitlines()[:14])
                            print(f"\n== {name} {case.label}\n{top}\n", flush=True)

    def _engine_task(self, case: gpu.Case) -> dict[str, Any]:
        return self._task(
            "engine", case, method=self._arguments.method, precision=self._arguments.precision
        )

    def _first_step(self, process: Child, cache: str) -> dict[str, float]:
        parts = parts_of(process.expect("first_step")["marks"], since=process.started_at)
        said = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
        spent = sum(parts.values())
        self._results.say(f"  first step after {spent:.2f} s, {cache} cache: {said}")
        return parts

    def _require_plausible(self, name: str, case: gpu.Case, loss: float) -> None:
        one_batch = name == "plain"
        if not gpu.is_plausible(loss, vocabulary=case.vocabulary, one_batch=one_batch):
            raise ChildError(f"{name} of {case.name}: loss {loss}, so no speed is reported")

    def _record(
        self,
        case: gpu.Case,
        series: dict[str, list[float]],
        last: dict[str, dict[str, Any]],
        first: dict[str, dict[str, float]],
    ) -> None:
        a = case.architecture
        matrix, copy = gpu.median(self._matrix), gpu.median(self._copy)
        flops = flops_a_token(a)
        narrow = _is_narrow(case)
        row: dict[str, Any] = {"case": case.label, "target": _short(case.target)}
        figures: dict[str, Sequence[float] | float] = {}
        for name, slots in (("plain", 1), ("engine", case.slots)):
            if not series[name]:
                continue
            rates = [slots * a.tokens_per_step / t for t in series[name]]
            figures |= {
                f"{name}_tokens_per_second": rates,
                f"{name}_model_flops_per_second": [rate * flops for rate in rates],
                f"{name}_share_of_matrix_peak": [rate * flops / matrix for rate in rates],
                f"{name}_allocated_gib": last[name]["allocated_gib"],
                f"{name}_reserved_gib": last[name]["reserved_gib"],
            }
            rate = gpu.median(rates)
            row |= {
                name: _short(rate),
                f"{name} GiB": "{allocated_gib:.1f}/{reserved_gib:.1f}".format_map(last[name]),
                f"{name} of peak": f"{rate * flops / matrix:.1%}",
            }
            if name == "engine":
                counted = floor_bytes_a_token(a, engine(a, narrow=narrow))
                unfused = floor_bytes_a_token(a, one_kernel_an_op(a))
                figures |= {
                    "engine_counted_bytes_per_token": counted,
                    "unfused_counted_bytes_per_token": unfused,
                    "engine_share_of_copy_bandwidth": [r * counted / copy for r in rates],
                }
                row |= {
                    "counted kB/token": f"{counted / 1e3:.1f} ({unfused / 1e3:.1f} unfused)",
                    "of copy": f"{rate * counted / copy:.0%}",
                }
        if series["plain"] and series["engine"]:
            ratio = case.slots * gpu.median(series["plain"]) / gpu.median(series["engine"])
            figures["engine_over_plain"] = ratio
            row["ratio"] = f"{ratio:.2f}"
        for cache, parts in first.items():
            figures |= first_step_figures(parts, cache=cache)
            row[f"first step {cache} s"] = f"{sum(parts.values()):.1f}"
        self._rows.append(row)
        self._results.record(case.label, **figures)

    def _print(self) -> None:
        self._results.say(
            f"\nmatrix peak {gpu.median(self._matrix) / 1e12:.0f} TFLOP/s, "
            f"device copy {gpu.median(self._copy) / 1e12:.2f} TB/s"
        )
        if self._rows:
            # A case may lack what another has.
            names = {name: None for row in self._rows for name in row}
            rows = [{name: row.get(name, "–") for name in names} for row in self._rows]
            self._results.say(gpu.table(rows))
            self._results.say("GiB: most allocated / reserved by torch's allocator")


def parts_of(marks: Mapping[str, float], *, since: float) -> dict[str, float]:
    """Seconds that each part of the way to the first step took.

    Args:
        marks: When each part was done, in this order.
        since: When the first began.
    """
    return {
        name: at - before
        for (name, at), before in zip(marks.items(), (since, *marks.values()), strict=False)
    }


def first_step_figures(parts: Mapping[str, float], *, cache: str) -> dict[str, float]:
    """The whole way, each part of it, and what is left for the engine.

    Args:
        parts: From `parts_of`.
        cache: What kernel cache the process found.
    """
    name = f"seconds_to_first_step_{cache}"
    whole = sum(parts.values())
    before = sum(parts.get(part, 0.0) for part in NOT_THE_ENGINE)
    figures = {name: whole, f"{name}_engine": whole - before}
    for part, seconds in parts.items():
        # Kernels may be compiled more than once; their number is part of the mark.
        figure = "_".join([name, *(word for word in part.split() if not word.isdigit())])
        figures[figure] = figures.get(figure, 0.0) + seconds
    return figures


def _is_narrow(case: gpu.Case) -> bool:
    """Whether the engine takes the products with norms and activations inside for this shape."""
    if not torch.cuda.is_available():
        return False
    from wesar_sweep.kernels.fused import linear

    a = case.architecture
    return bool(linear.supported(a.width, a.ffn_width, torch.bfloat16))


def _short(rate: float) -> str:
    return f"{rate / 1e6:.2f} M"


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], help="a case by the start of its name; repeatable"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave plain torch out")
    parser.add_argument(
        "--no-cold-start", action="store_true", help="leave out the start with an empty cache"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print the kernels of one step by their time"
    )
    parser.add_argument(
        "--method",
        default="wesar",
        choices=[*BUILT_IN_METHODS, "mixed"],
        help="of all runs; mixed: all ten in turn",
    )
    parser.add_argument("--precision", default="bf16", choices=("bf16", "tf32", "fp32"))
    parser.add_argument("--compile-mode", default="default", choices=plain_step.COMPILE_MODES)
    parser.add_argument(
        "--slots", type=int, help="K instead of the cases' own (one model of 130M stays alone)"
    )
    parser.add_argument("--seconds", type=float, default=TURN_S, help="of measuring, a turn")
    parser.add_argument(
        "--budget-s", type=float, default=BUDGET_S, help="then no further case is begun"
    )
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_engine", arguments)
    cases = gpu.chosen(gpu.CASES, arguments.only)
    if arguments.check:
        cases, arguments.seconds, arguments.compile_mode = [gpu.TINY], 0.1, "none"
    elif arguments.slots:
        cases = [c if c.slots == 1 else replace(c, slots=arguments.slots) for c in cases]
    Table(arguments, results, device).measure(cases)
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
