"""A real Slurm on this machine, for tests: two nodes with fake GPUs, on loopback.

Debian's packages slurmctld, slurmd and slurm-client; no munge, no systemd, no cgroups; with
accounts, slurmdbd and a MariaDB of its own, too. It trusts every local user (`auth/none`, a
database without grants): for tests only. Started as children of the calling process and ended with
it.

    python tests/slurm_cluster.py FOLDER [--accounts]    # until Ctrl-C; prints what to export
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
_NAME = "wesar"
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun")
_PROGRAMS_OF_ACCOUNTS = (
    "slurmdbd",
    "sacctmgr",
    "sacct",
    "mariadbd",
    "mariadb-install-db",
    "mariadb",
)
_KEPT_S = 86_400
"""Without accounts, squeue forgets nothing while tests run."""
_KEPT_S_WITH_ACCOUNTS = 2
"""With them, it forgets what has ended at its next round, of ten seconds."""

_CONF = """
ClusterName={name}
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
AccountingStorageType=accounting_storage/{accounts}
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port_accounts}
MpiDefault=none
KillWait=5
MinJobAge={kept_s}
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

_ACCOUNTS_CONF = """
AuthType=auth/none
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port_database}
StorageUser={user}
"""


def missing(*, accounts: bool = False) -> str | None:
    """Why there can be no cluster here, or none with accounts; None where there can."""
    wanted = _PROGRAMS + (_PROGRAMS_OF_ACCOUNTS if accounts else ())
    lacking = [name for name in wanted if not _program(name)]
    if not lacking:
        return None
    more = " slurmdbd mariadb-server-core mariadb-client-core" if accounts else ""
    return (
        f"no Slurm: {', '.join(lacking)} not found; on Debian: apt-get install "
        f"--no-install-recommends slurmctld slurmd slurm-client{more}"
    )


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster."""

    folder: Path
    database_port: int
    """Of the accounts; nobody listens where there are none."""

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

    def sql(self, statement: str) -> str:
        """What the database of the accounts answers; for what does not happen in a test's time."""
        address = ("--host=127.0.0.1", f"--port={self.database_port}")
        return self.client(
            "mariadb", "--no-defaults", *address, "slurm_acct_db", "--execute", statement
        )

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
def cluster(
    folder: Path, *, preempt_signal: bool = True, accounts: bool = False
) -> Iterator[Cluster]:
    """A cluster for the length of a `with` block.

    Args:
        folder: Its own; made where it is missing.
        preempt_signal: Whether a preempted job is sent the signal it asked for at submission, and
            not only SIGTERM.
        accounts: Whether it keeps accounts (`sacct`). squeue then forgets an ended job within
            seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_ports()
    for name in ("ctld", *(f"slurmd-{node}" for node in NODES)):
        (folder / name).mkdir(exist_ok=True)
    made = Cluster(folder, database_port=port + 4)
    made.conf.write_text(
        _CONF.format(
            name=_NAME,
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            port=port,
            port_1=port + 1,
            port_2=port + 2,
            port_accounts=port + 3,
            accounts="slurmdbd" if accounts else "none",
            kept_s=_KEPT_S_WITH_ACCOUNTS if accounts else _KEPT_S,
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
    try:
        try:
            if accounts:
                _start_accounts(made, daemons, port=port + 3)
            _start(made, daemons, "slurmctld", "-D")
            for node in NODES:
                _start(made, daemons, "slurmd", "-D", "-N", node)
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


def _start(made: Cluster, daemons: list[subprocess.Popen[bytes]], *words: str) -> None:
    """Start one more."""
    log = made.folder / f"{words[0]}-{len(daemons)}.log"
    with log.open("ab") as out:
        daemons.append(
            subprocess.Popen(
                [_program(words[0]) or words[0], *words[1:]],
                env={**os.environ, "SLURM_CONF": str(made.conf)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        )


def _start_accounts(made: Cluster, daemons: list[subprocess.Popen[bytes]], *, port: int) -> None:
    """A database, slurmdbd on this port, and the cluster known to it."""
    user = getpass.getuser()
    database = (
        "--no-defaults",
        f"--datadir={made.folder}/database",
        f"--user={user}",
        # Small and fast: nothing of it outlasts the tests.
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=4M",
        "--innodb-flush-method=nosync",
        "--innodb-flush-log-at-trx-commit=0",
    )
    subprocess.run(
        [
            *("mariadb-install-db", *database, "--skip-name-resolve", "--skip-test-db"),
            "--auth-root-authentication-method=normal",
        ],
        check=True,
        capture_output=True,
        timeout=_START_TIMEOUT_S,
    )
    _start(
        made,
        daemons,
        *("mariadbd", *database, "--skip-grant-tables", "--skip-name-resolve"),
        *("--bind-address=127.0.0.1", f"--port={made.database_port}", "--socket="),
        f"--pid-file={made.folder}/mariadbd.pid",
    )
    wait_for(lambda: _listens(made.database_port, daemons), timeout_s=_START_TIMEOUT_S)
    conf = made.folder / "slurmdbd.conf"
    conf.touch(mode=0o600)
    conf.write_text(
        _ACCOUNTS_CONF.format(
            folder=made.folder, user=user, port=port, port_database=made.database_port
        )
    )
    _start(made, daemons, "slurmdbd", "-D")
    wait_for(lambda: _listens(port, daemons), timeout_s=_START_TIMEOUT_S)
    made.client("sacctmgr", "--immediate", "add", "cluster", _NAME)


def _listens(port: int, daemons: list[subprocess.Popen[bytes]]) -> bool:
    assert all(daemon.poll() is None for daemon in daemons), "a daemon ended at once"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _up(made: Cluster, daemons: list[subprocess.Popen[bytes]]) -> bool:
    assert all(daemon.poll() is None for daemon in daemons), "a daemon ended at once"
    try:
        return made.client("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split() == [
            "idle"
        ] * len(NODES)
    except subprocess.TimeoutExpired:
        return False


def _free_ports() -> int:
    """The first of five neighbouring ports that nobody listens on."""
    start = os.getpid() % len(_PORTS)
    for first in (*_PORTS[start:], *_PORTS[:start]):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 5):
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
    # Ended by either, it ends its daemons.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        cluster(Path(sys.argv[1]).absolute(), accounts="--accounts" in sys.argv) as running,
    ):
        print(f"export SLURM_CONF={running.conf}", flush=True)
        signal.pause()
