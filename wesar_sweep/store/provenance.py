"""Where a result comes from: code, versions, machine, command. Found without heavy imports.

The driver collects what it can see; a worker merges what only it knows (device, torch, corpus
hash).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold

PROJECT = "wesar-sweep"
LIBRARIES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "optuna",
    "sqlalchemy",
    "polars",
    "altair",
    "pydantic",
    "submitit",
)
COMMIT_VARIABLE = "WESAR_COMMIT"
"""Says which commit runs where neither git nor the installation does, as in a container."""

_GIT_TIMEOUT_S = 10


def collect_provenance(
    *,
    study_hash: str,
    command: Sequence[str] | None = None,
    working_directory: Path | None = None,
) -> dict[str, Any]:
    """All that the starting process can say, as plain values for JSON.

    Args:
        study_hash: Hash of the resolved study file.
        command: The command line; default this process's.
        working_directory: Default the current one.

    Returns:
        ``project`` (version, commit, dirty), ``working_directory`` (path, commit, dirty),
        ``python``, ``platform``, ``host``, ``cpu``, ``cores``, ``libraries``, ``command``,
        ``study_hash``, ``started_at``. A commit is None where there is no git or no repository.
    """
    where = working_directory or Path.cwd()
    return {
        "project": {"version": _version(PROJECT), **_project_commit()},
        "working_directory": {"path": str(where), **_commit(where)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "libraries": {
            name: version for name in LIBRARIES if (version := _version(name)) is not None
        },
        "command": list(command) if command is not None else list(sys.orig_argv),
        "study_hash": study_hash,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_provenance(directory: StudyDirectory, *, facts: Mapping[str, Any]) -> None:
    """Replace the whole provenance, atomically.

    Raises:
        StoreError: The disk is full or refuses.
    """
    write_json(directory.provenance_file, facts)


def read_provenance(directory: StudyDirectory) -> dict[str, Any]:
    """What is known; empty where nothing was written yet.

    Raises:
        StoreError: The file is there and is not a JSON object.
    """
    path = directory.provenance_file
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except ValueError as error:
        raise StoreError(f"cannot read {path}: it is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise StoreError(f"cannot read {path}: it is not a JSON object")
    return facts


def merge_provenance(directory: StudyDirectory, *, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Add facts to what is there, mapping into mapping, and return the whole.

    Several workers may do so at the same time: a lock keeps one from undoing another.

    Raises:
        StoreError: The file cannot be read or written.
    """
    path = directory.provenance_file
    with hold(path.with_name(f".{path.name}.lock"), purpose="add to the provenance"):
        merged = _merge(read_provenance(directory), facts)
        write_provenance(directory, facts=merged)
    return merged


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        known = merged.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(known, value) if both else value  # type: ignore[arg-type]
    return merged


def prepared_as(directory: StudyDirectory) -> str | None:
    """Under which key the study's text lies in the cache of prepared corpora, if it is known."""
    found = read_provenance(directory).get("corpus", {}).get("prepared_as")
    return None if found is None else str(found)


def require_same_corpus(directory: StudyDirectory, *, sha256: str) -> None:
    """Refuse to go on with a study on other text than it began with.

    Args:
        directory: The study's directory; one without a corpus in its provenance takes any.
        sha256: Hash of the corpus at hand.

    Raises:
        StoreError: The two differ.
    """
    known = read_provenance(directory).get("corpus", {}).get("sha256")
    if known is not None and known != sha256:
        raise StoreError(
            f"the corpus has changed since the study in {directory.root} began (sha256 "
            f"{sha256[:12]}, then {known[:12]}), so further runs would not compare: restore the "
            "text and the tokenizer, or train anew with --out NEW_DIRECTORY"
        )


def require_same_sets(directory: StudyDirectory, *, sha256: Mapping[str, str]) -> None:
    """Refuse to go on with a study that is judged on other evaluation sets than it began with.

    Args:
        directory: The study's directory; a set that is not in its provenance may be any.
        sha256: Hash of each set at hand.

    Raises:
        StoreError: One differs; names all that do.
    """
    known = read_provenance(directory).get("evaluation_sets", {})
    changed = [
        f"{name} (sha256 {now[:12]}, then {known[name]['sha256'][:12]})"
        for name, now in sha256.items()
        if name in known and known[name].get("sha256") not in (None, now)
    ]
    if changed:
        raise StoreError(
            f"evaluation sets have changed since the study in {directory.root} began: "
            f"{', '.join(changed)}. Further runs would not compare: restore their text, or train "
            "anew with --out NEW_DIRECTORY"
        )


def boot() -> str | None:
    """Eight digits that tell machines of one name apart, as those of a cloud; anew at each boot.

    None where the kernel does not say.
    """
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return None
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def project_commit() -> str | None:
    """The commit of the package that runs, as far as it can be told."""
    commit: str | None = _project_commit()["commit"]
    return commit


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def project_version() -> str:
    """Version of this package, or ``unknown`` where it is not installed."""
    return _version(PROJECT) or "unknown"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            # A status that writes the index would race with the user's own git.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit(folder: Path) -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD", folder=folder)
    changes = (
        _git("status", "--porcelain", "--untracked-files=no", folder=folder) if commit else None
    )
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _project_commit() -> dict[str, Any]:
    source = Path(__file__).resolve().parent
    # An environment often lies inside somebody's repository: only a tracked source has that commit.
    if _git("ls-files", "--error-unmatch", Path(__file__).name, folder=source) is not None:
        return _commit(source)
    try:
        text = metadata.distribution(PROJECT).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    commit = json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
    if commit is not None:
        return {"commit": commit, "dirty": False}
    return {"commit": os.environ.get(COMMIT_VARIABLE) or None, "dirty": None}
