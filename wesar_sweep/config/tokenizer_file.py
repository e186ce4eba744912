"""What a study must know of a `tokenizer.json` before anything is trained: how many tokens it has.

Read as JSON, without the library that encodes: `validate`, `plan` and `report` do without that.
"""

from __future__ import annotations

import json
from pathlib import Path

from wesar_sweep.config.data import MOST_VOCABULARY, FileTokenizer
from wesar_sweep.config.findings import Finding
from wesar_sweep.config.study import Study

_PLACE = ("data", "tokenizer")


def with_vocabulary(study: Study) -> tuple[Study, list[Finding]]:
    """The study with the size of its tokenizer's file filled in, and what is wrong with that file.

    A study that names the size, such as one that was resolved, needs no file to be read again.
    """
    tokenizer = getattr(study.data, "tokenizer", None)
    if not isinstance(tokenizer, FileTokenizer):
        return study, []
    try:
        size = vocabulary_of(Path(tokenizer.path).expanduser())
    except (OSError, ValueError) as error:
        if tokenizer.vocabulary is not None:
            # Whoever needs the file itself says what is wrong with it; a report does not.
            return study, []
        if isinstance(error, FileNotFoundError):
            return study, [Finding((*_PLACE, "path"), f"there is no file {tokenizer.path}")]
        why = error.strerror if isinstance(error, OSError) else error
        hint = "name a tokenizer.json that Hugging Face's tokenizers wrote"
        return study, [Finding((*_PLACE, "path"), f"this is no tokenizer: {why}", hint=hint)]
    if size > MOST_VOCABULARY:
        message = f"the tokenizer has {size:,} tokens, and at most {MOST_VOCABULARY:,} are allowed"
        return study, [Finding((*_PLACE, "path"), message)]
    if tokenizer.vocabulary is None:
        filled = tokenizer.model_copy(update={"vocabulary": size})
        data = study.data.model_copy(update={"tokenizer": filled})
        return study.model_copy(update={"data": data}), []
    if tokenizer.vocabulary < size:
        message = f"{tokenizer.path} has {size:,} tokens, and this leaves some without a row"
        allowed = f"a whole number, at least {size}"
        hint = "remove it, or round up for a faster product"
        place = (*_PLACE, "vocabulary")
        return study, [Finding(place, message, allowed=allowed, hint=hint)]
    return study, []


def vocabulary_of(file: Path) -> int:
    """One more than the largest token id of a `tokenizer.json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        vocab = found["model"]["vocab"]
        # Unigram has a list of pieces, the others map tokens to ids.
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        ids += [token["id"] for token in found.get("added_tokens") or ()]
        return 1 + max(int(i) for i in ids)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"no vocabulary in {file.name} ({error})") from error
