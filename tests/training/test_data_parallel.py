"""Ranks: two processes that train a run together give what one gives, and die together.

On one machine, and as two tasks of a Slurm job on two nodes.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import wait_for

from tests.test_end_to_end import command
from wesar_sweep.store.beat import read_beats
from wesar_sweep.store.curves import read_curve
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes

STUDY = """
space:
  method: METHODS
  lr: [1e-3, 1e4]
replicates: 1
retries: 3
model: {width: 16, depth: 1, heads: 2, context: 16}
training: {steps: STEPS, batch: 4, warmup: 4, z_loss: 1e-3}
data: {source: synthetic, symbols: 32, length: 40000}
evaluation: {sequences: 8, every: 16}
probes: {every: 5}
"""

ONE = "launcher: inline\nslots: 1\n"
LONG = 300
"""Steps: long enough to be disturbed."""
TWO = "workers: 1\nranks_per_worker: 2\ncheckpoint_min: 0.002\n"
ON_TWO_NODES = TWO + "launcher: slurm\ndevice: cpu\nnodes: 2\ngpus_per_worker: 2\ntimeout_min: 5\n"

RANK = """
import json, os, sys, time
from datetime import timedelta
import numpy as np
import torch
torch.set_num_threads(1)
from wesar_sweep.config.run import make_run
from wesar_sweep.config.study import Study
from wesar_sweep.data.evaluation_sets import WindowGroup
from wesar_sweep.training import data_parallel
from wesar_sweep.training.data_parallel import LeaderStack, Ranks, RanksDiffer, follow
from wesar_sweep.training.scoring import DeviceWindows
from wesar_sweep.training.stack import StackTraits

if "--linger" in sys.argv:
    data_parallel._PATIENCE = timedelta(seconds=1)
rank, size, address, options = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
study = Study(
    name="test", space={"lr": {"choices": [1e-3]}}, probes={"every": 2},
    model={"width": 16, "depth": 2, "heads": 2, "context": 8},
    training={"steps": 9, "batch": 4, "warmup": 2, "z_loss": 1e-3, "clip": 0.5},
)
# The fused step runs in an interpreter here, which is slow.
few = "fused" in options
methods = ["he", "wesar", "sigma_reparam", "weight_norm", "embed_norm"][2 if few else 0:]
steps, end = (1, 2) if few else (3, 9)
runs = [make_run(study, n, n, {"lr": 1e-3, "method": name}) for n, name in enumerate(methods)]
text = torch.arange(4000).mul(7919).remainder(251).to(torch.uint8)
ranks = Ranks.join(rank=rank, size=size, address=address, device=torch.device("cpu"))
if "--linger" in sys.argv and not rank:
    time.sleep(2)
if rank:
    try:
        follow(ranks, text)
    except RanksDiffer:
        os._exit(3)  # The library may abort a process whose connections its peer has closed.
    ranks.leave()
    sys.exit(0)
stack = LeaderStack(
    runs[0].architecture, ranks=ranks, slots=len(runs), train_S=text,
    traits=StackTraits.of(study, methods=methods), **json.loads(options),
)
stack.load_many(range(len(runs)), runs)
found = [stack.train(steps, probe_at=(steps - 1,)).read()]
stack.keep([2, 1, 0])
found += [stack.train(steps, probe_at=(steps - 1,)).read() for _ in range(1 if few else 2)]
state = stack.state([0, 1, 2])
rows = {name: value[1] for name, value in state.items()}
stack.restore(2, rows, steps_done=end)
window = text[:45].long().view(5, 9)
losses = stack.evaluate([1, 2], window)
assert losses[0] == losses[1]
# Rank 0 alone judges on evaluation sets, too.
whole = np.full(5, 9, dtype=np.int32), np.full(5, 8, dtype=np.int32)
group = WindowGroup(
    token_WT=window.int().numpy(), length_W=whole[0], scored_W=whole[1], document_W=whole[0]
)
scores = stack.score([1, 2], DeviceWindows.of([group], device=torch.device("cpu")))
assert scores[0] == scores[1] and abs(scores[0].nll / 40 - losses[0]) < 1e-4, (scores, losses)
if "--spoil" in sys.argv:
    stack.rows.parameter_KP[0, 0] += 1e-7
    try:
        stack.state([0])
    except RanksDiffer as error:
        print(error, flush=True)
    os._exit(0)
