"""Folded runs in the real transformers: equal logits, the whole way from a study, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from wesar_sweep.cli import app
from wesar_sweep.config import load_study
from wesar_sweep.config.run import Run, make_run
from wesar_sweep.config.study import Study
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.errors import ConfigError, StoreError
from wesar_sweep.export_model import best_weights, fold_run, write_model
from wesar_sweep.kernels import rope
from wesar_sweep.model.decoder import effective_weights, forward
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.outcomes import read_outcomes
from wesar_sweep.training.kept_weights import WeightKeeper, read_weights
from wesar_sweep.training.stack import Stack, StackTraits

METHODS = (
    "he", "small", "wesar", "weight_norm", "sigma_reparam", "residual_scaling", "scaled_embed",
    "embed_norm", "both",
)  # fmt: skip
TIED = ("he", "wesar", "weight_norm", "sigma_reparam")
"""Those that change nothing of the embedding output."""
CONTEXT, VOCABULARY = 16, 32


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    """The library, which says and fetches nothing of itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        yield transformers


def study_of(**model: Any) -> Study:
    """Tiny, with a method that has both switches of the embedding."""
    shape = {"width": 24, "depth": 2, "heads": 3, "context": CONTEXT, **model}
    both = {"init": "small", "scaled_embed": True, "embed_norm": True}
    return Study(
        name="tiny",
        space={"lr": {"choices": [1e-2]}},
        methods={"both": both},
        model=shape,
        data={"source": "synthetic", "symbols": VOCABULARY},
    )


def stack_of(study: Study, methods: tuple[str, ...]) -> tuple[Stack, list[Run]]:
    """A run a slot, its gains and gates far from where they begin."""
    runs = [make_run(study, n, 0, {"method": name}) for n, name in enumerate(methods)]
    stack = Stack(
        runs[0].architecture,
        slots=len(runs),
        traits=StackTraits.of(study, methods=methods),
        train_S=torch.zeros(999, dtype=torch.uint8),
    )
    stack.load_many(range(len(runs)), runs)
    rows, layout = stack.rows, stack.rows.layout
    generator = torch.Generator().manual_seed(0)
    moved = rows.parameter_KP[:, layout.matrix_parameters :]
    moved.mul_(1 + 0.3 * torch.randn(moved.shape, generator=generator))
    rows.refresh_effective()
    return stack, runs


