import pytest
from invented_study import invent, lr_study

from wesar_sweep.analysis import Analysis
from wesar_sweep.store.frames import outcomes_frame


@pytest.fixture(scope="session")
def analysis() -> Analysis:
    """A whole study of 96 runs, diverged ones among them."""
    study = lr_study()
    outcomes, curves = invent(study)
    return Analysis(study, outcomes_frame(outcomes), curves)
