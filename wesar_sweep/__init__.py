"""wesar-sweep: which initialisation, learning rate and size train stably?

`wesar_sweep.api` is the Python interface, `wesar_sweep.cli` the command line; the README lists the
rooms. Names are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wesar_sweep.api import (
        Result,
        compare,
        finish,
        load,
        open_result,
        publish,
        resume,
        run,
    )
    from wesar_sweep.errors import ConfigError, LaunchError, StoreError, WesarSweepError

__all__ = [
    "ConfigError",
    "LaunchError",
    "Result",
    "StoreError",
    "WesarSweepError",
    "compare",
    "finish",
    "load",
    "open_result",
    "publish",
    "resume",
    "run",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "errors" if name.endswith("Error") else "api"
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)