def logits_of(stack: Stack, token_BT: torch.Tensor) -> torch.Tensor:
    """What the engine itself computes, [runs, B, T, V]."""
    a, K = stack.architecture, stack.slots
    with torch.no_grad():
        logit_KMV = forward(
            effective_weights(stack.rows.effective_KP, stack.rows.layout, train=False),
            token_BT.expand(K, -1, -1),
            architecture=a,
            rotation=rope.tables(a.context, a.head_width),
            switches=stack.table.switches(scale=True, normalise=True),
        )
    return logit_KMV.view(K, *token_BT.shape, a.vocabulary)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({"ffn": "swiglu"}, "LlamaForCausalLM"),
        ({"ffn": "swiglu", "qk_norm": True}, "Qwen3ForCausalLM"),
        ({}, "ArceeForCausalLM"),
        ({"qk_norm": True}, "ApertusForCausalLM"),
        ({"ffn_width": 20, "heads": 1}, "ArceeForCausalLM"),
        ({"ffn": "swiglu", "tied": True}, "LlamaForCausalLM"),
        ({"ffn": "swiglu", "tied": True, "qk_norm": True}, "Qwen3ForCausalLM"),
        ({"tied": True}, "ArceeForCausalLM"),
        ({"tied": True, "qk_norm": True}, "ApertusForCausalLM"),
    ],
)
def test_equal_logits(
    transformers: ModuleType, tmp_path: Path, shape: dict[str, Any], name: str
) -> None:
    methods = TIED if shape.get("tied") else METHODS
    stack, runs = stack_of(study_of(**shape), methods)
    token_BT = torch.randint(VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    expected_KBTV = logits_of(stack, token_BT)
    keeper = WeightKeeper(StudyDirectory(tmp_path / "study"))
    found = []
    for slot, run in enumerate(runs):
        file = keeper.keep(stack, slot, run, val_loss=1.0)
        folder = tmp_path / f"model{slot}"
        write_model(file, to=folder, tokenizer_json=None, end_of_document=None)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert type(model).__name__ == name
        assert model.dtype == torch.float32
        assert not any(loading.values()), loading
        with torch.no_grad():
            found.append(model(token_BT).logits)
    found_KBTV = torch.stack(found)
    # Two layers in float32, sums in another order.
    for method, got, expected in zip(methods, found_KBTV, expected_KBTV, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            got, expected, rtol=0, atol=1e-5 * max(1.0, scale), msg=lambda m, x=method: f"{x}: {m}"
        )
    # The control: no two methods have logits alike.
    for slot in range(1, len(methods)):
        assert float((found_KBTV[slot] - found_KBTV[0]).abs().max()) > 1e-2, methods[slot]


def test_a_tokenizer_goes_along(transformers: ModuleType, tmp_path: Path) -> None:
    """Byte-level, as a study's is: AutoTokenizer gives the same ids, and where to stop."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    bytes_ = Tokenizer(models.BPE(vocab={**vocab, "<|end|>": 256}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.add_special_tokens(["<|end|>"])
    data = {"source": "text", "paths": ["x"], "tokenizer": {"kind": "bpe", "vocabulary": 257}}
    study = study_of().model_copy(update={"data": Study(name="x", space={}, data=data).data})
    stack, (run,) = stack_of(study, ("wesar",))
    file = WeightKeeper(StudyDirectory(tmp_path)).keep(stack, 0, run, val_loss=1.0)
    folder = tmp_path / "model"
    write_model(file, to=folder, tokenizer_json=bytes_.to_str(), end_of_document=256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Größe, 12 words  and\n\nan end"
    ids = tokenizer(text)["input_ids"]
    assert ids == bytes_.encode(text).ids and len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 256)
    assert tokenizer.model_max_length == CONTEXT
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == 256
    batch = tokenizer(["a", "bc"], return_tensors="pt", padding=True)
    made = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert made.shape == (2, 6)


STUDY = """
space:
  lr: [1e-3, 3e-3, 1e9]
  method: [wesar, small]
replicates: 2
model: {width: 12, depth: 1, heads: 2, context: 16}
training: {steps: 20, batch: 4, warmup: 4}
data: {source: synthetic, symbols: 32, length: 40000}
evaluation: {sequences: 8}
divergence: {window: 4, patience: 8}
keep_weights: true
"""


def run(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wesar_sweep", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StudyDirectory:
    """A study that keeps its weights, by the command line."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.yaml").write_text(STUDY)
    (folder / "inline.yaml").write_text("launcher: inline\n")
    out = folder / "out"
    run("run", folder / "tiny.yaml", "--on", folder / "inline.yaml", "--slots", 3, "--out", out)
    return StudyDirectory(out)


def test_a_study_by_the_command_line(
    transformers: ModuleType, trained: StudyDirectory, tmp_path: Path
) -> None:
    """Its best run has, in transformers, the validation loss that the study reports."""
    rows = read_outcomes(trained)
    completed = [row for row in rows if row.status == "completed"]
    files = sorted(trained.weights_folder.iterdir())
    assert files == [trained.weights_file(row.trial, row.seed) for row in completed]
    assert len(completed) == 8 and len(rows) == 12
    best = min(completed, key=lambda row: row.val_loss or 0.0)
    done = run("fold", trained.root, "--to", tmp_path / "new" / "model")
    assert done.stdout == f"{tmp_path / 'new' / 'model'}\n"
    assert done.stderr.startswith(f"trial {best.trial}, seed {best.seed} of tiny: ")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "model")

    corpus = load_corpus(load_study(trained.study_file).data, context=16)
    first_S = np.linspace(0, len(corpus.validation) - 17, 8).astype(np.int64)
    window_ST = torch.from_numpy(
        corpus.validation[first_S[:, None] + np.arange(17)].astype(np.int64)
    )
    with torch.no_grad():
        logit_STV = model(window_ST[:, :-1]).logits
    nll = torch.nn.functional.cross_entropy(logit_STV.flatten(0, 1), window_ST[:, 1:].flatten())
    assert float(nll) == pytest.approx(best.val_loss, abs=1e-5)


