"""What Slurm says of jobs: states by bounded polling, limits of the cluster, one job in detail.

`squeue` is asked for all jobs of the user at once, and `sacct`, where the cluster keeps accounts,
how those ended that squeue no longer knows. Each call has a time limit, and a call that fails says
nothing about any job. Nothing is submitted here.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from wesar_sweep.launchers.base import JobState

_log = logging.getLogger(__name__)

CLIENT_TIMEOUT_S = 60.0
"""Seconds that a client such as squeue gets: a controller that is busy answers late."""
_LONGEST_INTERVAL_S = 60.0
_JOBS_A_SECOND = 20.0
"""So many jobs add a second to the time between two looks."""
_DEFAULT_MAX_ARRAY_SIZE = 1001

_STATES: dict[JobState, str] = {
    "pending": "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD",
    "running": "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    "finished": "COMPLETED",
    "failed": "FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE PREEMPTED",
}
"""What Slurm's words mean. Any other word says nothing."""

_USUAL_REASONS = frozenset(
    ["", "None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "(null)"]
)
"""Why jobs wait that will run. Any other reason is told once: somebody may have to do something."""

LOST = "LOST"
"""Our own word: neither squeue nor sacct has known the job for the whole grace."""


def job_state(word: str) -> JobState | None:
    """Slurm's word as a job's state; None for a word that says nothing."""
    if word == LOST:
        return "failed"
    return next((state for state, words in _STATES.items() if word in words.split()), None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last seen of a job."""

    word: str
    """Slurm's state, such as ``RUNNING``."""
    node: str = ""
    reason: str = ""
    """Why it waits or ended, such as ``Priority``; ``None`` is Slurm's word for no reason."""


class SlurmStates:
    """The states of some jobs of this user, looked at again only every few seconds.

    Args:
        interval_s: Least seconds between two looks; more with more jobs and after failures.
        lost_after_s: A job that Slurm does not know for so long is lost. Only time during which the
            controller answers counts.
    """

    def __init__(self, *, interval_s: float = 3.0, lost_after_s: float = 600.0) -> None:
        """Nothing is asked yet."""
        self._least_interval_s = interval_s
        self.lost_after_s = lost_after_s
        self._seen: dict[str, Seen] = {}
        self._absent_s: dict[str, float] = {}
        self._looked_at: float | None = None
        self._failures = 0
        self._accounts_failed_at: float | None = None
        self._reasons_told: set[str] = set()

    def watch(self, jobs: Iterable[str]) -> None:
        """Look at these, too: just submitted, hence pending."""
        for job in jobs:
            self._seen.setdefault(job, Seen("PENDING"))

    def seen(self, job: str) -> Seen:
        """What is known of a watched job, by a look that is not too old."""
        self.look()
        return self._seen[job]

    def look(self, *, now: bool = False) -> bool:
        """Ask Slurm, if it is time; whether it answered when it was last asked."""
        moment = time.monotonic()
        if not now and self._looked_at is not None and moment - self._looked_at < self._interval_s:
            return not self._failures
        elapsed_s = 0.0 if self._looked_at is None else moment - self._looked_at
        self._looked_at = moment
        living = [job for job, seen in self._seen.items() if not _over(seen)]
        if not living:
            return True
        found = self._queue()
        if found is None:
            return False
        absent = [job for job in living if job not in found]
        found |= self._accounts(absent)
        for job in living:
            if job in found and job_state(found[job].word) is not None:
                self._seen[job] = found[job]
                self._absent_s.pop(job, None)
                self._tell_reason(job, found[job])
                continue
            # Its first absence counts nothing: it may have gone a moment ago.
            gone_s = self._absent_s.get(job)
            gone_s = 0.0 if gone_s is None else gone_s + min(elapsed_s, 2 * self._interval_s)
            self._absent_s[job] = gone_s
            if gone_s >= self.lost_after_s:
                self._seen[job] = Seen(LOST, self._seen[job].node)
        return True

    def cancelled(self, job: str) -> None:
        """Somebody cancelled a job before it began: of an array, Slurm then forgets it at once."""
        self._seen[job] = Seen("CANCELLED")
        self._absent_s.pop(job, None)

    def absent(self, job: str) -> bool:
        """Whether Slurm did not know the job when it last answered."""
        return job in self._absent_s

    def _tell_reason(self, job: str, seen: Seen) -> None:
        waits = job_state(seen.word) == "pending"
        if waits and seen.reason not in (_USUAL_REASONS | self._reasons_told):
            self._reasons_told.add(seen.reason)
            _log.warning("job %s waits, Slurm says why: %s", job, seen.reason)

    @property
    def _interval_s(self) -> float:
        living = sum(not _over(seen) for seen in self._seen.values())
        wanted = max(self._least_interval_s, living / _JOBS_A_SECOND)
        wanted *= 1 << min(self._failures, 4)
        return min(wanted, max(_LONGEST_INTERVAL_S, self._least_interval_s))

    def _queue(self) -> dict[str, Seen] | None:
        said = client(
            ["squeue", "--all", "--array", "--noheader", "--states=all", "--format=%i|%T|%N|%r"],
            "--user",
            str(os.getuid()),
        )
        if said is None:
            self._failures += 1
            return None
        self._failures = 0
        return _rows(said)

    def _accounts(self, jobs: Sequence[str]) -> dict[str, Seen]:
        """How jobs ended that squeue does not know.

        Endings only: the accounts may be late, and where they missed an ending they call a job
        running for ever.
        """
        if not jobs or not self._keeps_accounts:
            return {}
        failed_at = self._accounts_failed_at
        # One that hangs takes the driver's time at each look.
        if failed_at is not None and time.monotonic() - failed_at < _LONGEST_INTERVAL_S:
            return {}
        # Whole arrays: asked for one task, sacct hides the row of those that never began.
        said = client(
            ["sacct", "--noheader", "--parsable2", "--allocations"],
            "--format=JobID,State,NodeList,Reason",
            "--jobs",
            ",".join(dict.fromkeys(_array(job) for job in jobs)),
        )
        self._accounts_failed_at = time.monotonic() if said is None else None
        rows = _rows(said or "")
        arrays = {_array(row) for row in rows if "_" in row}
        for job in jobs:
            waited = job_state(self._seen[job].word) == "pending"
            if job not in rows and _array(job) in arrays and waited:
                # A task has a row of its own once it begins. This one never will: cancelled alone,
                # it is in no row at all; with all the others, it is in theirs, ``17_[1,3]``.
                rows[job] = Seen("CANCELLED")
        return {job: rows[job] for job in jobs if job in rows and _over(rows[job])}

    @cached_property
    def _keeps_accounts(self) -> bool:
        # Newer versions of Slurm say (null).
        return not cluster_limits().accounts.endswith(("none", "null"))


def _array(job: str) -> str:
    """The array's number of ``17_3``; that of a job of its own is its own."""
    return job.partition("_")[0]


def _over(seen: Seen) -> bool:
    return job_state(seen.word) in ("finished", "failed")


def _rows(said: str) -> dict[str, Seen]:
    """Rows ``id|state|node|reason``, the state perhaps with words after it."""
    rows = {}
    for line in said.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) >= 4 and parts[1]:
            # CANCELLED by 1000
            rows[parts[0]] = Seen(parts[1].split()[0].rstrip("+"), parts[2], parts[3])
    return rows


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """What the cluster's own settings say, or their defaults where it does not answer."""

    max_array_size: int = _DEFAULT_MAX_ARRAY_SIZE
    """Tasks of one array; less than 2: there are no arrays."""
    accounts: str = "accounting_storage/none"


def cluster_limits() -> ClusterLimits:
    """Read `scontrol show config`."""
    said = client(["scontrol", "show", "config"], quiet=True) or ""
    settings = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", said, flags=re.MULTILINE))
    return ClusterLimits(
        max_array_size=int(settings.get("MaxArraySize", _DEFAULT_MAX_ARRAY_SIZE)),
        accounts=settings.get("AccountingStorageType", "accounting_storage/none").strip("()"),
    )


def job_details(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`, such as ``ExitCode``; empty where it says nothing."""
    said = client(["scontrol", "--oneliner", "show", "job", job], quiet=True) or ""
    return dict(re.findall(r"(\w+)=(\S*)", said))


def preempted(details: dict[str, str]) -> bool:
    """Whether a job's details say that its place was wanted for another since it last started."""
    since, started = details.get("PreemptTime", "None"), details.get("StartTime", "")
    # Times as 2026-01-31T12:00:00; of an earlier start it says nothing about this one.
    return since[:1].isdigit() and since >= started


def client(words: Sequence[str], *more: str, quiet: bool = False) -> str | None:
    """What a Slurm client prints; None where it fails or does not answer in time."""
    try:
        done = subprocess.run(
            [*words, *more], capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    else:
        if done.returncode == 0:
            return done.stdout
        why = done.stderr.strip()
    if not quiet:
        _log.warning("%s gave no answer: %s", words[0], why)
    return None
