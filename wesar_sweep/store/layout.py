"""Every name on disk, in one class. Nothing else in the project spells a path inside results/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StudyDirectory:
    """`results/<study>/` and all that lies in it."""

    root: Path

    @property
    def study_file(self) -> Path:
        """The resolved study; running it again reproduces the study."""
        return self.root / "study.yaml"

    @property
    def provenance_file(self) -> Path:
        """Commit, versions, device, corpus hash, command."""
        return self.root / "provenance.json"

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer of its text, as Hugging Face's `tokenizers` read it."""
        return self.root / "tokenizer.json"

    @property
    def finished_search_file(self) -> Path:
        """What the search had come to whose pruned cells this study finishes, if it does."""
        return self.root / "finishes.json"

    @property
    def database_file(self) -> Path:
        """Optuna's SQLite storage; the Optuna dashboard opens it."""
        return self.root / "study.db"

    @property
    def storage_file(self) -> Path:
        """Which other database than `database_file` the study is kept in, without the password."""
        return self.root / "storage.json"

    @property
    def ask_lock_file(self) -> Path:
        """Held while a cell is taken: under SQLite two workers could take the same one."""
        return self.root / "ask.lock"

    @property
    def driver_lock_file(self) -> Path:
        """Held by the process that runs the study, for as long as it lives."""
        return self.root / "driver.lock"

    @property
    def driver_file(self) -> Path:
        """What that process says of itself and how it ended (`store.drive.Drive`)."""
        return self.root / "driver.json"

    @property
    def driver_log_file(self) -> Path:
        """What a process in the background (`run --detach`) said; appended to."""
        return self.root / "driver.log"

    @property
    def stop_file(self) -> Path:
        """Its existence asks driver and workers to stop at the next interval."""
        return self.root / "stop"

    @property
    def outcomes_folder(self) -> Path:
        """One append-only JSONL a worker."""
        return self.root / "outcomes"

    @property
    def curves_folder(self) -> Path:
        """One .npz a run."""
        return self.root / "curves"

    @property
    def checkpoints_folder(self) -> Path:
        """The state of unfinished runs, some files a worker; gone when the study is complete."""
        return self.root / "checkpoints"

    @property
    def weights_folder(self) -> Path:
        """The folded weights of completed runs, one file each, where the study keeps them."""
        return self.root / "weights"

    @property
    def workers_folder(self) -> Path:
        """What each worker says of itself: lock, beat, log."""
        return self.root / "workers"

    @property
    def slurm_folder(self) -> Path:
        """Scripts and pickles of a Slurm cluster's jobs, by the jobs' numbers."""
        return self.workers_folder / "slurm"

    @property
    def report_file(self) -> Path:
        """The one-file report."""
        return self.root / "report.html"

    @property
    def outcomes_table(self) -> Path:
        """The outcomes of a published study (`store.published`), in place of `outcomes_folder`."""
        return self.root / "outcomes.parquet"

    @property
    def curves_table(self) -> Path:
        """Loss and gradient norm of every run of a published study."""
        return self.root / "curves.parquet"

    @property
    def evaluations_table(self) -> Path:
        """Losses on held-out text and evaluation sets of every run of a published study."""
        return self.root / "evaluations.parquet"

    @property
    def probes_table(self) -> Path:
        """What was probed in every run of a published study."""
        return self.root / "probes.parquet"

    @property
    def published(self) -> bool:
        """Whether this is a published study: one to read, in which nothing is trained.

        A table of outcomes alone does not make one: `export` may have written it beside the rows.
        """
        return self.outcomes_table.exists() and not self.outcomes_folder.exists()

    def outcomes_file(self, worker: str) -> Path:
        """The outcomes that one worker wrote."""
        return self.outcomes_folder / f"{worker}.jsonl"

    def curve_file(self, trial: int, seed: int) -> Path:
        """The curves of one run."""
        return self.curves_folder / f"t{trial:05d}-s{seed:03d}.npz"

    def weights_file(self, trial: int, seed: int) -> Path:
        """The folded weights of one run (`training.kept_weights`)."""
        return self.weights_folder / f"t{trial:05d}-s{seed:03d}.safetensors"

    def worker_lock_file(self, worker: str) -> Path:
        """Held by a worker for as long as it lives."""
        return self.workers_folder / f"{worker}.lock"

    def beat_file(self, worker: str) -> Path:
        """The worker's newest sign of life (`store.beat.Beat`)."""
        return self.workers_folder / f"{worker}.json"

    def spent_file(self, worker: str) -> Path:
        """Device time, tokens and cells that a worker has spent (`store.spent.Spent`)."""
        return self.workers_folder / f"{worker}.spent"

    def log_file(self, worker: str) -> Path:
        """What a worker said on its standard error."""
        return self.workers_folder / f"{worker}.log"

    def create(self) -> None:
        """Make the folders; existing ones are kept."""
        for folder in (self.root, self.outcomes_folder, self.curves_folder, self.workers_folder):
            folder.mkdir(parents=True, exist_ok=True)
