"""Data sets by Hugging Face's `datasets`: streamed, and kept on disk until they are tokens.

A stream cannot be read twice, and the split and the tokenizer must know the text before it is
encoded: so its documents go to a file first, about as many of them as the budget needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wesar_sweep.config.data import BytesTokenizer, HuggingFaceData
from wesar_sweep.data.documents import END_OF_DOCUMENT
from wesar_sweep.data.progress import Meter, Progress
from wesar_sweep.data.records import no_field, record_text
from wesar_sweep.data.sources import Needs, SplitText, describe, split_documents_of
from wesar_sweep.data.token_files import file_facts
from wesar_sweep.errors import ConfigError, Problem
from wesar_sweep.store.atomic import store_error

BYTES_A_TOKEN = 6
"""So many bytes of text are read for each token of the budget: a little more than tokenizers need
of usual text. What is left over is not encoded."""

_SPOOL = "documents.spool"
_HEADER = struct.Struct("<Q")


def facts(data: HuggingFaceData) -> list[dict[str, Any]]:
    """What is known of a data set without asking the hub, which a compute node may not reach."""
    folder = Path(data.name).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return file_facts(files)
    return [{"hub": data.name, "revision": data.revision}]


def spooled(data: HuggingFaceData, *, needs: Needs, folder: Path, progress: Progress) -> SplitText:
    """Stream the documents that the budget needs into a file, and divide them.

    Args:
        data: Which data set, and how many tokens.
        needs: What the split is to give, where it can.
        folder: Where the file goes; `clear` takes it away.
        progress: Told of the bytes that have come.

    Raises:
        ConfigError: No such data set, subset, split or field, or the hub cannot be reached.
        StoreError: The disk is full or refuses.
    """
    byte_tokens = isinstance(data.tokenizer, BytesTokenizer)
    wanted = data.tokens * (1 if byte_tokens else BYTES_A_TOKEN)
    spool = _Spool(folder / _SPOOL)
    meter = Meter(progress, "streaming text", total=wanted)
    try:
        with spool.path.open("wb") as file:
            for text in _stream(data):
                file.write(_HEADER.pack(len(text)))
                file.write(text)
                meter.add(len(text) + len(END_OF_DOCUMENT))
                if meter.done >= wanted:
                    break
    except OSError as error:
        raise store_error(error, path=folder, action="write text to") from error
    if not meter.done:
        message = f"{data.name} has no text in field {data.field}"
        raise ConfigError(Problem(message, path="data.field"))
    return split_documents_of(spool, share=data.held_out, needs=needs, description=describe(data))


def clear(folder: Path) -> None:
    """Take away what `spooled` left in a folder, if it did."""
    (folder / _SPOOL).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Spool:
    """Documents in a file of ours: the length of each, then its bytes."""

    path: Path

    def __iter__(self) -> Iterator[bytes]:
        """Read them."""
        with self.path.open("rb") as file:
            while header := file.read(_HEADER.size):
                yield file.read(_HEADER.unpack(header)[0])


def _stream(data: HuggingFaceData) -> Iterator[bytes]:
    """The texts of the data set's records, in its order."""
    is_place = data.name.startswith((".", "/", "~")) or data.name.count("/") > 1
    if is_place and not Path(data.name).expanduser().is_dir():
        hint = "a data set of the hub is called OWNER/NAME"
        raise ConfigError(Problem(f"there is no folder {data.name}", path="data.name", hint=hint))
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError:
        hint = "pip install 'wesar-sweep[hf]'"
        message = "this source needs the package datasets, which is not installed"
        raise ConfigError(Problem(message, path="data.source", hint=hint)) from None
    try:
        records = datasets.load_dataset(
            data.name, data.subset, split=data.split, revision=data.revision, streaming=True
        )
        for place, record in enumerate(records, start=1):
            where = f"{data.name}, record {place:,}"
            if data.field not in record:
                raise no_field(where, data.field, list(record), key="data.name")
            yield from record_text(
                record[data.field], where=where, field=data.field, key="data.name"
            )
    except (DatasetsError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{data.name} cannot be read: {first}"
        hint = (
            "check name, subset, split and the network; where compute nodes have none, run "
            "`wesar-sweep data prepare STUDY.yaml` on a machine that has"
        )
        raise ConfigError(Problem(message, path="data.name", hint=hint)) from error
