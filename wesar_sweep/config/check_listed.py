"""Do the cells that a study lists lie in its space: every knob that exists there, and no other?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wesar_sweep.config.findings import Finding
from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.space import (
    Parameter,
    Scalar,
    active,
    fixed_knobs,
    parents_first,
    values,
    within,
)
from wesar_sweep.config.study import Study
from wesar_sweep.config.words import listed, nearest
from wesar_sweep.config.yaml12 import KeyPath, show

_FEW = 64
"""So many allowed values are named one by one."""

_NAMED: tuple[KeyPath, ...] = (("sampler", "name"),)


def listed_findings(study: Study) -> Iterator[Finding]:
    """Everything that keeps a study's list of cells from being what is trained."""
    sampler = study.sampler
    if sampler.name != "listed":
        if sampler.listed is not None:
            message = f"the sampler {sampler.name} takes no list of cells"
            hint = "remove listed, or set name: listed"
            path: KeyPath = ("sampler", "listed")
            yield Finding(path, message, hint=hint, involves=_NAMED, at_key=True)
        if study.finishes is not None:
            message = "the cells of another study are finished one by one, as listed ones"
            yield Finding(
                ("finishes",), message, hint="remove it", involves=(("sampler",),), at_key=True
            )
        return
    if sampler.cells is not None:
        message = "the sampler listed trains every cell that is listed"
        yield Finding(("sampler", "cells"), message, hint="remove cells", involves=_NAMED)
    if sampler.listed is None:
        hint = f"such as listed: [{{{_example(study)}}}]"
        message = "the sampler listed needs the cells to train"
        yield Finding(("sampler",), message, hint=hint, at_key=True)
        return
    first: dict[tuple[tuple[str, Scalar], ...], int] = {}
    for index, cell in enumerate(sampler.listed):
        yield from _cell(study, ("sampler", "listed", index), cell)
        earlier = first.setdefault(tuple(sorted(_meant(study, cell).items())), index)
        if earlier != index:
            same = sampler.listed[earlier] == cell
            message = f"this cell is listed twice: it is number {earlier + 1}, too"
            if not same:
                message = f"this cell trains what number {earlier + 1} does: its method has no σ²"
            yield Finding(("sampler", "listed", index), message, hint="remove one of the two")
    if study.finishes is not None and study.finishes.drawn != len(sampler.listed):
        message = f"{len(sampler.listed)} cells are listed"
        path = ("finishes", "drawn")
        yield Finding(path, message, hint="leave it as it was", involves=(("sampler",),))
    elif study.finishes is not None and study.finishes.drawn > study.finishes.pruned:
        message = f"no more than {study.finishes.pruned} were pruned"
        yield Finding(("finishes", "drawn"), message, hint="leave it as it was")


def _meant(study: Study, cell: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The cell without a σ² that its method does not use."""
    method = cell.get("method", study.method)
    unused = method in study.method_names and not study.method_parts(str(method)).uses_sigma2
    return {knob: value for knob, value in cell.items() if not (unused and knob == "sigma2")}


def _example(study: Study) -> str:
    found = []
    for knob in study.space:
        parameter = study.space[knob]
        if not parameter.when:
            known = values(parameter, knob)
            found.append(f"{knob}: {show(known[0] if known else parameter.low)}")  # type: ignore[union-attr]
    return ", ".join(found)


def _cell(study: Study, path: KeyPath, cell: Mapping[str, Scalar]) -> Iterator[Finding]:
    for knob in cell:
        if knob not in study.space:
            yield _unknown(study, (*path, knob), knob)
    params = fixed_knobs(study)
    missing: list[str] = []
    unsure: set[str] = set()
    for knob in parents_first(study.space):
        parameter = study.space[knob]
        involves = tuple(("space", name) for name in (knob, *parameter.when))
        if not unsure.isdisjoint(parameter.when):
            # Whether it exists depends on what is wrong already.
            unsure.add(knob)
        elif not active(params, parameter.when):
            if knob in cell:
                names = listed(f"{name}: {show(params[name])}" for name in parameter.when)
                message = f"there is no {knob} in a cell of {names}"
                hint = "remove it, as its condition (when) in space asks"
                yield Finding((*path, knob), message, hint=hint, involves=involves, at_key=True)
        elif knob not in cell:
            missing.append(knob)
            unsure.add(knob)
        elif within(cell[knob], parameter, knob):
            params[knob] = cell[knob]
        else:
            unsure.add(knob)
            message = f"{knob} does not have this value in space"
            words = _allowed(parameter, knob)
            yield Finding((*path, knob), message, allowed=words, involves=involves)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        message = f"{' and '.join(missing)} {verb} missing from this cell"
        words = "; ".join(f"{knob}: {_allowed(study.space[knob], knob)}" for knob in missing)
        involves = tuple(("space", knob) for knob in missing)
        yield Finding(path, message, allowed=words, involves=involves)


def _unknown(study: Study, path: KeyPath, knob: str) -> Finding:
    involves: tuple[KeyPath, ...] = (("space", knob),)
    if knob in knob_table():
        fixed = knob_table()[knob].fixed_path
        hint: str | None = f"put {knob} in space, or set {fixed} for all cells"
    else:
        hint = nearest(knob, study.space)
    message = "space does not vary this"
    allowed = listed(study.space)
    return Finding(path, message, allowed=allowed, hint=hint, involves=involves, at_key=True)


def _allowed(parameter: Parameter, knob: str) -> str:
    known = values(parameter, knob)
    if known is not None and len(known) <= _FEW:
        return listed(show(value) for value in known)
    ends = (known[0], known[-1]) if known else (parameter.low, parameter.high)  # type: ignore[union-attr]
    what = f"one of {len(known)} values" if known else "a number"
    return f"{what} from {show(ends[0])} to {show(ends[1])}"
