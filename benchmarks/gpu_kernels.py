"""Each fused kernel against eager torch, torch.compile and Liger-Kernel, at the models' shapes.

    python benchmarks/gpu_kernels.py                 (make bench-gpu)
    python benchmarks/gpu_kernels.py --op rms_norm --op rope --only d128
    python benchmarks/gpu_kernels.py --sweep --op rms_norm

An op is first compared with its reference in float32, for the first and the last run; where it
differs by more than rounding, no speed is reported. Medians of calls with a cold L2 cache, by CUDA
events, beside the bytes and FLOPs that the op must move and do at the ceilings measured here.
Liger-Kernel is optional (`pip install liger-kernel`); without it its column is empty.

--sweep tries each kernel's tiles and prints them by time; it records nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Before anything imports a kernel.

import gpu
from contest import Contest, Work, neighbours
from contests import CONTESTS, takes
from torch import Tensor

BUDGET_S = 230.0
"""After so long nothing more is begun."""

MEASURE_MS = 40
"""About how long each call is measured."""

SHOWN = 6
"""Of a sweep's tiles, the best so many are printed; all stand in the text under --out."""

COMPILED = {"d128 N4", "130M"}
"""Cases whose references are compiled too: a compilation takes longer than all the rest."""


def times(call: Callable[[], object], *, device: torch.device) -> list[float]:
    """Seconds a call; on a GPU with an L2 cache that was overwritten before each."""
    if device.type != "cuda":
        return gpu.timed(lambda _: call(), [1] * 3, device=device)
    from triton.testing import do_bench

    return [ms / 1e3 for ms in do_bench(call, warmup=5, rep=MEASURE_MS, return_mode="all")]


def leaves_of(inputs: dict[str, Tensor], wrt: Sequence[str]) -> dict[str, Tensor]:
    """The inputs, with those of `wrt` as fresh leaves of autograd."""
    return {name: x.detach().requires_grad_() if name in wrt else x for name, x in inputs.items()}


def gradients(outputs: Sequence[Tensor], wrt: Sequence[Tensor], grads: Sequence[Tensor]) -> Any:
    """By autograd; the graph stays, so that it can be measured again."""
    return torch.autograd.grad(
        list(outputs), list(wrt), list(grads), retain_graph=True, allow_unused=True
    )


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """‖ours − exact‖ / ‖exact‖; infinite where ours is not finite."""
    ours, exact = ours.detach().float(), exact.detach().float()
    length = torch.linalg.vector_norm(exact).clamp(min=1e-30)
    share = float(torch.linalg.vector_norm(ours - exact) / length)
    return share if share == share else float("inf")


