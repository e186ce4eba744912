"""The further processes of a worker that trains each run on several devices.

They are started by it and are gone with it. The worker is rank 0; see `training.data_parallel`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wesar_sweep.config import load_study
from wesar_sweep.config.space import longest_context
from wesar_sweep.launchers.processes import end_with_parent
from wesar_sweep.store.layout import StudyDirectory

if TYPE_CHECKING:
    import torch

    from wesar_sweep.training.data_parallel import Ranks

_log = logging.getLogger(__name__)

_GRACE_S = 10.0
"""Seconds the other ranks get to end."""


@contextmanager
def other_ranks(
    directory: StudyDirectory, *, size: int, device: torch.device
) -> Iterator[Ranks | None]:
    """Start ranks 1 to size − 1 on this machine and join them; None where there is but one.

    Args:
        directory: The study's.
        size: How many train together, this one included.
        device: This rank's device; on GPUs each rank takes the one of its number among the visible.

    Raises:
        LaunchError: They did not meet.
    """
    if size == 1:
        yield None
        return
    from wesar_sweep.training.data_parallel import Ranks

    with tempfile.TemporaryDirectory(prefix="wesar-sweep-ranks-") as folder:
        address = f"file://{folder}/meet"
        _use_loopback()
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "wesar_sweep.ranks", str(directory.root),
                    "--rank", str(rank), "--size", str(size), "--address", address,
                    "--device", device.type,
                ]
            )
            for rank in range(1, size)
        ]  # fmt: skip
        try:
            ranks = Ranks.join(rank=0, size=size, address=address, device=device)
            yield ranks
            ranks.tell("stop")
            for process in processes:
                process.wait(timeout=_GRACE_S)
            ranks.leave()
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _use_loopback() -> None:
    """All ranks are on this machine, whose own name may not be known to it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def main() -> None:
    """Follow rank 0 until it says that it is over, or dies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Rank 0 decides when to stop; what is sent to its whole group is not meant for this one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    import numpy as np
    import torch

    from wesar_sweep.training.corpus import load_corpus
    from wesar_sweep.training.data_parallel import Ranks, follow

    study = load_study(StudyDirectory(arguments.directory).study_file)
    corpus = load_corpus(study.data, context=longest_context(study))
    device = torch.device("cpu")
    if arguments.device == "cuda":
        device = torch.device("cuda", arguments.rank)
    else:
        torch.set_num_threads(1)
    ranks = Ranks.join(
        rank=arguments.rank, size=arguments.size, address=arguments.address, device=device
    )
    train_S = torch.from_numpy(np.ascontiguousarray(corpus.train)).to(device)
    try:
        follow(ranks, train_S)
    except RuntimeError as error:
        _log.error("rank %d ends: %s", arguments.rank, error)
        sys.exit(1)
    ranks.leave()


if __name__ == "__main__":
    main()
