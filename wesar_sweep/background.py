"""Studies in the background: starting one that outlives the terminal, and cancelling one.

`detach` starts the same command once more in a session of its own. Until that process has taken the
study it speaks to the terminal, so that what is wrong is said where it was asked for; then it
speaks to a log alone and tells the first process, which ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wesar_sweep.errors import LaunchError
from wesar_sweep.liveness import DRIVER, Living, living, living_driver
from wesar_sweep.store.atomic import store_error
from wesar_sweep.store.layout import StudyDirectory

_READY = b"ready"
_DESCRIPTOR = "WESAR_SWEEP_READY_DESCRIPTOR"
"""Variable that tells the second process which descriptor to say on that it has the study."""
_POLL_S = 0.1
_KILLED_GRACE_S = 5.0
"""Seconds that the driver gets to end in good order once its workers were killed, and that the
kernel gets to end a process."""


def detach(command: Sequence[str]) -> int:
    """Start a command as a process of its own and wait until it has its study or has ended.

    Args:
        command: The words after `wesar-sweep`.

    Returns:
        0 once it has the study; else the exit code it ended with, having said why.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "wesar_sweep", *command],
            stdin=subprocess.DEVNULL,
            env={**os.environ, _DESCRIPTOR: str(writing)},
            pass_fds=[writing],
            start_new_session=True,
        )
    except OSError as error:
        os.close(reading)
        raise LaunchError(f"cannot start a process in the background: {error}") from error
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        try:
            said = pipe.read(len(_READY))
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            return 128 + signal.SIGINT
    if said == _READY:
        # It goes on without us; Python would warn that nobody waited for it.
        process.returncode = 0
        return 0
    code = process.wait()
    # Ended by a signal, or without having taken the study: never a success.
    return 128 - code if code < 0 else code or 1


@dataclass(frozen=True, slots=True)
class Handover:
    """The second process's side: it has the study from `take` on."""

    descriptor: int

    def take(self, directory: StudyDirectory) -> None:
        """Speak to the log from now on, and tell the first process that the study is taken.

        Raises:
            StoreError: The log cannot be written.
        """
        path = directory.driver_log_file
        try:
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise store_error(error, path=path) from error
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        words = shlex.join(["wesar-sweep", *sys.argv[1:]])
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {words}", file=sys.stderr, flush=True)
        # The first process may have been killed; the study goes on all the same.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.descriptor, _READY)
        os.close(self.descriptor)


def handover() -> Handover | None:
    """The handover to make, where this is the second process; None in the first."""
    number = os.environ.pop(_DESCRIPTOR, None)
    if number is None:
        return None
    descriptor = int(number)
    # Not for the workers: the first process would wait for their end.
    os.set_inheritable(descriptor, False)
    # A session of its own gets none from a terminal; some log-out scripts send it all the same.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Handover(descriptor)


def cancel(
    directory: StudyDirectory,
    *,
    now: bool = False,
    timeout_s: float = 60.0,
    say: Callable[[str], None],
) -> list[Living] | None:
    """Ask all processes of a study to stop in good order, and wait until they are gone.

    Args:
        directory: The study's.
        now: Kill after the timeout what still lives on this host: workers first, then the driver.
        timeout_s: How long to wait.
        say: For messages while it waits.

    Returns:
        Those that still live; None where none lived from the start.

    Raises:
        StoreError: The results directory may not be written to.
    """
    left = list(living(directory))
    if not left:
        _forget(directory)
        return None
    say(f"asking to stop: {', '.join(map(str, left))}")
    left = _wait(directory, timeout_s=timeout_s)
    if left and now:
        _kill([one for one in left if one.name != DRIVER], say)
        left = _wait(directory, timeout_s=_KILLED_GRACE_S)
        if left:
            # Workers as well: the driver may have replaced one in the meantime.
            _kill(left, say)
            left = _wait(directory, timeout_s=_KILLED_GRACE_S)
    if not left:
        _forget(directory)
    return left


def _wait(directory: StudyDirectory, *, timeout_s: float) -> list[Living]:
    deadline = time.monotonic() + timeout_s
    while left := list(living(directory)):
        try:
            # Again and again: a driver that is just starting removes what was there before it.
            directory.stop_file.touch()
        except OSError as error:
            raise store_error(error, path=directory.stop_file) from error
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    return left


def _kill(processes: Sequence[Living], say: Callable[[str], None]) -> None:
    for process in processes:
        if process.kill():
            say(f"killed {process}")


def _forget(directory: StudyDirectory) -> None:
    """Remove the wish to stop, unless somebody has begun anew: it is that call's to remove."""
    try:
        if living_driver(directory) is None:
            directory.stop_file.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(error, path=directory.stop_file) from error
