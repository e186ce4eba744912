"""The data order: a permutation an epoch, from counters alone."""

import pytest
import torch

from wesar_sweep.kernels import data_order


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000])
def test_shuffle_is_a_permutation(count):
    for key in (0, 1, 2**32 - 1):
        places = data_order.shuffle(torch.arange(count), count=count, key=torch.tensor(key))
        assert sorted(places.tolist()) == list(range(count))


def test_shuffle_moves_things_and_depends_on_its_key():
    a, b = (
        data_order.shuffle(torch.arange(1000), count=1000, key=torch.tensor(key)) for key in (1, 2)
    )
    fixed = (a == torch.arange(1000)).sum().item()
    assert fixed < 10, "a random permutation has one fixed point on average"
    assert (a == b).sum().item() < 10


def _hash32_in_python(*words):
    state = 0x9E3779B9
    for word in words:
        state = ((state ^ (word & 0xFFFFFFFF)) + 0x7F4A7C15) & 0xFFFFFFFF
        state = ((state ^ (state >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        state = ((state ^ (state >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        state ^= state >> 16
    return state


def test_hash_equals_unbounded_integers():
    """Python's integers cannot overflow; the 64-bit ones of torch must agree."""
    words = torch.tensor([0, 1, 12345, 2**31, 2**32 - 1, 2**40 + 7])
    got = data_order.hash32(words, 3).tolist()
    assert got == [_hash32_in_python(word, 3) for word in words.tolist()]


def test_every_sequence_is_seen_once_an_epoch_and_none_overlaps():
    tokens, context, batch = 1000, 8, 4
    count = data_order.sequences_per_epoch(tokens, context)
    steps = count // batch
    step = torch.arange(2 * steps).view(-1, 1)
    first = data_order.reference(
        torch.tensor([5]), step, tokens=tokens, batch=batch, context=context
    )
    assert first.min() >= 0 and first.max() + context + 1 <= tokens
    epochs = first.flatten()[: 2 * count].split(count)
    for epoch in epochs:
        starts = epoch.sort().values
        assert (starts.diff() == context).all(), "adjacent sequences, each once"
    assert not torch.equal(epochs[0], epochs[1])


def test_a_run_sees_the_same_data_in_any_company():
    seeds, steps = torch.tensor([0, 1, 2, 1]), torch.tensor([[5, 9, 0, 7], [6, 10, 1, 8]])
    together = data_order.reference(seeds, steps, tokens=5000, batch=3, context=16)
    for k in range(4):
        alone = data_order.reference(
            seeds[k : k + 1], steps[:, k : k + 1], tokens=5000, batch=3, context=16
        )
        assert torch.equal(together[:, k : k + 1], alone)
    assert not torch.equal(together[0, 0], together[0, 1])


def test_gather_gives_inputs_and_the_tokens_after_them():
    tokens = torch.arange(100, dtype=torch.uint8)
    inputs, targets = data_order.gather(tokens, torch.tensor([[3, 50]]), context=4)
    assert inputs.tolist() == [[[3, 4, 5, 6], [50, 51, 52, 53]]]
    assert torch.equal(targets, inputs + 1)