ranks.tell("stop")
ranks.leave()
print(json.dumps({
    "loss": [x.tolist() for x, _, _ in found], "norm": [x.tolist() for _, x, _ in found],
    "update_ratio": [p[steps - 1]["update_ratio"].tolist() for _, _, p in found], "end": losses[0],
}))
"""


def ranks(tmp_path, size, *more, **options):
    """What the first of so many ranks prints, and how each ended."""
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    address = f"file://{tmp_path}/meet-{size}-{len(list(tmp_path.iterdir()))}"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "TRITON_INTERPRET": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), address, json.dumps(options), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]
    told = [process.communicate(timeout=180) for process in processes]
    assert processes[0].returncode == 0, told[0][1]
    return told[0][0], [process.returncode for process in processes]


@pytest.mark.parametrize("options", [{}, {"fused": True, "capture": False}], ids=["plain", "fused"])
def test_two_ranks_train_as_one(tmp_path, options):
    """The same global batch; float32, sums in another order, nine steps."""
    one, two = (json.loads(ranks(tmp_path, size, **options)[0]) for size in (1, 2))
    for name in ("loss", "norm", "update_ratio"):
        for mine, theirs in zip(two[name], one[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6, err_msg=name)
    assert two["end"] == pytest.approx(one["end"], rel=1e-4)
    # The control: the losses of other runs and steps are not so close.
    assert abs(np.array(two["loss"][0])[-1, 0] - np.array(two["loss"][1])[-1, 0]) > 1e-3
    if options:
        fed = json.loads(ranks(tmp_path, 2, fed=True, **options)[0])
        assert fed == two, "each rank is fed its share: the same bits"


def test_ranks_that_differ_are_noticed(tmp_path):
    said, endings = ranks(tmp_path, 2, "--spoil")
    assert "the ranks' parameters differ" in said and endings[1] == 3


def test_rank_0_may_let_the_others_wait(tmp_path):
    """For longer than they wait for gradients: it evaluates, or finds nothing to train."""
    said, endings = ranks(tmp_path, 2, "--linger")
    assert json.loads(said)["end"] and endings == [0, 0]


HANGS = """
import subprocess, sys, threading, time
from wesar_sweep import ranks
ranks._GRACE_S = 0.2
ending = threading.Event()
dies = "import time; time.sleep(0.3); raise SystemExit(7)"
other = subprocess.Popen([sys.executable, "-c", dies])
threading.Thread(target=ranks._end_with, args=(other, ending), daemon=True).start()
if "--over" in sys.argv:
    ending.set()
time.sleep(0.5 if "--over" in sys.argv else 60)
"""


@pytest.mark.parametrize(("words", "code"), [([], 1), (["--over"], 0)])
def test_who_waits_for_a_dead_rank_is_ended(words, code):
    """As on a GPU, where the sum of gradients never comes; and not once the others may end."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS, *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    assert ("another rank ended with exit status 7" in done.stderr) == (code == 1)


@pytest.fixture
def files(tmp_path):
    """A study of so many steps, and sweeps of one rank and of two."""

    def make(steps, methods="[he, wesar, sigma_reparam, weight_norm]"):
        text = STUDY.replace("STEPS", str(steps)).replace("METHODS", methods)
        (tmp_path / "study.yaml").write_text(text)
        (tmp_path / "one.yaml").write_text(ONE)
        (tmp_path / "two.yaml").write_text(TWO)
        (tmp_path / "nodes.yaml").write_text(ON_TWO_NODES)
        return tmp_path / "study.yaml"

    return make


