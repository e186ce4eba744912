"""Optuna's study on disk: made once, opened by every worker, readable by the Optuna dashboard.

SQLite stays in its default journal mode with full synchronisation: one file, sound after SIGKILL
and after a power cut, and readable where nothing can be written, as in a checked-out reference
study. Every write of this project is made under `StudyDirectory.ask_lock_file`, so writers queue up
instead of meeting in the database.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from wesar_sweep.config.space import grid_cells
from wesar_sweep.config.study import Study
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.store.locks import hold
from wesar_sweep.studies.database import StudyDatabase
from wesar_sweep.studies.pruners import build_pruner
from wesar_sweep.studies.samplers import build_sampler

CELL = "cell"
"""User attribute of a grid's trial: the cell's index in `grid_cells`."""

OBJECTIVES = "objectives"
"""User attribute of the study: names of the objectives, in their order."""

_LOCK_TIMEOUT_S = 600.0
"""A sampler may think for seconds while it holds the lock, once a worker."""


@contextmanager
def exclusive(directory: StudyDirectory, opened: optuna.Study | None = None) -> Iterator[None]:
    """Be the only process of this host that takes or changes trials of this study.

    All changes within are one transaction of `opened`, and made together or, by a kill, not at all.
    One `exclusive` within another of the same `opened` is part of it.

    Raises:
        StoreError: Another process held the lock for ten minutes, or the database failed.
    """
    database = None if opened is None else database_of(opened)
    if database is not None and database.in_transaction:
        yield
        return
    with (
        hold(directory.ask_lock_file, timeout_s=_LOCK_TIMEOUT_S, purpose="take the next cell"),
        database_errors(directory),
        nullcontext() if database is None else database.transaction(),
    ):
        yield


def database_of(opened: optuna.Study) -> StudyDatabase:
    """The database of a study that `open_study` or `load_study` gave."""
    storage = opened._storage
    assert isinstance(storage, StudyDatabase), "made by open_study or load_study"
    return storage


@contextmanager
def database_errors(directory: StudyDirectory) -> Iterator[None]:
    """Turn what the database may raise into an error for people.

    Raises:
        StoreError: The database failed.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StoreError(
            f"the study database {directory.database_file} failed: {error}; "
            "outcomes already written are safe: resume the study when the cause is mended"
        ) from error


def open_study(study: Study, directory: StudyDirectory) -> optuna.Study:
    """Make the Optuna study or open it, and see to it that every grid cell is in its queue once.

    Safe to call from any number of processes, and again after a kill at any moment.

    Raises:
        StoreError: The database cannot be used, or is of a study with other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory.create()
    with exclusive(directory):
        opened = optuna.create_study(
            storage=StudyDatabase(directory.database_file),
            study_name=study.name,
            directions=["minimize"] * len(study.objectives),
            sampler=build_sampler(study, number=0),
            pruner=build_pruner(study),
            load_if_exists=True,
        )
        names = opened.user_attrs.get(OBJECTIVES)
        if names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                opened.set_metric_names(list(study.objectives))
            opened.set_user_attr(OBJECTIVES, list(study.objectives))
        elif tuple(names) != study.objectives:
            raise StoreError(
                f"{directory.database_file} holds a study of {', '.join(names)}, not of "
                f"{', '.join(study.objectives)}; choose another results directory"
            )
        if study.question and "question" not in opened.user_attrs:
            opened.set_user_attr("question", study.question)
        if study.sampler.name == "grid":
            _enqueue_grid(study, opened)
    return opened


def load_study(study: Study, directory: StudyDirectory) -> optuna.Study:
    """Open a study that exists, to look at it.

    Raises:
        StoreError: The database does not hold this study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with database_errors(directory):
        try:
            return optuna.load_study(
                study_name=study.name, storage=StudyDatabase(directory.database_file, trusted=True)
            )
        except KeyError as error:
            raise StoreError(
                f"{directory.database_file} holds no study named {study.name}"
            ) from error


def close_study(opened: optuna.Study) -> None:
    """Close the connections to the database; the study is not to be used afterwards."""
    database_of(opened).close()


def _enqueue_grid(study: Study, opened: optuna.Study) -> None:
    """Put the cells that are missing into the queue; each is one transaction with its index."""
    present = {trial.user_attrs.get(CELL) for trial in opened.get_trials(deepcopy=False)}
    for index, cell in enumerate(grid_cells(study)):
        if index not in present:
            opened.enqueue_trial(dict(cell), user_attrs={CELL: index})
