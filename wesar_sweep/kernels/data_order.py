"""Which tokens a run sees at a step: a counter-based shuffle keyed by (seed, epoch), no state.

The training tokens are cut into C sequences of T tokens, at a phase drawn anew each epoch. Sequence
number n of a run's life (n = step·B + b) lies in epoch n // C at place n % C, and the place is
shuffled by the swap-or-not cipher (Hoang, Morris & Rogaway 2012), a permutation of any C computed
at one point without a table: so a sequence is seen once an epoch, and the batch of (seed, step) is
the same for any K, slot, worker, device or restart. Integers alone, so there is no rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 24
_MASK = 0xFFFFFFFF


def hash32(*words: Tensor | int) -> Tensor:
    """Mix integers into one of 32 bits, elementwise and broadcast (MurmurHash3's finaliser a word).

    Returns:
        int64 in [0, 2³²), of the broadcast shape.
    """
    state: Tensor | int = 0x9E3779B9
    for word in words:
        state = ((state ^ (word & _MASK)) + 0x7F4A7C15) & _MASK
        state = (state ^ (state >> 16)) * 0x85EBCA6B & _MASK
        state = (state ^ (state >> 13)) * 0xC2B2AE35 & _MASK
        state = state ^ (state >> 16)
    assert isinstance(state, Tensor), "hash32 needs at least one tensor"
    return state


def shuffle(place: Tensor, *, count: int, key: Tensor) -> Tensor:
    """A permutation of {0 … count-1}, chosen by `key`, applied to each place.

    Args:
        place: int64 places in [0, count).
        count: How many places there are.
        key: int64, broadcast against `place`; equal keys give equal permutations.

    Returns:
        int64 of the shape of `place`.
    """
    for round_ in range(ROUNDS):
        partner = torch.remainder(hash32(key, round_) - place, count)
        swap = hash32(key, torch.maximum(place, partner), round_ + ROUNDS) & 1
        place = torch.where(swap == 1, partner, place)
    return place


def sequences_per_epoch(tokens: int, context: int) -> int:
    """How many sequences one pass over the tokens gives, whatever its phase.

    Each needs `context` tokens and the one after them; the phase takes at most context - 1 more.
    """
    return (tokens - context) // context


def reference(seed_K: Tensor, step_SK: Tensor, *, tokens: int, batch: int, context: int) -> Tensor:
    """First token of each sequence of S steps of K runs.

    Args:
        seed_K: int64 data seed of each run.
        step_SK: int64 step of each run, from 0.
        tokens: Number of training tokens.
        batch: Sequences a step, B.
        context: Tokens a sequence, T.

    Returns:
        int64 [S, K, B]; a sequence's inputs are the T tokens from there, its targets the T from the
        next one on.
    """
    count = sequences_per_epoch(tokens, context)
    assert count >= 1, (tokens, context)
    number_SKB = step_SK.unsqueeze(-1) * batch + torch.arange(batch, device=step_SK.device)
    epoch_SKB = torch.div(number_SKB, count, rounding_mode="floor")
    key_SKB = hash32(seed_K.view(1, -1, 1), epoch_SKB)
    place_SKB = shuffle(number_SKB - epoch_SKB * count, count=count, key=key_SKB)
    return place_SKB * context + hash32(key_SKB, 0x70686173) % context


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}
"""What torch can index everywhere, in place of the unsigned types, most of whose ops it lacks."""


def signed(token_S: Tensor) -> tuple[Tensor, int]:
    """The same memory under a type that every op of torch takes, and the mask that undoes it.

    Args:
        token_S: Tokens of any integer type.

    Returns:
        (a view; what its values, made int64, are to be masked with to be the tokens again).
    """
    if token_S.dtype not in _SIGNED:
        return token_S, -1
    return token_S.view(_SIGNED[token_S.dtype]), (1 << 8 * token_S.element_size()) - 1


def gather(token_S: Tensor, first_KB: Tensor, *, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the sequences that start at `first_KB`.

    Args:
        token_S: Training tokens of any integer type; in host memory they may be a memory map, of
            which no more is read than the sequences.
        first_KB: First token of each sequence.
        context: Tokens a sequence, T.

    Returns:
        Two int64 [K, B, T] where `first_KB` is.
    """
    index_KBT = first_KB.unsqueeze(-1) + torch.arange(context + 1, device=first_KB.device)
    values_S, mask = signed(token_S)
    window_KBT = values_S[index_KBT.to(token_S.device)].to(first_KB.device).long() & mask
    return window_KBT[..., :-1], window_KBT[..., 1:]
