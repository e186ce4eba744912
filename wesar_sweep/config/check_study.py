"""Does the study make sense as a whole: do keys contradict each other?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from wesar_sweep.config.check_boundary import boundary_findings
from wesar_sweep.config.check_listed import listed_findings
from wesar_sweep.config.check_space import (
    TooManySettingsError,
    condition_findings,
    given,
    is_active,
    parameter_findings,
    rests,
    settings,
    twice_findings,
    unknown_method,
)
from wesar_sweep.config.data import SyntheticData
from wesar_sweep.config.evaluation import VALIDATION, LambadaSet
from wesar_sweep.config.findings import Finding
from wesar_sweep.config.knobs import knob_table
from wesar_sweep.config.methods import BUILT_IN_METHODS
from wesar_sweep.config.space import MAX_CELLS, Choices, Range, combinations, values
from wesar_sweep.config.study import Study
from wesar_sweep.config.words import METHOD_PATTERN, listed
from wesar_sweep.config.yaml12 import KeyPath


def study_findings(study: Study, *, wrong: Sequence[KeyPath] = ()) -> list[Finding]:
    """Everything that contradicts itself in a study whose single values are valid.

    Args:
        study: The study, with defaults in place of what is wrong already.
        wrong: Paths of what was wrong and was replaced; findings that rest on them are left out.
    """
    findings = list(parameter_findings(study))
    study, bad = _without(study, findings)
    known = [*wrong, *bad]
    conditions = list(condition_findings(study))
    findings += [*conditions, *twice_findings(study)]
    study, bad = _without(study, conditions)
    known += bad
    for check in _CHECKS:
        try:
            found = list(check(study))
        except TooManySettingsError as error:
            hint = "use fewer values"
            found = [Finding(("space",), str(error), hint=hint, at_key=True)]
        findings += [finding for finding in found if not finding.rests_on(known)]
    return [finding for finding in findings if not finding.rests_on(wrong)]


def _without(study: Study, findings: Sequence[Finding]) -> tuple[Study, list[KeyPath]]:
    """The study without the parameters that have findings, and their paths."""
    bad = {finding.path[1] for finding in findings}
    # A parameter under a condition on a bad one cannot be judged either.
    while more := {k for k, p in study.space.items() if k not in bad and bad & set(p.when)}:
        bad |= more
    space = {knob: parameter for knob, parameter in study.space.items() if knob not in bad}
    return study.model_copy(update={"space": space}), [("space", name) for name in bad]


def _methods(study: Study) -> Iterator[Finding]:
    for name in study.methods:
        path: KeyPath = ("methods", name)
        if name in BUILT_IN_METHODS:
            hint = "choose another name"
            yield Finding(path, f"{name} is built in and keeps its meaning", hint=hint, at_key=True)
        elif not re.fullmatch(METHOD_PATTERN, name):
            words = "letters, digits and '_', beginning with a letter"
            yield Finding(path, "this is not a method's name", allowed=words, at_key=True)
        if study.methods[name].sigma2_at_width is not None and not study.methods[name].uses_sigma2:
            path = (*path, "sigma2_at_width")
            hint = "remove it, or set reparametrization: wesar"
            yield Finding(path, _MEANINGLESS["sigma2"][1], hint=hint, at_key=True)
    if study.method not in study.method_names:
        yield unknown_method(study, ("method",), study.method)


def _heads(study: Study) -> Iterator[Finding]:
    involves = rests("width", "heads", "position")
    path = given(study, "width", "heads")
    for setting in settings(study, "width", "heads", "position"):
        width, heads = setting["width"], setting["heads"]
        assert isinstance(width, int) and isinstance(heads, int)
        if width % heads:
            message = f"width {width} is not divisible by heads {heads}"
            hint = f"choose a multiple of {heads} as width, or heads that divide {width}"
            yield Finding(path, message, hint=hint, involves=involves)
            return
        if setting["position"] == "rope" and width // heads % 2:
            message = (
                f"width {width} over heads {heads} makes {width // heads} a head, "
                "and position rope needs an even number"
            )
            hint = "change width or heads, or use position: none"
            yield Finding(path, message, hint=hint, involves=(*involves, *rests("position")))
            return


def _warmup(study: Study) -> Iterator[Finding]:
    for setting in settings(study, "steps", "warmup"):
        steps, warmup = setting["steps"], setting["warmup"]
        assert isinstance(steps, int) and isinstance(warmup, int)
        if warmup >= steps:
            yield Finding(
                given(study, "warmup", "steps"),
                f"warmup {warmup} leaves nothing of steps {steps}",
                allowed="a warmup below steps, for every combination",
                hint=f"set warmup to {steps // 10}" if "warmup" not in study.space else None,
                involves=rests("steps", "warmup"),
            )
            return


def _evaluation(study: Study) -> Iterator[Finding]:
    yield from _unreached(study, ("evaluation", "at"), study.evaluation.at)


def _unreached(study: Study, path: KeyPath, at: Sequence[int]) -> Iterator[Finding]:
    """Steps to evaluate at that some run does not come to."""
    least = min(_steps(study))
    for index, step in enumerate(at):
        if step > least:
            yield Finding(
                (*path, index),
                f"no run of {least} steps reaches this one",
                allowed=f"a whole number, at most {least}",
                involves=rests("steps"),
            )


def _evaluation_sets(study: Study) -> Iterator[Finding]:
    contexts = [s["context"] for s in settings(study, "context")]
    context = min(c for c in contexts if isinstance(c, int))
    for name, one in study.evaluation.sets.items():
        path: KeyPath = ("evaluation", "sets", name)
        if name == VALIDATION:
            hint = "choose another name"
            message = f"{name} is the held-out text of every study"
            yield Finding(path, message, hint=hint, at_key=True)
        elif not re.fullmatch(METHOD_PATTERN, name):
            words = "letters, digits and '_', beginning with a letter"
            yield Finding(path, "this is not a set's name", allowed=words, at_key=True)
        if isinstance(study.data, SyntheticData):
            message = "a model of synthetic symbols cannot be judged on text"
            hint = "remove the set, or train on text (data.source)"
            yield Finding(path, message, hint=hint, involves=(("data",),), at_key=True)
        yield from _unreached(study, (*path, "at"), one.at)
        stride = None if isinstance(one, LambadaSet) else one.stride
        if stride is not None and stride > context:
            yield Finding(
                (*path, "stride"),
                f"a window of context {context} has no room for {stride} new tokens",
                allowed=f"a whole number, 1 to {context}",
                involves=rests("context"),
            )


def _steps(study: Study) -> list[int]:
    return [int(s["steps"]) for s in settings(study, "steps") if isinstance(s["steps"], int)]


_MEANINGLESS: dict[str, tuple[str, str]] = {
    # knob: (the knob that decides whether it means anything, and why it might not)
    "sigma2": ("method", "only methods with the wesar reparametrization use sigma2"),
    "decay_fraction": ("schedule", "only the schedule wsd uses decay_fraction"),
    "final_lr_ratio": ("schedule", "the schedule constant does not use final_lr_ratio"),
}


def _unused(study: Study) -> Iterator[Finding]:
    """Searched knobs that change nothing: always, or in some cells of a grid."""
    for name, (decider, why) in _MEANINGLESS.items():
        if name not in study.space:
            continue
        users: dict[Any, None] = {}
        others: dict[Any, None] = {}
        for setting in settings(study, name, decider):
            if is_active(study, name, setting):
                value = setting[decider]
                (users if _uses(study, name, value) else others)[value] = None
        involves = (*rests(decider), ("methods",)) if decider == "method" else rests(decider)
        path: KeyPath = ("space", name)
        if not users:
            possible = {s[decider]: None for s in settings(study, decider)}
            able = [value for value in possible if _uses(study, name, value)]
            hint = (
                f"when: {{{decider}: {_yaml(able)}}}"
                if able
                else f"remove it, or set {decider} to one that uses it"
            )
            message = f"{name} would vary nothing: {why}"
            yield Finding(path, message, hint=hint, involves=involves, at_key=True)
        elif others and study.sampler.name in ("grid", "boundary") and _count(study, name) > 1:
            what = "the grid" if study.sampler.name == "grid" else "the search"
            message = f"{what} would train equal cells of {decider} {listed(others)}: {why}"
            hint = f"when: {{{decider}: {_yaml(list(users))}}}"
            yield Finding(path, message, hint=hint, involves=(*involves, ("sampler",)), at_key=True)


def _uses(study: Study, name: str, value: object) -> bool:
    if name == "sigma2":
        return study.method_parts(str(value)).uses_sigma2 if value in study.method_names else True
    return value == "wsd" if name == "decay_fraction" else value != "constant"


def _yaml(names: Sequence[object]) -> str:
    return str(names[0]) if len(names) == 1 else f"[{listed(names)}]"


def _count(study: Study, name: str) -> int:
    found = values(study.space[name], name)
    return 2 if found is None else len(found)


def _sampler(study: Study) -> Iterator[Finding]:
    name, cells = study.sampler.name, study.sampler.cells
    yield from listed_findings(study)
    if name == "boundary":
        yield from boundary_findings(study)
        return
    if study.sampler.along is not None:
        message, by = f"the sampler {name} does not go along a knob", (("sampler", "name"),)
        hint = "remove along, or set name: boundary"
        yield Finding(("sampler", "along"), message, hint=hint, involves=by, at_key=True)
    if name == "listed":
        return
    if name == "grid":
        if cells is not None:
            hint = "remove cells, or choose another sampler"
            message, by = "the grid trains every cell", (("sampler", "name"),)
            yield Finding(("sampler", "cells"), message, hint=hint, involves=by)
        yield from _grid(study)
        return
    if cells is None:
        hint = "say how many cells to train, such as cells: 40"
        yield Finding(("sampler",), f"the sampler {name} needs cells", hint=hint, at_key=True)
    varying = [knob for knob in study.space if _count(study, knob) > 1]
    if not varying:
        message = f"the sampler {name} has nothing to choose: no knob in space has two values"
        yield Finding(("space",), message, involves=(("sampler",),), at_key=True)
    hint = "use tpe"
    conditional = [knob for knob in varying if study.space[knob].when]
    path: KeyPath = ("sampler", "name")
    if name in ("cmaes", "gp") and conditional:
        message = f"{name} cannot search under a condition, as {listed(conditional)} asks"
        yield Finding(path, message, hint=hint, involves=(("space",),))
    if name == "cmaes":
        discrete = [knob for knob in varying if _categorical(study, knob)]
        if discrete:
            message = f"cmaes searches ranges only, and {listed(discrete)} has a list of values"
            yield Finding(path, message, hint=hint, involves=(("space",),))
        elif len(varying) == 1:
            message = "cmaes needs at least two knobs to search"
            yield Finding(path, message, hint=hint, involves=(("space",),))
        if len(study.objectives) > 1:
            message = "cmaes knows one objective only"
            yield Finding(path, message, hint="use tpe, gp or nsga2", involves=(("objectives",),))


def _categorical(study: Study, knob: str) -> bool:
    parameter = study.space[knob]
    return isinstance(parameter, Choices) or (parameter.points is not None and parameter.log)


def _grid(study: Study) -> Iterator[Finding]:
    endless = False
    for name, parameter in study.space.items():
        if not isinstance(parameter, Range) or parameter.points or parameter.step:
            continue
        if knob_table()[name].kind == "number" or parameter.log:
            endless = True
            kind = "points: 7" if parameter.log else "points: 7 or a step"
            yield Finding(
                ("space", name),
                "a grid needs a list of values, and this range has none",
                hint=f"add {kind}, or choose another sampler",
                involves=(("sampler",),),
                at_key=True,
            )
    if endless:
        return
    lists = {name: values(p, name) or () for name, p in study.space.items()}
    cells = sum(1 for _ in islice(combinations(study, lists), MAX_CELLS + 1))
    if cells > MAX_CELLS:
        yield Finding(
            ("space",),
            f"the grid has more than {MAX_CELLS:,} cells",
            hint="use fewer values, or another sampler",
            involves=(("sampler",),),
            at_key=True,
        )


def _pruner(study: Study) -> Iterator[Finding]:
    if study.pruner is None:
        return
    path: KeyPath = ("pruner",)
    if len(study.objectives) > 1:
        hint = "remove the pruner, or all objectives but one"
        message = "a pruner needs a single objective"
        yield Finding(path, message, hint=hint, involves=(("objectives",),), at_key=True)
    elif study.objectives != ("val_loss",):
        hint = "remove the pruner, or set objectives: [val_loss]"
        message = "a pruner judges the validation loss, which is not the objective here"
        yield Finding(path, message, hint=hint, involves=(("objectives",),), at_key=True)
    if study.adaptive is not None:
        # Whose run is pruned depends on who runs beside it, so the seeds wanted would, too.
        message = "a pruner ends cells early, and adaptive replicates add to them by their results"
        hint = "remove the pruner, or set replicates to a number"
        yield Finding(path, message, hint=hint, involves=(("replicates",),), at_key=True)
    if study.pruner.name == "wilcoxon":
        if study.least_replicates < 2 and study.adaptive is None:
            message = "wilcoxon compares replicates, and there is but one"
            hint = "set replicates to 2 or more, or choose another pruner"
            yield Finding(path, message, hint=hint, involves=(("replicates",),), at_key=True)
        return
    evaluation = study.evaluation
    most = max(_steps(study))
    reached = [*evaluation.at, *([evaluation.every] if evaluation.every else [])]
    if not any(step < most for step in reached):
        message = "the pruner has nothing to judge: no evaluation before the end of a run"
        hint = f"set evaluation.every, such as every: {max(1, most // 5)}"
        involves = (*rests("steps"), ("evaluation",))
        yield Finding(path, message, hint=hint, involves=involves, at_key=True)


def _replicates(study: Study) -> Iterator[Finding]:
    adaptive = study.adaptive
    if adaptive is None:
        return
    if adaptive.max <= adaptive.min:
        message = f"max {adaptive.max} leaves nothing to add to min {adaptive.min}"
        hint = f"set a larger max, or replicates: {adaptive.min}"
        involves: tuple[KeyPath, ...] = (("replicates", "min"),)
        yield Finding(("replicates", "max"), message, hint=hint, involves=involves)
    until: KeyPath = ("replicates", "until")
    if adaptive.until.divergence_halfwidth is None and not adaptive.until.told_apart:
        message = "until says nothing, so that no seed would be added"
        hint = "such as until: {divergence_halfwidth: 0.15}"
        yield Finding(until, message, hint=hint, at_key=True)
    if adaptive.until.told_apart and len({s["method"] for s in settings(study, "method")}) < 2:
        message = "there is but one method, and nothing to tell it apart from"
        hint = "list several under space.method, or use divergence_halfwidth"
        yield Finding((*until, "told_apart"), message, hint=hint, involves=rests("method"))


def _objectives(study: Study) -> Iterator[Finding]:
    for index, name in enumerate(study.objectives):
        if name in study.objectives[:index]:
            message = "this objective is given twice"
            yield Finding(("objectives", index), message, hint="remove one of the two")


_CHECKS: tuple[Callable[[Study], Iterator[Finding]], ...] = (
    _methods,
    _heads,
    _warmup,
    _evaluation,
    _evaluation_sets,
    _unused,
    _sampler,
    _pruner,
    _replicates,
    _objectives,
)
