"""Publish a study: the part of a results directory that is worth keeping, for others to read.

What is written can be committed: outcomes and curves as Parquet tables (`store.published`), the
study, its provenance and accounts without names of hosts, users or folders, and the report as it
comes out of these very files. `report`, `compare` and `export` read it like any results directory.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wesar_sweep.analysis import Analysis
from wesar_sweep.api import open_result
from wesar_sweep.config import dump_study, load_study, portable, study_hash
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.reports import write
from wesar_sweep.reports.named_tables import tables
from wesar_sweep.store.atomic import store_error, write_atomically, write_folder_atomically
from wesar_sweep.store.beat import read_beats, write_beat
from wesar_sweep.store.drive import read_drive, write_drive
from wesar_sweep.store.finished_search import read_finished_search, write_finished_search
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import read_provenance, write_provenance
from wesar_sweep.store.published import write_published
from wesar_sweep.store.spent import read_spent, write_spent

_NAME = r"[^\s/,;:'\"()\[\]{}=]+"
_ABSOLUTE = re.compile(rf"(?<![\w.~/:-])(?:/{_NAME})*/(?P<name>{_NAME})")
"""A path from the root, at the start of words, after = or inside brackets; not that of a URL."""

FORMATS = ("html", "md")
"""The reports that lie beside the tables."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was written."""

    folder: Path
    sizes: Mapping[str, int]
    """File -> bytes."""
    changed: tuple[str, ...]
    """Tables of the report whose words differ from those of the exact curves, by rounding."""


def publish(directory: StudyDirectory, *, to: Path) -> Published:
    """Write a finished study to a folder, whole or not at all.

    Args:
        directory: A study of which every run has ended.
        to: A new folder, an empty one, or one that holds the same study, which is replaced.

    Raises:
        StoreError: The study is unfinished or published itself, the folder holds something else,
            or something cannot be read or written.
        ConfigError: The study file cannot be read.
    """
    # Under its own name: a link, "." or "x/.." cannot be put aside.
    to = to.resolve()
    result = open_result(directory.root)
    summary = result.summary
    if not summary.complete:
        raise StoreError(
            f"the study in {directory.root} is not finished ({summary.runs_done} of {summary.runs} "
            f"runs have ended): go on with it by `wesar-sweep resume {directory.root}`, then "
            "publish it"
        )
    target = StudyDirectory(to)
    _recover(to)
    _require_place_for(result.study, target)
    exact = result.analysis
    if exact.unreadable:
        raise StoreError(
            f"the study in {directory.root} cannot be published whole: "
            f"{'; '.join(exact.unreadable)}"
        )
    facts = read_provenance(directory)
    anonymous = _Anonymous.of(directory, facts)
    changed: list[str] = []

    def fill(folder: Path) -> None:
        made = StudyDirectory(folder)
        made.workers_folder.mkdir()
        study = portable(result.study, anonymous.folder)
        write_atomically(made.study_file, dump_study(study).encode())
        write_provenance(made, facts=anonymous.provenance(facts))
        if (search := read_finished_search(directory)) is not None:
            write_finished_search(made, search=search)
        _write_accounts(directory, made, anonymous)
        write_published(made, outcomes=exact.outcomes, curves=exact.curves, words=anonymous.text)
        # The report is of what a reader of the folder has.
        readable = Analysis.read(made)
        for format in FORMATS:
            write(made, format=format, analysis=readable)
        changed.extend(_changed_tables(exact, readable))

    if target.published:
        _replace(to, fill)
    else:
        write_folder_atomically(to, fill)
    sizes = {
        str(path.relative_to(to)): path.stat().st_size
        for path in sorted(to.rglob("*"))
        if path.is_file()
    }
    return Published(to, sizes, tuple(changed))


def _require_place_for(study: Study, target: StudyDirectory) -> None:
    """Refuse a folder that holds anything but an earlier publication of the same study."""
    if not target.root.exists() or (target.root.is_dir() and not any(target.root.iterdir())):
        return
    if not target.published:
        raise StoreError(
            f"{target.root} is there and holds no published study: choose another folder, or "
            "empty it"
        )
    there = load_study(target.study_file)
    if study_hash(there) != study_hash(study):
        raise StoreError(
            f"{target.root} holds another published study ({there.name}, hash "
            f"{study_hash(there)[:12]}; this one {study.name}, {study_hash(study)[:12]}): choose "
            "another folder, or remove it"
        )
    foreign = sorted({path.name for path in target.root.iterdir()} - _own_names(target))
    if foreign:
        raise StoreError(
            f"{target.root} holds more than a published study ({', '.join(foreign)}), which "
            "publishing anew would remove: move it elsewhere"
        )


def _own_names(target: StudyDirectory) -> set[str]:
    paths = (
        target.study_file,
        target.provenance_file,
        target.driver_file,
        target.finished_search_file,
        target.workers_folder,
        target.outcomes_table,
        target.curves_table,
        target.evaluations_table,
        target.probes_table,
        target.report_file,
    )
    return {path.name for path in paths} | {f"report.{format}" for format in FORMATS}


