"""Evaluation sets as lm-evaluation-harness has them: texts, windows, figures, errors."""

import gzip
import json
import math
import random

import numpy as np
import pytest

from wesar_sweep.config.evaluation import LambadaSet, TextSet, WikitextSet
from wesar_sweep.data.evaluation_sets import load_set, load_sets, rolling_windows
from wesar_sweep.data.set_texts import articles, cut_last_word, detokenised, words_of
from wesar_sweep.data.tokenizer import ByteTokenizer
from wesar_sweep.errors import ConfigError

WIKI = (
    " \n = Blue lamps = \n \n A lamp ( or lantern ) , made of glass , cost 1 @,@ 200 @.@ 5 marks "
    'in a well @-@ lit shop ; the owner \'s <unk> said : " no " . \n \n = = History = = \n \n'
    " Nobody knows . \n \n = Tides = \n \n Every sea has N of them . \n"
)


class PairTokenizer(ByteTokenizer):
    """Two bytes a token where they are alike, and a blank goes with the letter after it."""

    vocabulary = 1024

    def encode(self, text):
        ids, n = [], 0
        while n < len(text):
            two = text[n : n + 2]
            pair = len(two) == 2 and (two[0] == two[1] or two[0:1] == b" ")
            ids.append((256 if two[0:1] != b" " else 512) + two[1] if pair else text[n])
            n += 2 if pair else 1
        return np.array(ids, dtype=np.uint16)


def load(found, *, tokenizer=None, vocabulary=256):
    tokenizer = tokenizer or ByteTokenizer()
    return load_set(found, name="mine", tokenizer=tokenizer, vocabulary=vocabulary)


