"""Evaluation sets: texts to windows of tokens, and summed log-likelihoods to figures.

Everything follows EleutherAI's lm-evaluation-harness 0.4.13, so that figures compare with published
ones: rolling windows for running text, the last word given the rest for LAMBADA. Running text is
begun with the token that ends documents, as a model has seen texts begin. Arrays are numpy's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wesar_sweep.config.evaluation import UNITS, LambadaSet, TextSet, WikitextSet
from wesar_sweep.config.space import shortest_context
from wesar_sweep.config.study import Study
from wesar_sweep.data.corpus import Corpus
from wesar_sweep.data.set_texts import cut_last_word, detokenised, documents_of_set, words_of
from wesar_sweep.data.tokenizer import Ids, Tokenizer
from wesar_sweep.errors import ConfigError, Problem

Int32 = NDArray[np.int32]
SetKind = Literal["wikitext", "lambada", "text"]

_SHORTER = (4, 2, 1)
"""Windows are padded to a quarter of the context, a half, or all of it."""
_ROUND = 16
"""Padded lengths are multiples of this, which tiles of a GPU like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowGroup:
    """W windows of one padded length T."""

    token_WT: Int32
    """[W, T + 1] tokens, zeros behind a window's own."""
    length_W: Int32
    """Tokens of each window; the last `scored_W` of them are scored."""
    scored_W: Int32
    document_W: Int32
    """Which document each is of."""

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(window, place) of each input whose next token is scored, window by window."""
        window_R = np.repeat(np.arange(len(self.length_W)), self.scored_W)
        end_W = np.cumsum(self.scored_W, dtype=np.int64)
        within_R = np.arange(len(window_R)) - (end_W - self.scored_W)[window_R]
        first_W = self.length_W.astype(np.int64) - 1 - self.scored_W
        return window_R, first_W[window_R] + within_R


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSet:
    """An evaluation set as token ids, whatever the context it is judged with."""

    name: str
    kind: SetKind
    documents: tuple[tuple[Ids, Ids], ...]
    """What is given and what is scored of each document; nothing is given of running text."""
    end_of_document: int
    vocabulary: int
    stride: int | None
    """Tokens that a window is judged on; None: all of the context."""
    words: int
    """Of the original texts, as the harness counts them; passages of LAMBADA count one each."""
    bytes: int
    """Of the original texts; of LAMBADA the last words alone."""
    sha256: str
    """Over all that decides its windows at a given context."""

    @property
    def tokens(self) -> int:
        """Tokens that are scored, each once."""
        return sum(len(scored) for _, scored in self.documents)

    @property
    def units(self) -> int:
        """What the loss is a mean over: tokens, or LAMBADA's passages."""
        return len(self.documents) if self.kind == "lambada" else self.tokens

    @property
    def normalisation(self) -> str:
        """What the loss is divided by, in words for people."""
        return UNITS[self.kind]

    @property
    def chance(self) -> float:
        """Nats a unit of a uniform guess."""
        return math.log(self.vocabulary) * self.tokens / self.units

    def figures(self, *, nll: float, exact: int) -> dict[str, float]:
        """The figures of a run.

        Args:
            nll: Nats, summed over all scored tokens.
            exact: Documents of which each scored token was the likeliest.

        Returns:
            ``loss`` (nats a unit) and ``chance``; of running text ``bpb`` (bits a byte), of
            WikiText ``word_ppl``, of LAMBADA ``accuracy``.
        """
        found = {"loss": nll / self.units, "chance": self.chance}
        if self.kind == "lambada":
            return found | {"accuracy": exact / len(self.documents)}
        if self.kind == "wikitext":
            found["word_ppl"] = _exp(nll / self.words)
        return found | {"bpb": nll / (math.log(2) * self.bytes)}

    def facts(self) -> dict[str, Any]:
        """What the provenance keeps."""
        names = ("sha256", "kind", "tokens", "words", "bytes", "stride", "normalisation", "chance")
        return {
            **{name: getattr(self, name) for name in names},
            "documents": len(self.documents),
        }

    def windows(self, context: int) -> tuple[WindowGroup, ...]:
        """The windows for models of a context that `fits`, shorter ones in groups of their own."""
        if self.kind == "lambada":
            cut = list(self._last_words(context))
        else:
            cut = [
                (document, *window)
                for document, (_, scored) in enumerate(self.documents)
                for window in rolling_windows(
                    scored,
                    prefix=self.end_of_document,
                    context=context,
                    stride=self.stride or context,
                )
            ]
        lengths = [_padded(len(token_T) - 1, context) for _, token_T, _ in cut]
        return tuple(
            _group([one for one, its in zip(cut, lengths, strict=True) if its == length], length)
            for length in sorted(set(lengths))
        )

    def require_fits(self, context: int) -> None:
        """Make sure that each word to be scored fits into one window.

        Raises:
            ConfigError: It does not.
        """
        longest = max(len(scored) for _, scored in self.documents)
        if self.kind == "lambada" and longest > context:
            raise ConfigError(
                Problem(
                    f"a last word has {longest} tokens, more than model.context {context}",
                    path=f"evaluation.sets.{self.name}",
                    hint=f"set model.context to {longest} or more, or leave the set out",
                )
            )

    def _last_words(self, context: int) -> Iterator[tuple[int, Ids, int]]:
        for document, (given, scored) in enumerate(self.documents):
            assert len(scored) <= context, (len(scored), context)
            whole = np.concatenate([given, scored])
            yield document, whole[-(context + 1) :], len(scored)


