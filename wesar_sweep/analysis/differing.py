"""Where two studies come from different places: keys of their files, and their provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "–"
"""Stands for a key that a study does not have."""

_EFFECTS: Mapping[str, str] = {
    "space": "which cells",
    "sampler": "which cells",
    "pruner": "which cells",
    "objectives": "which cells",
    "replicates": "which seeds",
    "first_seed": "which seeds",
    "data": "the text",
    "evaluation": "how runs are judged",
    "divergence": "how runs are judged",
    "spikes": "how runs are judged",
    "probes": "what is recorded",
}
_PLACES = ("corpus.prepared_as", "workers.host")
"""Where text or a worker lies: the corpus has a hash, by which it is compared."""

_FACTS = ("project", "python", "platform", "cpu", "cores", "libraries", "corpus")
_MACHINE = ("device", "device_name", "precision", "versions", "host")


@dataclass(frozen=True, slots=True)
class Differing:
    """One key with another value in each study."""

    key: str
    """Its path, such as ``training.warmup``."""
    a: str
    b: str
    effect: str
    """What it bears on, such as ``the training``."""


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Differing, ...]:
    """Keys of two studies, as `config.load.deciding` gives them, whose values differ; no name."""
    flat_a, flat_b = (dict(_settings(side)) for side in (a, b))
    found = []
    for key in dict.fromkeys([*flat_a, *flat_b]):
        if key != "name" and flat_a.get(key, ABSENT) != flat_b.get(key, ABSENT):
            effect = _EFFECTS.get(key.partition(".")[0], "the training")
            words = [_words(flat.get(key, ABSENT)) for flat in (flat_a, flat_b)]
            found.append(Differing(key, words[0], words[1], effect))
    return tuple(found)


def differing_provenance(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Differing, ...]:
    """Facts of two provenances (`store.provenance`) that differ: code, versions, machine, corpus.

    What all workers of a study have in common is compared, not which worker has it.
    """
    flat_a, flat_b = (dict(_facts(side)) for side in (a, b))
    found = []
    for key in dict.fromkeys([*flat_a, *flat_b]):
        words = [_words(flat.get(key, ABSENT)) for flat in (flat_a, flat_b)]
        if key == "platform":
            # A published study keeps no more of it.
            words = [word.partition("-")[0] for word in words]
        if words[0] != words[1] and key not in _PLACES:
            effect = "the text" if key.startswith("corpus") else "code and machine"
            found.append(Differing(key, words[0], words[1], effect))
    return tuple(found)


def _settings(study: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys as a reader looks them up: a knob of the space, or the pruner, is one."""
    for key, value in study.items():
        if isinstance(value, Mapping) and key != "pruner":
            yield from ((f"{key}.{name}", one) for name, one in value.items())
        else:
            yield key, value


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from _flat({key: provenance[key] for key in _FACTS if key in provenance})
    machines = [m for m in provenance.get("workers", {}).values() if isinstance(m, Mapping)]
    seen: dict[str, set[str]] = {}
    for machine in machines:
        for key, value in _flat({key: machine[key] for key in _MACHINE if key in machine}):
            seen.setdefault(f"workers.{key}", set()).add(_words(value))
    for key, values in seen.items():
        yield key, ", ".join(sorted(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _words(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_words(one) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_words(one)}' for key, one in value.items())}}}"
    return str(value)
