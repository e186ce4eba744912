"""The Python interface: load a study, run it, look at what came out.

import wesar_sweep as ws

study = ws.load("search_spaces/lr_sigma.yaml", overrides=["replicates=5"])
result = ws.run(study, out="results/five_seeds")
result.outcomes  # a polars DataFrame, one row a run
result.figures()["loss-against-axis"].save("loss.pdf")  # an Altair chart
result.tables()["matrix"]  # a polars DataFrame
result.report()  # results/five_seeds/report.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wesar_sweep.config import load_study, load_sweep
from wesar_sweep.config.study import Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory

if TYPE_CHECKING:
    import polars as pl

    from wesar_sweep.analysis import Analysis
    from wesar_sweep.analysis.compare import Comparison
    from wesar_sweep.publishing import Published
    from wesar_sweep.reports.drawing import Chart
    from wesar_sweep.reports.tables import Metric
    from wesar_sweep.store.rows import Curve
    from wesar_sweep.studies.progress import Summary

RESULTS = Path("results")
"""Where studies are put unless told otherwise: results/<study's name>."""


@dataclass(frozen=True, slots=True)
class Result:
    """A study on disk, finished or not. Everything is read anew when asked for."""

    study: Study
    directory: StudyDirectory

    @property
    def outcomes(self) -> pl.DataFrame:
        """One row a run: key, knobs by their YAML names, status, losses, spikes, costs."""
        return self.analysis.outcomes

    @property
    def analysis(self) -> Analysis:
        """Every figure of the report as polars frames, computed from what is on disk now."""
        from wesar_sweep.analysis import Analysis

        return Analysis.read(self.directory, study=self.study)

    @property
    def summary(self) -> Summary:
        """Counts of cells and runs by status.

        Raises:
            StoreError: The study is a published one, of which nothing is left to count or run.
        """
        require_unpublished(self.directory)
        from wesar_sweep.studies.progress import summary

        return summary(self.directory, self.study)

    def curve(self, *, trial: int, seed: int) -> Curve:
        """The per-step series of one run.

        Raises:
            StoreError: There is none.
        """
        if self.directory.published:
            from wesar_sweep.store.frames import read_curves

            found, problems = read_curves(self.directory, [(trial, seed)])
            if not found:
                why = problems[0] if problems else f"no curve of trial {trial}, seed {seed}"
                raise StoreError(f"{self.directory.root}: {why}")
            return found[trial, seed]
        from wesar_sweep.store.curves import read_curve

        return read_curve(self.directory, trial, seed)

    def figures(self) -> dict[str, Chart]:
        """Every chart of the report that this study has data for, by name, as Altair objects."""
        from wesar_sweep.reports.figures import figures

        return {figure.name: figure.chart for figure in figures(self.analysis)}

    def tables(self, *, metric: Metric | None = None) -> dict[str, pl.DataFrame]:
        """Every table of the report by name, its numbers unrounded.

        Args:
            metric: What ``matrix`` holds: ``loss`` (default, nats a token), ``ppl`` or ``bpb``.
        """
        from wesar_sweep.reports.named_tables import tables

        return {table.name: table.frame for table in tables(self.analysis, metric=metric)}

    def report(self, *, format: str = "html", out: Path | str | None = None) -> Path:
        """Write the report and return its path; of a study that still runs, it says so.

        Args:
            format: ``html``, ``md`` or ``csv``.
            out: Where to; default beside the results.
        """
        from wesar_sweep.reports import write

        return write(self.directory, format=format, out=None if out is None else Path(out))


def require_unpublished(directory: StudyDirectory) -> None:
    """Refuse what only a study that is or was trained here allows.

    Raises:
        StoreError: It is a published one.
    """
    if directory.published:
        raise StoreError(
            f"{directory.root} is a published study, to be read alone (report, compare, export): "
            f"train it anew by `wesar-sweep run {directory.study_file} --out NEW_DIRECTORY`"
        )


