"""Checkpoints: runs that go on elsewhere end with the same bits; damage is noticed and survived."""

import dataclasses
import logging
import math
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training.test_engine import METHODS, ListQueue, same, sets_of
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.errors import StoreError
from wesar_sweep.store import checkpoint_files
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import OutcomeWriter
from wesar_sweep.training import checkpoints as checkpoints_module
from wesar_sweep.training.checkpoints import Checkpoints
from wesar_sweep.training.engine import Engine
from wesar_sweep.training.memory import Fit

ALL = (*METHODS, "sigma_reparam")
SECTIONS = {
    "training": {"steps": 60},
    "data": {"source": "synthetic", "symbols": 16, "length": 20_000},
    "evaluation": {"sequences": 5, "every": 17},
    "probes": {"every": 7},
    "divergence": {"window": 4, "patience": 5, "delta": 0.5},
}


@pytest.fixture
def directory(tmp_path):
    made = StudyDirectory(tmp_path / "study")
    made.create()
    return made


@pytest.fixture
def study(study_of):
    return study_of(**SECTIONS)


@pytest.fixture
def runs(study, runs_of):
    """Every form, one that diverges, unequal lengths."""
    cells = [
        {"method": ALL[n % 4], "lr": [1e-3, 3e-2, 1e6][n % 3], "seed": n % 2, "steps": 31 + 4 * n}
        for n in range(7)
    ]
    return runs_of(study, *cells)


class Life:
    """One worker's life: an engine that is stopped after so many blocks."""

    def __init__(self, study, queue, directory, *, worker="w0", slots=3, blocks=math.inf, every=0):
        self.left = blocks
        corpus = load_corpus(study.data, context=study.model.context)
        kept = None
        if directory is not None:
            kept = Checkpoints(directory, worker=worker, precision="fp32")
            queue.writer = OutcomeWriter(directory, worker)
        self.engine = Engine(
            study,
            queue=queue,
            corpus=corpus,
            device=torch.device("cpu"),
            methods=ALL,
            slots=lambda architecture: Fit(slots, 1, 0, 0, 0),
            worker=worker,
            on_block=self.on_block,
            evaluation_sets=sets_of(study, corpus),
            checkpoints=kept,
            checkpoint_every_s=every,
        )
        self.engine.train()

    def on_block(self, engine):
        # A checkpoint may be made at every block, however long the one before took.
        engine._save_seconds = 0.0
        self.left -= 1
        return self.left < 0


class DiskQueue(ListQueue):
    """Keeps results on the disk too, where there is a worker with a file of its own."""

    writer = None

    def finish(self, results):
        if self.writer is not None:
            self.writer.append(*(outcome for outcome, _ in results))
        super().finish(results)


def again(queue):
    """A queue of what is not finished, as a new worker finds it, that keeps the results so far."""
    new = DiskQueue([run for run in queue.everything if run.key not in queue.outcomes])
    new.everything = queue.everything
    new.outcomes, new.curves = queue.outcomes, queue.curves
    return new


def queue_of(runs, **options):
    queue = DiskQueue(runs, **options)
    queue.everything = list(runs)
    return queue


@pytest.fixture
def undisturbed(study, runs):
    queue = queue_of(runs)
    Life(study, queue, None)
    assert len(queue.outcomes) == len(runs)
    assert {row.status for row in queue.outcomes.values()} == {"completed", "diverged"}
    return queue


@pytest.mark.parametrize("blocks", [2, 3, 6])
def test_stopped_and_gone_on_with_by_others(study, runs, directory, undisturbed, blocks):
    """Other workers, other numbers of slots, other neighbours: no bit changes, no step is lost."""
    queue = queue_of(runs)
    lives = 0
    steps = 0
    while len(queue.outcomes) < len(runs):
        queue = again(queue)
        slots, name = 1 + lives % 4, f"w{lives}"
        life = Life(study, queue, directory, worker=name, slots=slots, blocks=blocks)
        steps += life.engine.tokens // runs[0].architecture.tokens_per_step
        lives += 1
        assert lives < 300
    same(queue, undisturbed)
    assert lives > 2
    trained = sum(len(curve.loss) for curve in queue.curves.values())
    # Only a diverged run is trained to the end of its block, past the end of its curve.
    assert trained <= steps < trained + 20 * sum(r.lr > 1 for r in hyperparameters(runs))