def rolling_windows(
    token_S: Ids, *, prefix: int, context: int, stride: int
) -> Iterator[tuple[Ids, int]]:
    """Windows that score every token of a text once, each but the first with tokens before it.

    As the harness's `get_rolling_token_windows` (lm_eval/utils.py) with max_seq_len = context and
    context_len = context - stride + 1, inputs and predictions in one piece.

    Args:
        token_S: The text's tokens.
        prefix: Stands before the first token.
        context: Most inputs of a window.
        stride: New tokens that each window but the first is judged on, at most the context.

    Yields:
        (at most context + 1 tokens, how many of them, the last ones, are scored).
    """
    assert 1 <= stride <= context, (stride, context)
    if not len(token_S):
        return
    begin = np.array([prefix], dtype=np.int64)
    end = min(context, len(token_S))
    yield np.concatenate([begin, token_S[:end]]), end
    while end < len(token_S):
        scored = min(stride, len(token_S) - end)
        end += scored
        yield token_S[end - context - 1 : end], scored


def load_set(
    found: WikitextSet | TextSet | LambadaSet,
    *,
    name: str,
    tokenizer: Tokenizer,
    vocabulary: int,
) -> LoadedSet:
    """Read and tokenise a set.

    Args:
        found: The set as the study has it.
        name: Its name there.
        tokenizer: Of the corpus that the models are trained on.
        vocabulary: Of the models; a uniform guess is among so many.

    Raises:
        ConfigError: What is wrong with its files or texts.
    """
    key = f"evaluation.sets.{name}"
    texts = [document.decode() for document in documents_of_set(found, key=key)]
    documents: list[tuple[Ids, Ids]]
    nothing = np.zeros(0, dtype=np.int64)
    match found:
        case LambadaSet():
            documents = [_last_word(text, tokenizer, key=key) for text in texts]
            words = len(texts)
            size = sum(len(cut_last_word(text)[1].encode()) for text in texts)
        case WikitextSet():
            documents = [(nothing, tokenizer.encode(detokenised(t).encode())) for t in texts]
            words, size = sum(map(words_of, texts)), sum(len(text.encode()) for text in texts)
        case TextSet():
            documents = [(nothing, tokenizer.encode(text.encode())) for text in texts]
            words = sum(len(text.split()) for text in texts)
            size = sum(len(text.encode()) for text in texts)
    stride = None if isinstance(found, LambadaSet) else found.stride
    if not sum(len(scored) for _, scored in documents):
        raise ConfigError(Problem("the texts make no tokens", path=f"{key}.paths"))
    return LoadedSet(
        name=name,
        kind=found.kind,
        documents=tuple(documents),
        end_of_document=tokenizer.end_of_document,
        vocabulary=vocabulary,
        stride=stride,
        words=words,
        bytes=size,
        sha256=_sha256(
            f"{found.kind} {stride} {tokenizer.end_of_document} {words} {size}", documents
        ),
    )