@pytest.fixture
def file(tmp_path):
    def make(text, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return make


def naive_windows(tokens, *, prefix, context, stride):
    """For each token the window that scores it: one for the first ones, then one a stride."""
    line, found = [prefix, *tokens], []
    first = 1
    while first < len(line):
        last = min(len(line) - 1, context if first == 1 else first + stride - 1)
        found.append((line[max(0, last - context) : last + 1], last - first + 1))
        first = last + 1
    return found


def test_rolling_windows_are_those_of_a_naive_implementation():
    """As the harness's get_rolling_token_windows, to which this was compared by hand, too."""
    rng = random.Random(0)
    for _ in range(300):
        context = rng.randint(1, 12)
        stride = rng.randint(1, context)
        tokens = [rng.randint(1, 99) for _ in range(rng.randint(0, 40))]
        found = list(
            rolling_windows(np.array(tokens, np.uint8), prefix=0, context=context, stride=stride)
        )
        assert [(window.tolist(), scored) for window, scored in found] == naive_windows(
            tokens, prefix=0, context=context, stride=stride
        )
        assert sum(scored for _, scored in found) == len(tokens)


def test_an_article_begins_with_a_heading_of_the_first_level():
    pages = articles(WIKI)
    assert [page.split("\n")[0] for page in pages] == [" = Blue lamps = ", " = Tides = "]
    assert "= = History = =" in pages[0]
    # Nothing but the blank line before the first heading is left out, and a line end an article.
    assert " \n" + "\n".join(pages) == WIKI
    assert articles("words first \n" + WIKI)[0] == "words first \n "


def test_wikitext_is_detokenised_as_the_harness_does():
    """What lm-evaluation-harness 0.4.13 makes of it."""
    assert detokenised(articles(WIKI)[0]) == (
        " = Blue lamps =\n\nA lamp (or lantern), made of glass, cost 1,200.5 marks in a well-lit "
        'shop; the owner\'s <unk> said: "no".\n\n== History ==\n\nNobody knows.\n'
    )
    assert detokenised(articles(WIKI)[1]) == " = Tides =\n\nEvery sea has 1 of them.\n"
    assert detokenised("10 ° C and [ x ] { y } ' z ' dogs ' tails") == (
        "10°C and [x] {y} 'z' dogs' tails"
    )
    assert detokenised("/' 7/") == "/'[0-9]/", "an oddity of the harness that is kept"


def test_words_and_bytes_are_of_the_page_before_it_is_detokenised(file):
    found = load(WikitextSet(kind="wikitext", paths=[file(WIKI)]))
    pages = articles(WIKI)
    assert found.words == sum(map(words_of, pages)) == 49 + 12
    assert found.bytes == sum(len(page.encode()) for page in pages) == 188 + 42
    assert found.tokens == sum(len(detokenised(page)) for page in pages)
    assert found.units == found.tokens and found.normalisation == "token"
    figures = found.figures(nll=100.0, exact=0)
    assert figures["loss"] == 100 / found.tokens
    assert figures["word_ppl"] == pytest.approx(math.exp(100 / 61))
    assert figures["bpb"] == pytest.approx(100 / math.log(2) / found.bytes)
    assert figures["chance"] == pytest.approx(math.log(256))
    assert found.figures(nll=1e9, exact=0)["word_ppl"] == math.inf
    assert math.isnan(found.figures(nll=math.nan, exact=0)["word_ppl"])


def test_windows_score_each_token_of_each_document_once(file):
    text = "one two\n\n" + "x" * 100 + "\n\nthree"
    found = load(TextSet(kind="text", paths=[file(text)], documents="paragraph", stride=5))
    groups = found.windows(32)
    assert [group.token_WT.shape[1] - 1 for group in groups] == [16, 32]
    seen = {}
    for group in groups:
        window_R, place_R = group.rows()
        assert len(window_R) == group.scored_W.sum()
        for window, place in zip(window_R, place_R, strict=True):
            assert place + 1 < group.length_W[window]
            document = int(group.document_W[window])
            seen.setdefault(document, []).append(group.token_WT[window, place + 1])
        for row, length in zip(group.token_WT, group.length_W, strict=True):
            assert not row[length:].any()
    assert {n: bytes(map(int, seen[n])).decode() for n in seen} == {
        0: "one two", 1: "x" * 100, 2: "three"
    }  # fmt: skip
    assert all(
        group.token_WT[row, 0] == 0
        for group in groups
        for row in range(len(group.token_WT))
        if group.length_W[row] == group.scored_W[row] + 1 <= 32
    )


def test_lambada_scores_the_last_word_with_the_blank_before_it(file):
    passages = "the cat sat on the mat\nword\na  b \n"
    found = load(LambadaSet(kind="lambada", paths=[file(passages)]))
    assert [(bytes(a.tolist()), bytes(b.tolist())) for a, b in found.documents] == [
        (b"the cat sat on the", b" mat"),
        (b"\0", b" word"),
        (b"a", b"  b"),
    ]
    assert (found.units, found.words, found.tokens) == (3, 3, 12)
    assert found.normalisation == "word"
    assert found.chance == pytest.approx(math.log(256) * 12 / 3)
    assert found.figures(nll=30.0, exact=2) == {
        "loss": 10.0, "chance": found.chance, "accuracy": 2 / 3
    }  # fmt: skip
    # Cut on the left where it is too long.
    (group,) = found.windows(8)
    rows = [
        bytes(row[:length].astype(np.uint8).tolist())
        for row, length in zip(group.token_WT, group.length_W, strict=True)
    ]
    assert rows == [b"n the mat", b"\0 word", b"a  b"]
    assert group.scored_W.tolist() == [4, 5, 3]


def test_a_pair_is_encoded_as_whole_minus_context(file):
    """The target's tokens are what the whole has beyond the context's, as in `_encode_pair`."""
    text = "an odd book of weeds"
    tokenizer = PairTokenizer()
    found = load(LambadaSet(kind="lambada", paths=[file(text)]), tokenizer=tokenizer)
    ((given, scored),) = found.documents
    whole = tokenizer.encode(text.encode())
    before, last = cut_last_word(text)
    assert (before, last) == ("an odd book of", " weeds")
    np.testing.assert_array_equal(given, tokenizer.encode(before.encode()))
    np.testing.assert_array_equal(scored, whole[len(given) :])
    assert 512 + ord("w") == scored[0]


def test_records_are_read_by_their_field(file):
    lines = "\n".join(json.dumps({"page": text, "n": 1}) for text in ("a b", " ", "c d e"))
    paths = [file(gzip.compress(lines.encode()), "a.jsonl.gz")]
    found = load(LambadaSet(kind="lambada", paths=paths, field="page"))
    assert [bytes(scored) for _, scored in found.documents] == [b" b", b" e"]
    one = load(LambadaSet(kind="lambada", paths=paths, field="page", limit=1))
    assert len(one.documents) == 1 and one.sha256 != found.sha256
    with pytest.raises(ConfigError, match="line 1: there is no field text") as caught:
        load(TextSet(kind="text", paths=paths))
    assert caught.value.problems[0].path == "evaluation.sets.mine.field"
    assert caught.value.problems[0].allowed == "page, n"
    with pytest.raises(ConfigError, match="line 2, is no JSON"):
        load(TextSet(kind="text", paths=[file('{"text": "a"}\n{', "b.jsonl")]))


def test_the_hash_is_of_what_is_scored_and_how(file):
    a, b = file("some words here", "a.txt"), file("some words here", "b.txt")
    first = load(TextSet(kind="text", paths=[a]))
    assert first.sha256 == load(TextSet(kind="text", paths=[b])).sha256
    others = [
        load(TextSet(kind="text", paths=[a], stride=3)),
        load(LambadaSet(kind="lambada", paths=[a])),
        load(TextSet(kind="text", paths=[a]), tokenizer=PairTokenizer()),
        load(TextSet(kind="text", paths=[file("some word here", "c.txt")])),
    ]
    assert len({one.sha256 for one in (first, *others)}) == 5
    assert first.facts() == {
        "sha256": first.sha256, "kind": "text", "documents": 1, "tokens": 15, "words": 3,
        "bytes": 15, "stride": None, "normalisation": "token",
        "chance": pytest.approx(math.log(256)),
    }  # fmt: skip


def test_all_that_is_wrong_is_said_together(file):
    sets = {
        "gone": TextSet(kind="text", paths=["/no/such/file.txt"]),
        "blank": WikitextSet(kind="wikitext", paths=[file(" \n \n", "blank.txt")]),
        "long": LambadaSet(kind="lambada", paths=[file("an unpronounceable")]),
        "good": TextSet(kind="text", paths=[file("fine", "good.txt")]),
    }
    with pytest.raises(ConfigError) as caught:
        load_sets(sets, tokenizer=ByteTokenizer(), vocabulary=256, context=8)
    assert [problem.path for problem in caught.value.problems] == [
        "evaluation.sets.gone.paths.0", "evaluation.sets.blank.paths", "evaluation.sets.long"
    ]  # fmt: skip
    assert "a last word has 16 tokens, more than model.context 8" in str(caught.value)
    fitting = {name: sets[name] for name in ("long", "good")}
    loaded = load_sets(fitting, tokenizer=ByteTokenizer(), vocabulary=256, context=16)
    assert list(loaded) == ["long", "good"]
