"""The rooms of the package: which may import which, which library lives where, and no cycles.

Every import statement counts, wherever it stands: inside a function, under ``TYPE_CHECKING``, or as
a constant given to ``import_module``. What is loaded at run time is looked at in fresh processes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wesar_sweep"

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "stability": {"config", "errors"},
    "store": {"config", "errors"},
    "data": {"store", "config", "errors"},
    "kernels": set(),
    "model": {"kernels", "config", "errors"},
    "training": {"data", "model", "kernels", "stability", "store", "config", "errors"},
    "studies": {"stability", "store", "config", "errors"},
    "launchers": {"config", "errors"},
    "analysis": {"stability", "store", "config", "errors"},
    "reports": {"analysis", "stability", "store", "config", "errors"},
}
"""Room -> the rooms it may import. The modules beside the rooms join them, and may import all."""

WALLS: dict[str, tuple[str, ...]] = {
    # Its PED-ANOVA is asked for by the report, of a study in memory: see analysis/importance.py.
    "optuna": ("studies", "analysis.importance"),
    "sqlalchemy": ("studies",),
    "psycopg": ("studies",),
    "submitit": ("launchers",),
    "triton": ("kernels",),
    "altair": ("reports",),
    "vl_convert": ("reports",),
    # The Python interface names the type of a data frame, and loads it only when one is asked for.
    # Parquet is read by it, once, when a corpus is prepared.
    "polars": ("store.frames", "store.published", "analysis", "reports", "api", "data.records"),
    "datasets": ("data.huggingface",),
    # What starts the training of a process chooses its device.
    "torch": ("kernels", "model", "training", "worker", "ranks", "speed_probe", "doctor"),
    "safetensors": ("training",),
    "tokenizers": ("data.bpe",),
    "yaml": ("config",),
}
"""Library -> the only rooms, or modules of a room, that may import it."""

ARRAYS_ONLY: dict[str, tuple[str, ...]] = {
    "stability": ("numpy", "scipy"),
    "data.corpus": ("numpy",),
    "data.documents": ("numpy",),
    "data.cut_rules": ("numpy",),
    "data.fast_encoding": ("numpy",),
    "data.piece_table": ("numpy",),
    # Texts and windows are for whoever looks at them without torch, too.
    "data.evaluation_sets": ("numpy",),
    "data.set_texts": ("numpy",),
    "data.synthetic": ("numpy",),
    "data.tokenizer": ("numpy",),
}
"""Room or module -> the only libraries that it may import."""

JOINS = "the modules that join the rooms"


@dataclass(frozen=True)
class Import:
    """One import: who, whom, where."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def imports(package: Path) -> Iterator[Import]:
    """Every import in every module, with absolute names; modules are named without the package."""
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        parts = parts[:-1] if is_package else parts
        module = ".".join(parts)
        for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
            match node:
                case ast.Import(names=names):
                    targets = [alias.name for alias in names]
                case ast.ImportFrom(module=source, names=names, level=level):
                    base = source or ""
                    if level:
                        above = [package.name, *parts][: len(parts) + 1 + is_package - level]
                        base = ".".join([*above, *([source] if source else [])])
                    # `from package import room` names a room only with its last part.
                    targets = [f"{base}.{alias.name}" for alias in names]
                case ast.Call(
                    func=ast.Name(id="import_module" | "__import__")
                    | ast.Attribute(attr="import_module"),
                    args=[ast.Constant(value=str(target)), *_],
                ):
                    targets = [target]
                case _:
                    continue
            for target in targets:
                yield Import(module, target, node.lineno)


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def room_of(module: str, arrows: dict[str, set[str]]) -> str:
    first = module.partition(".")[0]
    return first if first in arrows else JOINS


def offences(package: Path) -> list[str]:
    """All that breaks an arrow or a wall, and the cycle of rooms if there is one."""
    found: list[str] = []
    graph: dict[str, set[str]] = {room: set() for room in ARROWS}
    rooms = {path.stem for path in package.iterdir() if path.is_dir()} - {"__pycache__"}
    found += [f"the room {room} has no arrows" for room in sorted(rooms - set(ARROWS))]
    for one in imports(package):
        room = room_of(one.module, ARROWS)
        head, _, rest = one.target.partition(".")
        if head == package.name:
            target = room_of(rest, ARROWS)
            if room == JOINS or target == room:
                continue
            graph[room] |= {target}
            if target not in ARROWS[room]:
                found.append(f"arrow: {one}")
            continue
        if head in WALLS and not any(within(one.module, place) for place in WALLS[head]):
            found.append(f"wall: {one}")
        for place, libraries in ARRAYS_ONLY.items():
            foreign = head not in (*sys.stdlib_module_names, *libraries)
            if foreign and within(one.module, place):
                found.append(f"{' and '.join(libraries)} only: {one}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("cycle: " + " -> ".join(error.args[1]))
    return found


def test_arrows_walls_and_cycles() -> None:
    assert offences(PACKAGE) == []


def test_every_room_is_there_and_has_arrows() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ARROWS) - {"errors"}
    assert len(list(imports(PACKAGE))) > 300, "the walk has found the imports"