def trained(study, sweep):
    """The results of a sweep, beside it."""
    done = subprocess.run(
        command("run", study, "--on", sweep, "--out", sweep.with_suffix("")),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return StudyDirectory(sweep.with_suffix(""))


def begun(study, sweep, *, out):
    """The driver of a study in the background."""
    return subprocess.Popen(
        command("run", study, "--on", sweep, "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_close(tmp_path, *, runs=8):
    one, two = (StudyDirectory(tmp_path / name) for name in ("one", "two"))
    rows = [{(o.trial, o.seed): o for o in read_outcomes(d)} for d in (one, two)]
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) == runs
    for key, row in rows[0].items():
        assert rows[1][key].status == row.status
        if row.status == "completed":
            c, d = read_curve(one, *key), read_curve(two, *key)
            # As long as rounding has not grown.
            np.testing.assert_allclose(c.loss[:12], d.loss[:12], rtol=1e-3)
            assert rows[1][key].val_loss == pytest.approx(row.val_loss, abs=0.02)


def test_a_study_on_two_ranks(files, tmp_path):
    study = files(40)
    for name in ("one", "two"):
        trained(study, tmp_path / f"{name}.yaml")
    assert_close(tmp_path)


def children(pid):
    """Processes whose parent it is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_rank_that_is_killed_takes_the_others_along_and_the_study_goes_on(
    files, tmp_path, victim
):
    study = files(LONG, "[he]")
    trained(study, tmp_path / "one.yaml")
    directory = StudyDirectory(tmp_path / "two")
    driver = begun(study, tmp_path / "two.yaml", out=directory.root)
    end = time.monotonic() + 60
    while not list(directory.checkpoints_folder.glob("w0/0*")):
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.02)
    leader = json.loads(directory.beat_file("w0").read_text())["pid"]
    (follower,) = children(leader)
    os.kill(leader if victim == "leader" else follower, signal.SIGKILL)
    _, errors = driver.communicate(timeout=180)
    assert driver.returncode == 0, errors
    for pid in (leader, follower):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "goes on after" in "".join(p.read_text() for p in directory.workers_folder.glob("*.log"))
    assert_close(tmp_path, runs=2)


def tasks(slurm):
    """Rank -> process of the tasks of a cluster's only job, by what Slurm has set for them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("cmdline").read_text().split("\0")
            places = process.joinpath("environ").read_text().split("\0")
        except OSError:
            continue
        here = f"SLURM_CONF={slurm.conf}" in places
        if here and "submitit.core._submit" in words and "srun" not in words[0]:
            ranks = [place for place in places if place.startswith("SLURM_PROCID=")]
            found |= {int(rank.partition("=")[2]): int(process.name) for rank in ranks}
    return found


@pytest.mark.slurm
@pytest.mark.slow
def test_ranks_on_two_nodes_of_a_cluster(files, tmp_path, slurm):
    """One job, a task on each node: requeued, then a rank dies, then the other; and it goes on."""
    study = files(LONG, "[he]")
    trained(study, tmp_path / "one.yaml")
    directory = StudyDirectory(tmp_path / "two")
    driver = begun(study, tmp_path / "nodes.yaml", out=directory.root)
    for life, victim in (("w0", None), ("w0.1", 1), ("w1", 0)):
        saved = directory.checkpoints_folder / life
        wait_for(lambda saved=saved: driver.poll() is not None or any(saved.glob("0*")))
        (job,) = slurm.jobs("RUNNING")
        assert "NumNodes=2" in slurm.client("scontrol", "show", "job", job)
        places = tasks(slurm)
        assert places.keys() == {0, 1}
        if victim is None:
            slurm.client("scancel", "--signal=USR2", job)
        else:
            os.kill(places[victim], signal.SIGKILL)
    _, errors = driver.communicate(timeout=180)
    assert driver.returncode == 0, errors
    assert {beat.worker for beat in read_beats(directory)} == {"w0", "w0.1", "w1", "w2"}
    logs = {path.name: path.read_text() for path in directory.workers_folder.glob("*.log")}
    assert "".join(logs.values()).count("goes on after") == 3 and "w0.rank1.log" in logs
    assert_close(tmp_path, runs=2)


def test_a_batch_that_does_not_divide_is_refused_at_once(files, tmp_path):
    study = files(9)
    study.write_text(study.read_text().replace("batch: 4", "batch: 3"))
    done = subprocess.run(
        command("run", study, "--on", tmp_path / "two.yaml", "--out", tmp_path / "two"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "ranks_per_worker" in done.stderr and "batch" in done.stderr
    assert not (tmp_path / "two").exists()
