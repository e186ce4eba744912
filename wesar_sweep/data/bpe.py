"""Byte-level BPE trained on documents, and the user's own `tokenizer.json` of any kind.

Both are Hugging Face's `tokenizers`, and their ids are exactly that library's for a whole document;
where the pattern that splits text is known, they are found much faster (`data/fast_encoding.py`).
Special tokens that are spelled out in a document are text: no document holds its end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config import data as config
from wesar_sweep.data.cut_rules import GPT_2, find_cut_rule, find_fragile_tokens
from wesar_sweep.data.fast_encoding import PieceEncoder
from wesar_sweep.data.piece_table import Places
from wesar_sweep.data.tokenizer import ByteTokenizer, Ids, Tokenizer, byte_characters, id_type
from wesar_sweep.errors import ConfigError, Problem

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""The end of a document of a trained BPE, as in GPT-2; its id is 0, as with bytes."""

ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[SEP]", "[EOS]")
"""Where a file's end of documents is not named: the first of these that it has."""

MOST_TRAINING_BYTES = 64 << 20
"""A BPE learns little from more; who trains one takes so much, spread over the documents."""

_KEY = "data.tokenizer"
_ONE_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TRAINING_PART = 1 << 18
# One cut of many is made, so it must not rest on another.
_RULE = replace(GPT_2, alone=b"")
_SLOW_BATCH = 1 << 20


