"""The command line: `wesar-sweep COMMAND`. Thin: each command reads its words and calls a room.

Exit codes: 0 done, 1 runs or checks failed or workers could not work, 2 bad input, 3 a budget is
used up, 4 cancelled, 130 stopped by Ctrl-C (143 by SIGTERM). Progress and messages go to standard
error; the result's path comes last on standard output.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from wesar_sweep.errors import ConfigError, StoreError, WesarSweepError

if TYPE_CHECKING:
    from wesar_sweep.api import Result
    from wesar_sweep.config.study import Study
    from wesar_sweep.config.sweep import Sweep
    from wesar_sweep.studies.progress import Summary

BUDGET_SPENT = 3
CANCELLED = 4

app = typer.Typer(
    name="wesar-sweep",
    help="Which initialisation, learning rate and size train stably? "
    "Train the runs of a study and write its robustness report.",
    epilog="Start with: wesar-sweep run search_spaces/lr_sigma.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A results directory, such as results/lr_sigma.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a value of the study, such as training.steps=50; may be repeated.",
    ),
]
On = Annotated[
    Path | None, typer.Option("--on", metavar="SWEEP.yaml", help="The machines; default this one.")
]
Slots = Annotated[
    int | None, typer.Option(min=1, help="Runs a worker trains at once; default from memory.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Default: a GPU where there is one.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; default one a GPU, else one a core.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Go on in the background, once the study has begun.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options of the program itself."""
    if version:
        from importlib.metadata import version as version_of

        print(version_of("wesar-sweep"))
        raise typer.Exit()


@app.command(
    epilog="Example: wesar-sweep run search_spaces/lr_sigma.yaml --set replicates=5 --out results/5"
)
def run(
    file: StudyFile,
    on: On = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results directory; default results/NAME.")
    ] = None,
    slots: Slots = None,
    device: Device = None,
    workers: Workers = None,
    set_: Set = None,
    detach: Detach = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be started or submitted; start nothing."),
    ] = False,
) -> None:
    """Train a study and write its report; a study begun before goes on where it stopped."""
    from wesar_sweep import api

    study = api.load(file, overrides=set_ or ())
    sweep = _sweep(on, slots=slots, device=device, workers=workers)
    if dry_run:
        from wesar_sweep.driver import rehearse

        print(rehearse(study, sweep=sweep, root=out or api.RESULTS / study.name))
    else:
        _run(study, sweep, out, detach=detach)


@app.command(epilog="Example: wesar-sweep resume results/lr_sigma")
def resume(
    directory: Directory,
    on: On = None,
    slots: Slots = None,
    device: Device = None,
    workers: Workers = None,
    detach: Detach = False,
) -> None:
    """Go on with a stopped study; finished runs are never trained again."""
    from wesar_sweep import api

    result = api.open_result(directory)
    sweep = _sweep(on, slots=slots, device=device, workers=workers)
    _run(result.study, sweep, directory, detach=detach)