def sets_of(study: Study, *, corpus: Corpus) -> dict[str, LoadedSet]:
    """The sets of a study in the tokens of its corpus, for every context that it trains.

    Raises:
        ConfigError: All that is wrong with any of them.
    """
    return load_sets(
        study.evaluation.sets,
        tokenizer=corpus.tokenizer,
        vocabulary=corpus.vocabulary,
        context=shortest_context(study),
    )


def load_sets(
    sets: Mapping[str, WikitextSet | TextSet | LambadaSet],
    *,
    tokenizer: Tokenizer | None,
    vocabulary: int,
    context: int,
) -> dict[str, LoadedSet]:
    """All sets of a study by their names, in its order.

    Args:
        sets: As the study has them.
        tokenizer: As `load_set`; None only where there are no sets.
        vocabulary: As `load_set`.
        context: The least of all models to come.

    Raises:
        ConfigError: All that is wrong with any of them.
    """
    loaded: dict[str, LoadedSet] = {}
    problems: list[Problem] = []
    for name, found in sets.items():
        assert tokenizer is not None, "a study of symbols has no sets (check_study)"
        try:
            loaded[name] = load_set(found, name=name, tokenizer=tokenizer, vocabulary=vocabulary)
            loaded[name].require_fits(context)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return loaded


def _last_word(text: str, tokenizer: Tokenizer, *, key: str) -> tuple[Ids, Ids]:
    """Tokens of a passage but for its last word, and of that word: whole minus context."""
    before, last = cut_last_word(text)
    if not before:
        # One word alone is given the end of a document, as the harness does.
        given = np.array([tokenizer.end_of_document], dtype=np.int64)
        return given, tokenizer.encode(last.encode())
    given, whole = tokenizer.encode(before.encode()), tokenizer.encode((before + last).encode())
    if len(whole) <= len(given):
        raise ConfigError(
            Problem(f"the last word of this passage makes no token of its own: {text!r}", path=key)
        )
    return given, whole[len(given) :]


def _padded(inputs: int, context: int) -> int:
    """The length that a window of so many inputs is padded to."""
    for part in _SHORTER:
        length = min(context, -(-context // part // _ROUND) * _ROUND)
        if inputs <= length:
            return length
    raise AssertionError((inputs, context))


def _group(cut: Sequence[tuple[int, Ids, int]], length: int) -> WindowGroup:
    token_WT = np.zeros((len(cut), length + 1), dtype=np.int32)
    for row, (_, token_T, _) in enumerate(cut):
        token_WT[row, : len(token_T)] = token_T
    return WindowGroup(
        token_WT=token_WT,
        length_W=np.array([len(token_T) for _, token_T, _ in cut], dtype=np.int32),
        scored_W=np.array([scored for _, _, scored in cut], dtype=np.int32),
        document_W=np.array([document for document, _, _ in cut], dtype=np.int32),
    )


def _sha256(counted: str, documents: Sequence[tuple[Ids, Ids]]) -> str:
    """Of the tokens, and of all that makes figures of their likelihoods."""
    digest = hashlib.sha256(f"{counted}\n".encode())
    for given, scored in documents:
        digest.update(f"{len(given)} {len(scored)}\n".encode())
        for ids in (given, scored):
            digest.update(np.ascontiguousarray(ids, dtype="<u4").tobytes())
    return digest.hexdigest()


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
