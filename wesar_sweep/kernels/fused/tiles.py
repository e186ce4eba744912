"""What kernels share: which program this is, and loads and stores of its tile.

A mask costs registers and a comparison a value, in kernels that arithmetic holds up as much as
memory does. Where every tile lies whole inside its tensor (`EVEN`), there is none.

Programs begin in the order of their numbers, so what the last of them wrote is still in the L2
cache when a kernel ends (some 40 MB on an H200). A kernel that begins at that end finds it there.
"""

from __future__ import annotations

import triton
import triton.language as tl


def padded(size: int) -> int:
    """The side of a tile that holds so many: a power of two, for products 16 at least."""
    return max(16, triton.next_power_of_2(size))


def last_first(programs: int, reverse: bool) -> int:
    """What a kernel takes as `flip`, so that its last program is begun first where asked."""
    return programs - 1 if reverse else 0


@triton.jit
def program(flip):
    """The number of this program, counted from the other end where `flip` is the last one's."""
    return tl.abs(flip - tl.program_id(0))


@triton.jit
def load(at, mask, EVEN: tl.constexpr):
    """Values at these addresses; zeros where the mask is off."""
    if EVEN:  # noqa: SIM108 (a conditional expression would compile both)
        value = tl.load(at)
    else:
        value = tl.load(at, mask=mask, other=0.0)
    return value


@triton.jit
def store(at, value, mask, EVEN: tl.constexpr):
    """Values to these addresses, where the mask is on."""
    if EVEN:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=mask)


@triton.jit
def halves(x_RE):
    """The left and the right half of each row: [R, E] to twice [R, E/2], E a power of two."""
    halves_RE2 = tl.permute(tl.reshape(x_RE, (x_RE.shape[0], 2, x_RE.shape[1] // 2)), (0, 2, 1))
    return tl.split(halves_RE2)
