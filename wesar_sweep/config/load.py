"""From a YAML file to a study or a sweep, and back: the only way in for what users write.

Every problem of a file is reported at once. What a study resolves to is written by `dump_study` and
reads back to an equal study.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from wesar_sweep.config import yaml12
from wesar_sweep.config.base import Frozen
from wesar_sweep.config.check_study import study_findings
from wesar_sweep.config.check_sweep import sweep_findings
from wesar_sweep.config.data import FileTokenizer, HuggingFaceData, TextData
from wesar_sweep.config.findings import Finding, Source
from wesar_sweep.config.knobs import WHOLE_STUDY, Training, knob_table
from wesar_sweep.config.overrides import apply_overrides
from wesar_sweep.config.presets import expand_preset
from wesar_sweep.config.schema import FileKind
from wesar_sweep.config.space import Choices, Parameter
from wesar_sweep.config.storage_url import parse_storage_url, redact
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.config.tokenizer_file import with_vocabulary
from wesar_sweep.config.translate import findings_of
from wesar_sweep.config.words import NAME_PATTERN
from wesar_sweep.config.yaml12 import Document, KeyPath
from wesar_sweep.errors import ConfigError, Problem

_Model = TypeVar("_Model", bound=Frozen)

_REQUIRED: dict[FileKind, dict[str, Any]] = {"study": {"name": "study", "space": {}}, "sweep": {}}
"""What stands in for a required key that was wrong, so that the rest can be checked."""

_LATER: dict[str, dict[str, Any]] = {
    "training": {key: Training.model_fields[key].default for key in WHOLE_STUDY},
    "sampler": {"along": None, "listed": None},
    "data": {"tokenizer": {"kind": "bytes"}, "mask_documents": False, "field": "text"},
    "evaluation": {"sets": {}},
}
"""Section -> keys that study files did not always have, and what they were understood to be."""

_HEADER = "# A resolved study: every default is spelled out. Running it repeats the study.\n"


def load_study(path: Path | str, *, overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file.

    Args:
        path: The file; its name without suffix is the study's name where the file gives none.
        overrides: ``path=value`` each, as after ``--set``.

    Raises:
        ConfigError: With every problem found.
    """
    path = Path(path)
    document = _document(path, "a study needs at least `space:`")
    return _study(document.value, overrides, name=path.stem, document=document, file=str(path))


def parse_study(
    raw: Mapping[str, Any], *, overrides: Sequence[str] = (), name: str = "study"
) -> Study:
    """The study in a mapping of the same form as a YAML file.

    Args:
        raw: What the file would say.
        overrides: As for `load_study`.
        name: The study's name where `raw` gives none.

    Raises:
        ConfigError: With every problem found.
    """
    return _study(dict(raw), overrides, name=name, document=Document(None), file=None)


