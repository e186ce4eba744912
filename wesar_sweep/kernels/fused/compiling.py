"""Compiling the kernels of a step side by side, before the first of them is launched.

Triton compiles a kernel at its first launch, one after another: 20 to 35 kernels of a third of a
second each, and in Triton 3.6 as long again for the C compiler that makes the launcher of each.
Here a step is gone through with every launch left out, which says at once what it will need, and
threads compile that: Triton's passes and LLVM release Python's lock, and ptxas and the C compiler
are processes. Nothing here knows a kernel.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Any

import torch
import triton
from triton.runtime import cache
from triton.runtime.jit import JITFunction

_MOST_THREADS = 32
_SWITCH_SECONDS = 2e-4
"""How long a thread may keep Python's lock from others that are back from the compiler."""

_preparation: threading.Thread | None = None


def prepare() -> None:
    """Begin what every compilation needs, in the background: to be called as early as can be.

    That is the hash of Triton itself (400 MB are read) and, where none is in the cache, its
    interface to the driver, made by the C compiler.
    """
    global _preparation
    if _preparation is None and not triton.knobs.runtime.interpret:
        _preparation = threading.Thread(target=_prepare, name="prepare Triton", daemon=True)
        _preparation.start()


def _prepare() -> None:
    cache.triton_key()
    # What fails here is asked for again by the first launch, which says why it fails.
    if torch.cuda.is_available():
        _ = triton.runtime.driver.active.utils


def compile_ahead(step: Callable[[], object], *, device: torch.device) -> int:
    """Compile and load every kernel that `step` launches, side by side, and launch none.

    Under Triton's interpreter there is nothing to compile, and `step` is not called.

    Args:
        step: Runs with its kernels left out: their outputs stay as they were allocated. So it must
            not decide by what is in a tensor, and what it changes is spoilt. A kernel that does not
            compile is left to its first launch, which raises the error.
        device: The GPU it runs on.

    Returns:
        How many kernels this process did not have.
    """
    if triton.knobs.runtime.interpret:
        return 0
    if _preparation is not None:
        _preparation.join()

    def begin() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)

    threads = min(_MOST_THREADS, 2 * len(os.sched_getaffinity(0)))
    with (
        ThreadPoolExecutor(threads, "compile", initializer=begin) as pool,
        _fair_threads(),
        _modules_apart(),
    ):
        builders = _Builders(pool)
        with (
            _launches_left_out(),
            triton.AsyncCompileMode(builders, ignore_errors=True),
        ):
            step()
    return builders.count


class _Builders:
    """The executor that Triton hands its compilations to: each is also loaded, by its thread."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.count = 0

    def submit(self, build: Callable[[], Any]) -> Future[Any]:
        """Begin one."""

        def build_and_load() -> Any:
            kernel = build()
            _ = kernel.run  # Asking for it makes the launcher and loads the kernel.
            return kernel

        self.count += 1
        return self._pool.submit(build_and_load)


@contextmanager
def _modules_apart() -> Iterator[None]:
    """Extension modules of one name, loaded by several threads, stay apart.

    Triton up to 3.6 makes an extension module for each launcher, all of one name. Python fills one
    object for all modules of a name that it loads again, so that a thread which asks it for its
    launcher may get another thread's: then "function takes exactly 33 arguments (37 given)".
    """
    loader, lock = ExtensionFileLoader, threading.Lock()
    honest = loader.create_module

    def alone(self: ExtensionFileLoader, spec: ModuleSpec) -> ModuleType:
        with lock:
            # The object that would be filled again is the one that is found here.
            sys.modules.pop(spec.name, None)
            module = honest(self, spec)
            sys.modules.pop(spec.name, None)
            return module

    loader.create_module = alone  # type: ignore[method-assign]
    try:
        yield
    finally:
        loader.create_module = honest  # type: ignore[method-assign]


@contextmanager
def _launches_left_out() -> Iterator[None]:
    """Launches in the block compile their kernel and do no more."""
    honest = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return honest(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = honest


@contextmanager
def _fair_threads() -> Iterator[None]:
    """Let many threads that each want Python's lock for a moment have it in turn."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
