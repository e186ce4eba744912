"""The benchmarks' scripts start, count rightly, gate wrong kernels, and keep old rows true."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import chart  # noqa: E402
import contests  # noqa: E402
import contests_of_rows  # noqa: E402
import counts  # noqa: E402
import gpu  # noqa: E402
import gpu_engine  # noqa: E402
import gpu_kernels  # noqa: E402
import gpu_overhead  # noqa: E402
import plain_step  # noqa: E402
import record  # noqa: E402
from contest import neighbours  # noqa: E402

from wesar_sweep.kernels.fused import attention as fused_attention  # noqa: E402
from wesar_sweep.kernels.fused import linear, prediction  # noqa: E402
from wesar_sweep.model import fused_decoder, plain  # noqa: E402


@pytest.fixture
def device() -> torch.device:
    """The GPU, or the CPU with Triton's interpreter where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


GPU_SCRIPTS = (
    "gpu_data", "gpu_engine", "gpu_kernels", "gpu_modes", "gpu_occupancy", "gpu_overhead",
)  # fmt: skip
SMALL, LARGE = gpu.CASES[0].architecture, gpu.CASES[-1].architecture


def script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", [*GPU_SCRIPTS, "cpu_engine", "encode", "chart", "record"])
def test_every_script_says_how_it_is_used(name):
    done = script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_encoding_is_measured_beside_the_library(tmp_path):
    rows = tmp_path / "rows.csv"
    words = ("--vocabulary", "400", "--repeats", "1", "--library-mb", "0.01", "--out", str(rows))
    done = script("encode", str(ROOT / "wesar_sweep" / "data"), *words)
    assert done.returncode == 0, done.stderr
    assert "by pieces" in done.stdout
    figures = [row["figure"] for row in csv.DictReader(rows.read_text().splitlines())]
    assert figures == ["cold", "warm", "library"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu_engine", ["--check", "--profile"]),
        ("gpu_kernels", ["--check", "--op", "rms_norm", "--op", "cross_entropy"]),
        ("gpu_kernels", ["--check", "--op", "rms_norm", "--sweep"]),
        ("gpu_overhead", ["--check"]),
        ("gpu_data", ["--check"]),
        ("gpu_modes", ["--check"]),
        ("gpu_occupancy", ["--check"]),
    ],
)
def test_every_gpu_script_runs_through_on_tiny_shapes_and_records_nothing(name, words, tmp_path):
    before = record.FILE.read_bytes()
    done = script(name, *words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout and "WRONG" not in done.stdout
    assert record.FILE.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured():
    done = script("gpu_overhead")
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stderr


def test_make_bench_leaves_the_gpu_alone_and_make_bench_gpu_the_processor():
    def commands(target: str) -> str:
        words = ["make", "-n", "--no-print-directory", "-o", ".venv/.installed", target]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert "cpu_engine" in commands("bench") and "gpu_" not in commands("bench")
    assert all(name in commands("bench-gpu") for name in GPU_SCRIPTS)
    assert "cpu_engine" not in commands("bench-gpu")


def test_flops_are_those_counted_by_hand():
    # d 128, N 4, F 512, V 256, T 256: 4 (4·128² + 2·128·512) + 256·128 = 819,200 parameters that
    # a token is multiplied with; attention adds 6·4·256·128 = 786,432 FLOPs.
    assert counts.matrix_parameters(SMALL) == 819_200
    assert counts.flops_a_token(SMALL) == 6 * 819_200 + 786_432
    # 12 (4·768² + 2·768·3072) + 32,000·768 = 109,510,656, with the embedding 134 M.
    assert counts.matrix_parameters(LARGE) == 109_510_656
    assert counts.parameters(LARGE) == 134_086_656
    # 0.57 M tokens/s were 406 TFLOP/s.
    assert 0.57e6 * counts.flops_a_token(LARGE) == pytest.approx(406e12, rel=0.01)


def test_bytes_are_those_counted_by_hand():
    # One kernel an op at F = 4D: 42 D forward and 68 D backward a layer, 2 bytes each; the ends
    # 11 D and 6 V.
    ends = 2 * (11 * 128 + 6 * 256)
    unfused = counts.one_kernel_an_op(SMALL).bytes_a_token(SMALL)
    assert unfused == 4 * 2 * 110 * 128 + ends
    # Narrow: 16 D + 2 F forward, 27 D + 3 F backward; the ends without logits, 8 D and 3 V.
    narrow = counts.engine(SMALL, narrow=True).bytes_a_token(SMALL)
    assert narrow == 4 * 2 * (43 * 128 + 5 * 512) + 2 * (8 * 128 + 3 * 256)
    # Wide: 24 D + 4 F forward, 32 D + 7 F backward; the ends 11 D and 5 V.
    wide = counts.engine(SMALL, narrow=False).bytes_a_token(SMALL)
    assert wide == 4 * 2 * (56 * 128 + 11 * 512) + 2 * (11 * 128 + 5 * 256)
    assert narrow < wide < unfused
    # 851,968 parameters · 40 bytes over 2,048 tokens.
    assert counts.state_bytes_a_token(SMALL) == 40 * 851_968 / 2048


def elements_a_layer(*, narrow: bool, **changes: object) -> float:
    """Of the small model, changed."""
    return sum(counts.engine(replace(SMALL, **changes), narrow=narrow).layer.values())


def test_bytes_follow_what_a_model_has():
    D, F = SMALL.width, SMALL.ffn_width
    for narrow in (True, False):
        usual = elements_a_layer(narrow=narrow)
        unturned = elements_a_layer(narrow=narrow, position="none")
        assert usual - unturned == (0 if narrow else 4 * D), "a rotation forward, unless inside"
        # Head norms: rotation apart both ways, and backward what was normed.
        normed = elements_a_layer(narrow=narrow, qk_norm=True)
        assert normed - unturned == 4 * D + 6 * D
        # The library's attention rotates nothing, and its gradients lie apart: values are copied,
        # or all three.
        long = elements_a_layer(narrow=narrow, context=1024)
        assert long - usual == 4 * D + 2 * D
        plain = elements_a_layer(narrow=narrow, context=1024, position="none")
        assert plain - unturned == 6 * D
    # Gated: u has 2 F instead of F where it is written, and where its gradient is read, twice. The
    # activation is apart: forward 3 F to make and F to read, not F; backward F written, then 5 F
    # to read it, u and to write u's gradient, not 2 F, and both sides of a product for each weight,
    # 3 F and 2 D, where GELU's kernel has all but D at hand.
    gated = elements_a_layer(narrow=True, ffn="swiglu") - elements_a_layer(narrow=True)
    assert gated == (1 + 2) * F + (4 - 1) * F + (6 - 2) * F + 2 * F + D
    large = replace(SMALL, vocabulary=257)
    ends = sum(counts.engine(large, narrow=True).ends.values())
    assert ends == 8 * D + 5 * 257, "logits are written, and read by the loss"


@pytest.mark.parametrize("context", [256, 512, 513, 1024])
@pytest.mark.parametrize("head_width", [8, 16, 24, 64, 96, 128, 256])
def test_bytes_are_counted_for_the_kernels_that_the_decoder_takes(context, head_width):
    a = replace(SMALL, context=context, width=2 * head_width, heads=2)
    assert a.head_width == head_width
    own = fused_attention.use_fused(context, head_width, torch.bfloat16)
    assert counts.has_own_attention(a) == own
    assert counts.turns_inside(a) == linear.turns(head_width)
    assert not counts.turns_inside(replace(a, qk_norm=True))
    assert counts.FULL_LOGITS_VOCABULARY == fused_decoder.FULL_LOGITS_VOCABULARY
    assert counts.ONE_KERNEL_VOCABULARY == prediction.LARGEST_VOCABULARY


def test_a_case_is_chosen_by_the_start_of_its_name():
    assert [case.name for case in gpu.chosen(gpu.CASES, [])] == [c.name for c in gpu.CASES]
    assert [case.name for case in gpu.chosen(gpu.CASES, ["130m", "d256"])] == ["130M", "d256 N8"]
    with pytest.raises(SystemExit, match="no case 'd64'"):
        gpu.chosen(gpu.CASES, ["d64"])


def test_the_cases_are_those_of_the_table():
    assert [(c.width, c.depth, c.slots, c.architecture.head_width) for c in gpu.CASES] == [
        (128, 4, 256, 64),
        (256, 8, 96, 64),
        (512, 8, 16, 64),
        (768, 12, 1, 64),
    ]
    assert LARGE.vocabulary == 32_000 and LARGE.tokens_per_step == 64 * 1024


def test_the_interval_is_students():
    # Three values of mean 2 and standard deviation 1: 4.3027 of 1/√3 either way.
    assert gpu_overhead.interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2, 2 - 2.4841, 2 + 2.4841), 1e-4
    )
    mean, low, high = gpu_overhead.interval([1.5])
    assert mean == 1.5 and low != low and high != high, "one value says nothing of its spread"


