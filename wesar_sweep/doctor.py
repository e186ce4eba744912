"""`doctor`: what this machine is, and whether it is fit to train.

Facts, checks and short measurements as plain values; `doctor_view` prints them. Whatever is found
wrong is a problem that ends with what to do; only a problem that keeps studies from training, or
makes them wrong, counts against the machine.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from wesar_sweep.config import resolved_precision
from wesar_sweep.config.check_space import TooManySettingsError, settings
from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.run import Architecture, make_run
from wesar_sweep.config.space import possible_values
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import ConfigError
from wesar_sweep.kernels import check
from wesar_sweep.kernels.linear import batched_product_is_independent
from wesar_sweep.launchers.devices import cpu_cores, free_memory_gb, visible_gpus
from wesar_sweep.launchers.placement import plan_workers
from wesar_sweep.store.provenance import cpu_model
from wesar_sweep.training import memory
from wesar_sweep.training.stack import StackTraits

LIBRARIES = ("torch", "triton", "numpy", "optuna", "submitit", "polars", "altair")
"""What training and its report stand on, beside Python."""

OPTIONAL = {
    "triton": "the kernels on a GPU",
    "cmaes": "the sampler cmaes",
    "zstandard": "text in .zst files before Python 3.14",
    "optuna-dashboard": "a live view of a study",
}
"""What a machine can do without, and what for."""

KNOWN_GPUS = {"H200": {"device copy": (4.3, 4.3), "bf16 matrix product": (770.0, 800.0)}}
"""Part of a GPU's name -> what others of its kind were measured to reach, in the units below."""

RESULTS = Path("results")
MOST_ARCHITECTURES = 12
"""Of a study with more, some are asked for their slots, the smallest and the largest among them."""

_LEAST_DISK_GB = 1.0
_SLOW = 0.8
"""Below this share of what is known of its kind, a device is called slow."""
_COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 256 * 2**20}
_MATRIX_WIDTH = {"cuda": 8192, "cpu": 1024}
_REPEATS = {"cuda": 20, "cpu": 7}
_NVIDIA_SMI_TIMEOUT_S = 20

Where = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not as it should be."""

    what: str
    do: str
    """What to do about it."""
    failed: bool = True
    """Whether studies cannot train, or not rightly; otherwise they are only slower or poorer."""


@dataclass(slots=True)
class Findings:
    """What was found; see `examine` for the keys."""

    facts: dict[str, Any] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)

    def trouble(self, what: str, *, do: str, failed: bool = True) -> None:
        """Note a problem."""
        self.troubles.append(Trouble(what, do, failed))


def examine(
    study: Study | None = None,
    *,
    sweep: Sweep,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Look at the machine, check the kernels, measure the speed, choose slots.

    Args:
        study: Whose slots to choose; None: none.
        sweep: The machines, of which this is one: its device, and how full the slots may fill it.
        say: Told what comes next, before what takes a while.

    Returns:
        ``fit``; ``device`` (None where the one asked for cannot be used); ``machine``; ``versions``
        (name -> version, None where absent); ``results`` (where they go, and the room there);
        ``speed``; ``kernels``; on a CPU ``batched_products_independent``; ``slots`` (None without a
        study); ``problems``.
    """
    found = Findings()
    device = find_device(sweep.device, found)
    found.facts["device"] = device.type if device else None
    found.facts["machine"] = machine_facts(device)
    found.facts["versions"] = versions(found, device=device)
    look_at_disk(found, folder=RESULTS)
    found.facts |= {"kernels": None, "speed": [], "slots": None}
    if device is not None:
        say(f"measuring the speed of the {_kind(device)}")
        try:
            found.facts["speed"] = measure(device, found)
        except RuntimeError as error:
            found.trouble(
                f"the speed cannot be measured: {_first_line(error)}",
                do="look with nvidia-smi whether another process fills the memory",
            )
        if check.why_unused(device) is None:
            say("checking the kernels against their references")
        found.facts["kernels"] = kernels_report(device, found)
        # What a broken kernel leaves of a GPU is not to be built upon.
        sound = all(row["ok"] for row in found.facts["kernels"]["checks"])
        if study is not None and sound:
            say("choosing the slots")
            found.facts["slots"] = _slots(study, sweep, device, found)
    problems = [asdict(trouble) for trouble in found.troubles]
    return {
        "fit": not any(trouble.failed for trouble in found.troubles),
        **found.facts,
        "problems": problems,
    }


