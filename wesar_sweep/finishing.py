"""What did pruning hide? The study that trains a sample of a search's pruned cells to the end.

`begin` is all of it: it draws, writes down what the search knew, and gives the study to be run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.cut_short import best_whole_cells, cut_cells
from wesar_sweep.config.finishes import Finishes
from wesar_sweep.config.load import load_study, study_hash
from wesar_sweep.config.study import Sampler, Study
from wesar_sweep.config.sweep import Sweep
from wesar_sweep.driver import plan_checked
from wesar_sweep.errors import StoreError
from wesar_sweep.store.finished_search import FinishedSearch, write_finished_search
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.provenance import read_provenance
from wesar_sweep.studies.progress import summary

_LONGEST_NAME = 100


def begin(
    search: StudyDirectory, *, to: Path, sweep: Sweep, cells: int = 12, seed: int = 0
) -> Study:
    """The study that finishes a search, with what it needs to know in its directory.

    Again with the same arguments it gives the same study, which then goes on where it stopped.

    Args:
        search: A finished study with a pruner, published or not.
        to: The results directory of the study that finishes it.
        sweep: The machines, which are looked at before anything is written.
        cells: How many pruned settings to draw; all where there are fewer.
        seed: Of the draw.

    Raises:
        StoreError: The search has not ended or nothing of it was pruned, or the directory is the
            search's own or holds another study.
        ConfigError: As `driver.plan_checked`.
    """
    if to.resolve() == search.root.resolve():
        raise StoreError(
            f"{to} is the search itself: its pruned cells are finished in a directory of their "
            "own (--to)"
        )
    if StudyDirectory(to).published:
        raise StoreError(f"{to} is a published study: choose another place (--to)")
    study = load_study(search.study_file)
    record = _drawn(search, study, cells=cells, seed=seed)
    finishing = _study(study, record, provenance=read_provenance(search))
    directory = StudyDirectory(to)
    if directory.study_file.exists():
        there = load_study(directory.study_file)
        if study_hash(there) != study_hash(finishing):
            raise StoreError(
                f"{to} holds another study, {there.name}: choose another place (--to), or go on "
                f"with that one by `wesar-sweep resume {to}`"
            )
    plan_checked(finishing, sweep=sweep)
    write_finished_search(directory, record)
    return finishing


def _drawn(search: StudyDirectory, study: Study, *, cells: int, seed: int) -> FinishedSearch:
    """What is known of the search, with a sample of its pruned cells."""
    root = search.root
    if study.pruner is None:
        raise StoreError(f"the study in {root} has no pruner: all its cells ran to the end")
    # A published study has ended, and has no more to count.
    if not search.published and not summary(search, study).complete:
        raise StoreError(
            f"the study in {root} has not ended, and its best may still come: go on with it by "
            f"`wesar-sweep resume {root}`"
        )
    analysis = Analysis.read(search, study=study)
    try:
        pruned = cut_cells(analysis)
        best_of = best_whole_cells(analysis)
    except ValueError as error:
        raise StoreError(f"an outcome in {root} is not of its study: {error}") from error
    if not pruned:
        raise StoreError(f"the pruner of the study in {root} ended no cell: it hid nothing")
    if not best_of:
        raise StoreError(
            f"no cell of the study in {root} was trained to the end, so there is no best to "
            "compare with"
        )
    chosen = np.random.default_rng(seed).choice(
        len(pruned), size=min(cells, len(pruned)), replace=False
    )
    return FinishedSearch(
        study=study.name,
        study_hash=study_hash(study),
        pruned=len(pruned),
        seed=seed,
        corpus_sha256=read_provenance(search).get("corpus", {}).get("sha256"),
        best=best_of[0],
        cells=tuple(pruned[place] for place in sorted(chosen.tolist())),
        best_of=tuple(best_of),
    )


def _study(search: Study, record: FinishedSearch, *, provenance: dict[str, object]) -> Study:
    """The search with the drawn cells in place of its sampler, and without its pruner."""
    suffix = "-finished"
    changes: dict[str, object] = {
        "name": search.name[: _LONGEST_NAME - len(suffix)] + suffix,
        "title": f"Pruned cells of {search.title or search.name}, finished",
        "question": "Would a cell that the pruner ended have been the best?",
        "sampler": Sampler(name="listed", listed=tuple(cell.params for cell in record.cells)),
        "pruner": None,
        "finishes": Finishes(
            study=record.study,
            hash=record.study_hash,
            pruned=record.pruned,
            drawn=len(record.cells),
            seed=record.seed,
        ),
    }
    # Left open, it follows the device: on another one the same cells would be other runs.
    used = {
        str(worker["precision"])
        for worker in _workers(provenance)
        if isinstance(worker.get("precision"), str)
    }
    if search.training.precision is None and len(used) == 1:
        changes["training"] = search.training.model_copy(update={"precision": used.pop()})
    return search.model_copy(update=changes)


def _workers(provenance: dict[str, object]) -> list[dict[str, object]]:
    found = provenance.get("workers", {})
    return list(found.values()) if isinstance(found, dict) else []