def test_the_controls_are_recorded_by_their_names():
    assert gpu_overhead.figure_of(gpu_overhead.AGAIN) == "he_again_over_he"
    assert gpu_overhead.figure_of(gpu_overhead.IN_PLACE) == "wesar_in_hes_place_over_he"
    assert gpu_overhead.figure_of(gpu_overhead.PROBED) == "wesar_probed_over_he"


def test_a_state_put_in_the_place_of_another_is_the_whole_of_it(device):
    """After the exchange the stack of he does what that of wesar does, and back again."""
    stacks = {
        method: gpu.make_stack(gpu.TINY, method=method, device=device) for method in ("he", "wesar")
    }
    here, there = (gpu_overhead.state_of(stacks[method]) for method in ("he", "wesar"))
    home = [value.clone() for value in here]
    gpu_overhead.copy(there, to=here)
    own = stacks["wesar"].train(3).read()[0]
    assert (stacks["he"].train(3).read()[0] == own).all()
    gpu_overhead.copy(home, to=here)
    assert (stacks["he"].train(3).read()[0] != own).any()


def test_implausible_losses_stop_a_report():
    assert gpu.is_plausible(5.6, vocabulary=256)
    assert not gpu.is_plausible(float("nan"), vocabulary=256)
    assert not gpu.is_plausible(4.0, vocabulary=256), "random tokens cannot be learnt"
    assert gpu.is_plausible(4.0, vocabulary=256, one_batch=True), "one batch can"
    assert not gpu.is_plausible(9.0, vocabulary=256, one_batch=True)