def _write_accounts(directory: StudyDirectory, made: StudyDirectory, anonymous: _Anonymous) -> None:
    """What the study cost and how it was driven: what the section on cost is made of."""
    for beat in read_beats(directory):
        host = anonymous.machine(beat.host)
        write_beat(made, beat=replace(beat, host=host, pid=0, process_started=None, message=""))
    for worker, spent in read_spent(directory).items():
        write_spent(made, worker=worker, spent=spent)
    drive = read_drive(directory)
    if drive is not None:
        host = anonymous.machine(drive.host)
        write_drive(made, drive=replace(drive, host=host, pid=0, process_started=None, message=""))


def _changed_tables(exact: Analysis, readable: Analysis) -> list[str]:
    before = {table.name: table.table.rows for table in tables(exact)}
    after = {table.name: table.table.rows for table in tables(readable)}
    # One comes or goes where a study has a single spike, and that at the threshold.
    names = dict.fromkeys([*before, *after])
    return [name for name in names if before.get(name) != after.get(name)]


def _replace(to: Path, fill: Callable[[Path], None]) -> None:
    """Put a new folder in the place of one that is there, which is removed last."""
    made, former = to.with_name(f".{to.name}.publishing"), _former(to)
    shutil.rmtree(made, ignore_errors=True)
    write_folder_atomically(made, fill)
    try:
        to.rename(former)
        try:
            made.rename(to)
        except OSError:
            former.rename(to)
            raise
        shutil.rmtree(former)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise store_error(error, path=to, action="replace") from error


def _former(to: Path) -> Path:
    return to.with_name(f".{to.name}.published-before")


def _recover(to: Path) -> None:
    """Undo what a kill between the two renames of `_replace` left."""
    former = _former(to)
    try:
        if former.exists() and not to.exists():
            former.rename(to)
        elif former.exists():
            shutil.rmtree(former)
    except OSError as error:
        raise store_error(error, path=to, action="replace") from error


@dataclass(frozen=True, slots=True)
class _Anonymous:
    """Facts without names of hosts, users and folders; which machine is which stays known."""

    folder: Path | None
    """The working directory of the study's first call."""
    machines: Mapping[str, str]
    """Host -> ``machine 1``."""
    boots: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    """(host, its boot) -> the same, for machines that share a name."""

    @classmethod
    def of(cls, directory: StudyDirectory, facts: Mapping[str, Any]) -> _Anonymous:
        where = facts.get("working_directory", {}).get("path")
        workers = [one for one in facts.get("workers", {}).values() if isinstance(one, Mapping)]
        drive = read_drive(directory)
        known = dict.fromkeys(
            (str(one["host"]), one.get("boot")) for one in workers if one.get("host")
        )
        hosts = [facts.get("host"), *(beat.host for beat in read_beats(directory))]
        hosts += [drive.host] if drive is not None else []
        for host in hosts:
            if host and host not in {named for named, _ in known}:
                known[str(host), None] = None
        boots = {place: f"machine {number}" for number, place in enumerate(known, start=1)}
        machines: dict[str, str] = {}
        for (host, _), name in boots.items():
            machines.setdefault(host, name)
        return cls(Path(where) if where else None, machines, boots)

    def machine(self, host: str) -> str:
        return self.machines.get(host, "")

    def provenance(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of the study's origin, without what tells of its place."""
        kept = json.loads(json.dumps(facts))
        if "host" in kept:
            kept["host"] = self.machine(kept["host"])
        kept.get("working_directory", {}).pop("path", None)
        kept.get("corpus", {}).pop("prepared_as", None)
        # The kernel's own name says nothing of a result.
        if "platform" in kept:
            kept["platform"] = str(kept["platform"]).partition("-")[0]
        if kept.get("storage", "SQLite") != "SQLite":
            kept["storage"] = "PostgreSQL"
        for one in kept.get("workers", {}).values():
            if isinstance(one, dict) and "host" in one:
                place = (one["host"], one.pop("boot", None))
                one["host"] = self.boots.get(place) or self.machine(one["host"])
        if "command" in kept:
            kept["command"] = self.command(kept["command"])
        kept["resumed"] = {
            when: self.command(again) for when, again in kept.get("resumed", {}).items()
        }
        return {key: self._placeless(value) for key, value in kept.items()}

    def command(self, words: Sequence[str] | str) -> list[str] | str:
        """``wesar-sweep run FILE …`` of a command line, by whichever program it was started."""
        if isinstance(words, str):
            return words
        begin = next(
            (i for i, word in enumerate(words) if word in ("run", "resume", "finish")), None
        )
        # Of a program of the user's own, or its source after -c, nothing is ours to tell.
        return ["(from Python)"] if begin is None else ["wesar-sweep", *words[begin:]]

    def _placeless(self, value: Any) -> Any:
        """The value, and all in it, with absolute paths made relative or cut to their last name."""
        if isinstance(value, Mapping):
            return {key: self._placeless(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._placeless(one) for one in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, words: str) -> str:
        """Words with every absolute path in them made relative or cut, and every host renamed."""
        if self.folder is not None and self.folder != Path("/"):
            words = words.replace(f"{self.folder}/", "")
        words = _ABSOLUTE.sub(lambda found: found["name"], words)
        for host, machine in self.machines.items():
            whole = rf"(?<![\w.-]){re.escape(host)}(?:\.[\w.-]*\w)?(?![\w-])"
            words = re.sub(whole, machine, words)
        return words
