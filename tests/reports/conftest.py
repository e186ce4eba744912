import sys
from pathlib import Path

import pytest

# The generator of studies with a known truth lies beside the tests of analysis.
sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))

from invented_study import invent, lr_study, write_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.store.frames import outcomes_frame
from wesar_sweep.store.layout import StudyDirectory

HOSTILE = 'Which <script>alert("x")</script> & σ² trains {{ 7*7 }} stably?'


@pytest.fixture(scope="session")
def analysis() -> Analysis:
    """A whole study of 96 runs whose title would run a script if it were let."""
    study = lr_study(title=HOSTILE)
    outcomes, curves = invent(study)
    return Analysis(study, outcomes_frame(outcomes), curves)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> StudyDirectory:
    """The same on disk."""
    study = lr_study(title=HOSTILE)
    return write_study(
        tmp_path_factory.mktemp("study"), study, *invent(study), command="run </script><b>"
    )


@pytest.fixture(scope="session")
def many_runs() -> Analysis:
    """512 runs, of half the steps to save time: as many points are drawn."""
    study = lr_study(replicates=16, training={"steps": 160, "warmup": 20})
    outcomes, curves = invent(study)
    return Analysis(study, outcomes_frame(outcomes), curves)
