"""The study's database: made once, whole after a kill, readable by others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from fabricated_runs import make_study

from wesar_sweep.config.space import grid_cells
from wesar_sweep.errors import StoreError
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.storage import CELL, close_study, open_study

DIES_HALF_WAY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import optuna
from fabricated_runs import make_study
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.storage import open_study
enqueue, calls = optuna.Study.enqueue_trial, []
def dies(self, *arguments, **named):
    if len(calls) == 2:
        os.kill(os.getpid(), 9)
    calls.append(1)
    enqueue(self, *arguments, **named)
optuna.Study.enqueue_trial = dies
open_study(make_study(), StudyDirectory(Path(sys.argv[1])))
"""


def test_a_grid_is_enqueued_once_even_after_a_kill_half_way(
    tmp_path: Path, each_database: str
) -> None:
    study, directory = make_study(), StudyDirectory(tmp_path / "s")
    killed = subprocess.run(
        [sys.executable, "-c", DIES_HALF_WAY, str(directory.root), str(Path(__file__).parent)],
        check=False,
    )
    assert killed.returncode == -9
    for _ in range(2):
        opened = open_study(study, directory)
        trials = opened.get_trials(deepcopy=False)
        close_study(opened)
        assert [trial.user_attrs[CELL] for trial in trials] == [0, 1, 2]
        assert [trial.system_attrs["fixed_params"] for trial in trials] == grid_cells(study)


def test_anybody_with_optuna_can_open_the_file(tmp_path: Path) -> None:
    study, directory = make_study(question="Which lr?"), StudyDirectory(tmp_path / "s")
    close_study(open_study(study, directory))
    storage = optuna.storages.RDBStorage(f"sqlite:///{directory.database_file}")
    seen = optuna.load_study(study_name="s", storage=storage)
    assert seen.user_attrs["question"] == "Which lr?"
    assert seen.metric_names == ["val_loss"]
    assert len(seen.trials) == 3
    storage.engine.dispose()
    assert [path.name for path in directory.root.glob("study.db*")] == ["study.db"]


def test_a_database_of_other_objectives_is_refused(tmp_path: Path, each_database: str) -> None:
    directory = StudyDirectory(tmp_path / "s")
    close_study(open_study(make_study(), directory))
    with pytest.raises(StoreError, match="holds a study of val_loss, not of spikes"):
        open_study(make_study(objectives=("spikes",)), directory)


def test_a_file_that_is_no_database_is_an_error_for_people(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "s")
    directory.create()
    directory.database_file.write_text("not a database, by any means" * 100)
    with pytest.raises(StoreError, match=r"study\.db failed"):
        open_study(make_study(), directory)