def output_gradients(contest: Contest, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Random, the same for every way of computing; ones where the op has no choice."""
    if contest.joint:
        return [torch.ones_like(y) for y in outputs]
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    return [torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype) for y in outputs]


def errors(contest: Contest) -> dict[str, float]:
    """Of each output and gradient, against the reference in float32, for the first and last run."""
    some = sorted({0, contest.case.slots - 1})

    def part(name: str, x: Tensor) -> Tensor:
        own = x if name in contest.shared else x[some]
        return own.float() if own.is_floating_point() else own

    exact_in = leaves_of({n: part(n, x) for n, x in contest.inputs.items()}, contest.wrt)
    exact = contest.reference(**exact_in)
    ours = contest.forward()
    count = len(exact)
    found = {
        f"output {i}": relative_error(y[some], x)
        for i, (y, x) in enumerate(zip(ours[:count], exact, strict=True))
    }
    if not contest.wrt:
        return found
    grads = output_gradients(contest, ours[:count])
    exact_grads = gradients(
        exact, [exact_in[name] for name in contest.wrt], [g[some].float() for g in grads]
    )
    if contest.joint:
        our_grads = ours[count:]
    else:
        assert contest.backward is not None
        our_grads = contest.backward(grads)
    for name, y, x in zip(contest.wrt, our_grads, exact_grads, strict=True):
        # An op may know that the rest of a gradient is nought, and leave it out.
        found[f"gradient of {name}"] = relative_error(y[some], x[..., : y.shape[-1]])
    return found


def rivals(contest: Contest, *, compiled: bool) -> dict[str, tuple[Callable[..., Any], dict]]:
    """Name -> function and inputs of those that the op is measured against."""
    found: dict[str, tuple[Callable[..., Any], dict]] = {
        "eager": (contest.reference, contest.inputs)
    }
    if compiled:
        function = torch.compile(contest.reference, dynamic=False)
        found["compile"] = (function, contest.inputs)
    if contest.liger is not None and importlib.util.find_spec("liger_kernel") is not None:
        inputs = contest.inputs if contest.liger_inputs is None else contest.liger_inputs
        found["liger"] = (contest.liger, inputs)
    return found


class Kernels:
    """Measures contest after contest."""

    def __init__(
        self, arguments: argparse.Namespace, results: gpu.Results, device: torch.device
    ) -> None:
        self._arguments, self._results, self._device = arguments, results, device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._copy = gpu.median(gpu.copy_rates(device))
        self._matrix = gpu.median(gpu.matrix_rates(device))
        self._rows: list[dict[str, Any]] = []
        results.say(
            f"device copy {self._copy / 1e12:.2f} TB/s, matrix peak {self._matrix / 1e12:.0f} "
            "TFLOP/s"
        )
        if importlib.util.find_spec("liger_kernel") is None:
            results.say("liger_kernel is not installed: nothing is compared with Liger-Kernel")

    def contest(self, op: str, case: gpu.Case) -> None:
        """Build, gate, measure one op at one shape."""
        asked = op in self._arguments.op or self._arguments.check
        if not asked and not takes(op, case, self._dtype):
            return
        torch.manual_seed(0)
        contest = CONTESTS[op](case, self._device, self._dtype)
        found = errors(contest)
        worst = max(found, key=lambda name: found[name])
        if found[worst] > contest.tolerance:
            self._results.failures.append(f"{op} at {case.label}")
            self._results.say(
                f"WRONG {op} at {case.label}: {worst} is off by {found[worst]:.2e}, more than "
                f"{contest.tolerance:.0e}: no speed is reported"
            )
            return
        if self._arguments.sweep:
            self._sweep(contest)
            return
        compiled = (contest.compiles and case.name in COMPILED) or self._arguments.compile_all
        outputs = contest.forward()
        grads: list[Tensor] = []
        ours: dict[str, Callable[[], object]] = {
            "both" if contest.joint else "forward": contest.timed or contest.forward
        }
        if contest.backward is not None:
            backward = contest.backward
            grads = output_gradients(contest, outputs)
            ours["backward"] = lambda: backward(grads)
        del outputs
        measured = {way: {"fused": times(call, device=self._device)} for way, call in ours.items()}
        for way, call in contest.apart.items():
            with self._results.part(f"{op} {way} apart, at {case.label}"):
                measured[way]["apart"] = times(call, device=self._device)
        for name, (function, inputs) in rivals(contest, compiled=compiled).items():
            with self._results.part(f"{name} of {op} at {case.label}"):
                self._rival(contest, name, function, inputs, grads, measured)
        for way, series in measured.items():
            work = contest.backward_work if way == "backward" else contest.work
            assert work is not None
            self._report(contest, way, series, work, error=found[worst])

    def _rival(
        self,
        contest: Contest,
        name: str,
        function: Callable[..., Any],
        inputs: dict[str, Tensor],
        grads: Sequence[Tensor],
        measured: dict[str, dict[str, list[float]]],
    ) -> None:
        """Time another's forward and backward pass into `measured`."""
        names: Sequence[str] = contest.wrt
        if inputs is not contest.inputs:
            names = [n for n, x in inputs.items() if x.is_floating_point()]
        leaves = leaves_of(inputs, names)
        wrt = [leaves[n] for n in names]
        outputs = function(**leaves)
        if contest.joint:
            ones = [torch.ones_like(y) for y in outputs]
            measured["both"][name] = times(
                lambda: gradients(function(**leaves), wrt, ones), device=self._device
            )
            return
        measured["forward"][name] = times(lambda: function(**leaves), device=self._device)
        if "backward" in measured:
            # Liger's outputs may be shaped otherwise than the reference's.
            shaped = [
                g.reshape(y.shape) if g.numel() == y.numel() else torch.randn_like(y)
                for g, y in zip(
                    list(grads) + [grads[-1]] * (len(outputs) - len(grads)), outputs, strict=True
                )
            ]
            measured["backward"][name] = times(
                lambda: gradients(outputs, wrt, shaped), device=self._device
            )

    def _report(
        self,
        contest: Contest,
        way: str,
        series: dict[str, list[float]],
        work: Work,
        *,
        error: float,
    ) -> None:
        op, label = f"{contest.op}.{way}", contest.case.label
        fused = gpu.median(series["fused"])
        floor = max(work.bytes / self._copy, work.flops / self._matrix)
        self._results.record(
            label,
            **{f"{op}.{name}_seconds": values for name, values in series.items()},
            **{f"{op}.share_of_ceiling": floor / fused},
        )
        row = {
            "op": op,
            "case": label,
            "error": f"{error:.0e}",
            "us": f"{fused * 1e6:.1f}",
            "GB/s": f"{work.bytes / fused / 1e9:.0f}",
            "TFLOP/s": f"{work.flops / fused / 1e12:.0f}" if work.flops else "",
            "of ceiling": f"{floor / fused:.0%}",
        }
        for name in ("apart", "eager", "compile", "liger"):
            row[f"{name} x"] = f"{gpu.median(series[name]) / fused:.2f}" if name in series else "–"
        row["liger differs"] = contest.liger_says
        self._rows.append(row)

    def _sweep(self, contest: Contest) -> None:
        """Time every tile option of every kernel of the op, compiled in parallel first."""
        contest.forward()
        for kernel, make in contest.tiles.items():
            options = [None, *neighbours(contest.chosen[kernel], most=self._arguments.most)[1:]]
            if self._device.type != "cuda":
                options = options[:3]  # The interpreter is slow.
            calls = [(option, make(option)) for option in options]
            expected = _tensors(calls[0][1]())

            def compile_one(call: Callable[[], object]) -> str:
                if self._device.type == "cuda":
                    torch.cuda.set_device(0)
                try:
                    call()
                # The compiler's refusals are of many kinds, among them a lack of shared memory.
                except Exception as error:
                    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}"
                return ""

            # The interpreter knows one thread.
            with ThreadPoolExecutor(8 if self._device.type == "cuda" else 1) as pool:
                complaints = list(pool.map(compile_one, [call for _, call in calls]))
            lines: list[tuple[float, str]] = []
            for (option, call), complaint in zip(calls, complaints, strict=True):
                name = f"{option or contest.chosen[kernel]}{'' if option else ', as chosen'}"
                if complaint:
                    lines.append((float("inf"), f"{name}: {complaint}"))
                    continue
                try:
                    found = zip(_tensors(call()), expected, strict=True)
                    off = max((relative_error(y, x) for y, x in found), default=0.0)
                    spent = gpu.median(times(call, device=self._device))
                except Exception as error:
                    lines.append((float("inf"), f"{name}: {type(error).__name__}: {error}"[:150]))
                    continue
                wrong = "" if off <= contest.tolerance else f"  WRONG, off by {off:.1e}"
                lines.append((spent, f"{spent * 1e6:9.1f} us  {name}{wrong}"))
            self._results.say(f"\n{contest.op} {kernel}, {contest.case.label}")
            lines.sort(key=lambda pair: pair[0])
            for place, (_, line) in enumerate(lines):
                shown = place < SHOWN or "as chosen" in line
                (self._results.say if shown else self._results.note)(f"  {line}")

    def print(self) -> None:
        """The table of what was measured."""
        if self._rows:
            self._results.say(
                "\n'eager x' and so on: how many times as long as the fused op; apart: by one "
                "kernel of ours or of cuBLAS an op"
            )
            self._results.say(gpu.table(self._rows))