@app.command(epilog="Example: wesar-sweep finish results/tpe --to results/tpe_finished")
def finish(
    directory: Directory,
    to: Annotated[
        Path, typer.Option(metavar="NEW", help="Results directory of the cells that are finished.")
    ],
    cells: Annotated[
        int, typer.Option(min=1, help="Pruned cells to draw; all where there are fewer.")
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    on: On = None,
    slots: Slots = None,
    device: Device = None,
    workers: Workers = None,
    detach: Detach = False,
) -> None:
    """Train pruned cells of a finished search to the end, drawn at random: what did pruning hide?

    The report in NEW says whether one of them would have been the best; `resume NEW` goes on.
    """
    from wesar_sweep import api, finishing

    search = api.open_result(directory)
    sweep = _sweep(on, slots=slots, device=device, workers=workers)
    study = finishing.begin(search.directory, to=to, sweep=sweep, cells=cells, seed=seed)
    _run(study, sweep, to, detach=detach)


@app.command(epilog="Example: wesar-sweep status results/lr_sigma --watch")
def status(
    directory: Directory,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until the study ends.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks of --watch.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show how far a study is, while it runs or afterwards.

    With --watch the exit code is 0 when the study is complete and 1 when it stopped before.
    """
    from wesar_sweep import api, status_view

    result = api.open_result(directory)
    api.require_unpublished(result.directory)
    if as_json:
        print(json.dumps(status_view.facts(result)))
    elif watch:
        raise typer.Exit(status_view.watch(result, every_s=every))
    else:
        status_view.show(result)


@app.command(epilog="Example: wesar-sweep workers results/lr_sigma")
def workers(directory: Directory, as_json: AsJson = False) -> None:
    """List every worker of a study, dead ones too: what it does or how it ended, and its log."""
    from wesar_sweep import api, workers_view

    found = workers_view.facts(api.open_result(directory).directory)
    if as_json:
        print(json.dumps(found))
    else:
        workers_view.show(found)


@app.command(epilog="Example: wesar-sweep cancel results/lr_sigma")
def cancel(
    directory: Directory,
    now: Annotated[
        bool, typer.Option("--now", help="Kill what still lives on this host after the timeout.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0, metavar="SECONDS", help="How long to wait.")
    ] = 60.0,
) -> None:
    """Stop a study that runs, in good order; `wesar-sweep resume` goes on with it."""
    from wesar_sweep import api, background

    result = api.open_result(directory)
    api.require_unpublished(result.directory)
    left = background.cancel(result.directory, now=now, timeout_s=timeout_s, say=say)
    if left:
        say(
            f"still alive: {', '.join(map(str, left))}. They have been asked to stop and may yet "
            "do so: look again with `wesar-sweep workers`, kill what is on this host with --now, "
            "and what is elsewhere on its own host"
        )
        raise typer.Exit(1)
    if left is None:
        say(f"nobody runs the study in {_short(directory)}: there is nothing to cancel")
    summary = result.summary
    say(f"{summary.runs_done} of {summary.runs} runs are kept")
    if not summary.complete:
        say(f"go on with: wesar-sweep resume {_short(directory)}")


@app.command(epilog="Example: wesar-sweep report results/lr_sigma --figure all --format pdf")
def report(
    directory: Directory,
    figure: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this figure, as a file; all: every one."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this table, as a file; all: every one."),
    ] = None,
    format: Annotated[
        Literal["html", "md", "csv", "svg", "png", "pdf", "latex"] | None,
        typer.Option(
            "--format",
            help="Of the report html (default), md or csv (the cells); of a figure svg (default), "
            "png or pdf; of a table md (default), latex or csv.",
        ),
    ] = None,
    theme: Annotated[
        Literal["light", "dark"] | None, typer.Option(help="Of a figure; default light.")
    ] = None,
    metric: Annotated[
        Literal["loss", "ppl", "bpb"] | None,
        typer.Option(help="Of the tables matrix (default loss) and paper (default ppl)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File, or folder for all; default in DIR."),
    ] = None,
) -> None:
    """Write the report anew, or single figures and tables of it.

    Of a study that still runs the report says that it is partial.
    """
    from wesar_sweep import api, reports

    if figure is not None and table is not None:
        raise typer.BadParameter("not together with --figure", param_hint="--table")
    if theme is not None and figure is None:
        raise typer.BadParameter("only together with --figure", param_hint="--theme")
    if metric is not None and table is None:
        raise typer.BadParameter("only together with --table", param_hint="--metric")
    result = api.open_result(directory)
    if figure is not None:
        form, folder = format or "svg", directory / "figures"
        path = out or (folder if figure == reports.ALL else folder / f"{figure}.{form}")
        reports.write_figures(
            result.analysis, name=figure, out=path, format=form, theme=theme or "light"
        )
    elif table is not None:
        form, folder = format or "md", directory / "tables"
        path = out or (
            folder if table == reports.ALL else folder / f"{table}.{reports.suffix(form)}"
        )
        reports.write_tables(result.analysis, name=table, out=path, format=form, metric=metric)
    else:
        path = result.report(format=format or "html", out=out)
    print(path)


@app.command(epilog="Example: wesar-sweep compare results/lr_sigma results/five_seeds")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A results directory.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another; differences are B − A.")],
    format: Annotated[
        Literal["text", "md", "csv", "json"],
        typer.Option("--format", help="csv: the matched cells; json: everything."),
    ] = "text",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: standard output.")
    ] = None,
) -> None:
    """Compare two studies cell by cell: paired differences, verdicts, settings, provenance."""
    from wesar_sweep import api
    from wesar_sweep.reports import comparison

    comparison.write(api.compare(a, b), format=format, out=out)
    if out is not None:
        print(out)


@app.command(epilog="Example: wesar-sweep validate search_spaces/*.yaml")
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="STUDY.yaml...", help="Study files.")],
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check study files; every problem is printed with its place and what is allowed."""
    from wesar_sweep.config import load_study
    from wesar_sweep.studies.check import check

    problems: dict[str, list[str]] = {}
    for file in files:
        try:
            check(load_study(file, overrides=set_ or ()))
            problems[str(file)] = []
        except ConfigError as error:
            problems[str(file)] = [str(problem) for problem in error.problems]
    if as_json:
        print(json.dumps(problems))
    else:
        for name, found in problems.items():
            print(f"{name}: " + (f"{len(found)} problem(s)" if found else "valid"))
            for text in found:
                print(text, file=sys.stderr)
    if any(problems.values()):
        raise typer.Exit(2)


@app.command(epilog="Example: wesar-sweep plan search_spaces/lr_sigma.yaml")
def plan(
    file: StudyFile,
    on: On = None,
    slots: Slots = None,
    device: Device = None,
    workers: Workers = None,
    set_: Set = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Train a few steps to estimate the time.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Say what a study would train: cells, runs, tokens, FLOPs, and an estimate of the time."""
    from wesar_sweep import plan_view
    from wesar_sweep.config import load_study, resolved_precision
    from wesar_sweep.launchers.placement import plan_workers

    study = load_study(file, overrides=set_ or ())
    sweep = _sweep(on, slots=slots, device=device, workers=workers)
    resolved_precision(study, on_gpu=plan_workers(sweep)[0].on_gpu)
    facts = plan_view.facts(study, sweep=sweep, probe=probe)
    if as_json:
        print(json.dumps(facts))
    else:
        plan_view.show(facts)


@app.command(epilog="Example: wesar-sweep doctor search_spaces/lr_sigma.yaml")
def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY.yaml]", help="A study, whose slots to choose."),
    ] = None,
    on: On = None,
    device: Device = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine is, how fast, and whether it is fit to train; exit code 1 if not."""
    from wesar_sweep.config import load_study

    study = None if file is None else load_study(file, overrides=set_ or ())
    if study is None and set_:
        raise typer.BadParameter("there is no study to change: name its file", param_hint="--set")
    sweep = _sweep(on, device=device)
    try:
        from wesar_sweep import doctor as room
        from wesar_sweep import doctor_view
    except (ImportError, OSError) as error:
        say(f"error: a library does not load: {error}; install it anew by pip, torch above all")
        raise typer.Exit(1) from None
    facts = room.examine(study, sweep=sweep, say=lambda text: say(f"{text} …"))
    if as_json:
        print(json.dumps(facts))
    else:
        doctor_view.show(facts)
    if not facts["fit"]:
        raise typer.Exit(1)


@app.command(epilog="Example: wesar-sweep schema > study.schema.json")
def schema(
    kind: Annotated[
        Literal["study", "sweep"], typer.Argument(help="Which kind of file.")
    ] = "study",
) -> None:
    """Print the JSON Schema of study or sweep files, for editors."""
    from wesar_sweep.config import json_schema

    print(json.dumps(json_schema(kind), indent=2))


@app.command(
    epilog="Example: wesar-sweep export results/lr_sigma --format parquet --out runs.parquet"
)
def export(
    directory: Directory,
    format: Annotated[
        Literal["csv", "json", "parquet"], typer.Option("--format", help="File format.")
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: outcomes.FORMAT in DIR.")
    ] = None,
) -> None:
    """Write the outcomes, one row a run, for other programs."""
    from wesar_sweep import api
    from wesar_sweep.reports.export import export_outcomes

    result = api.open_result(directory)
    path = out or directory / f"outcomes.{format}"
    if result.directory.published and path.resolve() == result.directory.outcomes_table.resolve():
        raise StoreError(f"{path} is the published study's own table: give another file (--out)")
    export_outcomes(result.outcomes, path=path, format=format)
    print(path)


@app.command(epilog="Example: wesar-sweep publish results/lr_sigma --to published/lr_sigma")
def publish(
    directory: Directory,
    to: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="A new folder, or one that holds the same study."),
    ],
) -> None:
    """Write a finished study to a folder to be committed: data as Parquet, report, provenance."""
    from wesar_sweep import api

    written = api.publish(directory, to=to)
    for name, size in written.sizes.items():
        say(f"{size / 1e6:8.3f} MB  {name}")
    say(f"{sum(written.sizes.values()) / 1e6:8.3f} MB  in all")
    if written.changed:
        say(
            "note: curves are published rounded, and these tables of the report differ for it "
            f"from those of the study's own: {', '.join(written.changed)}"
        )
    print(_short(to))


@app.command(epilog="Example: wesar-sweep fold results/lr_sigma --to models/best")
def fold(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A file of kept weights, or a results directory: then its best completed run.",
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the model.")],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Of a results directory only this cell.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of a results directory only this seed.")
    ] = None,
) -> None:
    """Write a run as a model for Hugging Face's transformers; needs keep_weights: true."""
    from wesar_sweep.export_model import fold_run

    kept = fold_run(run, to=to, trial=trial, seed=seed)
    say(
        f"trial {kept.trial}, seed {kept.seed} of {kept.study}: {kept.method}, {kept.steps} steps, "
        f"validation loss {kept.val_loss:.4f} nats a token"
    )
    if kept.mask_documents:
        say(
            "note: it was trained with mask_documents, and transformers lets attention cross the "
            "end of a document: its figures will differ from the study's"
        )
    print(to)