def write(package: Path, module: str, source: str) -> Path:
    file = package / module
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return package


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        (
            "config/load.py",
            "import json\nfrom wesar_sweep.store.rows import Outcome",
            "arrow: config.load:2 imports wesar_sweep.store.rows.Outcome",
        ),
        (
            "studies/queue.py",
            "from wesar_sweep import training",
            "arrow: studies.queue:1 imports wesar_sweep.training",
        ),
        (
            "analysis/cells.py",
            "from ..model import layout",
            "arrow: analysis.cells:1 imports wesar_sweep.model.layout",
        ),
        (
            "analysis/__init__.py",
            "from ..model import layout",
            "arrow: analysis:1 imports wesar_sweep.model.layout",
        ),
        (
            "store/atomic.py",
            "def late():\n    import wesar_sweep.api",
            "arrow: store.atomic:2 imports wesar_sweep.api",
        ),
        (
            "launchers/local.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import wesar_sweep.store.beat",
            "arrow: launchers.local:3 imports wesar_sweep.store.beat",
        ),
        (
            "training/engine.py",
            "def late():\n    import optuna.trial",
            "wall: training.engine:2 imports optuna.trial",
        ),
        (
            "store/outcomes.py",
            "from polars import DataFrame",
            "wall: store.outcomes:1 imports polars.DataFrame",
        ),
        (
            "driver.py",
            "import importlib\nimportlib.import_module('torch.cuda')",
            "wall: driver:2 imports torch.cuda",
        ),
        ("data/corpus.py", "import scipy", "numpy only: data.corpus:1 imports scipy"),
        ("plugins/x.py", "", "the room plugins has no arrows"),
    ],
)
def test_control_each_offence_is_caught(
    tmp_path: Path, module: str, source: str, offence: str
) -> None:
    assert offences(write(tmp_path / "wesar_sweep", module, source)) == [offence]


def test_control_a_cycle_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARROWS, "store", {"config", "studies"})
    package = write(tmp_path / "wesar_sweep", "store/a.py", "import wesar_sweep.studies.b")
    assert offences(package) == []
    write(package, "studies/b.py", "import wesar_sweep.store.a")
    (found,) = offences(package)
    assert found.startswith("cycle: ") and "store" in found and "studies" in found


def test_control_what_is_allowed_passes(tmp_path: Path) -> None:
    package = tmp_path / "wesar_sweep"
    write(
        package, "reports/html.py", "import altair, polars\nfrom wesar_sweep.analysis import cells"
    )
    write(package, "store/frames.py", "import polars as pl\nfrom . import rows")
    write(package, "worker.py", "import wesar_sweep.training.engine, wesar_sweep.studies.queue")
    assert offences(package) == []


def loaded_by(source: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after the statements."""
    ending = "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", source + ending],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules(*rooms: str) -> str:
    """Statements that import every module of the rooms."""
    names = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for room in rooms
        for file in [*(PACKAGE / room).rglob("*.py"), PACKAGE / f"{room}.py"]
        if file.exists()
    }
    assert names
    return "\n".join(f"import {name}" for name in sorted(names))


def test_control_loading_is_seen() -> None:
    assert "polars" in loaded_by("import polars")


def test_the_command_line_starts_light() -> None:
    loaded = loaded_by("import wesar_sweep.cli")
    assert not loaded & {"torch", "optuna", "polars", "altair", "scipy", "submitit", "vl_convert"}


def test_a_worker_loads_no_reporting() -> None:
    loaded = loaded_by(modules("training", "model", "kernels", "stability", "worker"))
    assert "torch" in loaded
    assert not loaded & {"polars", "altair", "vl_convert"}


def test_all_but_training_is_free_of_torch() -> None:
    loaded = loaded_by(modules("config", "stability", "store", "launchers", "analysis", "reports"))
    assert "torch" not in loaded
    loaded = loaded_by(modules("data"))
    assert not loaded & {"torch", "polars", "datasets", "tokenizers"}
