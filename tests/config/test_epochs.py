"""Epochs are counted as the order of the data goes round."""

import pytest
import torch

from wesar_sweep.config.epochs import epochs, epochs_of_runs, sequences_per_epoch
from wesar_sweep.config.study import Study
from wesar_sweep.kernels import data_order


@pytest.mark.parametrize(("tokens", "context"), [(100, 7), (64, 32), (1000, 10), (71, 10)])
def test_an_epoch_is_over_when_the_order_comes_to_a_place_again(tokens: int, context: int) -> None:
    count = sequences_per_epoch(tokens, context)
    assert count == data_order.sequences_per_epoch(tokens, context)
    first = data_order.reference(
        torch.tensor([3]), torch.arange(2 * count).unsqueeze(1),
        tokens=tokens, batch=1, context=context,
    ).flatten()  # fmt: skip
    assert len(first[:count].unique()) == count
    assert epochs(steps=count, batch=1, context=context, train_tokens=tokens) == 1
    assert epochs(steps=3, batch=count, context=context, train_tokens=tokens) == 3


def test_fewest_and_most_over_the_space() -> None:
    space = {"steps": {"choices": [10, 100]}, "context": {"choices": [8, 16]}}
    study = Study(name="test", space=space, training={"batch": 2, "warmup": 0})
    low, high = epochs_of_runs(study, train_tokens=16 * 11)
    assert (low, high) == (10 * 2 / 21, 100 * 2 / 10)