storage_app = typer.Typer(
    help="Databases that studies are kept in.", no_args_is_help=True, add_completion=False
)
app.add_typer(storage_app, name="storage")


@storage_app.callback()
def _storage() -> None:
    """Databases that studies are kept in."""


@storage_app.command("check", epilog="Example: wesar-sweep storage check --on sweeps/cluster.yaml")
def storage_check(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|DIR]",
            help="postgresql://user@host:port/database, or a directory for SQLite; default: what "
            "--on or WESAR_STORAGE says, else results/. Other users see arguments: a password "
            "belongs in WESAR_STORAGE, PGPASSWORD or ~/.pgpass.",
        ),
    ] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a database will hold studies: speed, concurrent asks, room. Exit code 1: no."""
    from wesar_sweep import api, storage_view
    from wesar_sweep.config.storage_url import parse_storage_url
    from wesar_sweep.studies.storage import asked_storage
    from wesar_sweep.studies.storage_check import check_storage

    folder = api.RESULTS
    if place is None:
        url = asked_storage(_sweep(on))
    elif ":" in place and not Path(place).exists():
        url = parse_storage_url(place, where="URL")
    else:
        url, folder = None, Path(place)
    facts = check_storage(url, folder=folder, say=lambda text: say(f"{text} …"))
    if as_json:
        print(json.dumps(facts.plain()))
    else:
        storage_view.show(facts)
    if not facts.fit:
        raise typer.Exit(1)


def _sweep(on: Path | None, **changes: object) -> Sweep:
    """The machines, with what the command line says instead of the file."""
    from wesar_sweep.config import load_sweep

    overrides = [f"{name}={value}" for name, value in changes.items() if value is not None]
    return load_sweep(on, overrides=overrides)


def _run(study: Study, sweep: Sweep, out: Path | None, *, detach: bool = False) -> None:
    from wesar_sweep import api
    from wesar_sweep.config.sweep import Budget
    from wesar_sweep.crew import resume_command
    from wesar_sweep.endings import BudgetSpent, Cancelled, Interrupted
    from wesar_sweep.store.drive import read_drive
    from wesar_sweep.store.layout import StudyDirectory

    root = out or api.RESULTS / study.name
    on_ready = None
    if detach:
        from wesar_sweep import background

        taken = background.handover()
        if taken is None:
            _detach(study, sweep, root)
            return
        on_ready = partial(taken.take, StudyDirectory(root))
    go_on = resume_command(root, sweep)
    former = read_drive(StudyDirectory(root))
    if former is not None and former.budget != Budget() == sweep.budget:
        say("note: the call before this one had a budget, this one has none (give its --on again)")
    try:
        result = api.run(study, on=sweep, out=root, on_ready=on_ready)
    except Interrupted as stop:
        say(f"stopped; what was finished is on disk. Go on with: {go_on}")
        raise typer.Exit(128 + stop.number) from None
    except Cancelled:
        say(f"cancelled; what was finished is on disk. Go on with: {go_on}")
        raise typer.Exit(CANCELLED) from None
    except BudgetSpent as stop:
        result = api.open_result(root)
        summary = result.summary
        _show(result)
        say(
            f"{stop}. {summary.runs - summary.runs_done} of {summary.runs} runs are left to train. "
            "Go on with a larger budget in the sweep file: "
            + resume_command(root, sweep, changed=True)
        )
        raise typer.Exit(BUDGET_SPENT) from None
    _finish(result)


def _detach(study: Study, sweep: Sweep, root: Path) -> None:
    """Start this command in the background, and say how to look after it."""
    from wesar_sweep import background
    from wesar_sweep.driver import plan_checked
    from wesar_sweep.liveness import living_driver
    from wesar_sweep.store.layout import StudyDirectory

    plan_checked(study, sweep=sweep)
    if code := background.detach(sys.argv[1:]):
        raise typer.Exit(code)
    directory = StudyDirectory(root)
    # A study with nothing left to train may be done already.
    driver = living_driver(directory)
    say(f"runs in the background: {driver}" if driver else "has run in the background")
    say(f"log:    {_short(directory.driver_log_file)}")
    say(f"watch:  wesar-sweep status {_short(root)} --watch")
    say(f"stop:   wesar-sweep cancel {_short(root)}")
    print(_short(root))


def _show(result: Result) -> None:
    """Table, counts and the report's path."""
    from wesar_sweep.reports import write
    from wesar_sweep.reports.terminal import print_summary

    analysis = result.analysis
    # First the file, then the words: the reader of standard output may have gone.
    path = write(result.directory, analysis=analysis)
    print_summary(analysis)
    say(count_line(result.summary))
    print(_short(path))