def hyperparameters(runs):
    return [run.hyperparameters for run in runs]


def test_control_without_checkpoints_steps_are_trained_again(study, runs):
    queue, steps = queue_of(runs), 0
    for blocks in (3, math.inf):
        queue = again(queue)
        life = Life(study, queue, None, blocks=blocks)
        steps += life.engine.tokens // runs[0].architecture.tokens_per_step
    assert steps > sum(len(curve.loss) for curve in queue.curves.values()) + 30


def files(directory):
    return checkpoint_files.all_of(directory)


def stopped(study, runs, directory, *, blocks):
    """A queue whose only worker was stopped; its checkpoints are on the disk."""
    queue = queue_of(runs)
    Life(study, queue, directory, blocks=blocks)
    assert len(files(directory)) == 2
    return again(queue)


def damage_state(path):
    """One bit of some run's parameters."""
    data = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        _, offset = 0, len(data) - 100  # Tensors stand at the end of the file.
        assert len(list(file.keys())) > 4
    for place in range(8 + int.from_bytes(data[:8], "little"), len(data), 997):
        data[place] ^= 1
    assert offset > 0
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def scribble(path):
    path.write_bytes(b"x" * 300)


@pytest.mark.parametrize("harm", [damage_state, cut, empty, scribble, Path.unlink])
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    study, runs, directory, undisturbed, harm, both, caplog
):
    queue = stopped(study, runs, directory, blocks=2)
    for path in files(directory)[-(1 + both) :]:
        harm(path)
    with caplog.at_level(logging.INFO):
        Life(study, queue, directory, worker="w1")
    same(queue, undisturbed)
    went_on = [int(r.args[2]) for r in caplog.records if "goes on after" in r.msg]
    assert bool(went_on) is not both
    if harm is not Path.unlink:
        assert any("checkpoint" in r.msg and r.levelname == "WARNING" for r in caplog.records)


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"version": "0.0.0"}, {"shape": True}])
def test_what_another_version_or_precision_or_shape_left_is_not_used(
    study, study_of, runs, runs_of, directory, undisturbed, other, caplog, monkeypatch
):
    queue = queue_of(runs)
    with monkeypatch.context() as patch:
        if "version" in other:
            patch.setattr(checkpoints_module, "project_version", lambda: other["version"])
        if "precision" in other:
            honest = Checkpoints.__init__

            def init(self, directory, *, worker, precision):
                honest(self, directory, worker=worker, precision=other["precision"])

            patch.setattr(Checkpoints, "__init__", init)
        if "shape" in other:
            wide = study_of(**SECTIONS, model={"width": 24})
            cells = [
                {"method": ALL[n % 4], "lr": 1e-3, "seed": n % 2, "steps": 31 + 4 * n}
                for n in range(7)
            ]
            Life(wide, queue_of(runs_of(wide, *cells)), directory, blocks=3)
        else:
            Life(study, queue, directory, blocks=3)
    with caplog.at_level(logging.INFO):
        Life(study, again(queue), directory, worker="w1")
    assert not any("goes on after" in r.msg for r in caplog.records)
    assert any("not used" in r.msg for r in caplog.records)


def test_files_are_few_and_those_that_nobody_needs_go(study, runs, directory):
    """Two a worker while its runs go on; a dead worker's once its runs stand in newer ones."""
    queue, most = queue_of(runs), 0
    for number, blocks in enumerate((2, 3, 4, math.inf)):
        queue, name = again(queue), f"w{number}"
        Life(study, queue, directory, worker=name, blocks=blocks)
        assert len(checkpoint_files.written_by(directory, name)) <= 2
        most = max(most, len(files(directory)))
    assert len(queue.outcomes) == len(runs) and most <= 4
    checkpoint_files.clear_all(directory)
    assert not directory.checkpoints_folder.exists()
    checkpoint_files.clear_all(directory)


