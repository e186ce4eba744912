"""A process of its own that prepares one thing to measure for `gpu_engine.py`, and waits for words.

The parent starts it and writes JSON objects, one a line, to its standard input; it answers on its
standard output. So what it holds on the device, what it compiles and when it started are its own.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

STARTED = time.time()  # Before torch is imported: the way to the first step begins here.

import gpu  # noqa: E402
import plain_step  # noqa: E402
import torch  # noqa: E402

PATIENCE_S = 300.0
"""For one answer; a compilation is the longest."""


class ChildError(Exception):
    """A child ended or did not answer; with the end of what it said on standard error."""


class Child:
    """A process that prepares something to measure, and measures it when told.

    Args:
        task: For `main`.
        environment: What differs from this process's.
    """

    def __init__(self, task: dict[str, Any], *, environment: dict[str, str] | None = None) -> None:
        self.task = task
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed by end)
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.started_at = time.time()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("{"):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def expect(self, event: str) -> dict[str, Any]:
        """Wait for an answer of this kind, past others.

        Raises:
            ChildError: It never comes.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ChildError(f"no {event} after {PATIENCE_S:.0f} s") from None
            if answer is None:
                self._errors.seek(0)
                raise ChildError(f"ended before {event}: {self._errors.read()[-1200:]}")
            if answer["event"] == event:
                return answer

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Tell it to do something, and wait for what comes of it."""
        assert self._process.stdin is not None
        # If it is dead, what it left to say is read below.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            self._process.stdin.flush()
        return self.expect(verb)

    def end(self) -> None:
        """Let it go, and wait until its memory is free."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@contextmanager
def child(task: dict[str, Any], **options: Any) -> Iterator[Child]:
    """A child that does not outlive the block."""
    process = Child(task, **options)
    try:
        yield process
    finally:
        process.end()


# In the process itself.


def main(task: dict[str, Any]) -> None:
    """Prepare, then serve words from standard input until it closes."""
    device = torch.device(task["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    marks = {"process": STARTED, "imports": time.time()}

    def mark(part: str) -> None:
        _synchronize(device)
        marks[part] = time.time()

    if task["part"] == "ceilings":
        _tell("ready")
        serve({"measure": lambda _: _ceilings(device)})
        return
    case = gpu.Case(**task["case"])
    if device.type == "cuda":
        if task["part"] == "engine":
            from wesar_sweep.kernels.fused import compiling

            compiling.prepare()  # As a worker does.
            compile_ahead = compiling.compile_ahead

            def marked(*arguments: Any, **options: Any) -> int:
                count = compile_ahead(*arguments, **options)
                mark(f"{count} kernels compiled")
                return count

            compiling.compile_ahead = marked
        torch.cuda.init()
        torch.zeros(1, device=device)
    marks["device"] = time.time()
    if task["part"] == "plain":
        _serve_plain(case, task, device=device)
        return
    torch.manual_seed(0)
    stack = gpu.make_stack(
        case, method=task["method"], device=device, precision=task["precision"], mark=mark
    )
    trainer = gpu.Trainer(stack)
    trainer.advance(1)
    loss = trainer.loss()
    _synchronize(device)
    marks["first step"] = time.time()
    _tell("first_step", marks=marks, loss=loss)

    def measure(ask: dict[str, Any]) -> dict[str, Any]:
        trainer.advance(3)
        times = gpu.time_blocks(trainer.advance, device=device, seconds=ask["seconds"])
        return {"step_seconds": times, "loss": trainer.loss(), **_memory(device)}

    serve(
        {
            "measure": measure,
            "profile": lambda ask: {
                "text": profile_text(lambda: trainer.advance(1), device=device)
            },
        }
    )


def _serve_plain(case: gpu.Case, task: dict[str, Any], *, device: torch.device) -> None:
    step = plain_step.PlainStep(case.architecture, device=device, compile_mode=task["compile_mode"])
    step.advance(1)
    _synchronize(device)
    _tell("first_step", marks={"process": STARTED, "first step": time.time()}, loss=step.loss())

    def measure(ask: dict[str, Any]) -> dict[str, Any]:
        step.advance(3)
        times = gpu.time_blocks(step.advance, device=device, seconds=ask["seconds"])
        return {"step_seconds": times, "loss": step.loss(), **_memory(device)}

    serve(
        {
            "measure": measure,
            "profile": lambda ask: {"text": profile_text(lambda: step.advance(1), device=device)},
        }
    )


def serve(verbs: dict[str, Any]) -> None:
    """Answer one JSON object a line by another, until the input closes."""
    for line in sys.stdin:
        ask = json.loads(line)
        _tell(ask["verb"], **verbs[ask["verb"]](ask))


def _tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def _ceilings(device: torch.device) -> dict[str, Any]:
    found = {"copy": gpu.copy_rates(device), "matrix": gpu.matrix_rates(device)}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # The others need the room.
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _memory(device: torch.device) -> dict[str, float]:
    """GiB: of tensors, and of what torch's allocator holds (graphs' pools included)."""
    if device.type != "cuda":
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def profile_text(step: Any, *, device: torch.device, top: int = 40) -> str:
    """The kernels of one step by their time on the device, the sum beside the step's own time."""
    from torch.profiler import ProfilerActivity, profile

    step()
    seconds = gpu.median(gpu.timed(lambda _: step(), [1] * 10, device=device))
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as trace:
        step()
        _synchronize(device)
    found: dict[str, list[float]] = {}
    for row in trace.key_averages():
        on_gpu = device.type == "cuda"
        spent = row.self_device_time_total if on_gpu else row.self_cpu_time_total
        if spent > 0:
            found[row.key] = [spent, row.count]
    total = sum(spent for spent, _ in found.values())
    lines = [
        f"step {1e3 * seconds:.3f} ms, kernels {total / 1e3:.3f} ms in "
        f"{sum(count for _, count in found.values()):.0f} launches",
        f"{'ms':>9} {'share':>6} {'calls':>6}  kernel",
    ]
    for name, (spent, count) in sorted(found.items(), key=lambda item: -item[1][0])[:top]:
        lines.append(f"{spent / 1e3:9.4f} {spent / total:6.1%} {count:6.0f}  {name[:110]}")
    return "\n".join(lines)


# In the parent.


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