def _tensors(result: object) -> list[Tensor]:
    """Copies of what a call returned, since the next call may write into it."""
    if isinstance(result, Tensor):
        return [result.clone()]
    if isinstance(result, tuple | list):
        return [x.clone() for x in result if isinstance(x, Tensor)]
    return []


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--op",
        action="append",
        default=[],
        choices=sorted(CONTESTS),
        help="this op, also at shapes where the decoder takes another; repeatable",
    )
    parser.add_argument("--only", action="append", default=[], help="a case; repeatable")
    parser.add_argument("--sweep", action="store_true", help="try each kernel's tiles")
    parser.add_argument("--most", type=int, default=40, help="tiles that a sweep tries a kernel")
    parser.add_argument(
        "--compile-all", action="store_true", help="compile the references of every case"
    )
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="then begin nothing more")
    gpu.common_arguments(parser)
    arguments = parser.parse_args()
    results, device = gpu.begin("gpu_kernels", arguments)
    # Gradients are taken by one graph again and again.
    import torch._functorch.config as functorch

    functorch.donated_buffer = False
    cases = [gpu.TINY] if arguments.check else gpu.chosen(gpu.CASES, arguments.only)
    kernels = Kernels(arguments, results, device)
    left_out = 0
    for case in cases:
        for op in arguments.op or CONTESTS:
            if results.elapsed_s > arguments.budget_s:
                left_out += 1
                continue
            with results.part(f"{op} at {case.label}"):
                kernels.contest(op, case)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    kernels.print()
    if left_out:
        results.say(f"out of time: {left_out} ops and shapes were left out (--budget-s)")
    return results.close()


if __name__ == "__main__":
    sys.exit(main())