def test_the_way_to_the_first_step_is_told_in_parts():
    """They sum to the whole; the engine's share is without Python, torch and the device."""
    marks = {
        "process": 10.1,
        "imports": 12.1,
        "device": 12.6,
        "7 kernels compiled": 13.6,
        "stack": 13.8,
        "2 kernels compiled": 14.3,
        "first step": 15.0,
    }
    parts = gpu_engine.parts_of(marks, since=10.0)
    figures = gpu_engine.first_step_figures(parts, cache="warm")
    whole = "seconds_to_first_step_warm"
    assert figures == pytest.approx(
        {
            whole: 5.0,
            f"{whole}_engine": 2.4,
            f"{whole}_process": 0.1,
            f"{whole}_imports": 2.0,
            f"{whole}_device": 0.5,
            f"{whole}_kernels_compiled": 1.5,
            f"{whole}_stack": 0.2,
            f"{whole}_first_step": 0.7,
        }
    )


def test_the_baseline_rotates_as_the_plain_model_does():
    complex_rotate = plain.rotate
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(plain_step.real_rotate(x), complex_rotate(x))


@pytest.mark.parametrize("op", sorted(contests.CONTESTS))
def test_each_contest_compares_an_op_with_its_own_reference(op, device):
    contest = contests.CONTESTS[op](gpu.TINY, device, torch.float32)
    found = gpu_kernels.errors(contest)
    assert max(found.values()) <= contest.tolerance, found
    assert len(found) >= 1 + len(contest.wrt)


def test_a_sweep_starts_from_the_tiles_that_an_op_takes_by_itself(device):
    """Their neighbours differ from them in a field or two; a field may be None."""
    for op in sorted(contests.CONTESTS):
        made = contests.CONTESTS[op](gpu.TINY, device, torch.float32)
        assert set(made.tiles) == set(made.chosen), op
        for tiles in made.chosen.values():
            chosen, *others = neighbours(tiles)
            assert chosen == tiles and others and tiles not in others


