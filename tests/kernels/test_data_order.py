"""The data order: a permutation an epoch, from counters alone."""

import pytest
import torch

from wesar_sweep.kernels import data_order
from wesar_sweep.kernels.fused import data_order as fused


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


LARGEST = {torch.uint8: 255, torch.uint16: 2**16 - 1, torch.uint32: 262_143, torch.int64: 262_143}
"""Largest id of each type; of four bytes and more the largest vocabulary's."""


def ids_of(dtype, count):
    """Ids of the whole range of a type, both ends among them."""
    ids = torch.arange(count) * 7919 % (LARGEST[dtype] + 1)
    ids[::2] = LARGEST[dtype] - ids[::2]
    return ids


@pytest.mark.parametrize("dtype", LARGEST)
def test_tokens_of_each_type_are_gathered(device, dtype):
    ids = ids_of(dtype, 400)
    tokens, seed = ids.to(dtype).to(device), torch.tensor([2, 9, 2**31 + 5], device=device)
    step = torch.tensor([0, 40, 7], device=device)
    first = data_order.reference(seed, step[None], tokens=400, batch=3, context=9)[0]
    want = ids[first.cpu().unsqueeze(-1) + torch.arange(10)]
    got = data_order.gather(tokens, first, context=9)
    assert [x.dtype for x in got] == [torch.int64] * 2
    ours = fused.gather(tokens, seed, step, batch=3, context=9)
    for mine, theirs, expected in zip(ours, got, (want[..., :-1], want[..., 1:]), strict=True):
        assert theirs.tolist() == expected.tolist()
        assert mine.tolist() == expected.flatten(1).tolist()


@pytest.mark.parametrize("dtype", LARGEST)
def test_windows_are_handed_on(device, dtype):
    """Of the half and the step that are asked for, in micro-batches."""
    window = ids_of(dtype, 4 * 3 * 4 * 8).view(4, 3, 4, 8)
    on_device = window.to(dtype).to(device)
    for turn, cursor, first, count in ((0, 1, 0, 4), (1, 0, 1, 3), (1, 1, 3, 1)):
        at = (torch.tensor([x], device=device) for x in (cursor, turn))
        got = fused.take(on_device, *at, sequences=(first, count))
        want = window[2 * turn + cursor, :, first : first + count]
        for mine, expected in zip(got, (want[..., :-1], want[..., 1:]), strict=True):
            assert mine.tolist() == expected.flatten(1).tolist()
