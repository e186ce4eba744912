"""The processes of a worker that trains each run on several devices; see `training.data_parallel`.

The worker is rank 0. On one machine it starts the others, which are gone with it; as a job of a
cluster each is a task of the job, on the nodes that the job has.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from wesar_sweep.config import load_study
from wesar_sweep.config.space import longest_context
from wesar_sweep.launchers.processes import end_with_parent
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import prepared_as

if TYPE_CHECKING:
    import torch

    from wesar_sweep.training.data_parallel import Ranks

_log = logging.getLogger(__name__)

_GRACE_S = 10.0
"""Seconds the other ranks get to end, and rank 0 to notice that one of them has."""


@contextmanager
def lead(
    directory: StudyDirectory, *, size: int, device: torch.device, in_job: bool
) -> Iterator[Ranks | None]:
    """Join the other ranks as rank 0; None where there is but one.

    Args:
        directory: The study's.
        size: How many train together, this one included.
        device: This rank's device.
        in_job: The others are tasks of this job; else they are started here, and on GPUs each takes
            the one of its number among the visible.

    Raises:
        LaunchError: They did not meet.
    """
    if size == 1:
        yield None
        return
    from wesar_sweep.training.data_parallel import Ranks

    others = (
        nullcontext((_address_in_job(), threading.Event()))
        if in_job
        else _others(directory, size=size, device=device)
    )
    with others as (address, ending):
        ranks = Ranks.join(rank=0, size=size, address=address, device=device)
        yield ranks
        ending.set()
        ranks.tell("stop")
        ranks.leave()


def follow_in_job(directory: StudyDirectory, *, size: int, device: torch.device) -> None:
    """Follow rank 0, which is another task of this job, until it says that it is over.

    Raises:
        RuntimeError: Rank 0 is gone.
    """
    import torch

    if device.type == "cuda":
        # Some clusters show a task its own GPU alone.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    rank = int(os.environ["RANK"])
    _follow(directory, rank=rank, size=size, address=_address_in_job(), device=device)


def _address_in_job() -> str:
    host = os.environ["MASTER_ADDR"]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_towards(host))
    return f"tcp://{host}:{os.environ['MASTER_PORT']}"


def _interface_towards(host: str) -> str:
    """The network interface by which this machine reaches another; gloo would ask for the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # Nothing is sent.
        own = probe.getsockname()[0]
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == own for address in addresses)
    )


@contextmanager
def _others(
    directory: StudyDirectory, *, size: int, device: torch.device
) -> Iterator[tuple[str, threading.Event]]:
    """Ranks 1 to size − 1 on this machine: where to meet them, and what says that they may end."""
    # This machine's own name may not be known to it.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="wesar-sweep-ranks-") as folder:
        address = f"file://{folder}/meet"
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
        ending = threading.Event()
        for process in processes:
            threading.Thread(target=_end_with, args=(process, ending), daemon=True).start()
        try:
            yield address, ending
            for process in processes:
                process.wait(timeout=_GRACE_S)
        finally:
            ending.set()
            for process in processes:
                process.kill()
                process.wait()


def _end_with(process: subprocess.Popen[bytes], ending: threading.Event) -> None:
    """End this process some time after another has ended before it may.

    On a CPU this rank notices by itself. On a GPU it may wait for a sum of gradients that never
    comes.
    """
    process.wait()
    if not ending.wait(_GRACE_S):
        _log.error("another rank ended with exit status %s: this one, too", process.returncode)
        os._exit(1)


def _follow(
    directory: StudyDirectory, *, rank: int, size: int, address: str, device: torch.device
) -> None:
    # Rank 0 decides when to stop; what is sent to its whole group is not meant for this one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    import torch

    from wesar_sweep.data.corpus import load_corpus
    from wesar_sweep.training.data_parallel import Ranks, follow
    from wesar_sweep.training.feed import train_tokens

    if device.type == "cuda":
        from wesar_sweep.kernels.fused import compiling

        compiling.prepare()
    else:
        torch.set_num_threads(1)
    study = load_study(directory.study_file)
    corpus = load_corpus(
        study.data, context=longest_context(study), prepared_as=prepared_as(directory)
    )
    ranks = Ranks.join(rank=rank, size=size, address=address, device=device)
    follow(ranks, train_tokens(corpus.train, device=device))
    ranks.leave()


def main() -> None:
    """Follow rank 0, which started this process, until it says that it is over, or dies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    end_with_parent(signal.SIGKILL)
    import torch

    on_gpu = arguments.device == "cuda"
    try:
        _follow(
            StudyDirectory(arguments.directory),
            rank=arguments.rank,
            size=arguments.size,
            address=arguments.address,
            device=torch.device("cuda", arguments.rank) if on_gpu else torch.device("cpu"),
        )
    except RuntimeError as error:
        _log.error("rank %d ends: %s", arguments.rank, error)
        sys.exit(1)


if __name__ == "__main__":
    main()