def test_what_a_killed_worker_was_writing_is_cleared_by_its_namesake_alone(directory):
    mine, other = (directory.checkpoints_folder / name / ".tmp1" for name in ("w0", "w1"))
    for path in (mine, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    Checkpoints(directory, worker="w0", precision="fp32")
    assert not mine.exists() and other.exists()
    assert files(directory) == []


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(
    study, runs, directory, undisturbed, caplog, monkeypatch
):
    def full(self, stack, live):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Checkpoints, "save", full)
    queue = queue_of(runs)
    Life(study, queue, directory)
    same(queue, undisturbed)
    assert "no checkpoint: the disk is full" in caplog.text


def test_a_disk_that_refuses_is_said_in_the_words_of_the_store(directory, tmp_path):
    """The real refusal of the system, through the library, in a process of its own."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        import torch
        from wesar_sweep.config.run import make_run
        from wesar_sweep.config.study import Study
        from wesar_sweep.errors import StoreError
        from wesar_sweep.store.layout import StudyDirectory
        from wesar_sweep.training.checkpoints import Checkpoints
        from wesar_sweep.training.record import RunRecord
        from wesar_sweep.training.stack import Stack, StackTraits
        study = Study(name="test", space={"lr": {"choices": [1e-2]}})
        run = make_run(study, 0, 0, {"lr": 1e-2})
        stack = Stack(
            run.architecture, slots=1, traits=StackTraits.of(study, methods=["wesar"]),
            train_S=torch.zeros(9999, dtype=torch.uint8),
        )
        stack.load(0, run)
        kept = Checkpoints(StudyDirectory(Path(sys.argv[1])), worker="w0", precision="fp32")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            kept.save(stack, [(0, RunRecord(run, study, 5.0))])
        except StoreError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(directory.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in done.stdout and "000000.safetensors: File too large" in done.stdout
    assert files(directory) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_a_resumed_run_tells_its_evaluations_again(study, runs, directory):
    """Whoever had it may have died before its cell's other replicates came so far."""
    queue = stopped(study, runs[:3], directory, blocks=2)
    going_on = list(queue.waiting)
    assert going_on
    Life(study, queue, directory, worker="w1")
    told = [(key, step) for key, step, _ in queue.reports]
    for run in going_on:
        assert [step for key, step in told if key == run.key] == list(
            range(17, run.hyperparameters.steps, 17)
        )


def test_a_resumed_run_may_be_pruned_by_what_it_tells_again(study, runs, directory):
    queue = stopped(study, runs[:2], directory, blocks=2)
    queue.prune = {(runs[0].trial, 17)}
    Life(study, queue, directory, worker="w1")
    row = queue.outcomes[runs[0].key]
    assert row.status == "pruned" and 17 <= row.steps < runs[0].hyperparameters.steps


def test_a_record_goes_on_as_if_nothing_had_happened(study, runs):
    """Its wall time, too."""
    from wesar_sweep.training.record import RecordState, RunRecord

    record = RunRecord(runs[0], study, 2.5)
    record.entered_at -= 100.0
    loss, norm = torch.linspace(2.5, 2.0, 8).numpy(), torch.ones(8).numpy()
    record.steps_begun = 8
    record.add_block(loss, norm)
    record.add_evaluation(math.pi)
    record.add_set("wiki", {"loss": math.e, "chance": 5.5})
    state = record.state()
    copied = RecordState.of(
        state.arrays(), seconds=state.seconds, evaluations=state.evaluations, sets=state.sets
    )
    assert dataclasses.asdict(copied).keys() == dataclasses.asdict(state).keys()
    resumed = RunRecord.resumed(runs[0], study, copied)
    assert resumed.state().evaluations == ((0, 2.5), (8, math.pi))
    assert resumed.state().sets == (("wiki", 8, {"loss": math.e, "chance": 5.5}),)
    assert resumed.state().seconds == pytest.approx(100, abs=5)
    assert resumed.steps_done == resumed.steps_begun == 8
    assert resumed.intermediate() == [(8, 2.5)], "capped at the loss before the first step"