class LibraryTokenizer:
    """A tokenizer of Hugging Face's `tokenizers`; not to be used by several threads at once."""

    def __init__(
        self, text: str, *, end_of_document: str, vocabulary: int, description: str
    ) -> None:
        """Take a checked file.

        Args:
            text: Content of a ``tokenizer.json``.
            end_of_document: One of its tokens.
            vocabulary: Ids are below it; perhaps more than the tokenizer has.
            description: What it is, for people.
        """
        self._text = text
        self._end = end_of_document
        self._vocabulary = vocabulary
        self._what = description

    @property
    def vocabulary(self) -> int:
        """Ids are in [0, vocabulary)."""
        return self._vocabulary

    @cached_property
    def end_of_document(self) -> int:
        """Id of the token that follows each document, and that no document holds."""
        found = self._library.token_to_id(self._end)
        assert found is not None
        return found

    @cached_property
    def sha256(self) -> str:
        """Hash of the parts of the file that decide which ids a text becomes, and of the end."""
        parts = ("normalizer", "pre_tokenizer", "model", "added_tokens")
        decisive = {part: self._document.get(part) for part in parts} | {"end": self._end}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @property
    def description(self) -> str:
        """What it is, in a few words for people; says so where encoding is slow."""
        return self._what if self.is_fast else f"{self._what} (encoded by the library: slow)"

    @property
    def is_fast(self) -> bool:
        """Whether texts are encoded by pieces, tens of megabytes a second."""
        return self._pieces is not None

    def encode(self, text: bytes) -> Ids:
        """Ids of a UTF-8 text, without the end of the document or any other special token."""
        (ids,) = self.encode_documents([text])
        return ids

    def encode_documents(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """The ids of each document, in order; see `PieceEncoder.encode_documents`.

        Raises:
            ConfigError: Text becomes the token that ends documents.
        """
        pieces = self._pieces
        for ids in pieces.encode_documents(documents) if pieces else self._slowly(documents):
            if (ids == self.end_of_document).any():
                raise _text_gives_end(self._end)
            yield ids

    def decode(self, ids: Ids) -> str:
        """The text of some ids; what is no UTF-8, such as half of a character, is shown as �."""
        return self._library.decode(ids.tolist(), skip_special_tokens=False)

    def token_bytes(self) -> NDArray[np.int64]:
        """Bytes of text that each token stands for, [vocabulary]; 1 for the end of a document.

        Exact for byte-level tokens, which spell a byte a character. Others are taken as they are
        written, ``▁`` for a space, ``<0x0A>`` for a byte, without WordPiece's ``##``.
        """
        byte_level = "ByteLevel" in json.dumps(self._document.get("decoder"))
        special = {token["content"] for token in self._document["added_tokens"]}
        found = np.zeros(self._vocabulary, np.int64)
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            if token in special:
                found[i] = len(token.encode())
            elif byte_level:
                found[i] = len(token)
            else:
                spelt = token.replace("▁", " ").removeprefix("##")
                found[i] = 1 if _ONE_BYTE.fullmatch(token) else len(spelt.encode())
        found[self.end_of_document] = 1
        return found

    def to_json(self) -> str:
        """The file as it was given."""
        return self._text

    def _slowly(self, documents: Iterable[bytes]) -> Iterator[Ids]:
        """All by the library, several documents at once."""
        batch: list[str] = []
        size = 0
        for document in documents:
            batch.append(document.decode())
            size += len(document)
            if size >= _SLOW_BATCH:
                yield from self._batch(batch)
                batch, size = [], 0
        yield from self._batch(batch)

    def _batch(self, texts: list[str]) -> Iterator[Ids]:
        encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        dtype = id_type(self._vocabulary)
        return (np.array(encoding.ids, dtype) for encoding in encodings)

    def _encode_pieces(self, pieces: list[str]) -> tuple[Ids, Places]:
        """Ids of each piece by itself, and how many each has: one call of the library for all."""
        encoding = self._encoder.encode(pieces, is_pretokenized=True, add_special_tokens=False)
        ids = np.array(encoding.ids, id_type(self._vocabulary))
        of_piece = np.array(encoding.word_ids, np.int64)
        return ids, np.bincount(of_piece, minlength=len(pieces))

    @cached_property
    def _pieces(self) -> PieceEncoder | None:
        rule = find_cut_rule(self._document)
        if rule is None:
            return None
        return PieceEncoder(
            self._encode_pieces,
            rule=rule,
            vocabulary=self._vocabulary,
            whole=find_fragile_tokens(self._document, rule),
        )

    @cached_property
    def _document(self) -> dict[str, Any]:
        return _read(self._text)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        return _load(self._text)

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The same, but special tokens are text, and no text spells the end of a document."""
        encoder = _load(json.dumps(_without_end(self._document, self._end), ensure_ascii=False))
        encoder.encode_special_tokens = True
        return encoder


def train_bpe(
    documents: Iterable[bytes],
    *,
    vocabulary: int,
    progress: Callable[[int], None] | None = None,
) -> LibraryTokenizer:
    """A byte-level BPE as GPT-2's; the same documents in the same order give the same one.

    Ids: 0 the end of a document, 1 to 256 the bytes, then the merges in their order.

    Args:
        documents: UTF-8 texts; see `MOST_TRAINING_BYTES`.
        vocabulary: Number of tokens, at least 257.
        progress: Called with the bytes read so far.

    Raises:
        ConfigError: The text has fewer pairs that come twice.
        UnicodeDecodeError: A document is not UTF-8.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    library.train_from_iterator(_training_parts(documents, progress=progress), trainer)
    size = library.get_vocab_size()
    if size < vocabulary:
        raise ConfigError(
            Problem(
                f"the text gives a BPE of {size:,} tokens, and no more",
                path=f"{_KEY}.vocabulary",
                value=str(vocabulary),
                allowed=f"257 to {size}",
                hint="ask for fewer tokens, or train on more text",
            )
        )
    return _trained(library.to_str(), vocabulary)


def _trained(text: str, vocabulary: int) -> LibraryTokenizer:
    return LibraryTokenizer(
        text,
        end_of_document=END_OF_TEXT,
        vocabulary=vocabulary,
        description=f"BPE of {vocabulary:,} tokens",
    )


def tokenizer_of_json(
    text: str,
    *,
    end_of_document: str | None,
    vocabulary: int | None,
    description: str = "tokenizer.json",
) -> LibraryTokenizer:
    """A user's tokenizer.

    Args:
        text: Content of a ``tokenizer.json``. What it says of truncation, padding and tokens
            around a text is passed over.
        end_of_document: The token that ends a document; None takes the first of `ENDS`.
        vocabulary: Rows of the embedding; None takes the tokenizer's size.
        description: What it is, for people.

    Raises:
        ConfigError: Not such a file, no token to end documents, or a vocabulary that is too small.
    """
    try:
        library = _load(text)
        # The library turns every error into a bare Exception.
    except Exception as error:
        raise ConfigError(
            Problem(
                f"{description} is no tokenizer.json: {error}",
                path=f"{_KEY}.path",
                allowed="a file as Hugging Face's `tokenizers` saves it",
            )
        ) from None
    document = _read(text)
    ids = library.get_vocab(with_added_tokens=True)
    end = _end_of(document, ids, named=end_of_document, description=description)
    size = max(ids.values()) + 1
    if not size <= (vocabulary or size) <= config.MOST_VOCABULARY:
        raise ConfigError(
            Problem(
                f"{description} has {size:,} tokens",
                path=f"{_KEY}.vocabulary",
                value=str(vocabulary),
                allowed=f"{size} to {config.MOST_VOCABULARY}"
                if size <= config.MOST_VOCABULARY
                else f"tokenizers of at most {config.MOST_VOCABULARY} tokens",
            )
        )
    return LibraryTokenizer(
        text, end_of_document=end, vocabulary=vocabulary or size, description=description
    )


def make_tokenizer(tokenizer: config.Tokenizer, *, documents: Iterable[bytes] = ()) -> Tokenizer:
    """The tokenizer that a study asks for.

    Args:
        tokenizer: Its words in the study file.
        documents: What a BPE is trained on; others do not look at them.

    Raises:
        ConfigError: The file cannot be used, or the text is too little for so many tokens.
    """
    match tokenizer:
        case config.BytesTokenizer():
            return ByteTokenizer()
        case config.BpeTokenizer(vocabulary=vocabulary):
            return train_bpe(documents, vocabulary=vocabulary)
        case config.FileTokenizer(path=path):
            file = Path(path).expanduser()
            try:
                text = file.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise ConfigError(
                    Problem(
                        f"{path} cannot be read: {why}",
                        path=f"{_KEY}.path",
                        hint=f"paths are relative to the working directory, {Path.cwd()}",
                    )
                ) from None
            return tokenizer_of_json(
                text,
                end_of_document=tokenizer.end_of_document,
                vocabulary=tokenizer.vocabulary,
                description=file.name,
            )


def library_version() -> str:
    """Version of the library that trains and applies tokenizers: another one may differ."""
    import tokenizers

    return str(tokenizers.__version__)


def restored(tokenizer: config.Tokenizer, text: str) -> Tokenizer:
    """What `make_tokenizer` made of the same words, from its `to_json`: nothing is trained.

    Raises:
        ConfigError: The words ask for what the file does not have.
    """
    match tokenizer:
        case config.BytesTokenizer():
            return ByteTokenizer()
        case config.BpeTokenizer(vocabulary=vocabulary):
            return _trained(text, vocabulary)
        case config.FileTokenizer():
            return tokenizer_of_json(
                text,
                end_of_document=tokenizer.end_of_document,
                vocabulary=tokenizer.vocabulary,
                description=Path(tokenizer.path).name,
            )


def _read(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    return document | {"added_tokens": document.get("added_tokens") or []}


def _load(text: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(text)
    library.no_truncation()
    library.no_padding()
    return library


def _training_parts(
    documents: Iterable[bytes], *, progress: Callable[[int], None] | None
) -> Iterator[str]:
    """The documents, long ones cut where their words end: the library needs 50 times their size."""
    read = 0
    for document in documents:
        begin, size = 0, _TRAINING_PART
        while begin < len(document):
            part = document[begin : begin + size]
            if begin + size < len(document):
                end = int(_RULE.cut(part)[-2])
                if end == 0:
                    size *= 2
                    continue
                part = part[:end]
            yield part.decode()
            begin, size = begin + len(part), _TRAINING_PART
        read += len(document)
        if progress is not None:
            progress(read)


def _end_of(
    document: dict[str, Any], ids: dict[str, int], *, named: str | None, description: str
) -> str:
    """The token that ends documents."""
    candidates = ENDS if named is None else (named,)
    end = next((token for token in candidates if token in ids), None)
    if end is None:
        special = [token["content"] for token in document["added_tokens"] if token["special"]]
        raise ConfigError(
            Problem(
                f"{description} has none of the usual tokens that end a document"
                if named is None
                else f"{description} has no such token",
                path=f"{_KEY}.end_of_document",
                value=None if named is None else repr(named),
                allowed=", ".join(special) or None,
                hint=None if special else "add a special token to the tokenizer, to end documents",
            )
        )
    if any("".join(_pair(merge)) == end for merge in document["model"].get("merges", ())):
        raise _text_gives_end(end)
    return end


def _without_end(document: dict[str, Any], end: str) -> dict[str, Any]:
    """The same tokenizer with another spelling of the end, which no text has; ids stay."""
    # Noncharacters, which Unicode keeps out of texts; what still gave the end would be an error.
    hidden = f"\ufdd0{end}\ufdd1"
    model = dict(document["model"])
    match model.get("vocab"):
        case dict() as vocab:
            model["vocab"] = {hidden if token == end else token: i for token, i in vocab.items()}
        case list() as vocab:
            model["vocab"] = [[hidden if token == end else token, *rest] for token, *rest in vocab]
    if model.get("unk_token") == end:
        model["unk_token"] = hidden
    added = [
        token | {"content": hidden, "special": True} if token["content"] == end else token
        for token in document["added_tokens"]
    ]
    return document | {"model": model, "added_tokens": added, "post_processor": None}


def _pair(merge: str | list[str]) -> list[str]:
    """The two tokens of a merge, in either of the two ways that files have it."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _text_gives_end(end: str) -> ConfigError:
    return ConfigError(
        Problem(
            "text becomes the token that ends documents, so that it could end within one",
            path=f"{_KEY}.end_of_document",
            value=repr(end),
            hint="name a special token of the tokenizer that no text becomes",
        )
    )
