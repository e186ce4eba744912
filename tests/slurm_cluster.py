"""A real Slurm on this machine, for tests: two nodes with fake GPUs, on loopback.

Debian's packages slurmctld, slurmd and slurm-client; no munge, no accounting, no systemd, no
cgroups. It trusts every local user (`auth/none`): for tests only. Started as children of the
calling process and ended with it.

    python tests/slurm_cluster.py FOLDER    # until Ctrl-C; prints the variable to export
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
CPUS_PER_NODE = 4
MAX_ARRAY_SIZE = 4
"""Small, so that five workers are two arrays."""
_PORTS = range(21_000, 32_000, 8)
"""Below the ports that the kernel gives out by itself."""
_START_TIMEOUT_S = 60
_CLIENT_TIMEOUT_S = 20

_CONF = """
ClusterName=wesar
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A requeued job waits one second more than this; the default is two minutes.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/slurmd-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
MinJobAge=86400
MaxArraySize={max_array_size}
SlurmdTimeout=10
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preempt_signal}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{port_1}-{port_2}] CPUs={cpus} \
RealMemory=4000 Gres=gpu:{cpus} State=UNKNOWN
PartitionName=main   Nodes=n[1-2] Default=YES MaxTime=60 DefaultTime=5 PriorityTier=1 GraceTime=20
PartitionName=scrap  Nodes=n[1-2] MaxTime=60 DefaultTime=5 PriorityTier=1 GraceTime=0 \
PreemptMode=CANCEL
PartitionName=urgent Nodes=n[1-2] MaxTime=60 DefaultTime=5 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    lacking = [name for name in ("slurmctld", "slurmd", "sbatch", "srun") if not _program(name)]
    if not lacking:
        return None
    return (
        f"no Slurm: {', '.join(lacking)} not found; on Debian: apt-get install "
        "--no-install-recommends slurmctld slurmd slurm-client"
    )


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster."""

    folder: Path

    @property
    def conf(self) -> Path:
        """What SLURM_CONF must name for the clients."""
        return self.folder / "slurm.conf"

    def client(self, *words: object, check: bool = True) -> str:
        """What a client such as ``scontrol`` prints."""
        done = subprocess.run(
            [*map(str, words)],
            env={**os.environ, "SLURM_CONF": str(self.conf)},
            capture_output=True,
            text=True,
            timeout=_CLIENT_TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Ids of the jobs that are not over, in those states if any are named, oldest first."""
        wanted = [f"--states={','.join(states)}"] if states else []
        said = self.client("squeue", "--noheader", "--array", "--format=%i", *wanted)
        return sorted(said.split(), key=lambda job: [int(part) for part in job.split("_")])

    def idle(self) -> bool:
        """Whether both nodes are up and nothing is on them."""
        return self.client("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * 2

    def settle(self, *, timeout_s: float = 40) -> None:
        """Cancel every job and wait until both nodes are idle: the ground for the next test."""
        self.client("scancel", "--user", getpass.getuser(), check=False)
        wait_for(self.idle, timeout_s=timeout_s)


@contextlib.contextmanager
def cluster(folder: Path, *, preempt_signal: bool = True) -> Iterator[Cluster]:
    """A cluster for the length of a `with` block.

    Args:
        folder: Its own; made where it is missing.
        preempt_signal: Whether a preempted job is sent the signal it asked for at submission, and
            not only SIGTERM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_ports()
    for name in ("ctld", *(f"slurmd-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    made = Cluster(folder)
    made.conf.write_text(
        _CONF.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            port=port,
            port_1=port + 1,
            port_2=port + 2,
            cpus=CPUS_PER_NODE,
            max_array_size=MAX_ARRAY_SIZE,
            preempt_signal="SlurmctldParameters=preempt_send_user_signal" if preempt_signal else "",
        )
    )
    gpus = [folder / f"gpu{index}" for index in range(CPUS_PER_NODE)]
    for gpu in gpus:
        # Slurm wants a device, and a name that ends in a number; it opens none.
        gpu.symlink_to(os.devnull)
    (folder / "gres.conf").write_text(
        f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-{CPUS_PER_NODE - 1}]\n"
    )
    daemons: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "SLURM_CONF": str(made.conf)}
    try:
        for words in (["slurmctld"], *(["slurmd", "-N", node] for node in NODES)):
            with (folder / f"{'-'.join(words)}.out").open("ab") as out:
                daemons.append(
                    subprocess.Popen(
                        [_program(words[0]) or words[0], "-D", *words[1:]],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
        try:
            wait_for(lambda: _up(made, daemons), timeout_s=_START_TIMEOUT_S)
        except AssertionError:
            for log in folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            raise
        yield made
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            made.settle()
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _up(made: Cluster, daemons: list[subprocess.Popen[bytes]]) -> bool:
    assert all(daemon.poll() is None for daemon in daemons), "a daemon ended at once"
    try:
        return made.client("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split() == [
            "idle"
        ] * len(NODES)
    except subprocess.TimeoutExpired:
        return False


def _free_ports() -> int:
    """The first of three neighbouring ports that nobody listens on."""
    start = os.getpid() % len(_PORTS)
    for first in (*_PORTS[start:], *_PORTS[:start]):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 3):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def wait_for(condition: object, *, timeout_s: float = 120) -> None:
    """Wait until a condition holds."""
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).absolute()) as running:
        print(f"export SLURM_CONF={running.conf}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