def load(path: Path | str, *, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study file.

    Args:
        path: The YAML file.
        overrides: ``path=value`` strings, as after ``--set``.

    Raises:
        ConfigError: With every problem in the file and the overrides.
    """
    return load_study(Path(path), overrides=overrides)


def open_result(path: Path | str) -> Result:
    """The results directory of a study.

    Raises:
        StoreError: There is no study in it.
    """
    directory = StudyDirectory(Path(path))
    if not directory.study_file.exists():
        raise StoreError(
            f"no study in {path}: expected {directory.study_file}. "
            "Give the directory that `wesar-sweep run` printed, such as results/lr_sigma"
        )
    return Result(load_study(directory.study_file), directory)


def run(
    study: Study | Path | str,
    *,
    on: Sweep | Path | str | None = None,
    out: Path | str | None = None,
    command: Sequence[str] | None = None,
    quiet: bool = False,
    on_ready: Callable[[], None] | None = None,
) -> Result:
    """Train a study, or what is left of it.

    Args:
        study: A study or the path of its file.
        on: Machines: a sweep or the path of its file; default this machine, all of it.
        out: Results directory; default ``results/<name>``.
        command: For the provenance; default this process's command line.
        quiet: Show no progress on standard error.
        on_ready: Called once the study is this process's and the input has been looked at.

    Raises:
        EndedEarly: The study was interrupted or cancelled, or a budget is used up
            (`wesar_sweep.endings`); what was finished is on disk.
        ConfigError: Something in the files is wrong, not installed or not for this device.
        StoreError: The results directory cannot be used.
        LaunchError: Workers cannot be started, or keep dying.
    """
    from wesar_sweep.driver import run_study

    study = study if isinstance(study, Study) else load(study)
    sweep = on if isinstance(on, Sweep) else load_sweep(None if on is None else Path(on))
    root = Path(out) if out is not None else RESULTS / study.name
    require_unpublished(StudyDirectory(root))
    run_study(study, sweep=sweep, root=root, command=command, quiet=quiet, on_ready=on_ready)
    return Result(study, StudyDirectory(root))


def finish(
    search: Result | Path | str,
    *,
    to: Path | str,
    cells: int = 12,
    seed: int = 0,
    on: Sweep | Path | str | None = None,
    quiet: bool = False,
) -> Result:
    """Train a random sample of a search's pruned cells to the end, or what is left of it.

    Args:
        search: A finished study with a pruner, or its directory.
        to: The results directory for it; table ``finished`` of its report says what pruning hid.
        cells: How many pruned settings to draw; all where there are fewer.
        seed: Of the draw.
        on: As for `run`.
        quiet: Show no progress on standard error.

    Raises:
        StoreError: The search has not ended or nothing of it was pruned, or the directory is the
            search's own or holds another study.
        EndedEarly, ConfigError, LaunchError: As `run`.
    """
    from wesar_sweep.finishing import begin

    result = search if isinstance(search, Result) else open_result(search)
    sweep = on if isinstance(on, Sweep) else load_sweep(None if on is None else Path(on))
    study = begin(result.directory, to=Path(to), sweep=sweep, cells=cells, seed=seed)
    return run(study, on=sweep, out=to, quiet=quiet)


def compare(a: Result | Path | str, b: Result | Path | str) -> Comparison:
    """Two studies cell by cell, finished or not; differences are b − a.

    Args:
        a: A result or its directory.
        b: The other.

    Raises:
        StoreError: There is no study in one of them, or it cannot be read.
    """
    from wesar_sweep.analysis.compare import Comparison
    from wesar_sweep.store.provenance import read_provenance

    sides = [one if isinstance(one, Result) else open_result(one) for one in (a, b)]
    facts = [read_provenance(side.directory) for side in sides]
    return Comparison(
        a=sides[0].analysis,
        b=sides[1].analysis,
        provenance_a=facts[0],
        provenance_b=facts[1],
        name_a=str(sides[0].directory.root),
        name_b=str(sides[1].directory.root),
    )


def publish(path: Path | str, *, to: Path | str) -> Published:
    """Write a finished study to a folder that can be committed, with its reports.

    Raises:
        StoreError: The study is unfinished, or the folder holds something else.
    """
    from wesar_sweep.publishing import publish as write

    return write(StudyDirectory(Path(path)), to=Path(to))


def resume(
    path: Path | str, *, on: Sweep | Path | str | None = None, quiet: bool = False
) -> Result:
    """Go on with a study from what is on disk; finished runs are not trained again.

    Raises:
        StoreError: There is no study in it, or another process runs it.
    """
    result = open_result(path)
    return run(result.study, on=on, out=result.directory.root, quiet=quiet)
