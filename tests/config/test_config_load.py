"""Loading, overriding, resolving and hashing studies and sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wesar_sweep.config import (
    Choices,
    Range,
    Study,
    Sweep,
    Training,
    dump_study,
    grid_cells,
    load_study,
    load_sweep,
    make_run,
    parse_study,
    portable,
    resolved_precision,
    study_hash,
    yaml12,
)
from wesar_sweep.errors import ConfigError

FILE = """\
space:
  lr: {low: 1e-3, high: 1, log: true, points: 4}
  method: [he, wesar]
  sigma2: {choices: [4e-5, 1e-3], when: {method: wesar}}
training:
  steps: 100
"""


def reload(study: Study) -> Study:
    return parse_study(yaml12.parse(dump_study(study)).value)


def test_name_is_the_stem(load: Callable[..., Study]) -> None:
    assert load(FILE).name == "study"
    assert load("name: other\n" + FILE).name == "other"


def test_shorthands(load: Callable[..., Study]) -> None:
    study = load("space:\n  lr: 1\n  width: [32, 64]\n  heads: {choices: [1, 2]}\n")
    assert study.space == {
        "lr": Choices(choices=(1.0,)),
        "width": Choices(choices=(32, 64)),
        "heads": Choices(choices=(1, 2)),
    }
    (lr,) = study.space["lr"].choices  # type: ignore[union-attr]
    assert type(lr) is float


def test_python_models_are_taken_as_they_are() -> None:
    study = parse_study(
        {
            "space": {"lr": Range(low=0.1, high=1, points=2), "depth": (1, 2)},
            "training": Training(steps=50),
        }
    )
    assert study.training.steps == 50
    assert grid_cells(study)[0] == {"lr": 0.1, "depth": 1}


def test_problems_of_python_values_have_paths_only() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study({"space": {"lr": [0.1, {1}]}, "training": {"stepz": 3}})
    assert [str(problem).splitlines()[0] for problem in caught.value.problems] == [
        "training.stepz: unknown key",
        "space.lr[1]: expected a number, found a value of type set",
    ]


def test_fixed_and_searched_in_python() -> None:
    with pytest.raises(ConfigError, match=r"training\.lr: lr is set in both training and space"):
        parse_study({"space": {"lr": [0.1, 1]}, "training": Training(lr=0.5)})


@pytest.mark.parametrize(
    ("override", "look", "value"),
    [
        ("training.steps=50", lambda s: s.training.steps, 50),
        ("space.lr.low=1e-4", lambda s: s.space["lr"].low, 1e-4),
        ("space.lr=[1e-3,1e-2]", lambda s: s.space["lr"], Choices(choices=(1e-3, 1e-2))),
        ("space.lr=1", lambda s: s.space["lr"], Choices(choices=(1.0,))),
        ("pruner={name: wilcoxon}", lambda s: s.pruner.name, "wilcoxon"),
        ("pruner.name=wilcoxon", lambda s: s.pruner.name, "wilcoxon"),
        ("pruner=null", lambda s: s.pruner, None),
        ("model.tied=true", lambda s: s.model.tied, True),
        ("title=a = b", lambda s: s.title, "a = b"),
        ("name=other", lambda s: s.name, "other"),
    ],
)
def test_overrides(
    load: Callable[..., Study], override: str, look: Callable[[Study], Any], value: object
) -> None:
    assert look(load(FILE, override)) == value


def test_later_overrides_win(load: Callable[..., Study]) -> None:
    study = load(FILE, "training.steps=50", "training={warmup: 5}", "training.steps=60")
    assert (study.training.steps, study.training.warmup) == (60, 5)


def test_the_file_is_as_before(load: Callable[..., Study]) -> None:
    load(FILE, "training.steps=50")
    assert load_study("study.yaml").training.steps == 100


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            ["training.stepz=50"],
            "--set training.stepz=50: training.stepz: unknown key\n    value: 50\n"
            "    allowed: {TRAINING_KEYS}\n    hint: did you mean steps?",
        ),
        (
            ["training.lr=1e-3"],
            "--set training.lr=1e-3: training.lr: lr is set in both training and space\n"
            "    value: 1e-3\n    hint: keep one of the two; an override of what is searched is "
            "--set space.lr=...",
        ),
        (
            ["space.lr.low=0"],
            "--set space.lr.low=0: space.lr.low: lr cannot have this value\n    value: 0\n"
            "    allowed: a number, above 0",
        ),
        (
            ["training.steps=20"],
            "--set training.steps=20: training.steps: warmup 20 leaves nothing of steps 20\n"
            "    value: 20\n    allowed: a warmup below steps, for every combination\n"
            "    hint: set warmup to 2",
        ),
        (
            ["lr=1e-3"],
            "--set lr=1e-3: lr: unknown key\n    value: 1e-3\n    allowed: {STUDY_KEYS}\n"
            "    hint: lr belongs under training, or under space to vary it",
        ),
        (
            ["pruner.name=mean"],
            "--set pruner.name=mean: pruner.name: this is not one of the allowed values\n"
            "    value: mean\n"
            "    allowed: median, percentile, sha, hyperband, threshold, wilcoxon\n"
            "    hint: did you mean median?",
        ),
        (
            ["space.method.low=1"],
            "--set space.method.low=1: space.method.low: space.method is a plain value or a list, "
            "so that nothing can be set inside it\n"
            "    hint: set it as a whole: --set space.method=...",
        ),
        (
            ["steps"],
            "--set steps: an override is path=value\n"
            "    hint: such as --set training.steps=50 or --set space.lr=[1e-3,1e-2]",
        ),
        (
            ["training.steps=[1"],
            "--set training.steps=[1: training.steps: the value is not YAML: this list is not "
            "closed\n    value: [1\n    hint: separate values by commas and end with ]",
        ),
        (
            ["foo", "replicates=0", "training.batch=x"],
            "--set foo: an override is path=value\n"
            "    hint: such as --set training.steps=50 or --set space.lr=[1e-3,1e-2]\n"
            "--set replicates=0: replicates: the number is too small\n    value: 0\n"
            "    allowed: a whole number, at least 1, or a mapping with the keys min, max, until\n"
            "--set training.batch=x: training.batch: expected a whole number, found text\n"
            "    value: x\n    allowed: a whole number, at least 1",
        ),
    ],
)
def test_override_errors(refusal: Callable[..., str], overrides: list[str], error: str) -> None:
    assert refusal(FILE, *overrides) == error


def test_file_and_override_problems_together(refusal: Callable[..., str]) -> None:
    said = refusal(FILE.replace("steps: 100", "steps: 0"), "training.batch=0")
    assert [line for line in said.splitlines() if line[0] != " "] == [
        "study.yaml:6:10: training.steps: the number is too small",
        "--set training.batch=0: training.batch: the number is too small",
    ]


def test_a_finding_that_rests_on_a_wrong_value_is_left_out(refusal: Callable[..., str]) -> None:
    wrong = FILE.replace("steps: 100", "steps: ten\n  warmup: 400")
    # Were the default of 300 steps taken for the wrong one, warmup 400 would be refused too.
    assert [line for line in refusal(wrong).splitlines() if line[0] != " "] == [
        "study.yaml:6:10: training.steps: expected a whole number, found text"
    ]
    right = wrong.replace("ten", "300")
    assert "warmup 400 leaves nothing" in refusal(right)


def test_sweep(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("workers: 2\n")
    assert load_sweep(path) == Sweep(workers=2)
    assert load_sweep(path, overrides=["workers=null", "slots=4"]) == Sweep(slots=4)
    assert load_sweep(None) == Sweep()
    assert load_sweep(None, overrides=["device=cpu"]) == Sweep(device="cpu")


def test_sweep_errors(in_tmp_path: Path) -> None:
    Path("sweep.yaml").write_text("workers: 0\ndevices: cpu\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml", overrides=["slots=x"])
    assert str(caught.value) == (
        "sweep.yaml:1:10: workers: the number is too small\n"
        "    value: 0\n"
        "    allowed: a whole number, at least 1, or null\n"
        "sweep.yaml:2:1: devices: unknown key\n"
        "    value: cpu\n"
        f"    allowed: {', '.join(Sweep.model_fields)}\n"
        "    hint: did you mean device?\n"
        "--set slots=x: slots: expected a whole number, found text\n"
        "    value: x\n"
        "    allowed: a whole number, at least 1, or null"
    )


def test_a_key_says_which_launcher_it_belongs_to(in_tmp_path: Path) -> None:
    Path("sweep.yaml").write_text("partition: main\nsetup: [module load cuda]\nqos: null\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml", overrides=["gpus_per_worker=1"])
    assert [problem.path for problem in caught.value.problems] == [
        "partition",
        "setup",
        "gpus_per_worker",
    ]
    assert str(caught.value.problems[0]) == (
        "sweep.yaml:1:1: partition: partition belongs to launcher slurm, and this sweep has "
        "launcher local\n"
        "    value: main\n"
        "    hint: remove the key, or set launcher: slurm"
    )
    # The control: with that launcher all three are taken.
    sweep = load_sweep("sweep.yaml", overrides=["gpus_per_worker=1", "launcher=slurm"])
    assert sweep.setup == ("module load cuda",)
    # A launcher that is wrong itself is one problem, not four.
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml", overrides=["launcher=slurmm"])
    assert len(caught.value.problems) == 1


def test_a_lead_that_leaves_no_time_and_options_that_are_ours(in_tmp_path: Path) -> None:
    Path("sweep.yaml").write_text(
        "launcher: slurm\n"
        "timeout_min: 2\n"
        "signal_lead_s: 120\n"
        "slurm_additional_parameters: {exclude: n7, cpus_per_task: 8, signal: USR1@5}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml")
    lead, cpus, signal = caught.value.problems
    assert lead.message == "signal_lead_s 120 leaves nothing of timeout_min 2"
    assert lead.allowed == "a whole number, below 120"
    assert (cpus.path, cpus.hint) == (
        "slurm_additional_parameters.cpus_per_task",
        "use cpus_per_worker",
    )
    assert (signal.line, signal.hint) == (4, "use signal_lead_s")


def test_each_rank_of_a_job_has_a_gpu(in_tmp_path: Path) -> None:
    Path("sweep.yaml").write_text("launcher: slurm\ngpus_per_worker: 2\nranks_per_worker: 4\n")
    with pytest.raises(ConfigError, match="2 GPUs for 4 ranks of a worker"):
        load_sweep("sweep.yaml")
    assert load_sweep("sweep.yaml", overrides=["device=cpu"]).ranks_per_worker == 4
    assert load_sweep("sweep.yaml", overrides=["gpus_per_worker=4"]).gpus_per_worker == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ranks_per_worker": 3, "nodes": 2}, "ranks_per_worker 3 cannot be spread evenly over"),
        ({"ranks_per_worker": 2, "nodes": 2, "gpus_per_worker": 3}, "gpus_per_worker 3 cannot"),
        ({"ranks_per_worker": 4, "cpus_per_worker": 6}, "cpus_per_worker 6 cannot be spread"),
        ({"slurm_additional_parameters": {"nodes": 2}}, "use nodes"),
        ({"launcher": "local", "nodes": 2}, "nodes belongs to launcher slurm"),
        ({"checkpoint_min": None}, "begins anew in every job, without end"),
    ],
)
@pytest.mark.usefixtures("in_tmp_path")
def test_what_a_job_asks_for_is_spread_over_its_nodes_and_tasks(keys, said) -> None:
    Path("sweep.yaml").write_text(json.dumps({"launcher": "slurm", **keys}))
    with pytest.raises(ConfigError, match=said):
        load_sweep("sweep.yaml")
    whole = {"launcher": "slurm", "ranks_per_worker": 16, "nodes": 2, "gpus_per_worker": 16}
    Path("sweep.yaml").write_text(json.dumps({**whole, "cpus_per_worker": 64}))
    assert load_sweep("sweep.yaml").nodes == 2


def test_dump_spells_out_defaults_and_leaves_out_what_is_searched(
    load: Callable[..., Study],
) -> None:
    plain = yaml12.parse(dump_study(load(FILE))).value
    assert plain["retries"] == 2
    assert plain["data"] == {
        "source": "stdlib",
        "tokenizer": {"kind": "bytes"},
        "mask_documents": False,
        "held_out": 0.1,
        "max_bytes": 8_000_000,
    }
    assert "lr" not in plain["training"]
    assert "method" not in plain
    # sigma2 is searched under a condition, so the fixed one holds elsewhere.
    assert plain["training"]["sigma2"] == 4e-5


TEXT = st.text(max_size=20) | st.sampled_from(["no", "5e-4", "1:30", "0o7", "# x", "a: b", "~"])
LRS = st.lists(st.floats(1e-6, 10) | st.integers(1, 9), min_size=1, max_size=4, unique=True)
SPACES = st.fixed_dictionaries(
    {
        "lr": LRS.map(list)
        | st.builds(lambda high: {"low": 1e-6, "high": high, "points": 5}, st.floats(1, 9))
    },
    optional={
        "method": st.just(["he", "small", "wesar"]),
        "sigma2": st.builds(lambda choices: {"choices": choices, "when": {"method": "wesar"}}, LRS),
        "depth": st.builds(lambda high: {"low": 1, "high": high}, st.integers(2, 5)),
        "clip": st.just([None, 1]),
        "qk_norm": st.just([True, False]),
    },
)
STUDIES = st.fixed_dictionaries(
    {"space": SPACES},
    optional={
        "title": TEXT,
        "question": TEXT,
        "replicates": st.integers(1, 9),
        "training": st.fixed_dictionaries(
            {}, optional={"steps": st.integers(21, 10**6), "weight_decay": st.floats(0, 1)}
        ),
        "data": st.just({"source": "text", "paths": ["~", "no", "a b.txt"]}),
        "evaluation": st.just({"at": [3, 5]}),
        "methods": st.just({"mine": {"init": "gpt2", "reparametrization": "wesar"}}),
    },
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(STUDIES)
def test_a_resolved_study_reads_back_equal(raw: dict[str, Any]) -> None:
    study = parse_study(raw)
    again = reload(study)
    assert again == study
    assert repr(again) == repr(study)
    assert dump_study(again) == dump_study(study)
    assert study_hash(again) == study_hash(study)
    assert grid_cells(again) == grid_cells(study)


def test_hash() -> None:
    base = {"space": {"lr": [0.1, 1], "depth": [1, 2]}}
    digest = study_hash(parse_study(base))
    assert len(digest) == 64
    same: list[dict[str, Any]] = [
        {"space": {"lr": {"choices": [0.1, 1.0]}, "depth": [1, 2]}},
        {**base, "title": "other words", "question": "the same?"},
        {**base, "training": {"steps": 300}},
    ]
    other: list[dict[str, Any]] = [
        {"space": {"depth": [1, 2], "lr": [0.1, 1]}},
        {"space": {"lr": [0.1, 2], "depth": [1, 2]}},
        {**base, "training": {"steps": 301}},
        {**base, "name": "other"},
    ]
    assert {study_hash(parse_study(raw)) for raw in same} == {digest}
    assert len({digest, *(study_hash(parse_study(raw)) for raw in other)}) == len(other) + 1


def test_studies_from_before_there_was_a_choice_of_precision_go_on() -> None:
    """The hash they were begun with, as version 0.1.0 made it of a file without these keys."""
    digest = "820c2d85740405f0fafa9ce1898a652d9e99d894f4da6d58e455590e6194ab5a"
    base = {"space": {"lr": [0.1, 1], "depth": [1, 2]}}
    study = parse_study(base)
    assert study_hash(study) == digest, (
        "an older results directory would be refused: a new key must leave the hash alone where it "
        "has its default (see study_hash); update this number only with what changes every run"
    )
    assert study_hash(reload(study)) == digest
    choices = [{"precision": "fp32"}, {"precision": "bf16"}, {"deterministic": True}]
    hashes = {study_hash(parse_study({**base, "training": choice})) for choice in choices}
    assert len({digest, *hashes}) == 4


def test_studies_with_methods_of_their_own_from_before_sigma2_by_width_go_on() -> None:
    own = {"init": "gpt2", "reparametrization": "wesar"}
    base = {"space": {"lr": [0.1, 1], "method": ["own"]}}
    hashes = [
        study_hash(parse_study({**base, "methods": {"own": one}}))
        for one in ({"init": "gpt2"}, own, {**own, "sigma2_at_width": 128})
    ]
    assert hashes[0] == "c1bef3980b2e469263fa86115f3dd7d61e791dad53c1bad40cf3ea5b643e00d6"
    assert len(set(hashes)) == 3


def test_precision_is_spelled_out_and_overridden(load: Callable[..., Study]) -> None:
    study = load(FILE, "training.precision=tf32", "training.deterministic=true")
    assert (study.training.precision, study.training.deterministic) == ("tf32", True)
    assert reload(study) == study
    plain = yaml12.parse(dump_study(load(FILE))).value
    assert (plain["training"]["precision"], plain["training"]["deterministic"]) == (None, False)
    # What holds for the whole study is no column of a run.
    assert not {"precision", "deterministic"} & set(make_run(study, 0, 0, {}).columns())


@pytest.mark.parametrize(
    ("asked", "on_gpu", "on_cpu"),
    [
        (None, "bf16", "fp32"),
        ("fp32", "fp32", "fp32"),
        ("bf16", "bf16", None),
        ("tf32", "tf32", None),
    ],
)
def test_resolved_precision(asked: str | None, on_gpu: str, on_cpu: str | None) -> None:
    study = parse_study({"space": {"lr": 0.1}, "training": {"precision": asked}})
    assert resolved_precision(study, on_gpu=True) == on_gpu
    if on_cpu is not None:
        assert resolved_precision(study, on_gpu=False) == on_cpu
        return
    with pytest.raises(ConfigError) as caught:
        resolved_precision(study, on_gpu=False)
    assert str(caught.value) == (
        f"training.precision: precision {asked} needs a GPU, and the study would be trained on a "
        "CPU\n"
        f"    value: {asked}\n"
        "    allowed: fp32, or null\n"
        "    hint: use --set training.precision=fp32, or leave it out"
    )


def test_make_run(load: Callable[..., Study]) -> None:
    study = load(FILE)
    he, *_, wesar = grid_cells(study)
    run = make_run(study, 3, 1, wesar)
    assert run.key == (3, 1)
    assert (run.hyperparameters.method, run.hyperparameters.sigma2) == ("wesar", 1e-3)
    assert run.architecture.ffn_width == 4 * run.architecture.width
    assert run.architecture.vocabulary == 256
    # A method without sigma2 has none, whatever is fixed.
    assert make_run(study, 0, 0, he).columns()["sigma2"] is None


def test_heavy_libraries_stay_out() -> None:
    code = (
        "import sys, types\n"
        "package = types.ModuleType('wesar_sweep')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['wesar_sweep'] = package\n"
        "import wesar_sweep.config\n"
        "print([m for m in ('torch', 'optuna', 'polars', 'altair', 'scipy') if m in sys.modules])"
    )
    room = Path(sys.modules[Study.__module__].__file__ or "").parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code, str(room)], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


def test_portable_paths_and_a_hash_that_does_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab/own").mkdir(parents=True)
    text = {"source": "text", "paths": [f"{tmp_path}/lab/a.txt", "/elsewhere/b.txt"]}
    found = portable(parse_study({"space": {"lr": 0.1}, "data": text}), tmp_path / "lab")
    assert list(found.data.paths) == ["a.txt", "b.txt"]  # type: ignore[union-attr]
    root = portable(parse_study({"space": {"lr": 0.1}, "data": text}), Path("/"))
    assert list(root.data.paths) == ["a.txt", "b.txt"]  # type: ignore[union-attr]
    local = {"source": "huggingface", "name": f"{tmp_path}/lab/own", "tokens": 10_000}
    study = parse_study({"space": {"lr": 0.1}, "data": local})
    kept = portable(study, tmp_path / "lab")
    # Not "own", which somebody may have put on the hub.
    assert kept.data.name == "./own"  # type: ignore[union-attr]
    hashes = set()
    for folder in (tmp_path, tmp_path / "lab"):
        monkeypatch.chdir(folder)
        hashes |= {study_hash(study), study_hash(kept)}
    assert len(hashes) == 1
