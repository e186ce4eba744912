"""`plan`: what a study would train and how long it would take, before anything is trained.

Imports no torch: the estimate comes from a short probe in a process of its own
(`wesar_sweep.speed_probe`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from wesar_sweep.config import resolved
from wesar_sweep.config.boundary import boundary_search
from wesar_sweep.config.listed import listed_cells
from wesar_sweep.config.run import Run, make_run
from wesar_sweep.config.space import Scalar, values
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import LaunchError
from wesar_sweep.launchers.placement import plan_workers
from wesar_sweep.studies.check import check

_PROBE_TIMEOUT_S = 600


def facts(study: Study, *, sweep: Sweep, probe: bool) -> dict[str, Any]:
    """Counts and, where probed, times of a study, as plain values.

    For samplers that search, the cells are not known beforehand: each counts as one with every
    searched knob in the middle of its range. A boundary search counts with all that it may try.

    Raises:
        ConfigError: The study asks for what is not installed.
        LaunchError: The probe failed.
    """
    check(study)
    workers = plan_workers(sweep)
    search = boundary_search(study)
    if search is not None:
        middle = search.values[len(search.values) // 2]
        cells = [{**one, search.along: middle} for one in search.series] * search.most
    else:
        listed = listed_cells(study)
        cells = [_middle(study)] * int(study.sampler.cells or 0) if listed is None else listed
    runs = [make_run(study, trial, study.first_seed, cell) for trial, cell in enumerate(cells)]
    tokens = sum(map(_tokens, runs)) * study.least_replicates
    planned: dict[str, Any] = {
        "study": study.name,
        "sampler": study.sampler.name,
        "cells": len(cells),
        "replicates": study.least_replicates,
        "replicates_at_most": study.most_replicates,
        "runs": len(cells) * study.least_replicates,
        "runs_at_most": len(cells) * study.most_replicates,
        "tokens": tokens,
        "workers": len(workers),
        "device": workers[0].device,
        "upper_bound": study.pruner is not None or search is not None,
        "architectures": len({run.architecture for run in runs}),
    }
    # A login node says nothing of how fast the cluster's nodes are.
    if probe and sweep.launcher != "slurm":
        planned |= _estimate(study, sweep, runs, device=workers[0].device, workers=len(workers))
    return planned


def _tokens(run: Run) -> int:
    return run.hyperparameters.steps * run.architecture.tokens_per_step


def _middle(study: Study) -> dict[str, Scalar]:
    """A cell in the middle of the space: the first choice, the (geometric) middle of a range."""
    cell: dict[str, Scalar] = {}
    for knob, parameter in study.space.items():
        listed = values(parameter, knob)
        if listed is not None:
            cell[knob] = listed[len(listed) // 2]
        else:
            low, high = float(parameter.low), float(parameter.high)  # type: ignore[union-attr]
            cell[knob] = (low * high) ** 0.5 if parameter.log else (low + high) / 2  # type: ignore[union-attr]
    return cell


def _estimate(
    study: Study, sweep: Sweep, runs: list[Run], *, device: str, workers: int
) -> dict[str, Any]:
    """FLOPs and seconds from a probe of each architecture."""
    request = {
        "study": resolved(study),
        "device": device,
        "slots": sweep.slots,
        "memory_fraction": sweep.memory_fraction,
        "workers": workers,
        "cells": _one_cell_an_architecture(study, runs),
    }
    command = [sys.executable, "-m", "wesar_sweep.speed_probe"]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
    )
    if done.returncode != 0:
        raise LaunchError(f"the probe failed; try plan --no-probe\n{done.stderr[-2000:]}")
    probed = json.loads(done.stdout)
    by_architecture = dict(zip((run.architecture for run in _distinct(runs)), probed, strict=True))
    flops = seconds = 0.0
    for run in runs:
        one = by_architecture[run.architecture]
        tokens = _tokens(run) * study.least_replicates
        flops += tokens * one["flops_per_token"]
        seconds += tokens / (one["tokens_per_second"] * workers)
    return {"flops": flops, "seconds": seconds, "probes": probed}


def _distinct(runs: list[Run]) -> list[Run]:
    """The first run of each architecture."""
    return list({run.architecture: run for run in reversed(runs)}.values())


def _one_cell_an_architecture(study: Study, runs: list[Run]) -> list[dict[str, Scalar]]:
    return [{knob: run.columns()[knob] for knob in study.space} for run in _distinct(runs)]


def show(planned: dict[str, Any]) -> None:
    """Print it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    at_most = "at most " if planned["upper_bound"] else ""
    most = at_most if planned["sampler"] == "boundary" else ""
    table.add_row("cells", f"{most}{planned['cells']} ({planned['sampler']})")
    a_cell, runs = f"{planned['replicates']}", f"{planned['runs']}"
    growth = planned["runs_at_most"] / planned["runs"]
    if growth > 1:
        a_cell += f" to {planned['replicates_at_most']}"
        runs += f" to {planned['runs_at_most']}"
    table.add_row("runs", f"{at_most}{runs} ({a_cell} a cell)")
    up_to = f" to {planned['tokens'] * growth:,.0f}" if growth > 1 else ""
    table.add_row("tokens", f"{at_most}{planned['tokens']:,}{up_to}")
    table.add_row("shapes", f"{planned['architectures']}")
    table.add_row("workers", f"{planned['workers']} on {planned['device']}")
    if "flops" in planned:
        up_to = f" to {planned['flops'] * growth:.2e}" if growth > 1 else ""
        table.add_row("FLOPs", f"{at_most}{planned['flops']:.2e}{up_to}")
        up_to = f" to {_duration(planned['seconds'] * growth)}" if growth > 1 else ""
        time = f"{at_most}about {_duration(planned['seconds'])}{up_to}, by a short probe"
        table.add_row("time", time)
    Console().print(table)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