def find_device(asked: Where, found: Findings) -> torch.device | None:
    """The device that workers here would train on, as `launchers.placement` places them."""
    gpus = visible_gpus() if asked != "cpu" else ()
    if asked == "cpu" or (asked == "auto" and not gpus):
        # As a worker does: one thread, so that sums have one order.
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not gpus:
        found.trouble(
            "device cuda was asked for, and no GPU is visible",
            do="look at nvidia-smi and at CUDA_VISIBLE_DEVICES, or use --device cpu",
        )
        return None
    if torch.version.cuda is None:
        found.trouble(
            f"this machine has {len(gpus)} GPU(s), and torch {torch.__version__} is a build "
            "without CUDA: a study would fail",
            do="pip uninstall -y torch && pip install torch (without constraints-cpu.txt), "
            "or use --device cpu",
        )
        return None
    try:
        torch.zeros(1, device="cuda")
    except RuntimeError as error:
        found.trouble(
            f"torch cannot use the GPU: {_first_line(error)}",
            do="update the NVIDIA driver, or install a torch for the CUDA version that nvidia-smi "
            f"shows (this one is for {torch.version.cuda}), or use --device cpu",
        )
        return None
    return torch.device("cuda", 0)


def machine_facts(device: torch.device | None) -> dict[str, Any]:
    """The processor, and of the GPU its name, driver, CUDA and memory."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cpu_cores(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "free_memory_gb": free_memory_gb(),
        "platform": platform.platform(),
    }
    if device is not None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpus": torch.cuda.device_count(),
            "compute_capability": f"{major}.{minor}",
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
            "gpu_memory_gb": total / 1e9,
            "free_gpu_memory_gb": free / 1e9,
        }
    return facts


def versions(found: Findings, *, device: torch.device | None) -> dict[str, str | None]:
    """Versions of Python and the libraries; None where one is absent."""
    here: dict[str, str | None] = {"python": platform.python_version()}
    for name in dict.fromkeys(("wesar-sweep", *LIBRARIES, *OPTIONAL)):
        try:
            here[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            here[name] = None
    missing = [name for name in LIBRARIES if here[name] is None and name not in OPTIONAL]
    if missing:
        names = " ".join(missing)
        found.trouble(f"not installed: {names}", do=f"pip install {names}")
    if device is not None and device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            found.trouble(
                "triton is not installed: there are no kernels for this GPU",
                do=f'pip install "{_triton_of_torch()}"',
            )
        elif not _c_compiler():
            found.trouble(
                "no C compiler is found, which triton needs to load its kernels",
                do="install one, such as by `apt-get install gcc`, or name yours in CC",
            )
        elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            found.trouble(
                "Python.h is not found, which triton needs to load its kernels",
                do=f"install Python's headers, such as by `apt-get install "
                f"python{sysconfig.get_python_version()}-dev`",
                # Triton may carry a launcher that was built before.
                failed=False,
            )
    return here


def look_at_disk(found: Findings, *, folder: Path) -> None:
    """Room and permission to write where results go."""
    there = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir()
    )
    free_gb = shutil.disk_usage(there).free / 1e9
    found.facts["results"] = {"path": str(folder.absolute()), "free_gb": free_gb}
    if not os.access(there, os.W_OK):
        found.trouble(
            f"{there} cannot be written", do="run in another folder, or name one with --out"
        )
    elif free_gb < _LEAST_DISK_GB:
        found.trouble(
            f"{free_gb:.2f} GB are free at {there}, and curves and the database grow",
            do="delete old results, or name a folder on another disk with --out",
        )


def kernels_report(device: torch.device, found: Findings) -> dict[str, Any]:
    """Every kernel against its reference on this device, in the precisions that it is used in."""
    why = check.why_unused(device)
    if why is not None:
        return {"used": False, "why": why, "checks": []}
    rows: list[dict[str, Any]] = []
    for one in check.checks():
        for dtype in one.dtypes(device):
            allowed = one.tolerances[dtype]
            try:
                error = one.worst_error(device, dtype)
                message = None if error < float("inf") else "not finite, or never written"
            # A kernel can fail in any way: in its compiler, its launch, or the device.
            except Exception as exception:
                error, message = float("inf"), f"{type(exception).__name__}: {exception}"
            ok = error <= allowed
            rows.append(
                {
                    "op": one.op,
                    "dtype": str(dtype).removeprefix("torch."),
                    # JSON has no infinity.
                    "error": error if error < float("inf") else None,
                    "tolerance": allowed,
                    "ok": ok,
                    "message": message,
                }
            )
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        names = ", ".join(dict.fromkeys(str(row["op"]) for row in wrong))
        bf16_alone = all(row["dtype"] == "bfloat16" for row in wrong)
        found.trouble(
            f"these kernels do not equal their references here: {names}",
            do="train nothing by them: use "
            f"{'--set training.precision=fp32 or ' if bf16_alone else ''}--device cpu, and open an "
            "issue with the output of `wesar-sweep doctor --json`",
        )
    return {"used": True, "why": None, "checks": rows}


def measure(device: torch.device, found: Findings) -> list[dict[str, Any]]:
    """Copy bandwidth and matrix product, each with what is known of its kind.

    On a CPU of one thread, as a worker has, and in float32, as it trains.
    """
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else ""
    kind = next((part for part in KNOWN_GPUS if re.search(rf"\b{part}\b", name)), None)
    where, precision = ("device", "bf16") if on_gpu else ("memory", "float32")
    copy = f"{where} copy"
    product = f"{precision} matrix product"
    width = _MATRIX_WIDTH[device.type]
    scale, rate, flops = (1e12, "TB/s", "TFLOP/s") if on_gpu else (1e9, "GB/s", "GFLOP/s")
    rows: list[dict[str, Any]] = []
    for what, value, unit, how in (
        (copy, copy_bandwidth(device) / scale, rate, "read and written counted"),
        (product, matrix_rate(device, width=width) / scale, flops, f"{width} cubed"),
    ):
        known = KNOWN_GPUS[kind].get(what) if kind else None
        rows.append({"what": what, "value": value, "unit": unit, "how": how, "known": known})
        if known is not None and value < _SLOW * known[0]:
            found.trouble(
                f"{what}: {value:.3g} {unit}, where an {kind} reaches {known[0]:g}",
                do="look with nvidia-smi for another process on this GPU, its power limit and its "
                "temperature",
                failed=False,
            )
    if not on_gpu:
        independent = batched_product_is_independent()
        found.facts["batched_products_independent"] = independent
        if not independent:
            found.trouble(
                "batched matrix products depend on the number of runs here, so that they are taken "
                "run by run: as right, and slower for very small models",
                do="nothing is needed; another build of torch may do better",
                failed=False,
            )
    return rows


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy inside the device, read and written both counted; the median."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_gb() * 1e9
    # Far above the caches: two tensors, and of a full device no more than half of what is left.
    size = int(min(_COPY_BYTES[device.type], free / 4)) // 4
    source = torch.empty(size, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    seconds = _median_seconds(lambda: target.copy_(source), device)
    return 2 * 4 * size / seconds


def matrix_rate(device: torch.device, *, width: int) -> float:
    """FLOP a second of a square matrix product, bf16 on a GPU and float32 on a CPU; the median."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    # Random numbers: of zeros a GPU makes less heat, and so is faster than it would train.
    left, right = (
        torch.randn(width, width, generator=generator, device=device, dtype=dtype) for _ in range(2)
    )
    out = torch.empty_like(left)
    seconds = _median_seconds(lambda: torch.mm(left, right, out=out), device)
    return 2.0 * width**3 / seconds


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    repeats = _REPEATS[device.type]
    if device.type == "cpu":
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])
    for _ in range(repeats // 2):
        work()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in marks:
        before.record()
        work()
        after.record()
    torch.cuda.synchronize(device)
    return statistics.median(float(before.elapsed_time(after)) for before, after in marks) / 1e3


def slots_report(
    study: Study, device: torch.device, *, memory_fraction: float, workers: int
) -> list[dict[str, Any]]:
    """The K that a worker would choose for each architecture of a study, and why.

    Args:
        study: Its space says which architectures there are.
        device: Where it would train.
        memory_fraction: Share of the free memory that the slots may fill.
        workers: Workers that share this memory.

    Returns:
        One mapping an architecture, smallest first; of more than `MOST_ARCHITECTURES` a choice.
        ``slots`` is 0 where not even one run fits.

    Raises:
        ConfigError: The device has not the study's precision.
    """
    precision = resolved_precision(study, on_gpu=device.type == "cuda")
    methods = [str(name) for name in possible_values(study, "method")]
    # What it costs to tell documents apart is the same whatever token ends them.
    document_end = 0 if study.data.mask_documents else None
    traits = StackTraits.of(study, methods=methods, document_end=document_end)
    rows = []
    for a in _some(architectures(study)):
        try:
            fit = memory.choose_slots(
                a,
                device=device,
                memory_fraction=memory_fraction,
                workers=workers,
                traits=traits,
                precision=precision,
            )
        except torch.OutOfMemoryError:
            fit = memory.Fit(0, a.batch, 0, 0, 0)
        rows.append(
            {
                **asdict(a),
                "slots": fit.slots,
                "micro_batches": fit.micro_batches,
                "run_gb": fit.bytes_a_run / 1e9,
                "fixed_gb": fit.bytes_fixed / 1e9,
                "room_gb": fit.bytes_free / 1e9,
                "why": _why(fit, on_cpu=device.type == "cpu"),
            }
        )
    return rows


def _why(fit: memory.Fit, *, on_cpu: bool) -> str:
    if fit.slots == 0:
        return "not even one run fits, a sequence at a time"
    fits = (fit.bytes_free - fit.bytes_fixed) // max(1, fit.bytes_a_run)
    parts = f", a step in {fit.micro_batches} parts" if fit.micro_batches > 1 else ""
    if fits < 1:
        return f"the least, though it may not fit{parts}"
    if fit.slots >= fits:
        return f"as many as fit{parts}"
    return f"{fits} fit; {'one core trains more no faster' if on_cpu else 'fewer pay'}{parts}"


def architectures(study: Study) -> list[Architecture]:
    """The architectures that the runs of a study can have.

    Of long ranges a few values stand for all, as in the study's own checks.
    """
    cells = listed_cells(study)
    if cells is None:
        shape = [knob for knob in study.space if knob in Architecture.__dataclass_fields__]
        cells = list(settings(study, *shape))
    runs = (make_run(study, number, study.first_seed, cell) for number, cell in enumerate(cells))
    return list(dict.fromkeys(run.architecture for run in runs))


def _some(found: Sequence[Architecture]) -> list[Architecture]:
    """All, or evenly chosen ones with both ends, by the memory of a run."""
    ordered = sorted(found, key=memory.counted_bytes_a_run)
    last, most = len(ordered) - 1, MOST_ARCHITECTURES
    if last < most:
        return ordered
    return [ordered[round(index * last / (most - 1))] for index in range(most)]


def _slots(
    study: Study, sweep: Sweep, device: torch.device, found: Findings
) -> dict[str, Any] | None:
    """`slots_report` with what belongs to the study as a whole; None where it cannot train here."""
    try:
        workers = plan_workers(sweep)
        precision = resolved_precision(study, on_gpu=device.type == "cuda")
        count = len(architectures(study))
    except ConfigError as error:
        for problem in error.problems:
            found.trouble(problem.message, do=problem.hint or "change the study")
        return None
    except TooManySettingsError as error:
        found.trouble(f"{error}: no slots are chosen", do="use fewer values", failed=False)
        return None
    try:
        rows = slots_report(
            study, device, memory_fraction=sweep.memory_fraction, workers=len(workers)
        )
    except RuntimeError as error:
        found.trouble(
            f"a training step of the study fails here: {_first_line(error)}",
            do="use --device cpu, and open an issue with the study file and the output of "
            "`wesar-sweep doctor --json`",
        )
        return None
    if not all(row["slots"] for row in rows):
        found.trouble(
            "some architectures of the study do not fit into this GPU",
            do="use a smaller width, depth, context or vocabulary, or end what else uses the GPU",
        )
    return {
        "study": study.name,
        "precision": precision,
        "memory_fraction": sweep.memory_fraction,
        "workers": len(workers),
        "architectures": count,
        "slots_set": sweep.slots,
        "rows": rows,
    }


def _kind(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _c_compiler() -> bool:
    """Whether triton finds a compiler, by its own rules."""
    named = os.environ.get("CC")
    return any(shutil.which(name) for name in ((named,) if named else ("clang", "gcc", "cc")))


def _triton_of_torch() -> str:
    """The requirement of triton that this torch states; its name alone where it states none."""
    for line in metadata.requires("torch") or ():
        if re.match(r"triton\b", line):
            return line.partition(";")[0].strip()
    return "triton"


def _driver_version() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
