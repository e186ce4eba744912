"""BPE trained on documents and users' files: the library's ids, and no end within a text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import TEXTS, byte_level, changed, library_ids, metaspace, reference
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from wesar_sweep.config import data as config
from wesar_sweep.data import bpe
from wesar_sweep.data.bpe import LibraryTokenizer, make_tokenizer, tokenizer_of_json, train_bpe
from wesar_sweep.data.tokenizer import ByteTokenizer
from wesar_sweep.errors import ConfigError

# The house's own sources: real text on every machine.
DOCUMENTS = [file.read_bytes() for file in sorted(Path(bpe.__file__).parent.glob("*.py"))]
TRAINED = train_bpe(DOCUMENTS, vocabulary=600)


def of_json(text: str, **options: Any) -> LibraryTokenizer:
    return tokenizer_of_json(text, **({"end_of_document": None, "vocabulary": None} | options))


def test_a_trained_bpe_has_the_end_the_bytes_and_merges() -> None:
    vocabulary = json.loads(TRAINED.to_json())["model"]["vocab"]
    assert len(vocabulary) == TRAINED.vocabulary == 600
    assert vocabulary["<|endoftext|>"] == TRAINED.end_of_document == 0
    assert sorted(vocabulary.values()) == list(range(600))
    assert {token for token, i in vocabulary.items() if 0 < i <= 256} == set(
        pre_tokenizers.ByteLevel.alphabet()
    )
    assert TRAINED.description == "BPE of 600 tokens"
    ids = TRAINED.encode(DOCUMENTS[0])
    assert ids.dtype == np.uint16
    assert len(ids) < len(DOCUMENTS[0]) / 1.8


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_trained_bpe_gives_the_librarys_ids_and_the_text_back(text: str) -> None:
    ids = TRAINED.encode(text.encode())
    assert ids.tolist() == library_ids(reference(TRAINED.to_json()), text)
    assert TRAINED.decode(ids) == text
    assert TRAINED.end_of_document not in ids


def test_documents_are_encoded_as_one_by_one() -> None:
    together = list(TRAINED.encode_documents(DOCUMENTS))
    assert [ids.tolist() for ids in together] == [TRAINED.encode(d).tolist() for d in DOCUMENTS]


TRAIN = """
import sys
from pathlib import Path
from wesar_sweep.data.bpe import train_bpe
documents = [Path(name).read_bytes() for name in sys.argv[1:]]
print(train_bpe(documents, vocabulary=500).to_json())
"""


def test_training_is_the_same_in_any_process_and_with_any_threads() -> None:
    names = [str(file) for file in sorted(Path(bpe.__file__).parent.glob("*.py"))]
    found = set()
    for threads in ({"TOKENIZERS_PARALLELISM": "false"}, {"RAYON_NUM_THREADS": "3"}, {}):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, *names],
            capture_output=True,
            text=True,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
        found.add(done.stdout.strip())
    assert found == {train_bpe(DOCUMENTS, vocabulary=500).to_json()}


def test_long_documents_are_learned_from_as_if_they_were_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = b"".join(DOCUMENTS) + b"x" * 500
    parts = [len(part) for part in bpe._training_parts([whole], progress=None)]
    assert len(parts) == 1
    monkeypatch.setattr(bpe, "_TRAINING_PART", 100)
    parts = [len(part) for part in bpe._training_parts([whole], progress=None)]
    assert len(parts) > 100
    cut = train_bpe([whole], vocabulary=500).to_json()
    monkeypatch.undo()
    assert cut == train_bpe([whole], vocabulary=500).to_json()


def test_progress_is_in_bytes() -> None:
    read: list[int] = []
    train_bpe(DOCUMENTS[:3], vocabulary=300, progress=read.append)
    assert read == np.cumsum([len(document) for document in DOCUMENTS[:3]]).tolist()


def test_too_little_text_for_so_many_tokens() -> None:
    with pytest.raises(ConfigError) as caught:
        train_bpe([b"abab abab abab"], vocabulary=5000)
    assert str(caught.value) == (
        "data.tokenizer.vocabulary: the text gives a BPE of 260 tokens, and no more\n"
        "    value: 5000\n"
        "    allowed: 257 to 260\n"
        "    hint: ask for fewer tokens, or train on more text"
    )


def test_a_hash_is_of_what_decides_the_ids() -> None:
    again = of_json(TRAINED.to_json())
    assert again.sha256 == TRAINED.sha256
    assert of_json(TRAINED.to_json(), vocabulary=700).sha256 == TRAINED.sha256
    spaced = json.dumps(json.loads(TRAINED.to_json()), indent=3)
    assert of_json(spaced).sha256 == TRAINED.sha256
    padded = changed(TRAINED.to_json(), truncation=None, decoder=None)
    assert of_json(padded).sha256 == TRAINED.sha256
    composed = changed(TRAINED.to_json(), normalizer={"type": "NFC"})
    assert of_json(composed).sha256 != TRAINED.sha256
    assert train_bpe(DOCUMENTS, vocabulary=601).sha256 != TRAINED.sha256


@settings(max_examples=50, deadline=None)
@given(documents=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_file_gives_the_same_again(documents: list[str]) -> None:
    texts = [document.encode() for document in documents]
    again = of_json(TRAINED.to_json())
    found = list(again.encode_documents(texts))
    assert [ids.tolist() for ids in found] == [TRAINED.encode(text).tolist() for text in texts]


METASPACE = of_json(metaspace())


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(TEXTS, max_size=3))
def test_other_kinds_are_encoded_by_the_library(documents: list[str]) -> None:
    library = reference(metaspace())
    found = list(METASPACE.encode_documents(document.encode() for document in documents))
    assert [ids.tolist() for ids in found] == [library_ids(library, text) for text in documents]


def test_a_slow_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not METASPACE.is_fast
    assert METASPACE.description == "tokenizer.json (encoded by the library: slow)"
    monkeypatch.setattr(bpe, "_SLOW_BATCH", 10)
    documents = [b"some", b"few documents", b"", b"of " * 20]
    found = [ids.tolist() for ids in METASPACE.encode_documents(documents)]
    assert found == [METASPACE.encode(document).tolist() for document in documents]


def unigram() -> str:
    library = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("a", -2.0), ("▁", -2.0)], 0)
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["</s>", "<unk>"])
    return library.to_str()


def word_piece() -> str:
    words = ["[UNK]", "[SEP]", "[CLS]", "[", "]", "sep", "a", "##b"]
    library = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 1)]
    )
    library.add_special_tokens(["[SEP]", "[CLS]"])
    library.enable_truncation(3)
    library.enable_padding(length=3)
    return library.to_str()


ENDS = {
    "trained": (TRAINED.to_json(), "<|endoftext|>"),
    "llama-3": (byte_level("llama-3"), "<|endoftext|>"),
    "metaspace": (metaspace(), "</s>"),
    "unigram": (unigram(), "</s>"),
    "word piece": (word_piece(), "[SEP]"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_text_that_spells_the_end_does_not_hold_it(name: str) -> None:
    text, end = ENDS[name]
    tokenizer = of_json(text)
    ids = tokenizer.encode(f"a {end} a{end}{end}".encode())
    assert tokenizer.end_of_document == Tokenizer.from_str(text).token_to_id(end)
    assert tokenizer.end_of_document not in ids
    assert len(ids) > 2
    # The control: the library by itself finds it.
    assert tokenizer.end_of_document in library_ids(Tokenizer.from_str(text), f"a {end}")
    if name in ("trained", "llama-3", "metaspace"):
        assert tokenizer.decode(ids) == f"a {end} a{end}{end}"


def test_nothing_is_put_around_cut_off_or_padded() -> None:
    tokenizer = of_json(word_piece())
    assert tokenizer.encode(b"a ab a ab").tolist() == [6, 6, 7, 6, 6, 7]
    assert tokenizer.encode(b"a").tolist() == [6]


def test_the_end_may_be_named_and_the_vocabulary_padded() -> None:
    tokenizer = of_json(byte_level("gpt-2"), end_of_document="<|pad|>", vocabulary=66_000)
    assert (tokenizer.end_of_document, tokenizer.vocabulary) == (1, 66_000)
    ids = tokenizer.encode(b"a <|pad|> a")
    assert ids.dtype == np.uint32
    assert 1 not in ids
    assert tokenizer.decode(np.append(ids, 65_999)) == "a <|pad|> a"


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        of_json(text, **options)
    return str(caught.value)


def test_a_token_that_is_not_there() -> None:
    assert refusal(byte_level("gpt-2"), end_of_document="<end>") == (
        "data.tokenizer.end_of_document: tokenizer.json has no such token\n"
        "    value: '<end>'\n"
        "    allowed: <|endoftext|>, <|pad|>"
    )


def test_no_usual_token() -> None:
    text = byte_level("gpt-2").replace("<|endoftext|>", "<|begin|>")
    assert refusal(text) == (
        "data.tokenizer.end_of_document: tokenizer.json has none of the usual tokens that end a "
        "document\n"
        "    allowed: <|begin|>, <|pad|>"
    )
    assert refusal(ByteTokenizer().to_json()).endswith(
        "hint: add a special token to the tokenizer, to end documents"
    )


def test_a_token_that_text_becomes() -> None:
    (merged,) = (
        token for token in json.loads(TRAINED.to_json())["model"]["vocab"] if token == "in"
    )
    assert refusal(TRAINED.to_json(), end_of_document=merged) == (
        "data.tokenizer.end_of_document: text becomes the token that ends documents, so that it "
        "could end within one\n"
        "    value: 'in'\n"
        "    hint: name a special token of the tokenizer that no text becomes"
    )


def test_an_unknown_character_that_is_the_end() -> None:
    library = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = of_json(library.to_str())
    assert tokenizer.encode(b"a a").tolist() == [0, 0]
    with pytest.raises(ConfigError, match="text becomes the token that ends documents"):
        tokenizer.encode(b"a b")


def test_a_vocabulary_that_is_too_small() -> None:
    assert refusal(byte_level("gpt-2"), vocabulary=800) == (
        "data.tokenizer.vocabulary: tokenizer.json has 900 tokens\n"
        "    value: 800\n"
        "    allowed: 900 to 262144"
    )


@pytest.mark.parametrize("text", ["", "no JSON", "{}", '{"model": {"type": "new"}}'])
def test_what_is_no_tokenizer(text: str) -> None:
    found = refusal(text, description="novel.json")
    assert found.startswith("data.tokenizer.path: novel.json is no tokenizer.json: ")
    assert found.endswith("allowed: a file as Hugging Face's `tokenizers` saves it")


def test_the_words_of_a_study_make_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_tokenizer(config.BytesTokenizer()) == ByteTokenizer()
    words = config.BpeTokenizer(kind="bpe", vocabulary=600)
    assert make_tokenizer(words, documents=DOCUMENTS).sha256 == TRAINED.sha256
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(TRAINED.to_json())
    named = {"kind": "file", "path": "mine.json"}
    tokenizer = make_tokenizer(config.FileTokenizer.model_validate(named))
    assert tokenizer.sha256 == TRAINED.sha256
    assert (tokenizer.description, tokenizer.vocabulary) == ("mine.json", 600)
    padded = config.FileTokenizer.model_validate(named | {"vocabulary": 640})
    assert make_tokenizer(padded).vocabulary == 640
    Path("mine.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"mine\.json cannot be read: it is not UTF-8 text"):
        make_tokenizer(padded)
    Path("mine.json").unlink()
    with pytest.raises(ConfigError) as caught:
        make_tokenizer(padded)
    assert str(caught.value) == (
        "data.tokenizer.path: mine.json cannot be read: No such file or directory\n"
        f"    hint: paths are relative to the working directory, {tmp_path}"
    )


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_tokens_know_the_bytes_that_they_stand_for(text: str) -> None:
    raw = text.encode()
    assert TRAINED.token_bytes()[TRAINED.encode(raw)].sum() == len(raw)
    assert ByteTokenizer().token_bytes()[np.frombuffer(raw, np.uint8)].sum() == len(raw)


def test_spellings_of_other_tokenizers_stand_for_bytes_too() -> None:
    vocabulary = {"</s>": 0, "<0x0A>": 1, "▁a": 2, "##b": 3, "é": 4}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    found = changed(
        TRAINED.to_json(), model=model, decoder=None, pre_tokenizer=None, added_tokens=[]
    )
    tokenizer = of_json(found, end_of_document="</s>")
    assert tokenizer.token_bytes().tolist() == [1, 1, 2, 1, 2]
