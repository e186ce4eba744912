"""The slurm launcher: workers as jobs of a Slurm cluster, through submitit's Slurm executor.

Workers that start together are one job array, split where the cluster allows no longer one. They
are not tied to the driver: it may die, and its jobs wait, run and come back without it; `former`
finds them again. What submitit lacks is added here: states by squeue (`slurm_states`), a worker
that is told to give way and stops in good order before its job is requeued, time limits on every
client.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import shlex
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import LaunchError
from wesar_sweep.launchers.base import (
    LIFE_VARIABLE,
    Ending,
    JobState,
    WorkerTask,
    call,
    ending_of,
    tail,
)
from wesar_sweep.launchers.mending import mend_process
from wesar_sweep.launchers.slurm_states import (
    LOST,
    SlurmStates,
    client,
    cluster_limits,
    job_details,
    job_state,
    preempted,
)

_log = logging.getLogger(__name__)

_LEAD_S = 120
"""Seconds before the time limit at which a worker is told; Slurm may tell it a minute earlier."""
_SUBMIT_TIMEOUT_S = 120
_WAIT_POLL_S = 0.2
_PORTS = range(20_000, 32_000)
"""Where rank 0 of a job listens, by the job's number; below what the kernel gives out by itself."""
_GAVE_WAY = "gave way"
"""What a worker answers that was told to give way and could not requeue its job itself."""

_WORDS = {
    "FAILED": "the worker ended with an error",
    "CANCELLED": "somebody cancelled it (scancel)",
    "TIMEOUT": "it reached its time limit before it had stopped; raise signal_lead_s or "
    "timeout_min",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "OUT_OF_MEMORY": "it took more memory than it was given; raise memory_gb_per_worker, or "
    "lower slots",
    "DEADLINE": "it could not end before its deadline",
    "PREEMPTED": "its place was wanted for a job that goes before it",
}


class SlurmWorkerJob:
    """A worker's job, wherever it is in its queue."""

    def __init__(self, job: Job[Any], *, task: WorkerTask, states: SlurmStates) -> None:
        """Made by `SlurmLauncher`."""
        self._job = job
        self._task = task
        self._states = states
        self._state: JobState = "pending"
        self._ending: Ending | None = None
        self._failure: str | None = None
        states.watch([self.id])

    @property
    def id(self) -> str:
        """The job's number, of an array's task with its index: ``17_3``."""
        return str(self._job.job_id)

    def poll(self) -> JobState:
        """As Slurm says it; ``pending`` also after a requeue. An unknown word changes nothing."""
        if self._ending is None:
            seen = self._states.seen(self.id)
            state = job_state(seen.word) or self._state
            if self._states.absent(self.id) and (answer := self._answer()) is not None:
                # Slurm has forgotten it; what it left on the disk has not.
                state = "finished" if answer[0] == "success" else "failed"
            self._state = state
            if state in ("finished", "failed"):
                self._end(seen.word)
        return self._state

    def wait(self, timeout_s: float | None = None) -> JobState:
        """Wait for the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (state := self.poll()) in ("pending", "running"):
            if deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(_WAIT_POLL_S)
        return state

    def terminate(self) -> None:
        """SIGTERM to the worker; a job that has not begun is cancelled."""
        self._states.look(now=True)
        state = self.poll()
        if state == "pending":
            self.kill()
        elif state == "running":
            client(["scancel", "--signal=TERM", self.id])

    def kill(self) -> None:
        """`scancel`: SIGTERM to all of the job, and SIGKILL after the cluster's KillWait."""
        before = self.poll()
        if before in ("pending", "running") and client(["scancel", self.id]) is not None:
            self._states.look(now=True)
            if before == "pending" and self._states.absent(self.id):
                self._states.cancelled(self.id)

    def failure(self) -> str | None:
        """State, exit code, node and reason in words, and the worker's traceback or log's tail."""
        self.poll()
        return self._failure

    def ending(self) -> Ending | None:
        """``gave_way`` after a preemption or the time limit where the job was not requeued."""
        self.poll()
        return self._ending

    def log_tail(self, lines: int = 20) -> str:
        """The end of the worker's log, or of the job's where the worker did not come so far."""
        paths = self._job.paths
        return (
            tail(self._task.log, lines=lines)
            or tail(paths.stderr, lines=lines)
            or tail(paths.stdout, lines=lines)
        )

    def _answer(self) -> tuple[str, Any] | None:
        """What the worker left: ("success", result) or ("error", traceback)."""
        try:
            # Written by our own worker, under our own name.
            outcome, result = pickle.loads(self._job.paths.result_pickle.read_bytes())
        except FileNotFoundError:
            return None
        return outcome, result

    def _end(self, word: str) -> None:
        answer = self._answer()
        details = job_details(self.id)
        if self._state == "finished":
            # A worker that cannot ask Slurm does not know that a SIGTERM was a preemption.
            gave_way = (answer is not None and answer[1] == _GAVE_WAY) or preempted(details)
            self._ending = "gave_way" if gave_way else ending_of(self._state)
            self._tidy()
            return
        self._ending = "fault"
        if word == "CANCELLED":
            self._ending = "cancelled"
        elif word == "PREEMPTED" or preempted(details):
            self._ending = "gave_way"
        self._failure = self._words(word, details)
        if answer is not None and answer[0] != "success":
            self._failure = f"{str(answer[1]).rstrip()}\n{self._failure}"
        elif end := self.log_tail(5):
            self._failure += f"\n{end}"

    def _words(self, word: str, details: dict[str, str]) -> str:
        if word == LOST:
            return (
                f"job {self.id} is lost: Slurm has known nothing of it for "
                f"{self._states.lost_after_s / 60:g} minutes"
            )
        facts = [f"state {word}"]
        names = (("exit code", "ExitCode"), ("node", "NodeList"), ("reason", "Reason"))
        for name, key in names:
            if (value := details.get(key, "")) not in ("", "None", "(null)"):
                facts.append(f"{name} {value}")
        return f"job {self.id}: {_WORDS.get(word, 'it failed')} ({', '.join(facts)})"

    def _tidy(self) -> None:
        """Remove what a job that ended well has no more use for; the script stays."""
        for leftover in self._job.paths.folder.glob(f"{self.id}_*"):
            if leftover.suffix != ".sh":
                leftover.unlink(missing_ok=True)


