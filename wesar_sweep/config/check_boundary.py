"""Does a boundary search make sense: what it goes along, over what, and what goes with it?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from wesar_sweep.config.boundary import FINEST, asked_resolution, candidates, is_log
from wesar_sweep.config.findings import Finding
from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.space import MAX_CELLS, Choices, Range, combinations, values
from wesar_sweep.config.study import Study
from wesar_sweep.config.words import listed, nearest
from wesar_sweep.config.yaml12 import KeyPath

_LEAST_VALUES = 3


def boundary_findings(study: Study) -> Iterator[Finding]:
    """Everything that keeps a study's boundary search from making sense."""
    by: tuple[KeyPath, ...] = (("sampler", "name"),)
    numeric = [knob for knob in study.space if knob_table()[knob].numeric]
    along = study.sampler.along
    if study.adaptive is not None:
        message = "a boundary search chooses by itself where more is trained"
        hint = f"set replicates: {study.least_replicates}"
        yield Finding(("replicates",), message, hint=hint, involves=by, at_key=True)
    if study.pruner is not None:
        message = "a pruner would end runs of which the search must know whether they diverge"
        yield Finding(("pruner",), message, hint="remove it", involves=by, at_key=True)
    if along is None:
        hint = f"such as along: {numeric[0]}" if numeric else "vary a number, such as lr, in space"
        message = "a boundary search needs a knob to go along"
        yield Finding(("sampler",), message, hint=hint, involves=(("space",),), at_key=True)
        return
    path: KeyPath = ("sampler", "along")
    if along not in numeric:
        message = "a boundary search goes along a number that space varies"
        words = listed(numeric) or "none: space varies no number"
        near = nearest(along, numeric)
        yield Finding(path, message, allowed=words, hint=near, involves=(("space",),))
        return
    yield from _values(study, along)
    yield from _others(study, along)


def _values(study: Study, along: str) -> Iterator[Finding]:
    """What is wrong with the values along the knob, or with the resolution."""
    parameter, path = study.space[along], ("space", along)
    involves: tuple[KeyPath, ...] = (("sampler",),)
    if parameter.when:
        message = "a boundary search cannot go along a knob that has a condition"
        yield Finding((*path, "when"), message, hint="remove when", involves=involves, at_key=True)
    if isinstance(parameter, Choices) and None in parameter.choices:
        message = "a boundary search goes along numbers, and null is none"
        yield Finding(path, message, hint="remove null", involves=involves)
        return
    options: KeyPath = ("sampler", "options")
    for option in study.sampler.options:
        if option != "resolution":
            hint = nearest(option, ["resolution"])
            message = "a boundary search has no such option"
            yield Finding((*options, option), message, allowed="resolution", hint=hint, at_key=True)
    given = values(parameter, along)
    found = given if given is not None else (parameter.low, parameter.high)  # type: ignore[union-attr]
    numbers = [float(v) for v in found if isinstance(v, int | float)]
    low, high = min(numbers), max(numbers)
    distance = math.log10(high / low) if is_log(parameter) else high - low
    if "resolution" in study.sampler.options:
        asked = asked_resolution(study)
        if asked is None or not distance / FINEST <= asked <= distance / 2:
            unit = " decades" if is_log(parameter) else ""
            words = f"a number from {distance / FINEST:.3g} to {distance / 2:.3g}{unit}"
            message = "the resolution does not go with the range"
            yield Finding((*options, "resolution"), message, allowed=words, involves=(path,))
            return
    if len(candidates(parameter, along, resolution=asked_resolution(study))) < _LEAST_VALUES:
        message = f"a boundary search needs at least {_LEAST_VALUES} values"
        yield Finding(path, message, hint="add some, or a range", involves=involves, at_key=True)
    if study.sampler.cells is not None and study.sampler.cells < _LEAST_VALUES:
        message = "so few cells find no boundary"
        words = f"a whole number, at least {_LEAST_VALUES}"
        yield Finding(("sampler", "cells"), message, allowed=words, involves=(("sampler", "name"),))


def _others(study: Study, along: str) -> Iterator[Finding]:
    """What is wrong with the knobs that make the series."""
    involves: tuple[KeyPath, ...] = (("sampler",),)
    lists = {}
    endless = False
    for name, parameter in study.space.items():
        if name == along:
            continue
        if along in parameter.when:
            message = f"what exists under a condition on {along} makes no series"
            yield Finding(
                ("space", name, "when"), message, hint="remove it", involves=involves, at_key=True
            )
            endless = True
        found = values(parameter, name)
        if found is None:
            assert isinstance(parameter, Range), "choices are a list"
            message = "a boundary is searched for each value of the other knobs, and this has none"
            hint = f"add points: {7 if parameter.log else '7 or a step'}"
            yield Finding(("space", name), message, hint=hint, involves=involves, at_key=True)
            endless = True
        lists[name] = found or ()
    if endless:
        return
    others = {knob: parameter for knob, parameter in study.space.items() if knob != along}
    rest = study.model_copy(update={"space": others})
    if sum(1 for _ in islice(combinations(rest, lists), MAX_CELLS + 1)) > MAX_CELLS:
        message = f"there are more than {MAX_CELLS:,} boundaries to search"
        yield Finding(("space",), message, hint="use fewer values", involves=involves, at_key=True)
