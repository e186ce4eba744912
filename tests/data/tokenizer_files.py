"""Tokenizers as files for the tests: small vocabularies on the pre-tokenizers of known families."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL
QWEN_2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHARACTERS = (
    *("a", "S", "t", "ll", "don", "7", "42", ".", ",", "(", "/", "_", "'", "''", "\u2019"),
    *(" ", "  ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x00", "\x7f"),
    *("\u0085", "\u00a0", "\u1680", "\u2003", "\u200b", "\u2028", "\u202f", "\u3000", "\ufeff"),
    *("é", "e\u0301", "=\u0338", "\u0301", "ß", "\u017f", "\u212a", "語", "π", "½", "٣", "\u0e33"),
    *(
        "😀",
        "👩\u200d👩",
        "\u037e",
        "“",
        "—",
        "<|endoftext|>",
        "</s>",
        "<tool_call>",
        "word word",
        "x" * 20,
    ),
)
TEXTS = st.one_of(
    st.text("asT7.,' \n\u00a0", max_size=20),
    st.lists(st.sampled_from(CHARACTERS), max_size=20).map("".join),
    st.text(max_size=20),
)
"""Texts of all that a rule could have overlooked."""

TRAINING = [
    *(a + b + c for a in CHARACTERS for b in CHARACTERS for c in ("a", " ", ".\n", "'s")),
    *("don't we'll 'tis it's  two\n\nnew lines; x.y/z (a_b) 1,234.50 über naïve “quoted” " * 3,)
    * 9,
]
"""Documents whose BPE joins characters wherever the pre-tokenizer lets it."""


def split(pattern: str) -> Any:
    """A pattern and then bytes, as tokenizers that came from tiktoken have it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits(*, individual: bool) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=individual),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Any] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "gpt-2 split": split(GPT_2),
    "digits": digits(individual=True),
    "numbers": digits(individual=False),
    "llama-3": split(LLAMA_3),
    "qwen-2": split(QWEN_2),
    "gpt-4o": split(GPT_4O),
}
"""All that texts are cut for."""


@cache
def byte_level(name: str, *, nfc: bool = False, tokens: tuple[str, ...] = ()) -> str:
    """The file of a BPE on one of `PRE_TOKENIZERS`, with ordinary added tokens."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = PRE_TOKENIZERS[name]
    library.decoder = decoders.ByteLevel()
    if nfc:
        library.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(TRAINING, trainer)
    library.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return library.to_str()


@cache
def metaspace() -> str:
    """The file of a BPE as converted from SentencePiece: spaces are characters, no splits."""
    library = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    library.train_from_iterator(TRAINING[-9:], trainer)
    return library.to_str()


def changed(text: str, **parts: Any) -> str:
    """A file with other parts."""
    return json.dumps(json.loads(text) | parts)


def reference(text: str) -> Tokenizer:
    """The library by itself, with special tokens in a text as text."""
    library = Tokenizer.from_str(text)
    library.encode_special_tokens = True
    return library


def library_ids(library: Tokenizer, text: str) -> list[int]:
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids
