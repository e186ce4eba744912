"""Text with a known entropy rate: a first-order Markov chain over a few symbols.

No model can have a lower expected loss than the chain's entropy rate, and a good one comes close to
it: so training on it can be checked against a number that is computed, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIFORM_SHARE = 1e-3
"""Share of the uniform distribution in each row. It makes any symbol reachable from any other in
one step, so that the stationary distribution is unique however peaked the Dirichlet rows are."""

PARALLEL_CHAINS = 128
"""Stretches drawn side by side, so that a numpy call advances all of them by a symbol."""

SHORTEST_STRETCH = 1000


@dataclass(frozen=True, slots=True)
class MarkovChain:
    """A first-order Markov chain over M symbols."""

    transition: NDArray[np.float64]
    """[M, M] probability of the next symbol (column) after each symbol (row)."""
    stationary: NDArray[np.float64]
    """[M] the distribution that the transition leaves as it is."""

    @property
    def entropy_rate(self) -> float:
        """Σ_i π_i·H(row i), in nats a symbol (Cover & Thomas, Theorem 4.2.4)."""
        row_entropy = -_x_log_y(self.transition, self.transition).sum(axis=1)
        return float(self.stationary @ row_entropy)

    def cross_entropy(self, symbols: NDArray[np.uint8]) -> float:
        """Mean of -ln P(next | symbol) over a text, in nats: what a model that knows the chain has.

        It scatters about the entropy rate as 1/√length, so a loss on this text is best compared
        with this figure.
        """
        return float(-np.log(self.transition[symbols[:-1], symbols[1:]]).mean())


def make_chain(symbols: int, *, concentration: float, seed: int) -> MarkovChain:
    """A chain whose rows are drawn from a symmetric Dirichlet distribution.

    Args:
        symbols: Number of symbols M, 2 to 256.
        concentration: Parameter of the Dirichlet distribution: small rows are peaked.
        seed: Equal seeds give equal chains.

    Returns:
        The chain; its rows are mixed with `UNIFORM_SHARE` of the uniform distribution.
    """
    rng = np.random.default_rng([seed, 0])
    peaked = rng.dirichlet(np.full(symbols, concentration), size=symbols)
    transition = (1 - UNIFORM_SHARE) * peaked + UNIFORM_SHARE / symbols
    transition /= transition.sum(axis=1, keepdims=True)
    return MarkovChain(transition=transition, stationary=stationary_distribution(transition))


def stationary_distribution(transition: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distribution π with π·P = π of an irreducible chain.

    By the elimination of Grassmann, Taksar & Heyman (1985), which only adds, multiplies and divides
    positive numbers and so is exact to rounding in every entry.

    Args:
        transition: [M, M], rows sum to 1.

    Returns:
        [M], sums to 1.
    """
    reduced = transition.copy()
    size = len(reduced)
    for last in range(size - 1, 0, -1):
        reduced[:last, last] /= reduced[last, :last].sum()
        reduced[:last, :last] += np.outer(reduced[:last, last], reduced[last, :last])
    weight: NDArray[np.float64] = np.ones(size)
    for state in range(1, size):
        weight[state] = weight[:state] @ reduced[:state, state]
    weight /= weight.sum()
    return weight


def draw(chain: MarkovChain, *, length: int, seed: int, stream: int) -> NDArray[np.uint8]:
    """A text of the chain: stretches laid end to end, each begun from the stationary distribution.

    Every symbol has the stationary distribution. Only at the seams (one in `SHORTEST_STRETCH`
    symbols or fewer) is a symbol independent of the one before, so that the best expected loss lies
    above the entropy rate by less than a thousandth of what a seam costs, and never below.

    Args:
        chain: The chain.
        length: Number of symbols, at least 1.
        seed: Equal seeds give equal texts.
        stream: Texts of one seed and different streams are independent.

    Returns:
        [length], uint8 in [0, M).
    """
    symbols = len(chain.stationary)
    chains = max(1, min(PARALLEL_CHAINS, length // SHORTEST_STRETCH))
    stretch = -(-length // chains)
    rng = np.random.default_rng([seed, 1 + stream])
    # Row i of the cumulative distribution lies in (i, i + 1], so that one sorted search serves all.
    cumulative = np.cumsum(chain.transition, axis=1)
    cumulative[:, -1] = 1.0
    ladder = (cumulative + np.arange(symbols)[:, None]).ravel()
    start = np.cumsum(chain.stationary)
    start[-1] = 1.0
    state = np.searchsorted(start, rng.random(chains), side="right")
    text = np.empty((stretch, chains), dtype=np.uint8)
    text[0] = state
    for position in range(1, stretch):
        rung = np.searchsorted(ladder, state + rng.random(chains), side="right")
        # state + uniform may round up to the next row.
        state = np.minimum(rung - state * symbols, symbols - 1)
        text[position] = state
    return np.ascontiguousarray(text.T).ravel()[:length]


def _x_log_y(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.log(np.where(x > 0, y, 1.0))
