"""The Markov chain: its entropy rate is what its text shows, and it is drawn as it says."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from wesar_sweep.config.data import SyntheticData
from wesar_sweep.data.corpus import load_corpus
from wesar_sweep.data.synthetic import (
    MarkovChain,
    draw,
    make_chain,
    stationary_distribution,
)


def test_entropy_rate_of_chains_known_by_hand() -> None:
    fair = np.full((4, 4), 0.25)
    chain = MarkovChain(transition=fair, stationary=stationary_distribution(fair))
    assert chain.entropy_rate == pytest.approx(math.log(4), rel=1e-12)
    # Cover & Thomas, Example 4.1.1: two states left with probabilities a and b; here 0.2 and 0.6.
    two = np.array([[0.8, 0.2], [0.6, 0.4]])
    assert stationary_distribution(two) == pytest.approx([0.75, 0.25], rel=1e-14)

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    chain = MarkovChain(transition=two, stationary=stationary_distribution(two))
    assert chain.entropy_rate == pytest.approx(0.75 * entropy(0.2) + 0.25 * entropy(0.6))
    certain = np.array([[0.0, 1.0], [1.0, 0.0]])
    chain = MarkovChain(transition=certain, stationary=np.array([0.5, 0.5]))
    assert chain.entropy_rate == 0.0


@pytest.mark.parametrize("symbols", [2, 16, 256])
@pytest.mark.parametrize("concentration", [1e-12, 0.01, 0.3, 100.0])
def test_any_setting_gives_a_proper_chain(symbols: int, concentration: float) -> None:
    chain = make_chain(symbols, concentration=concentration, seed=3)
    assert chain.transition.min() > 0
    assert chain.transition.sum(axis=1) == pytest.approx(np.ones(symbols), abs=1e-12)
    assert chain.stationary @ chain.transition == pytest.approx(chain.stationary, rel=1e-9)
    assert chain.stationary.sum() == pytest.approx(1.0)
    assert 0 < chain.entropy_rate <= math.log(symbols) + 1e-12


def test_the_text_shows_the_chain_it_was_drawn_from() -> None:
    chain = make_chain(6, concentration=0.5, seed=0)
    text = draw(chain, length=1_000_000, seed=0, stream=0)
    pairs = np.zeros((6, 6))
    np.add.at(pairs, (text[:-1], text[1:]), 1)
    seen = pairs / pairs.sum(axis=1, keepdims=True)
    # Six standard deviations of a share from the row's count.
    spread = 6 * np.sqrt(chain.transition * (1 - chain.transition) / pairs.sum(axis=1)[:, None])
    assert (np.abs(seen - chain.transition) <= spread + 1e-3).all()
    assert pairs.sum(axis=1) / pairs.sum() == pytest.approx(chain.stationary, abs=0.01)
    # The control: against another chain the same check fails.
    other = make_chain(6, concentration=0.5, seed=1)
    assert not (np.abs(seen - other.transition) <= spread + 1e-3).all()


def test_no_predictor_of_the_next_symbol_beats_the_entropy_rate() -> None:
    chain = make_chain(16, concentration=0.3, seed=0)
    text = draw(chain, length=400_000, seed=0, stream=0)
    # Scatter of a mean of 400,000 terms, a little over one for the seams.
    assert chain.cross_entropy(text) == pytest.approx(chain.entropy_rate, abs=0.01)
    counts = np.bincount(text[:200_000], minlength=16) + 1.0
    by_symbol_alone = -np.log(counts / counts.sum())[text[200_000:]].mean()
    assert by_symbol_alone > chain.entropy_rate + 0.1
    pairs = np.ones((16, 16))
    np.add.at(pairs, (text[:199_999], text[1:200_000]), 1)
    learned = MarkovChain(pairs / pairs.sum(axis=1, keepdims=True), chain.stationary)
    assert chain.cross_entropy(text[200_000:]) < learned.cross_entropy(text[200_000:])
    assert learned.cross_entropy(text[200_000:]) < chain.entropy_rate + 0.02


def test_a_million_symbols_in_under_a_second() -> None:
    chain = make_chain(256, concentration=0.3, seed=0)
    begun = time.perf_counter()
    text = draw(chain, length=1_000_000, seed=0, stream=0)
    assert time.perf_counter() - begun < 1.0
    assert len(text) == 1_000_000 and text.dtype == np.uint8


def test_a_text_begins_in_the_stationary_distribution() -> None:
    chain = make_chain(4, concentration=0.5, seed=1)
    firsts = [draw(chain, length=1, seed=seed, stream=0)[0] for seed in range(4000)]
    share = np.bincount(firsts, minlength=4) / len(firsts)
    spread = 5 * np.sqrt(chain.stationary * (1 - chain.stationary) / len(firsts))
    assert (np.abs(share - chain.stationary) < spread).all()
    # The control: a uniform start would be seen.
    assert not (np.abs(0.25 - chain.stationary) < spread).all()


@pytest.mark.parametrize("length", [1, 2, 999, 1001, 54_321])
def test_any_length(length: int) -> None:
    chain = make_chain(3, concentration=1.0, seed=0)
    text = draw(chain, length=length, seed=0, stream=0)
    assert len(text) == length and text.max() < 3


def test_streams_are_independent_and_seeds_reproduce() -> None:
    chain = make_chain(16, concentration=1.0, seed=0)
    first = draw(chain, length=5000, seed=0, stream=0)
    assert np.array_equal(first, draw(chain, length=5000, seed=0, stream=0))
    assert (first == draw(chain, length=5000, seed=0, stream=1)).mean() < 0.2
    assert (first == draw(chain, length=5000, seed=1, stream=0)).mean() < 0.2


def test_the_corpus_knows_its_entropy_rate() -> None:
    data = SyntheticData(source="synthetic", symbols=8, length=50_000, held_out=0.2, seed=5)
    corpus = load_corpus(data, context=32)
    assert (len(corpus.train), len(corpus.validation)) == (40_000, 10_000)
    assert corpus.vocabulary == 8 and corpus.train.max() == 7
    chain = make_chain(8, concentration=data.concentration, seed=5)
    assert corpus.entropy_rate == chain.entropy_rate
    assert chain.cross_entropy(corpus.validation) == pytest.approx(chain.entropy_rate, abs=0.05)
    assert corpus.sha256 == load_corpus(data, context=32).sha256
    assert "entropy rate" in corpus.description
