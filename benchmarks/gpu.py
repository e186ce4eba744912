"""What the GPU benchmarks share: the cases, a stack as the engine builds it, time, ceilings, rows.

Not a benchmark itself. Nothing here decides how fast anything is: that is measured.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from record import FILE, Device, Measurement, append
from torch import Tensor

from wesar_sweep.config.methods import BUILT_IN_METHODS
from wesar_sweep.config.run import Architecture, Run, make_run
from wesar_sweep.config.study import Study

if TYPE_CHECKING:
    from wesar_sweep.training.stack import Block, Stack

STEPS = 100_000
"""Length of the schedule of the benchmarks' runs: longer than anything here trains."""

TOKENS = 16_000_000
"""Synthetic training tokens on the device: more than an L2 cache holds."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the end-to-end table."""

    name: str
    width: int
    depth: int
    heads: int
    batch: int
    context: int
    vocabulary: int
    slots: int
    target: float
    """Tokens a second to reach."""

    @property
    def label(self) -> str:
        """As it stands in the rows."""
        return f"{self.name} K{self.slots}"

    @property
    def architecture(self) -> Architecture:
        """The shape, by way of a study, as every run gets its own."""
        return self.run(0).architecture

    def study(self, method: str = "wesar") -> Study:
        """A study of such runs."""
        return Study.model_validate(
            {
                "name": "benchmark",
                "space": {"lr": [1e-3]},
                "method": method,
                "model": {
                    "width": self.width,
                    "depth": self.depth,
                    "heads": self.heads,
                    "context": self.context,
                },
                "training": {"steps": STEPS, "warmup": 100, "batch": self.batch},
            }
        )

    def run(self, seed: int, method: str = "wesar") -> Run:
        """One run; its vocabulary may be one that no data source of a study has."""
        run = make_run(self.study(method), seed, seed, {"lr": 1e-3})
        return replace(run, architecture=replace(run.architecture, vocabulary=self.vocabulary))


CASES = (
    Case("d128 N4", 128, 4, 2, 8, 256, 256, 256, 30e6),
    Case("d256 N8", 256, 8, 4, 8, 256, 256, 96, 7e6),
    Case("d512 N8", 512, 8, 8, 8, 256, 256, 16, 2.5e6),
    Case("130M", 768, 12, 12, 64, 1024, 32_000, 1, 0.63e6),
)
"""Heads of 64; the last is one run of the paper's smallest model."""

TINY = Case("tiny", 32, 2, 2, 2, 16, 256, 3, 1.0)
"""For --check: that the script runs, on any machine."""


def chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose name begins with one of these words, or all; a word without one is an error.

    A name is matched without its spaces: `d128` and `d128N4` are both "d128 N4".
    """
    found: list[Case] = []
    for word in only:
        key = word.replace(" ", "").lower()
        some = [case for case in cases if case.name.replace(" ", "").lower().startswith(key)]
        if not some:
            names = ", ".join(case.name for case in cases)
            raise SystemExit(f"there is no case {word!r}; there are: {names}")
        found += [case for case in some if case not in found]
    return found or list(cases)


# The stack: the only place that knows how the engine builds and drives one.


def methods_of(name: str) -> list[str]:
    """One method, or with `mixed` all built-in ones, to be dealt to the slots in turn."""
    return list(BUILT_IN_METHODS) if name == "mixed" else [name]


def make_stack(
    case: Case,
    *,
    method: str,
    device: torch.device,
    precision: str = "bf16",
    fused: bool = True,
    deterministic: bool = False,
    fed: bool = False,
    document_end: int | None = None,
    mark: Callable[[str], object] = lambda part: None,
) -> Stack:
    """A stack as `training.engine.Engine` makes it, with a run in every slot.

    Args:
        case: Shape and number of slots.
        method: One for all, or `mixed`.
        device: Where to.
        precision: Of activations and products; on a CPU always fp32.
        fused: Whether to take the fused kernels; off is plain torch, for comparison.
        deterministic: Only kernels that repeat themselves; the switch is the process's.
        fed: Tokens stay in host memory, from which a GPU is fed.
        document_end: The token past which attention does not look back; None: it does.
        mark: Told what is done, when it is.
    """
    from wesar_sweep.training.stack import Stack, StackTraits

    methods = methods_of(method)
    on_gpu = device.type == "cuda"
    stack = Stack(
        case.architecture,
        slots=case.slots,
        traits=StackTraits.of(case.study(methods[0]), methods=methods, document_end=document_end),
        train_S=tokens(case.vocabulary, device=torch.device("cpu") if fed else device),
        device=device,
        precision=precision if on_gpu else "fp32",  # type: ignore[arg-type]
        fused=fused and on_gpu,
        deterministic=deterministic and on_gpu,
    )
    mark("stack")
    stack.warm_up()
    mark("kernels run")
    runs = [case.run(slot, methods[slot % len(methods)]) for slot in range(case.slots)]
    mark("settings")
    stack.load_many(range(case.slots), runs)
    mark("runs drawn")
    return stack


class Trainer:
    """Trains a stack, reading each block of steps while the next one runs, as the engine does.

    Args:
        stack: Whose runs.
        probe_every: Probe each so many steps, as studies do by default (20); None: never.
    """

    def __init__(self, stack: Stack, *, probe_every: int | None = None) -> None:
        self._stack, self._probe_every = stack, probe_every
        self._pending: Block | None = None
        self._steps = 0

    def advance(self, steps: int) -> None:
        """Begin so many steps; all but the last block of them have then been read."""
        from wesar_sweep.training.stack import MOST_STEPS

        end = self._steps + steps
        while self._steps < end:
            count = min(end - self._steps, MOST_STEPS)
            every = self._probe_every
            block = self._stack.train(
                count, probe_at=range(-self._steps % every, count, every) if every else ()
            )
            self._steps += count
            if self._pending is not None:
                self._pending.read()
            self._pending = block

    def parameters(self) -> Tensor:
        """The flat rows of all runs, [K, P]; not copied."""
        return self._stack.rows.parameter_KP

    def loss(self) -> float:
        """The worst slot's loss at the last step, nats; NaN where any slot's is."""
        assert self._pending is not None
        # numpy's max, unlike Python's, hands a NaN on.
        return float(self._pending.read()[0][-1].max())


def tokens(vocabulary: int, *, device: torch.device, count: int = TOKENS) -> Tensor:
    """Uniform random tokens, in the smallest type that holds them: uint8, else int16 or int32."""
    dtype = (
        torch.uint8 if vocabulary <= 256 else torch.int16 if vocabulary <= 2**15 else torch.int32
    )
    if not torch.cuda.is_available():
        count = min(count, 100_000)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(vocabulary, (count,), generator=generator, device=device).to(dtype)


def is_plausible(loss: float, *, vocabulary: int, one_batch: bool = False) -> bool:
    """Whether a loss is what a sound model has on random tokens: a little above log V.

    The gate before any speed is reported: NaN and a broken model do not pass.

    Args:
        loss: Nats a token.
        vocabulary: V.
        one_batch: The same tokens at every step, which a model learns by heart.
    """
    above = loss - math.log(vocabulary)
    return math.isfinite(loss) and above < 2.5 and (one_batch or above > -0.2)


# Time.


def time_blocks(
    run: Callable[[int], object],
    *,
    device: torch.device,
    seconds: float,
    block_seconds: float = 0.05,
) -> list[float]:
    """Seconds a step, one figure a block of steps; the caller has warmed up.

    Args:
        run: Does so many steps.
        device: By CUDA events on a GPU, else by the clock.
        seconds: About how long in all.
        block_seconds: About how long a block is at the least.
    """
    first = timed(run, [2], device=device)[0]
    steps = max(1, min(10_000, round(block_seconds / first)))
    blocks = max(5, min(200, round(seconds / (steps * first))))
    return timed(run, [steps] * blocks, device=device)


def timed(
    run: Callable[[int], object], blocks: Sequence[int], *, device: torch.device
) -> list[float]:
    """Seconds a step of each block of so many steps, one block straight after another."""
    if device.type != "cuda":
        times = []
        for steps in blocks:
            start = time.perf_counter()
            run(steps)
            times.append((time.perf_counter() - start) / steps)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(blocks) + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for steps, event in zip(blocks, events[1:], strict=True):
        run(steps)
        event.record()
    torch.cuda.synchronize()
    return [
        before.elapsed_time(after) / 1e3 / steps
        for before, after, steps in zip(events[:-1], events[1:], blocks, strict=True)
    ]


def steps_in(trainer: Trainer, *, seconds: float, device: torch.device) -> int:
    """How many steps of a trainer take about so long, at least one."""
    step_s = median(time_blocks(trainer.advance, device=device, seconds=0.2))
    return max(1, round(seconds / step_s))


def in_turns(
    other: Trainer,
    base: Trainer,
    *,
    mode: str,
    over: str,
    figure: str,
    case: Case,
    steps: int,
    rounds: int,
    results: Results,
    device: torch.device,
) -> dict[str, object]:
    """A row on the step time of a stack over the mean of another's before and after each turn.

    Args:
        other: The one, as it is in this mode.
        base: What it is compared with.
        mode: What distinguishes it, in words.
        over: The same of the other.
        figure: Under which name the ratios are recorded.
        case: What both train.
        steps: Of each turn.
        rounds: Turns of the one.
        results: Where they are recorded.
        device: Where they run.

    Raises:
        RuntimeError: It does not train as it should.
    """
    seconds, ratios = [timed(base.advance, [steps], device=device)[0]], []
    for _ in range(rounds):
        turn = timed(other.advance, [steps], device=device)[0]
        seconds.append(timed(base.advance, [steps], device=device)[0])
        ratios.append(2 * turn / (seconds[-2] + seconds[-1]))
    loss = other.loss()
    if not is_plausible(loss, vocabulary=case.vocabulary):
        raise RuntimeError(f"loss {loss}, so no speed is reported")
    results.record(case.label, **{figure: ratios})
    rate = case.slots * case.architecture.tokens_per_step / (median(seconds) * median(ratios))
    return {
        "case": case.label,
        "mode": mode,
        f"step time over {over}": f"{median(ratios):.3f}",
        "tokens/s": f"{rate / 1e6:.2f} M",
        "n": len(ratios),
    }


def free(device: torch.device) -> None:
    """The memory of stacks that are gone; their graphs lie in cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# Ceilings.


