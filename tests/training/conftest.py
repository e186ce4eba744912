"""Small studies and text for the tests of the engine."""

import numpy as np
import pytest
import torch

from wesar_sweep.config.run import make_run
from wesar_sweep.config.study import Study
from wesar_sweep.training.stack import Stack, StackTraits

METHODS = (
    "he", "small", "xavier", "gpt2", "wesar", "weight_norm", "sigma_reparam", "residual_scaling",
    "scaled_embed", "embed_norm",
)  # fmt: skip


@pytest.fixture
def study_of():
    """Make a study by sections; tiny unless told otherwise."""

    def make(*, model=None, training=None, **sections):
        shape = {"width": 12, "depth": 2, "heads": 3, "context": 10, **(model or {})}
        recipe = {"steps": 12, "batch": 3, "warmup": 2, "lr": 1e-2, **(training or {})}
        sections = {
            "space": {"lr": {"choices": [1e-2]}},
            "probes": {"every": 4},
            "evaluation": {"sequences": 5},
            **sections,
        }
        return Study(name="test", model=shape, training=recipe, **sections)

    return make


@pytest.fixture(scope="session")
def text():
    """Tokens with something to learn: a noisy periodic byte stream."""
    rng = np.random.default_rng(0)
    clean = np.tile(
        np.frombuffer(b"the quick brown fox jumps over the lazy dog. ", dtype=np.uint8), 200
    )
    noise = rng.random(len(clean)) < 0.05
    return torch.from_numpy(
        np.where(noise, rng.integers(97, 123, len(clean)), clean).astype(np.uint8)
    )


@pytest.fixture
def stack_of(text):
    """Make a stack that holds the given runs, in order."""

    def make(study, runs, *, methods=METHODS):
        traits = StackTraits.of(study, methods=methods)
        stack = Stack(runs[0].architecture, slots=len(runs), traits=traits, train_S=text)
        stack.load_many(range(len(runs)), runs)
        return stack

    return make


@pytest.fixture
def runs_of():
    """Runs of a study, one for each mapping of parameters; `seed` may be among them."""

    def make(study, *cells):
        runs = []
        for trial, cell in enumerate(cells):
            params = dict(cell)
            runs.append(make_run(study, trial, params.pop("seed", 0), params))
        return runs

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """The CPU contract of the engine (`worker.torch_device`): one thread, one order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