def test_the_gate_sees_a_wrong_kernel(device):
    contest = contests_of_rows.rms_norm(gpu.TINY, device, torch.float32)
    forward, backward = contest.forward, contest.backward
    assert backward is not None
    contest.forward = lambda: tuple(1.02 * y for y in forward())
    assert gpu_kernels.errors(contest)["output 1"] > contest.tolerance
    contest.forward = forward
    contest.backward = lambda grads: (torch.full_like(g, torch.nan) for g in backward(grads))
    assert gpu_kernels.errors(contest)["gradient of gain_KD"] == float("inf")


def row(**changes: str) -> dict[str, str]:
    return dict.fromkeys(record.COLUMNS, "1") | {"benchmark": "gpu_engine", "device": "G"} | changes


def test_older_rows_get_the_new_columns_and_stay_true(tmp_path):
    file, old = tmp_path / "b.csv", record.COLUMNS[:13]
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([old, [str(i) for i in range(13)]])
    device = record.Device("some GPU", triton="3.6", cuda="13.0")
    record.append(
        [record.Measurement("x", "y", (1.0, 2.0, 3.0), case="d 1")], device=device, files=[file]
    )
    header, first, second = record.read_rows(file)
    assert header == list(record.COLUMNS)
    assert first == [str(i) for i in range(13)] + [""] * 3
    named = dict(zip(header, second, strict=True))
    assert (named["p50"], named["n"], named["device"], named["case"]) == (
        "2",
        "3",
        "some GPU",
        "d 1",
    )


def test_rows_of_another_machine_are_merged_once(tmp_path):
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    record.append_rows(there, [list(row(figure="a").values()), list(row(figure="b").values())])
    assert record.merge(there, into=here) == 2
    assert record.merge(there, into=here) == 0
    assert len(record.read_rows(here)) == 3


def test_a_commit_can_be_told_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("WESAR_COMMIT", "abc")
    assert record.commit() == "abc"
    monkeypatch.delenv("WESAR_COMMIT")
    monkeypatch.setenv("PATH", "")
    assert record.commit() == "unknown"


def test_the_chart_shows_the_newest_row_of_each(tmp_path):
    file = tmp_path / "b.csv"
    plain_figure, engine_figure = chart.SERIES
    rows = [
        row(case="d128", figure=engine_figure, p50="9e6", device="older"),
        row(case="d128", figure=engine_figure, p50="10e6"),
        row(case="d128", figure=plain_figure, p50="1.5e6"),
        row(case="d128", figure=engine_figure, p50="30e6"),
        row(case="130M", figure=engine_figure, p50="0.64e6"),
    ]
    record.append_rows(file, [list(r.values()) for r in rows])
    speeds = chart.newest(file)
    assert [(s.case, s.median) for s in speeds] == [
        ("d128", 30e6), ("d128", 1.5e6), ("130M", 0.64e6)
    ]  # fmt: skip
    assert chart.main(["--csv", str(file), "--out", str(tmp_path / "speed.svg")]) == 0
    drawn = (tmp_path / "speed.svg").read_text()
    assert "×20" in drawn and "0.64 M" in drawn


def test_without_rows_there_is_no_chart(tmp_path, capsys):
    record.append_rows(tmp_path / "b.csv", [])
    assert chart.main(["--csv", str(tmp_path / "b.csv")]) == 1
    assert "make bench-gpu" in capsys.readouterr().err


def test_a_failing_part_is_said_and_the_next_goes_on(tmp_path, capsys):
    results = gpu.Results("b", out=tmp_path, keep=False, device=record.Device("x"))
    with results.part("first"):
        raise RuntimeError("no memory")
    results.record("d1", second=1.0)
    assert results.close() == 1
    said = (tmp_path / "b.txt").read_text()
    assert "FAILED first: RuntimeError: no memory" in said
    assert "b d1 second: 1 (n 1)" in said and "1 failed: first" in capsys.readouterr().out