def copy_rates(device: torch.device, *, repeats: int = 10) -> list[float]:
    """Bytes a second, read and written, of a copy on the device that no cache holds."""
    size = 2**32 if device.type == "cuda" else 2**26
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = timed(lambda _: target.copy_(source), [1] * repeats, device=device)
    return [2 * size / t for t in times]


def matrix_rates(device: torch.device, *, repeats: int = 20) -> list[float]:
    """FLOP/s of a large bf16 matrix product on random data (zeros would be faster)."""
    width = 8192 if device.type == "cuda" else 256
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def product(steps: int) -> None:
        for _ in range(steps):
            torch.mm(left, right, out=out)

    product(5)
    return [2 * width**3 / t for t in timed(product, [3] * repeats, device=device)]


# Results.


def figure_name(words: str) -> str:
    """As a variant stands in the rows: "he, again" is he_again."""
    return "_".join(words.replace(",", "").replace("'", "").split())


class Results:
    """Says and keeps what was measured, as it comes: a later failure loses nothing.

    Args:
        benchmark: Its name in the rows.
        out: A folder that gets the rows (benchmarks.csv) and all that was said too; None: none.
        keep: Whether rows go to results/benchmarks.csv.
        device: What is measured on.
    """

    def __init__(self, benchmark: str, *, out: Path | None, keep: bool, device: Device) -> None:
        self.benchmark, self._out, self._device = benchmark, out, device
        self._files = [FILE] if keep else []
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if keep:
                self._files.append(out / "benchmarks.csv")
        self.failures: list[str] = []
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the benchmark began."""
        return time.monotonic() - self._start

    def say(self, text: str = "") -> None:
        """Print, and append to the benchmark's text file."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Append to the benchmark's text file alone; without one it is lost."""
        if self._out is not None:
            with (self._out / f"{self.benchmark}.txt").open("a") as file:
                print(text, file=file)

    def record(self, case: str, **figures: Sequence[float] | float) -> None:
        """Append a row for each figure."""
        rows = [
            Measurement(
                self.benchmark,
                figure,
                (float(values),) if isinstance(values, int | float) else tuple(values),
                case=case,
            )
            for figure, values in figures.items()
        ]
        append(rows, device=self._device, files=self._files, say=self.note)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose failure is said and does not end the others."""
        try:
            yield
        # Whatever a driver, a compiler or another process can do: the rest is still measured.
        except Exception as error:
            self.failures.append(name)
            self.say(f"FAILED {name}: {type(error).__name__}: {str(error)[-1500:]}")
            traceback.print_exc()

    def close(self) -> int:
        """Say what failed; the exit status."""
        self.say(f"{self.benchmark}: {self.elapsed_s:.0f} s")
        if self.failures:
            self.say(f"{len(self.failures)} failed: {', '.join(self.failures)}")
        return 1 if self.failures else 0


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that each GPU benchmark has."""
    parser.add_argument("--out", type=Path, help="folder for a copy of rows and text")
    parser.add_argument(
        "--no-record", action="store_true", help="append no rows to results/benchmarks.csv"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only see that the script runs: tiny shapes, on this processor, no rows",
    )


def begin(benchmark: str, arguments: argparse.Namespace) -> tuple[Results, torch.device]:
    """Where to measure and where results go.

    Raises:
        SystemExit: There is no GPU, and no --check.
    """
    if arguments.check:
        torch.set_num_threads(1)
        device = Device("check")
        return Results(benchmark, out=arguments.out, keep=False, device=device), torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --check runs the script without one")
    from record import this_gpu

    gpu = this_gpu()
    results = Results(benchmark, out=arguments.out, keep=not arguments.no_record, device=gpu)
    results.say(f"{benchmark} on {gpu.name}, torch {torch.__version__}, triton {gpu.triton}")
    return results, torch.device("cuda")


def median(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return statistics.median(values) if values else math.nan


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Columns in line, as the keys of the first row; a row may lack some."""
    names = list(rows[0])
    text = [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in text)) for i, name in enumerate(names)]
    lines = [names, *text]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
