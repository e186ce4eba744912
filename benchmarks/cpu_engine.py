"""The engine on this CPU: 16 runs through it against 16 one after the other in plain torch.

    python benchmarks/cpu_engine.py            (make bench)

Both train the shapes, batches and steps of search_spaces/lr_sigma.yaml on its corpus. The plain
loop is what a training script does: one module, torch.optim.AdamW, clipping, a schedule, with
torch's own choice of threads and, beside it, with one. The engine is `wesar-sweep run` as users
have it, start-up, data, storage, probes and evaluations included in its time. The two
take turns in one call; a row for each figure is appended to results/benchmarks.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import Measurement, append

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "search_spaces" / "lr_sigma.yaml"
RUNS = 16

PLAIN = """
import json, sys, time
import torch, torch.nn.functional as F
from wesar_sweep import load
from wesar_sweep.config import make_run
from wesar_sweep.model.plain import PlainDecoder
from wesar_sweep.data.corpus import load_corpus

study = load(sys.argv[1])
runs, threads = int(sys.argv[2]), int(sys.argv[3])
if threads:
    torch.set_num_threads(threads)
train = torch.from_numpy(load_corpus(study.data, context=study.model.context).train)
start = time.perf_counter()
tokens = 0
for seed in range(runs):
    run = make_run(study, 0, seed, {"method": "he", "lr": 1e-3})
    a, h = run.architecture, run.hyperparameters
    torch.manual_seed(seed)
    model = PlainDecoder(a)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=h.lr, betas=(h.beta1, h.beta2), weight_decay=h.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, h.steps)
    for step in range(h.steps):
        first = torch.randint(0, len(train) - a.context, (a.batch, 1))
        window = train[first + torch.arange(a.context + 1)].long()
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), h.clip)
        optimizer.step()
        schedule.step()
        tokens += a.tokens_per_step
print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}))
"""


def plain(*, threads: int) -> float:
    """Tokens a second of the plain loop, its imports and data left out of its time."""
    command = [sys.executable, "-c", PLAIN, str(STUDY), str(RUNS), str(threads)]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return done["tokens"] / done["seconds"]


def engine(folder: Path) -> dict[str, float]:
    """Tokens a second of `wesar-sweep run`, start to end, and where its workers' time went."""
    out = folder / "study"
    changes = ["space={lr: [1e-3, 2e-3, 3e-3, 4e-3]}", "method=he", "replicates=4"]
    command = [sys.executable, "-m", "wesar_sweep", "run", str(STUDY), "--out", str(out)]
    for change in changes:
        command += ["--set", change]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    beats = [json.loads(path.read_text()) for path in (out / "workers").glob("w*.json")]
    training = sum(beat["training_seconds"] for beat in beats) / len(beats)
    assert sum(beat["runs_done"] for beat in beats) == RUNS
    return {
        "tokens_per_second": sum(beat["tokens"] for beat in beats) / seconds,
        "while_training": sum(beat["tokens"] / beat["training_seconds"] for beat in beats),
        "share_not_training": 1 - training / seconds,
    }


def main() -> None:
    """Take turns, print medians, append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    series: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            values = {"plain_loop": plain(threads=0), "plain_loop_one_thread": plain(threads=1)}
            values |= {f"engine_{name}": value for name, value in engine(Path(folder)).items()}
        values["engine_over_plain_loop"] = values["engine_tokens_per_second"] / max(
            values["plain_loop"], values["plain_loop_one_thread"]
        )
        for name, value in values.items():
            series.setdefault(name, []).append(value)
    append([Measurement("cpu_engine", name, tuple(values)) for name, values in series.items()])


if __name__ == "__main__":
    main()
