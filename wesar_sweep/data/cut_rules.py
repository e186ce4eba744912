r"""Which tokenizers split text by a known pattern, and where their pre-tokens certainly end.

Each rule was derived from its pattern, and is held to it by tests of all short texts. A pair of
classes is cut where no alternative matches a character of the one followed by one of the other.
What the left part becomes must not depend on what follows: the only look-ahead,
``\s+(?!\S)``, gives the last of several white spaces to what is behind them, so the others end
there, too, when nothing follows them. Nothing is cut between an apostrophe and a letter
(contractions), between digits or between marks.

Composing characters (NFC) changes none of it: ASCII characters never compose with what is before
them, no white space composes, and what ASCII letters, digits and marks compose to are of their
class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wesar_sweep.data.fast_encoding import CutRule

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS = b"0123456789"
APOSTROPHE = b"'"
MARKS = b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'
"""All of ASCII's but the apostrophe, which begins contractions."""
_VISIBLE = LETTERS + DIGITS + MARKS + APOSTROPHE
_BLANKS = b" \t\v\f"
_NEWLINES = b"\n\r"

GPT_2 = CutRule(
    pairs=(
        (_VISIBLE, _BLANKS + _NEWLINES),
        (LETTERS, DIGITS + MARKS + APOSTROPHE),
        (DIGITS, LETTERS + MARKS + APOSTROPHE),
        (MARKS, LETTERS + DIGITS),
        (APOSTROPHE, DIGITS),
    ),
    after_others=_BLANKS + _NEWLINES,
    last=_BLANKS + _NEWLINES,
    # Only a space belongs to the word behind it.
    alone=b"\t\v\f" + _NEWLINES,
    visible=_VISIBLE,
)
"""Words may have a space before them; contractions begin with an apostrophe."""

GPT_2_DIGITS = replace(GPT_2, visible=LETTERS + MARKS + APOSTROPHE)
"""The same once digits are split off: white space before one is then the end of a text."""

CL100K = CutRule(
    pairs=(
        # Marks take the line ends behind them along.
        (_VISIBLE, _BLANKS),
        (LETTERS + DIGITS, _NEWLINES),
        (_NEWLINES, _VISIBLE),
        (LETTERS, DIGITS + MARKS + APOSTROPHE),
        (DIGITS, LETTERS + MARKS + APOSTROPHE),
        # A letter takes one mark before it along.
        (MARKS + APOSTROPHE, DIGITS),
    ),
    after_others=_BLANKS,
    last=_BLANKS,
    visible=_VISIBLE,
)
"""Words may have any one mark or blank before them; marks take line ends along."""

O200K = CutRule(
    pairs=(
        (_VISIBLE, _BLANKS),
        (LETTERS + DIGITS, _NEWLINES),
        # Marks take slashes along, too, even those behind line ends.
        (_NEWLINES, LETTERS + DIGITS),
        # Contractions belong to the word before them.
        (LETTERS, DIGITS + MARKS),
        (DIGITS, LETTERS + MARKS + APOSTROPHE),
        (MARKS + APOSTROPHE, DIGITS),
    ),
    after_others=_BLANKS,
    last=_BLANKS,
    visible=_VISIBLE,
)
"""As `CL100K`, but words take contractions along."""

_GPT_2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS: dict[str, CutRule] = {
    _GPT_2_PATTERN: GPT_2,
    # Llama 3, OLMo 2 and GPT-4 as converted; one digit a token in Qwen 2 and 2.5.
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_CL100K_TAIL}": CL100K,
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_CL100K_TAIL}": CL100K,
    # GPT-4o and Llama 4.
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": O200K,
}
"""The whole pattern of a `Split`, to the rule that was derived from it."""


def find_cut_rule(document: Mapping[str, Any]) -> CutRule | None:
    """Where the texts of a tokenizer may be cut; None where that is not known.

    Args:
        document: The content of a ``tokenizer.json``. Special tokens are taken to be text.
    """
    model = document["model"]
    kind = model.get("type", "BPE" if "merges" in model else "")
    if kind != "BPE" or model.get("dropout"):
        return None
    normalizer = document.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    rule = _rule_of(document.get("pre_tokenizer"))
    if rule is None:
        return None
    # Runs of spaces may be tokens, as of GPT-NeoX: then they stay whole.
    rougher = replace(rule, last=b"", alone=b"")
    if len(find_fragile_tokens(document, rougher)) < len(find_fragile_tokens(document, rule)):
        rule = rougher
    if normalizer is not None:
        fragile = (token for token in _sought(document) if not _stays_whole(token, document, rule))
        # Such a token may be in a text only once that is normalized.
        if any(token.get("normalized", True) for token in fragile):
            return None
    return rule


def find_fragile_tokens(document: Mapping[str, Any], rule: CutRule) -> tuple[bytes, ...]:
    """Tokens that are looked for in a text before it is split, and that a cut could harm.

    A text that holds one of them, as it is, must not be cut.
    """
    return tuple(
        token["content"].encode()
        for token in _sought(document)
        if not _stays_whole(token, document, rule)
    )


def _rule_of(pre_tokenizer: Mapping[str, Any] | None) -> CutRule | None:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": steps}:
            pass
        case None:
            return None
        case _:
            steps = [pre_tokenizer]
    match steps:
        case [{"type": "Split", "pattern": {"Regex": pattern}} as split, last]:
            whole = (split.get("behavior"), split.get("invert", False))
            # The patterns match all of a text, so both keep their matches and nothing else.
            isolates = whole in (("Isolated", False), ("Removed", True))
            bare = _is_byte_level(last, use_regex=False)
            return _PATTERNS.get(pattern) if isolates and bare else None
        case [last] if _is_byte_level(last, use_regex=True):
            return GPT_2
        case [{"type": "Digits"}, last] if _is_byte_level(last, use_regex=True):
            return GPT_2_DIGITS
    return None


def _is_byte_level(step: Mapping[str, Any], *, use_regex: bool) -> bool:
    return (
        step["type"] == "ByteLevel"
        and not step.get("add_prefix_space", True)
        and step.get("use_regex", True) == use_regex
    )


def _sought(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tokens: Sequence[Mapping[str, Any]] = document.get("added_tokens") or ()
    return [token for token in tokens if not token.get("special")]


def _stays_whole(token: Mapping[str, Any], document: Mapping[str, Any], rule: CutRule) -> bool:
    """Whether a token is found in the pieces wherever it is in the text, and only there."""
    content = str(token["content"])
    if not _uncut(content, rule) or (
        token.get("lstrip") or token.get("rstrip") or token.get("single_word")
    ):
        return False
    if document.get("normalizer") is not None and not content.isascii():
        return False
    # A special one is found, too, and then passed over, but no token is found within it: so one
    # that is cut must have nothing in common with this.
    return not any(
        other.get("special")
        and not _uncut(other["content"], rule)
        and set(other["content"]) & set(content)
        for other in document["added_tokens"]
    )


def _uncut(content: str, rule: CutRule) -> bool:
    """Whether no cut falls into the token, whatever is around it."""
    size = len(content.encode())
    return not any(
        len(before) < cut < len(before) + size
        for before in ("", "a", ".", "7", " ")
        for after in ("", "a", ".", "7", " ")
        for cut in rule.cut(f"{before}{content}{after}".encode()).tolist()
    )
