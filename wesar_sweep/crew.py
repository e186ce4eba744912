"""The workers of one driver: started together, replaced when they die, ended with the study.

Local workers end with their driver; a Slurm cluster's jobs go on without it, and the next driver
takes them over.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from wesar_sweep.budget import trials_words, used_up
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.endings import BudgetSpent, Cancelled, Interrupted
from wesar_sweep.errors import LaunchError
from wesar_sweep.launchers.base import Job, Launcher, WorkerTask
from wesar_sweep.launchers.inline import InlineLauncher
from wesar_sweep.launchers.local import LocalLauncher
from wesar_sweep.launchers.placement import WorkerPlacement
from wesar_sweep.launchers.slurm import SlurmLauncher
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.drive import Drive
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.spent import read_spent, total
from wesar_sweep.studies.progress import Progress
from wesar_sweep.studies.queue import CellQueue

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_CLUSTER_POLL_S = 1.0
"""A login node is others', too; Slurm itself is asked less often (`launchers.slurm_states`)."""
_LOOK_EVERY_S = 1.0
"""Between two looks at what the workers have spent."""
_STOP_GRACE_S = 60.0
"""Seconds workers get to stop after Ctrl-C; then they are killed, and nothing finished is lost."""


class Crew:
    """See the module. Used by one thread.

    Args:
        study: What they train.
        sweep: On which machines.
        directory: Where its results go.
        placements: A worker each.
        drive: What this driver may spend.
    """

    def __init__(
        self,
        study: Study,
        sweep: Sweep,
        directory: StudyDirectory,
        placements: Sequence[WorkerPlacement],
        drive: Drive,
    ) -> None:
        """Take over what a former driver has left on a cluster; nothing is started yet."""
        self._study, self._drive = study, drive
        self._sweep, self._directory, self._placements = sweep, directory, placements
        self._launcher: Launcher
        match sweep.launcher:
            case "inline":
                self._launcher = InlineLauncher()
            case "local":
                self._launcher = LocalLauncher(directory.workers_folder)
            case "slurm":
                self._launcher = slurm_launcher(study, sweep, directory)
        self._jobs: dict[int, tuple[Job, str]] = {
            index: (job, task.name) for index, (task, job) in enumerate(self._launcher.former())
        }
        if self._jobs:
            _log.warning("going on with %d job(s) of an earlier run", len(self._jobs))
        self._names = _worker_names(directory, taken=self.names)
        # A run's tries and a machine's lives are two things: workers may die by the dozen where
        # jobs are preempted, and no run be to blame.
        restarts = sweep.worker_restarts
        self._restarts = study.retries if restarts is None else restarts
        self._looked_at = 0.0

    @property
    def names(self) -> set[str]:
        """The workers in hand."""
        return {name for _, name in self._jobs.values()}

    def work(self, progress: Progress, asked: list[int]) -> None:
        """Keep workers alive until nothing is left to train.

        Args:
            progress: How the study stands.
            asked: Signals that came in, newest last.

        Raises:
            EndedEarly: A signal came, the stop file was made or a budget is used up.
            LaunchError: The workers ended and the study is not complete.
        """
        stopped = 0
        last: Job | None = None
        poll_s = _CLUSTER_POLL_S if self._sweep.launcher == "slurm" else _POLL_S
        self._require_budget(progress)
        try:
            self._start(*range(len(self._jobs), len(self._placements)))
            while self._jobs:
                for index, (job, name) in list(self._jobs.items()):
                    if index not in self._jobs:
                        # Dismissed, because one before it found that nothing is left to train.
                        continue
                    state = job.wait() if self._sweep.launcher == "inline" else job.poll()
                    if asked or self._directory.stop_file.exists():
                        self._stop(asked)
                        raise Interrupted(asked[-1]) if asked else Cancelled
                    if state in ("pending", "running"):
                        continue
                    del self._jobs[index]
                    # What is told in the end is why one died, not that others found nothing to do.
                    last = job if last is None or state == "failed" else last
                    ending = job.ending()
                    if state == "failed":
                        _log.warning("worker %s ended: %s", name, job.failure())
                    asked_to = ending == "cancelled" or (
                        ending == "done" and self._was_stopped(name)
                    )
                    stopped += asked_to
                    if progress.read().complete:
                        self._dismiss()
                    elif ending == "gave_way":
                        self._start(index)
                    # One that found nothing more to take is needed again only if it was the last.
                    elif (
                        (ending == "fault" or not (self._jobs or asked_to))
                        and self._restarts > 0
                        and self._may_go_on(state)
                    ):
                        self._restarts -= 1
                        self._start(index)
                if time.monotonic() - self._looked_at > _LOOK_EVERY_S and self._used_up():
                    self._stop(asked)
                    self._jobs.clear()
                time.sleep(poll_s)
        finally:
            self._launcher.close()
        if not progress.read().complete:
            if asked:
                raise Interrupted(asked[-1])
            self._require_budget(progress)
            assert last is not None, "only a budget ends the loop with no worker ended"
            raise LaunchError(_early_end(last, self._directory, self._sweep, stopped=stopped))

    def _used_up(self) -> str | None:
        """Which budget is used up, in words."""
        self._looked_at = time.monotonic()
        spent = total(read_spent(self._directory).values())
        return used_up(self._drive.budget, spent, stop_at=self._drive.stop_at)

    def _may_go_on(self, state: str = "finished") -> bool:
        """Whether the budget of trials leaves something to do; only asked of one that found none.

        By the study's database, so only while no worker of this driver needs it.
        """
        most = self._drive.budget.trials
        if most is None or state == "failed":
            return True
        with CellQueue(self._study, self._directory, "driver", most_cells=most) as queue:
            queue.settle()
            return queue.may_go_on

    def _require_budget(self, progress: Progress) -> None:
        """Raise BudgetSpent where a budget is used up and the study is not complete."""
        reason = self._used_up()
        if reason is None and not self._may_go_on():
            reason = trials_words(self._drive.budget)
        if reason is not None and not progress.read().complete:
            raise BudgetSpent(reason)

    def _stop(self, asked: Sequence[int]) -> None:
        _stop(self._directory, [job for job, _ in self._jobs.values()], asked)

    def _start(self, *indices: int) -> None:
        """Start workers, or replace them: together, as one array where there are arrays."""
        names = [next(self._names) for _ in indices]
        together = len(self._placements)
        placements = [self._placements[index % together] for index in indices]
        tasks = [
            worker_task(
                self._sweep, self._directory, placement, name=name, workers=len(self._placements)
            )
            for name, placement in zip(names, placements, strict=True)
        ]
        if tasks:
            jobs = self._launcher.submit_all(tasks, first_index=indices[0])
            self._jobs |= dict(zip(indices, zip(jobs, names, strict=True), strict=True))

    def _dismiss(self) -> None:
        """Cancel the jobs that have not begun: there is nothing left for them to train."""
        for index, (job, _) in list(self._jobs.items()):
            if job.poll() == "pending":
                job.kill()
                del self._jobs[index]

    def _was_stopped(self, name: str) -> bool:
        """Whether a worker ended because it was asked to: its time limit, or somebody's signal."""
        lives = [b for b in read_beats(self._directory) if b.worker.partition(".")[0] == name]
        return bool(lives) and max(lives, key=lambda b: b.updated_at).state == "stopping"