def _finish(result: Result) -> None:
    """All that, and exit code 1 where runs failed."""
    _show(result)
    summary = result.summary
    if summary.failed:
        say(
            f"{summary.failed} run(s) failed through no fault of their settings; the reasons stand "
            f"in the report and in {_short(result.directory.workers_folder)}"
        )
    elif not summary.complete:
        directory = result.directory
        remote = directory.storage_file.exists()
        database = directory.storage_file if remote else directory.database_file
        say(
            f"{summary.waiting} run(s) have no outcome though nothing is left to train: rows are "
            f"missing from {_short(result.directory.outcomes_folder)}. For a grid or listed cells, "
            f"delete {_short(database)} and resume: the database is made anew from the rows."
        )
    if summary.failed or not summary.complete:
        raise typer.Exit(1)


data = typer.Typer(
    help="Prepare the text of a study, or look at it.", no_args_is_help=True, add_completion=False
)
app.add_typer(data, name="data")


@data.command(epilog="Example: wesar-sweep data prepare novels.yaml")
def prepare(file: StudyFile, set_: Set = None, as_json: AsJson = False) -> None:
    """Turn the text of a study into tokens, once, for all who train on it later.

    `run` does so by itself; do it beforehand where compute nodes cannot reach the hub.
    """
    _show_corpus(file, set_, as_json=as_json, beginning=False)


