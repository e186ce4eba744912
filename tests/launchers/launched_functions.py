"""What the launchers' tests have their workers do. Imported in the worker's process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

GREETING_AT_IMPORT = os.environ.get("GREETING")


def tell(path: str) -> None:
    """Write down what this worker is and sees."""
    facts = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "at_import": GREETING_AT_IMPORT,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "life": os.environ.get("WESAR_SWEEP_LIFE"),
    }
    temporary = Path(path + ".tmp")
    temporary.write_text(json.dumps(facts))
    temporary.rename(path)


def greet(*, path: str, times: int = 1) -> int:
    """Succeed."""
    print("hello " * times, flush=True)
    print("to standard error", file=sys.stderr, flush=True)
    tell(path)
    return 0


def take_place(*, path: str) -> None:
    """Write down which task of its job this is."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
    print("here I am", flush=True)
    Path(path + os.environ["RANK"]).write_text(json.dumps([os.environ[name] for name in names]))


def explode(*, message: str) -> None:
    """Fail by an exception."""
    raise ValueError(message)


def leave(*, status: int) -> None:
    """End by an exit status."""
    sys.exit(status)


def sleep(*, path: str) -> None:
    """Sleep, deaf to all but the default of each signal."""
    tell(path)
    time.sleep(60)


def listen(*, path: str) -> None:
    """Sleep until asked to stop, then stop in good order."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    tell(path)
    while not asked:
        time.sleep(0.01)
    print("stopped in good order", flush=True)


def ignore(*, path: str) -> None:
    """Sleep, and let no wish to stop through."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    tell(path)
    time.sleep(60)
