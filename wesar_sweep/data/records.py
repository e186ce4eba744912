"""JSON Lines and Parquet: one document a record, the text in one field of it.

Read a few thousand records at a time, so that a file may be larger than memory. A record whose text
is null or blank is no document. Zero bytes, which end a document in a corpus, are taken out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wesar_sweep.data.text_files import COMPRESSED, read_pieces
from wesar_sweep.errors import ConfigError, Problem

_BATCH = 4096
_LONGEST_LINE = 1 << 30


def record_reader(file: Path) -> Callable[..., Iterator[bytes]] | None:
    """What reads the records of a file, by its suffix; None for a file of text.

    The reader takes the file, and as keywords `field` and `key`, see `jsonl_records`.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    match suffixes[-1] if suffixes else "":
        case ".jsonl" | ".ndjson":
            return jsonl_records
        case ".parquet":
            return parquet_records
    return None


def jsonl_records(file: Path, *, field: str, key: str) -> Iterator[bytes]:
    """The texts of a file with one JSON object a line, compressed or not.

    Args:
        file: An existing file.
        field: The key of each object that holds its text.
        key: Dotted path of the value that named the file, for the errors.

    Raises:
        ConfigError: A line that is no JSON object, such as the last of a file that was cut; not
            UTF-8; no such field; a value that is no text.
    """
    for number, line in enumerate(_lines(file, key=key), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            message = f"{file}, line {number:,}, is not UTF-8: {error.reason}"
            hint = f"convert it, for example with `iconv -f latin1 -t utf-8 {file}`"
            raise ConfigError(Problem(message, path=key, hint=hint)) from None
        except ValueError as error:
            message = f"{file}, line {number:,}, is no JSON: {error}"
            hint = "if it is the last line the file was cut: make or fetch it again"
            raise ConfigError(Problem(message, path=key, hint=hint)) from None
        where = f"{file}, line {number:,}"
        if not isinstance(record, dict):
            message = f"{where}, is no JSON object"
            hint = 'each line is to be like {"text": "…"}'
            raise ConfigError(Problem(message, path=key, hint=hint))
        if field not in record:
            raise no_field(where, field, list(record), key=key)
        yield from record_text(
            record[field], where=f"{file}, line {number:,}", field=field, key=key
        )


def parquet_records(file: Path, *, field: str, key: str) -> Iterator[bytes]:
    """The texts of a Parquet file; `jsonl_records` says what the arguments are.

    Raises:
        ConfigError: Not a whole Parquet file, compressed from outside, or no such field of text.
    """
    # Only what reads Parquet needs it, and a training worker is to start without.
    import polars as pl

    if file.suffix.lower() in COMPRESSED:
        message = f"{file} is a compressed Parquet file, which cannot be read in parts"
        hint = "decompress it: Parquet is compressed inside"
        raise ConfigError(Problem(message, path=key, hint=hint))
    try:
        schema = pl.read_parquet_schema(file)
        if field not in schema:
            raise no_field(str(file), field, list(schema), key=key)
        if schema[field] not in (pl.String, pl.Categorical, pl.Null):
            message = f"{file}: field {field} holds no text, but {schema[field]}"
            raise ConfigError(Problem(message, path=_field_key(key), hint="name another field"))
        column = pl.scan_parquet(file).select(pl.col(field).cast(pl.String))
        place = 0
        for batch in column.collect_batches(chunk_size=_BATCH, maintain_order=True):
            for text in batch[field].to_list():
                place += 1
                yield from record_text(
                    text, where=f"{file}, record {place:,}", field=field, key=key
                )
    except (pl.exceptions.PolarsError, OSError) as error:
        why = str(error).splitlines()[0]
        message = f"{file} is not a whole Parquet file: {why}"
        raise ConfigError(Problem(message, path=key, hint="make or fetch it again")) from None


def record_text(value: Any, *, where: str, field: str, key: str) -> Iterator[bytes]:
    """The text of a record as UTF-8; nothing where it is null or blank.

    Raises:
        ConfigError: It is something else; `where` says which record, `key` what named its source.
    """
    if value is None:
        return
    if not isinstance(value, str):
        message = f"{where}: field {field} holds no text, but {value!r:.40}"
        raise ConfigError(Problem(message, path=_field_key(key), hint="name another field"))
    # JSON can spell halves of characters that no UTF-8 has.
    text = value.replace("\0", "").encode("utf-8", errors="replace")
    if text.strip():
        yield text


def no_field(where: str, field: str, names: Sequence[str], *, key: str) -> ConfigError:
    """What to say of a record without the field; `key` is the path of what named its source."""
    near = difflib.get_close_matches(field, names, n=1)
    return ConfigError(
        Problem(
            f"{where}: there is no field {field}",
            path=_field_key(key),
            allowed=", ".join(names) or "none: the record is empty",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    )


def _field_key(key: str) -> str:
    """``data.field`` for what ``data.paths`` named."""
    return f"{key.rpartition('.')[0]}.field"


def _lines(file: Path, *, key: str) -> Iterator[bytes]:
    """The lines of a file, each without its end."""
    rest: list[bytes] = []
    length = 0
    for piece in read_pieces(file, key=key):
        *whole, last = piece.split(b"\n")
        if whole:
            yield b"".join([*rest, whole[0]])
            yield from whole[1:]
            rest, length = [], 0
        rest.append(last)
        length += len(last)
        if length > _LONGEST_LINE:
            message = f"{file} has a line of more than {_LONGEST_LINE:,} bytes"
            hint = "one record a line is expected, not one JSON list"
            raise ConfigError(Problem(message, path=key, hint=hint))
    if any(rest):
        yield b"".join(rest)
