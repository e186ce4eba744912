"""What is claimed of the installation: declared dependencies, lower bounds, and the set-up."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def third_party_imports() -> set[str]:
    found: set[str] = set()
    for file in (ROOT / "wesar_sweep").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module.partition(".")[0]}
    return found - sys.stdlib_module_names - {"wesar_sweep", "compression"}


def undeclared(requirements: list[str]) -> set[str]:
    """The imported libraries that the requirements do not bring."""
    declared = {name_of(line) for line in requirements}
    if "pydantic" in declared:
        declared.add("pydantic-core")  # pydantic pins it to the patch version
    distributions = packages_distributions()
    return {
        module
        for module in third_party_imports()
        if not declared & {name_of(name) for name in distributions.get(module, [module])}
    } - {"triton"}  # Builds of torch for CUDA bring it; without a GPU it is not imported.


def test_every_library_that_is_imported_is_declared() -> None:
    core, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    assert undeclared([*core, *extras["zstd"], *extras["hf"]]) == set()
    # The control: without its line a library is missed.
    lacking = [line for line in core if name_of(line) not in ("torch", "pyyaml")]
    assert undeclared([*lacking, *extras["zstd"], *extras["hf"]]) == {"torch", "yaml"}


def test_every_dependency_states_a_lower_bound_that_test_lowest_can_read() -> None:
    makefile = (ROOT / "Makefile").read_text()
    script = makefile.split("define LOWEST\n")[1].split("endef")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pinned = {name_of(line) for line in done.stdout.split()}
    extras = PROJECT["optional-dependencies"]
    optional = [line for name in ("zstd", "hf", "cmaes", "postgres") for line in extras[name]]
    claimed = {name_of(line) for line in [*PROJECT["dependencies"], *optional]}
    assert pinned == claimed - {"torch"}


def test_the_constraints_name_no_local_version() -> None:
    lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins == ["torch==2.13.0", "triton==3.7.1"]


def test_the_command_is_the_command_line() -> None:
    assert PROJECT["scripts"] == {"wesar-sweep": "wesar_sweep.cli:main"}
    done = subprocess.run(
        [sys.executable, "-m", "wesar_sweep", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resume" in done.stdout


def tools(folder: Path, *names: str) -> Path:
    """A folder that holds these commands and no others, for use as the whole PATH."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def script(file: Path, text: str) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def make_venv(target: Path, *, path: Path, python: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / ".ci" / "venv"), str(target)],
        env={"PATH": str(path), "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_that_makes_no_environments_says_what_to_install(tmp_path: Path) -> None:
    bare = script(
        tmp_path / "python",
        'case "$1 $2" in "-m venv"|"-m virtualenv"|"-m pip") exit 1;; esac\n'
        f'exec {sys.executable} "$@"',
    )
    path = tools(tmp_path / "bin", "sh", "rm", "id")
    done = make_venv(tmp_path / "venv", path=path, python=bare)
    assert done.returncode == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"    sudo apt-get install python{version}-venv " in done.stderr
    assert not (tmp_path / "venv").exists(), "nothing half-made is left behind"


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = script(tmp_path / "python3", 'case "$1" in -c) exit 1;; esac')
    done = make_venv(tmp_path / "venv", path=tools(tmp_path / "bin", "sh", "rm"), python=old)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "wesar-sweep needs Python 3.11 or later, and found none at PYTHON="
    )


def test_an_environment_that_works_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    script(tmp_path / "venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    path = tools(tmp_path / "bin", "sh")
    done = make_venv(tmp_path / "venv", path=path, python=Path("/nowhere"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("make", "code", "last"),
    [
        ("echo '===== 3 passed in 0.10s ====='", 0, "===== 3 passed in 0.10s ====="),
        ("echo '== 1 failed, 2 passed in 9.00s (0:00:09) =='; exit 2", 2, "== 1 failed, 2 passed"),
        ("echo 'error: lint'; exit 2", 2, "No test was run"),
        ("echo nothing", 1, "No test was run"),
    ],
)
def test_the_ci_ends_with_pytests_closing_line(
    tmp_path: Path, make: str, code: int, last: str
) -> None:
    path = tools(tmp_path / "bin", "bash", "env", "dirname", "mktemp", "rm", "tee", "grep", "tail")
    script(path / "make", make)
    done = subprocess.run(
        [str(ROOT / ".ci" / "run")],
        env={**os.environ, "PATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-1].startswith(last)
