"""Text to token files: once for each corpus and tokenizer, by one process, for all who want it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wesar_sweep.config.data import FileTokenizer, HuggingFaceData, StdlibData, TextData
from wesar_sweep.data import huggingface
from wesar_sweep.data.bpe import MOST_TRAINING_BYTES, library_version, make_tokenizer
from wesar_sweep.data.documents import END_OF_DOCUMENT
from wesar_sweep.data.progress import Meter, Progress, quiet
from wesar_sweep.data.sources import Needs, SplitText, changed, sample, source_files, split_text
from wesar_sweep.data.token_files import (
    FORMAT,
    SPLITS,
    TokenFiles,
    TokenWriter,
    file_facts,
    making,
    open_tokens,
)
from wesar_sweep.data.tokenizer import Tokenizer, id_type
from wesar_sweep.errors import ConfigError, Problem, StoreError
from wesar_sweep.store.provenance import project_version

_log = logging.getLogger(__name__)


def prepared(
    data: StdlibData | TextData | HuggingFaceData, *, needs: Needs, progress: Progress = quiet
) -> TokenFiles:
    """The tokens of a study's data, from the cache or made now.

    Args:
        data: Section ``data`` of the study.
        needs: Tokens that the split is to give, where it can.
        progress: Told what is done.

    Raises:
        ConfigError: The text or the tokenizer cannot be used.
        StoreError: The cache cannot be written to, such as where the disk is full.
    """
    if data.tokenizer.kind != "bytes":
        # A token stands for several bytes, how many is not known yet.
        each = huggingface.BYTES_A_TOKEN
        needs = Needs(train=each * needs.train, validation=each * needs.validation)
    sources = _sources(data)
    key = _key(data, sources, needs)
    if (found := open_tokens(key)) is not None:
        return found
    with making(key, waiting=lambda: progress("another process prepares this corpus")):
        if (found := open_tokens(key)) is not None:
            return found
        _make(data, key=key, sources=sources, needs=needs, progress=progress)
    found = open_tokens(key)
    assert found is not None, "what was just written is not what was meant to be"
    return found


def _sources(data: StdlibData | TextData | HuggingFaceData) -> list[dict[str, Any]]:
    """What the text is, by content where that lies here."""
    match data:
        case TextData():
            return [
                facts | {"key": key}
                for key, files in source_files(data).items()
                for facts in file_facts(files)
            ]
        case HuggingFaceData():
            return huggingface.facts(data)
        case StdlibData():
            import sys

            # Its files are many and small; a change within one version is not looked for.
            return [{"stdlib": sys.version, "max_bytes": data.max_bytes}]


def _key(
    data: StdlibData | TextData | HuggingFaceData, sources: list[dict[str, Any]], needs: Needs
) -> str:
    """Hash of all that decides the tokens; where a file lies is no part of it."""
    left_out = {"paths", "validation", "mask_documents", "tokenizer"}
    own_validation = isinstance(data, TextData) and data.validation is not None
    if own_validation:
        left_out.add("held_out")
    if "path" in sources[0]:
        left_out.add("name")
    tokenizer = data.tokenizer.model_dump(exclude={"path"})
    if isinstance(data.tokenizer, FileTokenizer):
        tokenizer["sha256"] = _hash_of_tokenizer(data.tokenizer)
    whole = [
        FORMAT,
        data.model_dump(exclude=left_out),
        tokenizer,
        # Another version of the library may train and encode otherwise.
        None if data.tokenizer.kind == "bytes" else library_version(),
        [{k: v for k, v in one.items() if k != "path"} for one in sources],
        # The name decides how a file is read, and under a limit whether it is.
        [_deciding_name(one, data) for one in sources],
        # A split made by hand depends on what either side must have.
        None if own_validation else (needs.train, needs.validation),
    ]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _hash_of_tokenizer(tokenizer: FileTokenizer) -> str:
    try:
        return str(file_facts([Path(tokenizer.path).expanduser()])[0]["sha256"])
    except StoreError as error:
        hint = "restore it; a study that has begun keeps a copy, tokenizer.json, in its results"
        raise ConfigError(Problem(str(error), path="data.tokenizer.path", hint=hint)) from error


def _deciding_name(facts: dict[str, Any], data: StdlibData | TextData | HuggingFaceData) -> str:
    """As much of a file's name as decides which documents are read of it."""
    path = Path(str(facts.get("path", "")))
    if isinstance(data, HuggingFaceData) and "path" in facts:
        # Folders and names say which split a file is of.
        return str(path.relative_to(Path(data.name).expanduser().resolve()))
    limited = isinstance(data, TextData) and data.max_bytes is not None
    return path.name if limited else "".join(path.suffixes[-2:])