@data.command(epilog="Example: wesar-sweep data inspect novels.yaml")
def inspect(file: StudyFile, set_: Set = None, as_json: AsJson = False) -> None:
    """Show what a study trains on: counts, tokens, epochs, and how the text begins."""
    _show_corpus(file, set_, as_json=as_json, beginning=True)


def _show_corpus(
    file: Path, overrides: list[str] | None, *, as_json: bool, beginning: bool
) -> None:
    from wesar_sweep import api, data_view
    from wesar_sweep.config.space import longest_context
    from wesar_sweep.data.corpus import load_corpus
    from wesar_sweep.data.evaluation_sets import sets_of

    study = api.load(file, overrides=overrides or ())
    with data_view.shown() as progress:
        corpus = load_corpus(study.data, context=longest_context(study), progress=progress)
        sets = sets_of(study, corpus=corpus)
    facts = data_view.facts(study, corpus)
    facts["evaluation_sets"] = {name: one.facts() for name, one in sets.items()}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print("\n".join(data_view.lines(facts)))
    if beginning:
        print("\n".join(data_view.beginning(corpus)))


def count_line(summary: Summary) -> str:
    """Counts of runs by status."""
    counts = asdict(summary)
    named = ("completed", "diverged", "pruned", "failed", "waiting")
    return f"{summary.runs} runs: " + ", ".join(f"{counts[n]} {n}" for n in named if counts[n])


def _short(path: Path) -> str:
    """The path as a person here would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def say(text: str) -> None:
    """A message for a person, on standard error."""
    print(text, file=sys.stderr)


def main() -> NoReturn:
    """Entry point: errors for people become a message and exit code 2 (1 where workers failed)."""
    from wesar_sweep.errors import LaunchError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except ConfigError as error:
        say(f"{error}\n\n{len(error.problems)} problem(s); nothing was run.")
        sys.exit(2)
    except LaunchError as error:
        say(f"error: {error}")
        sys.exit(1)
    except WesarSweepError as error:
        say(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:
        # The reader, such as `head`, has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)
