"""What a worker's process must mend of what submitit left, wherever submitit started it."""

from __future__ import annotations

import os
import signal
import sys

from wesar_sweep.launchers.base import WorkerTask


def mend_process(task: WorkerTask) -> None:
    """Set the task's environment, send all output to its log, and make SIGTERM end the process.

    submitit ignores SIGTERM and SIGCONT, and takes USR2 for a wish to be requeued: what USR2 means
    is left to the launcher.
    """
    os.environ.update(task.environment)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
