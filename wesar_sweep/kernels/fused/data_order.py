"""The batch of every run in one launch: the counter-based shuffle and the gather of its tokens.

The same integers as `kernels.data_order`, a sequence a program. A hash's state and words are below
2³², so a 32-bit product that wraps is the product the reference masks to 32 bits. 2 × 24 hashes in
scalar arithmetic take a few microseconds, hidden by the many programs of a launch. Bytes a token:
1 to 4 read, 8 written. Tokens that do not fit on the device come as windows, the host having chosen
them by the reference; `take` hands on those of a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wesar_sweep.kernels.data_order import ROUNDS, sequences_per_epoch


def gather(
    token_S: Tensor,
    seed_K: Tensor,
    step_K: Tensor,
    *,
    batch: int,
    context: int,
    sequences: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of each run's present step.

    Args:
        token_S: Training tokens on the device, any integer type; ids below 2³¹.
        seed_K: int64 data seeds.
        step_K: int64 steps, from 0.
        batch: Sequences a step, B.
        context: Tokens a sequence, T.
        sequences: (first, count) of the step's sequences, for a micro-batch; None: all.

    Returns:
        Two int32 [K, count·T]: the tokens, and those after them.
    """
    K = len(seed_K)
    first, count = sequences or (0, batch)
    epoch = sequences_per_epoch(len(token_S), context)
    assert 1 <= epoch < 2**31, "sequences of an epoch are counted in 32 bits"
    token_KM = torch.empty(K, count * context, dtype=torch.int32, device=token_S.device)
    target_KM = torch.empty_like(token_KM)
    _gather[(K * count,)](
        token_S, seed_K, step_K, token_KM, target_KM,
        batch, context, first, count, epoch,
        ROUNDS=ROUNDS, BLOCK=min(1024, triton.next_power_of_2(context)), num_warps=4,
    )  # fmt: skip
    return token_KM, target_KM


def take(
    window_SKBT: Tensor,
    cursor: Tensor,
    turn: Tensor,
    *,
    sequences: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the step that a cursor stands at, from windows gathered before.

    Args:
        window_SKBT: Tokens and the one after them, [2·steps, K, B, T + 1], any integer type: steps
            of one block, then of another.
        cursor: int64 [1], the step in its block.
        turn: int64 [1], which of the two blocks.
        sequences: (first, count) of the B sequences, for a micro-batch.

    Returns:
        Two int32 [K, count·T], as `gather`'s.
    """
    steps, K, B, wide = window_SKBT.shape
    context = wide - 1
    first, count = sequences
    token_KM = torch.empty(K, count * context, dtype=torch.int32, device=window_SKBT.device)
    target_KM = torch.empty_like(token_KM)
    _take[(K * count,)](
        window_SKBT, cursor, turn, token_KM, target_KM,
        K, B, context, first, count, steps // 2,
        BLOCK=min(1024, triton.next_power_of_2(context)), num_warps=4,
    )  # fmt: skip
    return token_KM, target_KM


@triton.jit
def _mix(state, word):
    """One word more into a hash's state, both uint32."""
    state = (state ^ word) + 0x7F4A7C15
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    return state ^ (state >> 16)


@triton.jit
def _gather(
    token, seed, step, out, target, batch, context, first, count, epoch_size,
    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0) // count
    sequence = tl.program_id(0) % count
    number = tl.load(step + run) * batch + first + sequence
    epoch = number // epoch_size
    start_state = tl.full((), 0x9E3779B9, dtype=tl.uint32)
    # The reference masks each word to its low 32 bits, as the cast does.
    key = _mix(_mix(start_state, tl.load(seed + run).to(tl.uint32)), epoch.to(tl.uint32))
    place = number - epoch * epoch_size
    keyed = _mix(start_state, key)
    none = tl.full((), 0, dtype=tl.uint32)
    for round_ in range(ROUNDS):
        turn = _mix(keyed, none + round_)
        partner = (turn.to(tl.int64) - place) % epoch_size
        partner = tl.where(partner < 0, partner + epoch_size, partner)
        later = tl.maximum(place, partner)
        swap = _mix(_mix(keyed, later.to(tl.uint32)), none + (round_ + ROUNDS)) & 1
        place = tl.where(swap == 1, partner, place)
    phase = _mix(keyed, tl.full((), 0x70686173, dtype=tl.uint32)).to(tl.int64) % context
    into = (run.to(tl.int64) * count + sequence) * context
    _hand_on(token + place * context + phase, out + into, target + into, context, BLOCK)


@triton.jit
def _take(
    window, cursor, turn, out, target, K, B, context, first, count, steps, BLOCK: tl.constexpr
):
    run = tl.program_id(0) // count
    sequence = tl.program_id(0) % count
    step = tl.load(turn) * steps + tl.load(cursor)
    into = (run.to(tl.int64) * count + sequence) * context
    source = window + ((step * K + run) * B + first + sequence) * (context + 1)
    _hand_on(source, out + into, target + into, context, BLOCK)


@triton.jit
def _hand_on(source, out, target, context, BLOCK: tl.constexpr):
    """One sequence: its tokens, and those after them."""
    for begin in range(0, context, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < context
        tl.store(out + at, tl.load(source + at, mask=inside, other=0).to(tl.int32), inside)
        later_tokens = tl.load(source + at + 1, mask=inside, other=0)
        tl.store(target + at, later_tokens.to(tl.int32), inside)
