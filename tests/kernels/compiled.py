"""What the compiler makes of a fused op for sm_90 (H100, H200), on any machine, without a GPU.

A test writes the calls whose kernels it wants to see; they run in a process of their own, without
the interpreter, on tensors without memory (device "meta"), so that real shapes cost nothing. Each
launch is compiled exactly as it would be for these arguments and is then left out:

    kernels = compile_calls('''
        from wesar_sweep.kernels.fused import rms_norm
        rms_norm.forward(meta(256, 2048, 128), meta(256, 128, stride=(10_000, 1)))
    ''')
    assert all(kernel.stack_bytes == 0 for kernel in kernels)

By hand, a table of the kernels of a file of such calls: `python -m tests.kernels.compiled < calls`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    name: str
    num_warps: int
    registers: int
    """A thread."""
    stack_bytes: int
    """A thread: above nought, registers are spilled to memory."""
    shared_bytes: int
    """A program."""
    ptx: str
    sass: str
    """Machine code; empty unless asked for."""


def compile_calls(calls: str, *, sass: bool = False) -> list[CompiledKernel]:
    """Compile what `calls` launches, each distinct kernel once, in the order of first launch.

    Args:
        calls: Python source. It may use `torch`, `bf16`, `f32` and
            `meta(*shape, dtype=bf16, stride=None)`, a tensor that counts as 16-byte aligned.
        sass: Also disassemble.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *sys.path])
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"calls": textwrap.dedent(calls), "sass": sass}),
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [CompiledKernel(**kernel) for kernel in json.loads(done.stdout.splitlines()[-1])]


def table(kernels: list[CompiledKernel]) -> str:
    """One line a kernel, with the widths of its loads and stores of global memory."""
    lines = []
    for kernel in kernels:
        wide = re.findall(r"(?:ld|st)\.global\S*?((?:\.v\d)?\.[bfsu]\d+)\s", kernel.ptx)
        widths = {width: wide.count(width) for width in sorted(set(wide))}
        lines.append(
            f"{kernel.name:<34} warps {kernel.num_warps:>2} registers {kernel.registers:>3}"
            f" stack {kernel.stack_bytes:>3} shared {kernel.shared_bytes:>6} {widths}"
        )
    return "\n".join(lines)


def _compile_here(calls: str, *, sass: bool) -> list[CompiledKernel]:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Hopper:
        """As much of a driver as compilation asks for."""

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_active_torch_device(self):
            return torch.device("meta")

    triton.runtime.driver.set_active(Hopper())
    compiled: dict[str, object] = {}
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(kernel.hash, kernel)
        return kernel

    JITFunction.run = compile_only

    def meta(*shape, dtype=torch.bfloat16, stride=None):
        if stride is None:
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")

    exec(
        compile(calls, "calls", "exec"),
        {"torch": torch, "meta": meta, "bf16": torch.bfloat16, "f32": torch.float32},
    )
    return [_describe(kernel, sass=sass) for kernel in compiled.values()]


def _describe(kernel, *, sass: bool) -> CompiledKernel:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def output(tool, *options):
            return subprocess.run(
                [tools / tool, *options, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = output("cuobjdump", "-res-usage")
        machine_code = output("nvdisasm", "-c") if sass else ""
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return CompiledKernel(
        name=kernel.metadata.name,
        num_warps=kernel.metadata.num_warps,
        registers=int(registers),
        stack_bytes=int(stack),
        shared_bytes=kernel.metadata.shared,
        ptx=kernel.asm["ptx"],
        sass=machine_code,
    )


if __name__ == "__main__":
    given = sys.stdin.read()
    if given.startswith("{"):
        print(json.dumps([asdict(kernel) for kernel in _compile_here(**json.loads(given))]))
    else:
        print(table(compile_calls(given)))
