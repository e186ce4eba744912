"""Cuts are where pre-tokens end, whatever surrounds them; other tokenizers are not cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import (
    LLAMA_3,
    PRE_TOKENIZERS,
    TEXTS,
    byte_level,
    changed,
    metaspace,
)

from wesar_sweep.data import cut_rules
from wesar_sweep.data.cut_rules import (
    CL100K,
    GPT_2,
    GPT_2_DIGITS,
    O200K,
    find_cut_rule,
    find_fragile_tokens,
)
from wesar_sweep.data.fast_encoding import CutRule

RULES = {
    "gpt-2": GPT_2,
    "gpt-2 split": GPT_2,
    "digits": GPT_2_DIGITS,
    "numbers": GPT_2_DIGITS,
    "llama-3": CL100K,
    "qwen-2": CL100K,
    "gpt-4o": O200K,
}


CLASSES = "sS7.'/ \n\t\u00a0é\u0301"
"""A character or two of each class that a pattern or a rule tells from others."""


def pieces_of(text: str, rule: CutRule) -> list[str]:
    raw = text.encode()
    cuts = rule.cut(raw).tolist()
    return [raw[begin:end].decode() for begin, end in itertools.pairwise(cuts)]


def pre_tokens(pre_tokenizer: Any, text: str) -> list[str]:
    return [token for token, _ in pre_tokenizer.pre_tokenize_str(text)]


def agrees(pre_tokenizer: Any, rule: CutRule, text: str) -> bool:
    """Whether the pieces have the pre-tokens of the whole text."""
    pieces = pieces_of(text, rule)
    of_pieces = [token for piece in pieces for token in pre_tokens(pre_tokenizer, piece)]
    return "".join(pieces) == text and of_pieces == pre_tokens(pre_tokenizer, text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_family_has_its_rule(name: str) -> None:
    assert find_cut_rule(json.loads(byte_level(name))) is RULES[name]
    assert find_cut_rule(json.loads(byte_level(name, nfc=True))) is RULES[name]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_pieces_have_the_pre_tokens_of_the_text(name: str, text: str) -> None:
    assert agrees(PRE_TOKENIZERS[name], RULES[name], text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_short_text_of_every_class(name: str) -> None:
    for classes, length in ((CLASSES, 2), (CLASSES, 3), ("as7.' \n\u00a0", 4)):
        for text in itertools.product(classes, repeat=length):
            assert agrees(PRE_TOKENIZERS[name], RULES[name], "".join(text)), text


@pytest.mark.parametrize("name", ["gpt-2", "llama-3", "gpt-4o"])
def test_every_pair_of_ascii_that_is_cut(name: str) -> None:
    rule = RULES[name]
    ascii_text = [chr(code) for code in range(128)]
    pairs = [x + y for x in ascii_text for y in ascii_text if len(pieces_of(x + y, rule)) == 2]
    assert len(pairs) > 3000
    for pair in pairs:
        assert agrees(PRE_TOKENIZERS[name], rule, f"a'{pair}s .")


WRONG = {
    "behind white space": CutRule(pairs=((b" ", b"a."),)),
    "in contractions": CutRule(pairs=((b"'", b"st"),)),
    "between marks": CutRule(pairs=((b".'", b".'"),)),
    "before the last white space, whatever it is": CutRule(
        pairs=(), last=b" ", visible=b" ", alone=b""
    ),
    "behind white space that is not cut off": CutRule(pairs=((b"\n", b"s"),)),
    "between digits": CutRule(pairs=((b"7", b"7"),)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_control_a_wrong_rule_is_caught(wrong: str) -> None:
    with pytest.raises(AssertionError):
        for text in itertools.product(CLASSES, repeat=3):
            assert agrees(PRE_TOKENIZERS["gpt-2"], WRONG[wrong], "".join(text))


@pytest.mark.parametrize(("name", "rule"), [("llama-3", GPT_2), ("gpt-4o", CL100K)])
def test_control_the_rule_of_another_family_is_caught(name: str, rule: CutRule) -> None:
    @given(text=TEXTS)
    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    def try_it(text: str) -> None:
        assert agrees(PRE_TOKENIZERS[name], rule, text)

    with pytest.raises(AssertionError):
        try_it()


def test_control_white_space_beyond_ascii_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\u00a0\n x"
    assert agrees(PRE_TOKENIZERS["gpt-2"], GPT_2, text)
    monkeypatch.setattr("wesar_sweep.data.fast_encoding._MAYBE_WHITESPACE", ())
    assert not agrees(PRE_TOKENIZERS["gpt-2"], GPT_2, text)


@given(text=st.text(), places=st.sets(st.integers(0, 40)))
def test_further_cuts_are_made(text: str, places: set[int]) -> None:
    raw = text.encode()

    also = np.array(sorted(place for place in places if place <= len(raw)), np.int64)
    cuts = set(GPT_2.cut(raw, also=also).tolist())
    assert cuts == set(GPT_2.cut(raw).tolist()) | set(also.tolist())


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            }
        },
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_other_tokenizers_are_not_cut(parts: dict[str, Any]) -> None:
    assert find_cut_rule(json.loads(changed(byte_level("gpt-2"), **parts))) is None


def test_a_pattern_that_is_not_known_is_not_cut() -> None:
    document = json.loads(byte_level("llama-3"))
    first = document["pre_tokenizer"]["pretokenizers"][0]
    assert first["pattern"] == {"Regex": LLAMA_3}
    first["pattern"] = {"Regex": LLAMA_3 + "|x"}
    assert find_cut_rule(document) is None
    first["pattern"] = {"String": " "}
    assert find_cut_rule(document) is None
    first["pattern"] = {"Regex": LLAMA_3}
    first["behavior"] = "MergedWithNext"
    assert find_cut_rule(document) is None
    first.update(behavior="Removed", invert=True)
    assert find_cut_rule(document) is CL100K


def test_dropout_and_other_models_are_not_cut() -> None:
    document = json.loads(byte_level("gpt-2"))
    document["model"]["dropout"] = 0.1
    assert find_cut_rule(document) is None
    assert find_cut_rule(json.loads(metaspace())) is None
    document["model"] = {"type": "WordLevel", "vocab": {}, "unk_token": "x"}
    assert find_cut_rule(document) is None


@pytest.mark.parametrize(
    ("token", "flags", "fragile"),
    [
        ("    ", {}, False),
        ("語", {}, False),
        ("語語", {"lstrip": True}, True),
        ("語語", {"rstrip": True}, True),
        ("語語", {"single_word": True}, True),
        ("two words", {}, True),
        ("a.b", {}, True),
        # The special tokens are cut, and have this letter, too.
        ("d", {}, True),
        ("a.b", {"special": True}, False),
    ],
)
def test_added_tokens_that_a_cut_could_harm(
    token: str, flags: dict[str, bool], fragile: bool
) -> None:
    document = json.loads(byte_level("gpt-2"))
    plain = {"id": 900, "single_word": False, "lstrip": False, "rstrip": False}
    plain |= {"normalized": False, "special": False}
    document["added_tokens"].append(plain | {"content": token} | flags)
    rule = find_cut_rule(document)
    assert rule is not None
    # Runs of spaces are kept whole where they may be a token.
    assert rule.pairs == GPT_2.pairs
    assert (rule != GPT_2) == (token == "    ")
    assert find_fragile_tokens(document, rule) == ((token.encode(),) if fragile else ())
    document["normalizer"] = {"type": "NFC"}
    assert find_cut_rule(document) == rule
    # What is looked for in the normalized text cannot be seen in the text as it is.
    document["added_tokens"][-1]["normalized"] = True
    beyond_ascii = not flags.get("special") and not token.isascii()
    assert (find_cut_rule(document) is None) == (fragile or beyond_ascii)


def test_patterns_are_written_as_files_have_them() -> None:
    assert LLAMA_3 in cut_rules._PATTERNS
    assert len(cut_rules._PATTERNS) == 4
