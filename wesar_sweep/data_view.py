"""Preparing a corpus and looking at one, for people: a bar while it lasts, and what came of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wesar_sweep.config.epochs import epochs_of_runs
from wesar_sweep.config.study import Study
from wesar_sweep.data.corpus import Corpus
from wesar_sweep.data.progress import Progress

_PLAIN_EVERY_S = 10.0
_SHOWN_CHARACTERS = 240
_SHOWN_TOKENS = 24


@contextmanager
def shown() -> Iterator[Progress]:
    """Show how far the work on text is, on standard error: a bar, or plain lines elsewhere.

    Nothing is shown of work that takes less than a second.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bar(
        *columns,
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(what: str, *, done: int = 0, total: int | None = None) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=True)

        yield show


class _Lines:
    """A line at each new kind of work that lasts, and every ten seconds."""

    def __init__(self) -> None:
        self._what, self._told = "", time.monotonic()

    def __call__(self, what: str, *, done: int = 0, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._told < (1.0 if what != self._what else _PLAIN_EVERY_S):
            return
        self._what, self._told = what, now
        part = f", {done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else ""
        print(f"{what}{part}", file=sys.stderr, flush=True)


def facts(study: Study, corpus: Corpus) -> dict[str, Any]:
    """What a corpus is, as plain values: for people by `lines`, for programs as JSON."""
    low, high = epochs_of_runs(study, train_tokens=len(corpus.train))
    uniform = math.log(corpus.vocabulary)
    return {
        "source": corpus.description,
        "tokenizer": None if corpus.tokenizer is None else corpus.tokenizer.description,
        "vocabulary": corpus.vocabulary,
        "train": {"documents": corpus.train_documents, "tokens": len(corpus.train)},
        "validation": {
            "documents": corpus.validation_documents,
            "tokens": len(corpus.validation),
        },
        "bytes_per_token": corpus.bytes_per_token,
        "uniform_loss": uniform,
        "uniform_bpb": uniform / (math.log(2) * corpus.bytes_per_token),
        "epochs": {"least": low, "most": high},
        "sha256": corpus.sha256,
        "folder": None if corpus.folder is None else str(corpus.folder),
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for people, a fact a line."""
    yield f"source       {found['source']}"
    if found["tokenizer"] is not None:
        yield f"tokenizer    {found['tokenizer']}; vocabulary {found['vocabulary']:,}"
    for name in ("train", "validation"):
        side = found[name]
        yield f"{name:12} {side['documents']:,} documents, {side['tokens']:,} tokens"
    yield f"bytes/token  {found['bytes_per_token']:.3f} (held-out text)"
    yield (
        f"chance       {found['uniform_loss']:.3f} nats a token, "
        f"{found['uniform_bpb']:.3f} bits a byte"
    )
    low, high = found["epochs"]["least"], found["epochs"]["most"]
    span = f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
    yield f"epochs       {span} in a run{': it repeats its text' if high > 1 else ''}"
    yield f"sha256       {found['sha256']}"
    yield f"prepared in  {found['folder'] or 'memory: nothing is kept on disk'}"
    for name, one in found.get("evaluation_sets", {}).items():
        yield (
            f"set {name}: {one['kind']}, {one['documents']:,} documents, {one['tokens']:,} tokens "
            f"to score, chance {one['chance']:.3f} nats a {one['normalisation']}"
        )


def beginning(corpus: Corpus) -> Iterator[str]:
    """How the training text begins, as text and as tokens."""
    ids = corpus.train[:_SHOWN_CHARACTERS]
    if corpus.tokenizer is None:
        yield f"begins       {' '.join(map(str, ids[:_SHOWN_TOKENS]))}"
        return
    text = corpus.tokenizer.decode(ids)[:_SHOWN_CHARACTERS]
    yield f"begins       {text!r}"
    yield f"as tokens    {' '.join(map(str, ids[:_SHOWN_TOKENS]))} …"