def load_sweep(path: Path | str | None, *, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep in a YAML file; the defaults where there is no file.

    Raises:
        ConfigError: With every problem found.
    """
    document, file = Document({}), None
    if path is not None:
        path = Path(path)
        document, file = _document(path, "leave the file away for the defaults"), str(path)
    raw, applied, problems = apply_overrides(document.value, overrides)
    source = Source(raw, file, document, applied)
    sweep, findings, wrong = _validate(Sweep, source, "sweep")
    findings += sweep_findings(sweep, wrong=wrong)
    try:
        _raise(problems, findings, source)
        if sweep.storage is not None:
            parse_storage_url(sweep.storage)
    except ConfigError as error:
        raise ConfigError(
            [_without_password(problem, file, document) for problem in error.problems]
        ) from None
    return sweep


def _without_password(problem: Problem, file: str | None, document: Document) -> Problem:
    """A problem of a sweep file that shows no password; one of its storage's URL gets its place."""
    if problem.value is not None:
        problem = replace(problem, value=redact(problem.value))
    if problem.path == "storage" and problem.file is None and ("storage",) in document.values:
        place = document.values[("storage",)]
        problem = replace(problem, file=file, line=place.line, column=place.column)
    return problem


def dump_study(study: Study) -> str:
    """The study as YAML with every default spelled out; it reads back to an equal study."""
    return _HEADER + yaml12.dumps(resolved(study))


def resolved(study: Study) -> dict[str, Any]:
    """The study as plain values, every default spelled out, in the form of a study file.

    A knob that `space` always varies is left out of `model`, `training` and `method`, since setting
    it in both is an error.
    """
    plain = study.model_dump()
    plain["space"] = {knob: _plain_parameter(p) for knob, p in study.space.items()}
    for name, parameter in study.space.items():
        knob = knob_table()[name]
        if not parameter.when:
            del (plain[knob.section] if knob.section else plain)[name]
    return plain


def anchored(study: Study, folder: Path) -> Study:
    """The study with relative paths made absolute, so that it can be resumed from anywhere."""

    def absolute(path: str) -> str:
        return str(folder / Path(path).expanduser())

    # A name that is no folder here is one on the hub.
    return _placed(study, absolute, is_local=lambda name: Path(absolute(name)).is_dir())


def portable(study: Study, folder: Path | None) -> Study:
    """The study with paths that mean something elsewhere: the reverse of `anchored`.

    Args:
        study: With absolute paths.
        folder: What they are to be relative to; of paths outside of it, or where it is None, the
            last name is kept.
    """
    if folder == Path("/"):
        # Relative to the root a path would still be whole.
        folder = None

    def relative(path: str) -> str:
        place = Path(path)
        if not place.is_absolute():
            return path
        inside = folder is not None and place.is_relative_to(folder)
        return str(place.relative_to(folder)) if inside and folder is not None else place.name

    placed = _placed(study, relative, is_local=lambda name: Path(name).is_absolute())
    data: Any = placed.data
    if isinstance(data, HuggingFaceData) and data != study.data:
        # Without the dot it would be the name of somebody's data set on the hub.
        data = data.model_copy(update={"name": f"./{data.name}"})
    return placed.model_copy(update={"data": data})


def _placed(study: Study, place: Callable[[str], str], *, is_local: Callable[[str], bool]) -> Study:
    """The study with other words for every path of a file or folder."""
    data: Any = study.data
    places: dict[str, Any] = {}
    if isinstance(data, TextData):
        places["paths"] = tuple(map(place, data.paths))
        if data.validation is not None:
            places["validation"] = tuple(map(place, data.validation))
    if isinstance(data, HuggingFaceData) and is_local(data.name):
        places["name"] = place(data.name)
    if isinstance(tokenizer := getattr(data, "tokenizer", None), FileTokenizer):
        path = {"path": place(tokenizer.path)}
        places["tokenizer"] = tokenizer.model_copy(update=path)
    sets = {
        name: one.model_copy(update={"paths": tuple(map(place, one.paths))})
        for name, one in study.evaluation.sets.items()
    }
    evaluation = study.evaluation.model_copy(update={"sets": sets})
    return study.model_copy(
        update={"data": data.model_copy(update=places), "evaluation": evaluation}
    )


def study_hash(study: Study) -> str:
    """SHA-256, in hex, of all that decides what is trained; the first 12 digits are enough to show.

    Left out: title, question, what is finished, retries and whether weights are kept, which change
    no run, and where text and tokenizer lie, which their own hashes stand for. What was not always
    there, `_LATER`, counts where it is set: left alone it leaves the hash as it was, so that older
    studies go on.
    """
    plain = deciding(study)
    for section, keys in _LATER.items():
        for key, default in keys.items():
            if plain[section].get(key) == default:
                plain[section].pop(key, None)
    for method in plain["methods"].values():
        if method["sigma2_at_width"] is None:
            del method["sigma2_at_width"]
    # The order of the knobs is the order of a grid's cells, hence part of the study.
    plain["space"] = list(plain["space"].items())
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def deciding(study: Study) -> dict[str, Any]:
    """A resolved study without what changes no run, and without where text and tokenizer lie."""
    plain = resolved(study)
    for key in ("title", "question", "finishes", "retries", "keep_weights"):
        del plain[key]
    for key in ("paths", "validation"):
        plain["data"].pop(key, None)
    if plain["data"]["source"] == "huggingface" and _is_folder(plain["data"]["name"]):
        del plain["data"]["name"]
    if "tokenizer" in plain["data"]:
        plain["data"]["tokenizer"].pop("path", None)
    for one in plain["evaluation"].get("sets", {}).values():
        del one["paths"]
    return plain


def _is_folder(name: str) -> bool:
    """Whether a data set's name is a place on this machine or another: the hub has none like it."""
    path = Path(name).expanduser()
    return path.is_absolute() or name.startswith("./") or path.is_dir()


def _document(path: Path, hint: str) -> Document:
    document = yaml12.read(path)
    if document.value is None:
        raise ConfigError(Problem("the file is empty", file=str(path), hint=hint))
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else "a single value"
        place = document.values[()]
        raise ConfigError(
            Problem(
                f"the file is {kind}, not a mapping",
                hint="write `key: value` lines; see `wesar-sweep schema`",
                file=str(path),
                line=place.line,
                column=place.column,
            )
        )
    return document


def _study(
    values: dict[str, Any],
    overrides: Sequence[str],
    *,
    name: str,
    document: Document,
    file: str | None,
) -> Study:
    raw, applied, problems = apply_overrides(values, overrides)
    source = Source(raw, file, document, applied)
    raw, extra = expand_preset(raw)
    # Of which preset was meant nothing is known, so neither of what its shape contradicts.
    unknown: list[KeyPath] = [("model",)] if extra else []
    if "name" not in raw:
        if not re.fullmatch(NAME_PATTERN, name) or len(name) > 100:
            message = f"the file's name {name!r} cannot name the study"
            words = "letters, digits, '.', '_' and '-', beginning with a letter or digit"
            extra.append(
                Finding((), message, allowed=words, hint="rename it, or set name:", at_key=True)
            )
            name = "study"
        raw = {"name": name, **raw}
    study, findings, wrong = _validate(Study, source, "study", raw)
    if study is not None:
        study, of_tokenizer = with_vocabulary(study)
        findings += [*of_tokenizer, *study_findings(study, wrong=[*wrong, *unknown])]
    _raise(problems, [*extra, *findings], source)
    assert study is not None, "only an invalid study has no model"
    return study


def _validate(
    model: type[_Model], source: Source, kind: FileKind, raw: dict[str, Any] | None = None
) -> tuple[_Model, list[Finding], list[KeyPath]]:
    """The model, what was wrong, and the paths that were taken out to make it valid."""
    raw = copy.deepcopy(source.raw if raw is None else raw)
    findings: list[Finding] = []
    removed: list[KeyPath] = []
    for _ in range(3):
        try:
            return model.model_validate(raw), findings, removed
        except ValidationError as error:
            found = findings_of(error, source, kind)
            findings += [f for f in found if f not in findings]
            removed += [_take_out(raw, finding.path) for finding in found]
            raw = {**_REQUIRED[kind], **raw}
    raise AssertionError(f"still invalid: {raw}")


def _take_out(raw: dict[str, Any], path: KeyPath) -> KeyPath:
    """Remove what is wrong, with as much around it as it needs; the path that was removed."""
    whole = 1 if path[:1] in (("data",), ("pruner",), ("replicates",), ("finishes",)) else 2
    indices = [depth for depth, key in enumerate(path) if isinstance(key, int)]
    path = path[: min([whole, *indices])]
    node = raw
    for key in path[:-1]:
        inner = node.get(str(key))
        if not isinstance(inner, dict):
            break
        node = inner
    if path:
        node.pop(str(path[-1]), None)
    return path


def _raise(problems: Sequence[Problem], findings: Sequence[Finding], source: Source) -> None:
    found = [*problems, *(source.problem(finding) for finding in findings)]
    if found:
        last = 10**9
        found.sort(key=lambda p: (p.line or last, p.column or last))
        raise ConfigError(list(dict.fromkeys(found)))


def _plain_parameter(parameter: Parameter) -> Any:
    if isinstance(parameter, Choices) and not parameter.when:
        return parameter.choices
    plain = parameter.model_dump()
    return {key: value for key, value in plain.items() if value is not None and value != {}}
