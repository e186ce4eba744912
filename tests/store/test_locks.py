"""Locks between processes: held while the holder lives, and not an instant longer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wesar_sweep.errors import StoreError
from wesar_sweep.store.locks import hold, is_held, try_hold

HOLDER = """
import sys, time
from pathlib import Path
from wesar_sweep.store.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path/lock``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_holder_lets_go(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    path = tmp_path / "lock"
    assert is_held(path)
    assert try_hold(path) is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(path)
    with hold(path, timeout_s=1):
        assert is_held(path)


def test_a_stopped_holder_still_holds(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    assert is_held(tmp_path / "lock")


def test_waiting_in_vain_says_who_to_look_for(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(StoreError, match=r"to take the next cell: another process has held it"),
        hold(tmp_path / "lock", timeout_s=0.05, purpose="take the next cell"),
    ):
        pytest.fail("two holders")


def test_two_holders_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    first = try_hold(tmp_path / "lock")
    assert first is not None
    assert try_hold(tmp_path / "lock", timeout_s=0) is None
    first.release()
    first.release()
    second = try_hold(tmp_path / "lock", timeout_s=0)
    assert second is not None
    second.release()


def test_looking_does_not_disturb_who_takes(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from wesar_sweep.store.locks import is_held\n"
            "print('looking', flush=True)\nwhile True: is_held(Path(sys.argv[1]))",
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert looker.stdout is not None
        looker.stdout.readline()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            lock = try_hold(path)
            assert lock is not None
            lock.release()
    finally:
        looker.kill()
        looker.wait()
        assert looker.stdout is not None
        looker.stdout.close()


def test_a_lock_that_never_was_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