class SlurmLauncher:
    """Submits each task as a job, tasks that start together as an array.

    Args:
        folder: Where submitit keeps scripts and pickles; on a disk that the nodes see, too.
        sweep: Which partition, how many GPUs, and so on.
        job_name: What squeue shows.
        poll_interval_s: Least seconds between two looks at the queue.
        lost_after_s: A job that Slurm does not know for so long is lost.
    """

    def __init__(
        self,
        folder: Path,
        sweep: Sweep,
        *,
        job_name: str = "wesar-sweep",
        poll_interval_s: float = 3.0,
        lost_after_s: float = 600.0,
    ) -> None:
        """Nothing is submitted yet."""
        self._folder = folder.absolute()
        self._sweep = sweep
        self._job_name = job_name
        self._states = SlurmStates(interval_s=poll_interval_s, lost_after_s=lost_after_s)
        self._jobs: list[SlurmWorkerJob] = []

    def submit(self, task: WorkerTask, *, index: int) -> SlurmWorkerJob:
        """Submit a job of its own.

        Raises:
            LaunchError: Slurm refused it, or is not there.
        """
        return self.submit_all([task], first_index=index)[0]

    def submit_all(
        self, tasks: Sequence[WorkerTask], *, first_index: int = 0
    ) -> Sequence[SlurmWorkerJob]:
        """Submit jobs, as few arrays as the cluster allows.

        Raises:
            LaunchError: Slurm refused them, or is not there. Those it took before are cancelled by
                `close`.
        """
        if shutil.which("sbatch") is None:
            raise LaunchError(
                "there is no sbatch here: launcher slurm needs a machine that submits to the "
                "cluster, such as a login node; --dry-run shows the scripts without one"
            )
        submitted: list[SlurmWorkerJob] = []
        for executor, some in self._arrays(tasks):
            for task in some:
                task.log.parent.mkdir(parents=True, exist_ok=True)
            try:
                started = executor.map_array(_work, some)
            except (FailedJobError, FailedSubmissionError, OSError) as error:
                raise LaunchError(
                    f"Slurm did not take the job of worker {some[0].name} (number {first_index}): "
                    f"{str(error).strip() or 'sbatch gave no answer in time'}\n"
                    "see what would be submitted with --dry-run, and what waits with squeue --me"
                ) from error
            jobs = [
                SlurmWorkerJob(job, task=task, states=self._states)
                for job, task in zip(started, some, strict=True)
            ]
            self._jobs += jobs
            submitted += jobs
            first_index += len(jobs)
        return submitted

    def scripts(self, tasks: Sequence[WorkerTask]) -> list[str]:
        """The scripts that `submit_all` would give to sbatch; nothing is submitted."""
        return [executor.script(len(some)) for executor, some in self._arrays(tasks)]

    def former(self) -> Sequence[tuple[WorkerTask, SlurmWorkerJob]]:
        """Jobs of an earlier driver that wait or run, by the pickles they were submitted with.

        Raises:
            LaunchError: Slurm does not answer.
        """
        found = []
        for path in sorted(self._folder.glob("*_submitted.pkl")):
            job = SlurmJob[Any](self._folder, path.name.removesuffix("_submitted.pkl"))
            # Written by an earlier driver of this study, under our own name.
            task = DelayedSubmission.load(path).args[0]
            found.append((task, SlurmWorkerJob(job, task=task, states=self._states)))
        if found and not self._states.look(now=True):
            raise LaunchError(
                "Slurm does not answer, so it cannot be told whether workers of an earlier run "
                "still wait or run: try again when squeue answers"
            )
        living = [
            (task, job)
            for task, job in found
            if not self._states.absent(job.id) and job.poll() in ("pending", "running")
        ]
        self._jobs += [job for _, job in living]
        return living

    def close(self) -> None:
        """Cancel what still waits or runs."""
        if living := [job.id for job in self._jobs if job.poll() in ("pending", "running")]:
            client(["scancel", *living])

    def _arrays(
        self, tasks: Sequence[WorkerTask]
    ) -> Iterator[tuple[_Executor, Sequence[WorkerTask]]]:
        """The tasks in arrays, each with the executor that submits it."""
        longest = max(1, cluster_limits().max_array_size) if len(tasks) > 1 else 1
        chunks = [
            chunk
            for _, alike in groupby(tasks, key=_limits_of)
            for chunk in _chunks(list(alike), longest)
        ]
        at_once = self._sweep.array_parallelism or len(tasks)
        for number, chunk in enumerate(chunks):
            # Slurm's bound is one an array: shared out, so that their sum keeps to ours.
            share = max(1, at_once // len(chunks) + (number < at_once % len(chunks)))
            yield self._executor(chunk[0], at_once=share), chunk

    def _executor(self, task: WorkerTask, *, at_once: int) -> _Executor:
        sweep = self._sweep
        nodes, ranks = sweep.nodes, sweep.ranks_per_worker
        timeout_min = max(1, math.ceil(task.timeout_min))
        # As the sweep's check made sure, each divides.
        cores = sweep.cpus_per_worker and sweep.cpus_per_worker // ranks
        executor = _Executor(self._folder, python=sweep.python)
        wanted = {
            "job_name": self._job_name,
            "time": timeout_min,
            "signal_delay_s": signal_lead_s(sweep, timeout_min=timeout_min),
            "partition": sweep.partition,
            "account": sweep.account,
            "qos": sweep.qos,
            "constraint": sweep.constraint,
            "nodes": nodes,
            "ntasks_per_node": ranks // nodes,
            "cpus_per_task": cores,
            # Slurm counts both by the node.
            "gres": f"gpu:{sweep.gpus_per_worker // nodes}" if sweep.gpus_per_worker else None,
            "mem": None
            if sweep.memory_gb_per_worker is None
            else f"{math.ceil(sweep.memory_gb_per_worker * 1000 / nodes)}M",
            "array_parallelism": at_once,
            # The task's variables last: they keep a worker to its threads.
            "setup": [
                *sweep.setup,
                *(f"export {k}={shlex.quote(v)}" for k, v in task.environment.items()),
            ],
            "srun_args": [
                # A rank that died takes the others along, which may wait for it in vain.
                "--kill-on-bad-exit=1",
                # srun no longer takes them from sbatch by itself (Slurm 22.05).
                *([f"--cpus-per-task={cores}"] if cores else []),
            ],
        }
        further = {
            name.lstrip("-").replace("_", "-"): value
            for name, value in sweep.slurm_additional_parameters.items()
            if value is not False
        }
        executor.update_parameters(
            **{key: value for key, value in wanted.items() if value is not None},
            wckey=None,
            additional_parameters={**further, "requeue": True},
        )
        return executor


def _take_place() -> int:
    """Set torch's variables for a task of the job among all of its tasks; returns its rank.

    They are those that torchrun sets: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """
    rank = os.environ["SLURM_PROCID"]
    os.environ |= {
        "RANK": rank,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        # Of the node with the job's script, which has the first task, too; nobody need resolve it.
        "MASTER_ADDR": os.environ["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": str(_PORTS[int(os.environ["SLURM_JOB_ID"]) % len(_PORTS)]),
    }
    return int(rank)


def signal_lead_s(sweep: Sweep, *, timeout_min: int) -> int:
    """Seconds before the time limit at which a worker is told; at most half the time."""
    return sweep.signal_lead_s or min(_LEAD_S, timeout_min * 30)


def _limits_of(task: WorkerTask) -> tuple[object, ...]:
    """What the tasks of one array have in common."""
    return task.timeout_min, sorted(task.environment.items())


def _chunks(tasks: list[WorkerTask], longest: int) -> list[list[WorkerTask]]:
    return [tasks[start : start + longest] for start in range(0, len(tasks), longest)]


class _Executor(SlurmExecutor):
    """submitit's executor with a time limit on sbatch, a clean environment, and a dry run."""

    @classmethod
    def affinity(cls) -> int:
        # submitit refuses to be made where there is no srun; a dry run needs none.
        return 2

    def script(self, count: int) -> str:
        """What sbatch would be given for so many tasks."""
        self.parameters["map_count"] = count if count > 1 else None
        return self._make_submission_file_text(self._submitit_command_str, "")

    def _internal_process_submissions(
        self, delayed_submissions: list[DelayedSubmission]
    ) -> list[Job[Any]]:
        # As submitit's, whose arrays are sent by another executor, hence without what is below.
        self.folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for delayed in delayed_submissions:
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            pickles.append(self.folder / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(pickles[-1])
        count = len(pickles)
        self.parameters["map_count"] = count if count > 1 else None
        first = self._submit_command(self._submitit_command_str)
        ids = [f"{first.job_id}_{n}" for n in range(count)] if count > 1 else [first.job_id]
        jobs: list[Job[Any]] = [SlurmJob(self.folder, job_id) for job_id in ids]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # A driver that is itself a job must not hand its own job's settings on.
        inherited = [
            name
            for name in os.environ
            if name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SUBMITIT_", LIFE_VARIABLE))
            and name != "SLURM_CONF"
        ]
        unset = [word for name in inherited for word in ("-u", name)]
        limit = ["timeout", "--kill-after=5", str(_SUBMIT_TIMEOUT_S)]
        return ["env", *unset, *limit, "sbatch", str(submission_file_path)]


def _work(task: WorkerTask) -> str | None:
    """What the job's process does: mend what submitit left, call the function, give way well.

    A worker that was told that its place is wanted, or its time nearly over, ends in good order;
    Slurm would call the job completed. So the job is requeued from here, and begins again with a
    life more.
    """
    told: list[int] = []

    def give_way(number: int, frame: object) -> None:
        told.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    os.environ[LIFE_VARIABLE] = os.environ.get("SLURM_RESTART_COUNT", "0")
    rank = _take_place()
    if rank:
        task = replace(task, log=task.log.with_suffix(f".rank{rank}.log"))
    mend_process(task)
    signal.signal(signal.SIGUSR2, give_way)
    call(task)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if rank:
        return None
    # Not SLURM_JOB_ID: of one task of an array that is the number of the whole array.
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    # Clusters may preempt by SIGTERM alone, which somebody who wants it to end sends, too.
    if not told and not preempted(job_details(job)):
        return None
    print(f"giving way: requeueing job {job}", file=sys.stderr, flush=True)
    if client(["scontrol", "requeue", job]) is None:
        return _GAVE_WAY
    # Without an answer on the disk: the job is not over.
    raise SystemExit(1)