def test_which_run_is_chosen(trained: StudyDirectory, tmp_path: Path) -> None:
    completed = [row for row in read_outcomes(trained) if row.status == "completed"]

    def least(**asked: int) -> Path:
        fits = [row for row in completed if all(getattr(row, k) == v for k, v in asked.items())]
        best = min(fits, key=lambda row: row.val_loss or 0.0)
        return trained.weights_file(best.trial, best.seed)

    assert best_weights(trained, trial=None, seed=None) == least()
    assert best_weights(trained, trial=1, seed=None) == least(trial=1)
    assert best_weights(trained, trial=None, seed=1) == least(seed=1)
    assert best_weights(trained, trial=1, seed=1) == least(trial=1, seed=1)
    assert len({least(), least(trial=1), least(seed=1), least(trial=1, seed=1)}) > 2
    kept = fold_run(trained.weights_file(0, 1), to=tmp_path / "model")
    assert (kept.trial, kept.seed, kept.steps) == (0, 1, 20)
    with pytest.raises(ConfigError, match="--trial and --seed choose among the runs of a study"):
        fold_run(trained.weights_file(0, 1), to=tmp_path / "other", seed=1)


def test_a_folder_with_files_is_refused(trained: StudyDirectory, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    done = run("fold", trained.root, "--to", full, code=2)
    assert done.stderr.startswith("--to: the folder is not empty\n")
    with pytest.raises(ConfigError, match="--to: this is a file, not a folder"):
        fold_run(trained.root, to=full / "mine")
    assert [file.name for file in full.iterdir()] == ["mine"]
    empty = tmp_path / "empty"
    empty.mkdir()
    fold_run(trained.root, to=empty)
    assert sorted(file.name for file in empty.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"
    ]  # fmt: skip
    json.loads((empty / "config.json").read_text())


def refusal(directory: StudyDirectory, to: Path, **asked: int) -> str:
    with pytest.raises(ConfigError) as caught:
        fold_run(directory.root, to=to, **asked)
    assert not to.exists()
    return str(caught.value)


@pytest.fixture
def copied(trained: StudyDirectory, tmp_path: Path) -> StudyDirectory:
    """The study and its outcomes, without weights."""
    directory = StudyDirectory(tmp_path / "copied")
    directory.create()
    directory.study_file.write_bytes(trained.study_file.read_bytes())
    for file in trained.outcomes_folder.iterdir():
        (directory.outcomes_folder / file.name).write_bytes(file.read_bytes())
    return directory


def test_why_a_run_cannot_be_folded(copied: StudyDirectory, tmp_path: Path) -> None:
    to = tmp_path / "model"
    said = refusal(copied, to)
    assert said.startswith("the weights of none of the 8 completed runs are in ")
    assert "the disk was full" in said
    assert refusal(copied, to, trial=0).startswith(
        "the weights of none of the 2 completed runs of "
    )
    diverged = next(row.trial for row in read_outcomes(copied) if row.status == "diverged")
    assert refusal(copied, to, trial=diverged).startswith(
        f"none of the 2 runs of --trial {diverged} that ended has completed"
    )
    assert refusal(copied, to, trial=9, seed=1) == (
        "--trial 9 --seed 1: no such run has ended\n    allowed: trials 0 to 5 and seeds 0 to 1"
    )
    text = copied.study_file.read_text()
    copied.study_file.write_text(text.replace("keep_weights: true", "keep_weights: false"))
    said = refusal(copied, to)
    assert said.startswith(f"keep_weights: the study in {copied.root} kept no weights")
    command = f"--set keep_weights=true --out {copied.root}_weights"
    assert "run it with keep_weights: true" in said and command in said
    with pytest.raises(StoreError, match="no study in"):
        fold_run(tmp_path, to=to)
    with pytest.raises(StoreError, match=r"cannot read .*nothing: No such file"):
        fold_run(tmp_path / "nothing", to=to)


def test_what_no_stock_model_computes(tmp_path: Path) -> None:
    for n, (shape, method, why) in enumerate(
        [
            ({"position": "none"}, "he", "model.position: a model without positions cannot"),
            ({"tied": True}, "scaled_embed", "model.tied: a tied model with scaled_embed cannot"),
            ({"tied": True}, "embed_norm", "model.tied: a tied model with embed_norm cannot"),
        ]
    ):
        stack, (one,) = stack_of(study_of(**shape), (method,))
        file = WeightKeeper(StudyDirectory(tmp_path)).keep(
            stack, 0, replace(one, trial=n), val_loss=1.0
        )
        assert read_weights(file)[0].method == method
        with pytest.raises(ConfigError) as caught:
            fold_run(file, to=tmp_path / "model")
        assert str(caught.value).startswith(why)
        assert not (tmp_path / "model").exists()


def test_the_command_is_there() -> None:
    assert "fold" in {command.callback.__name__ for command in app.registered_commands}