def slurm_launcher(study: Study, sweep: Sweep, directory: StudyDirectory) -> SlurmLauncher:
    """What submits a study's workers to a cluster."""
    return SlurmLauncher(directory.slurm_folder, sweep, job_name=study.name)


def _worker_names(directory: StudyDirectory, *, taken: set[str]) -> Iterator[str]:
    """The names w0, w1, … that no earlier worker of this study had: each writes its own files.

    Args:
        directory: The study's.
        taken: Names of workers that may not have begun, and so have no files.
    """
    number = len(list(directory.workers_folder.glob("*.lock")))
    while True:
        name = f"w{number}"
        if (
            name not in taken
            and not directory.worker_lock_file(name).exists()
            and not directory.outcomes_file(name).exists()
        ):
            yield name
        number += 1


def worker_task(
    sweep: Sweep, directory: StudyDirectory, placement: WorkerPlacement, *, name: str, workers: int
) -> WorkerTask:
    """What a worker of a study is to do."""
    return WorkerTask(
        name=name,
        function="wesar_sweep.worker:main",
        arguments={
            "directory": str(directory.root.absolute()),
            "worker": name,
            "device": placement.device,
            "slots": sweep.slots,
            "memory_fraction": sweep.memory_fraction,
            # On a cluster each has its own share of a node's memory, if the sweep says how much.
            "workers": 1 if sweep.memory_gb_per_worker else workers,
            "follow_driver": sweep.launcher != "slurm",
            "checkpoint_min": sweep.checkpoint_min,
            "ranks": sweep.ranks_per_worker,
            "ranks_are_tasks": sweep.launcher == "slurm",
        },
        environment=placement.environment,
        timeout_min=sweep.timeout_min,
        log=directory.log_file(name),
    )


def _stop(directory: StudyDirectory, jobs: Sequence[Job], asked: Sequence[int]) -> None:
    """Ask every worker to stop and wait for it; what does not listen is killed by the launcher.

    A second signal means not to wait.
    """
    directory.stop_file.touch()
    already = len(asked)
    print("stopping the workers; press Ctrl-C again to kill them", file=sys.stderr, flush=True)
    deadline = time.monotonic() + _STOP_GRACE_S
    while time.monotonic() < deadline and len(asked) == already:
        states = [job.poll() for job in jobs]
        if all(state in ("finished", "failed") for state in states):
            break
        for job, state in zip(jobs, states, strict=True):
            # It has not begun, or was about to begin again: nobody listens yet.
            if state == "pending":
                job.kill()
        time.sleep(_POLL_S)
    living = sum(job.poll() not in ("finished", "failed") for job in jobs)
    if living:
        print(f"{living} worker(s) did not stop: killing them", file=sys.stderr, flush=True)
    directory.stop_file.unlink(missing_ok=True)


def resume_command(root: Path, sweep: Sweep, *, changed: bool = False) -> str:
    """What a person types to go on.

    Args:
        root: The results directory.
        sweep: Of the call that ended; a cluster must be named again.
        changed: Whether they are to change it first.
    """
    on = " --on SWEEP.yaml" if changed or sweep.launcher == "slurm" else ""
    relative = os.path.relpath(root)
    return f"wesar-sweep resume {root if relative.startswith('..') else relative}{on}"


def _early_end(job: Job, directory: StudyDirectory, sweep: Sweep, *, stopped: int) -> str:
    """Why there are no workers left although there is something left to train."""
    go_on = resume_command(directory.root, sweep)
    if stopped:
        return (
            "the workers were stopped before the end, by their time limit (timeout_min) or by a "
            f"signal. What was finished is on disk; go on with: {go_on}"
        )
    why = job.failure() or "it found nothing to train"
    return (
        f"the workers ended before the study did; the last one: {why}\n{job.log_tail(15)}\n"
        f"What was finished is on disk. Mend the cause (logs: {directory.workers_folder}), then: "
        f"{go_on}"
    )