def _make(
    data: StdlibData | TextData | HuggingFaceData,
    *,
    key: str,
    sources: list[dict[str, Any]],
    needs: Needs,
    progress: Progress,
) -> None:
    with TokenWriter(key) as writer:
        progress("reading text")
        budget = None
        if isinstance(data, HuggingFaceData):
            split = huggingface.spooled(data, needs=needs, folder=writer.folder, progress=progress)
            budget = data.tokens
        else:
            split = split_text(data, needs=needs)
        if data.tokenizer.kind == "bpe":
            progress("training the tokenizer")
        text = sample(
            split.training(), bytes_of_all=split.text_bytes[False], limit=MOST_TRAINING_BYTES
        )
        tokenizer = make_tokenizer(data.tokenizer, documents=text)
        writer.begin(id_type(tokenizer.vocabulary))
        documents, text_bytes = _encode(split, tokenizer, writer, budget=budget, progress=progress)
        huggingface.clear(writer.folder)
        if _sources(data) != sources:
            raise changed()
        writer.finish(
            tokenizer_json=tokenizer.to_json(),
            description=split.description,
            sources=sources,
            tokenizer={
                "kind": data.tokenizer.kind,
                "description": tokenizer.description,
                "vocabulary": tokenizer.vocabulary,
                "end_of_document": tokenizer.end_of_document,
                "sha256": tokenizer.sha256,
            },
            documents=documents,
            text_bytes=text_bytes,
            made_by=project_version(),
        )


def _encode(
    split: SplitText,
    tokenizer: Tokenizer,
    writer: TokenWriter,
    *,
    budget: int | None,
    progress: Progress,
) -> tuple[dict[str, int], dict[str, int]]:
    """Write all tokens, or as many as the budget allows; documents and bytes written, by split."""
    documents, text_bytes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    end = np.array([tokenizer.end_of_document], dtype=id_type(tokenizer.vocabulary))
    total = sum(split.text_bytes.values())
    read: deque[tuple[str, int]] = deque()

    def texts() -> Iterator[bytes]:
        # The encoder reads ahead, to encode many short documents at once.
        for held, text in split.read():
            read.append((SPLITS[held], len(text) + len(END_OF_DOCUMENT)))
            yield text

    meter = Meter(progress, "encoding text", total=total)
    for ids in tokenizer.encode_documents(texts()):
        name, length = read.popleft()
        if len(ids) and int(ids.max()) >= tokenizer.vocabulary:
            raise ConfigError(
                Problem(
                    f"the tokenizer gives the id {int(ids.max()):,}, and the vocabulary has "
                    f"{tokenizer.vocabulary:,}",
                    path="data.tokenizer.vocabulary",
                    hint="remove it: the tokenizer's own size is the default",
                )
            )
        writer.add(name, ids)
        writer.add(name, end)
        documents[name] += 1
        text_bytes[name] += length
        meter.add(length)
        if budget is not None and sum(writer.tokens.values()) >= budget:
            break
    progress("encoding text", done=total, total=total)
    written = sum(writer.tokens.values())
    if budget is not None and written < budget:
        _log.warning("the data set gave %d tokens, of %d that were asked for", written, budget)
    return documents, text_bytes
