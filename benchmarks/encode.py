"""Text to token ids on one core: by pieces, as studies do it, and by the library alone.

    python benchmarks/encode.py [TEXT ...] [--tokenizer FILE] [--documents paragraph]

The texts are files, folders or globs; without any, the standard library's sources. A BPE is trained
on them, unless a tokenizer.json is named. *Cold* is the first time, with the table of pieces to be
filled; *warm* the second. The library alone has the first megabytes, with its own cache and one
call for all documents; its ids must be the same, or nothing is measured. The three take turns in
one call; a row for each is appended to results/benchmarks.csv, in megabytes (10⁶)
a second of the process's own time.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import time
from collections.abc import Callable

# Read when the library is loaded.
os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from pathlib import Path

from record import FILE, Measurement, append
from tokenizers import Tokenizer

from wesar_sweep.data.bpe import MOST_TRAINING_BYTES, tokenizer_of_json, train_bpe
from wesar_sweep.data.documents import cap_documents, split_documents
from wesar_sweep.data.text_files import find_files, read_text

MB = 1e6


def documents_of(texts: list[str], *, kind: str) -> list[bytes]:
    """All documents of the texts, or of the standard library's sources."""
    if texts:
        contents = [read_text(file, key="TEXT") for file in find_files(texts, key="TEXT")]
    else:
        folder = Path(sysconfig.get_path("stdlib"))
        files = sorted(folder.rglob("*.py"))
        contents = [file.read_bytes() for file in files if "site-packages" not in file.parts]
    found = [part for text in contents for part in split_documents(text, kind=kind)]  # type: ignore[arg-type]
    return [document for document in found if _is_utf8(document)]


def head(documents: list[bytes], *, size: int) -> list[bytes]:
    """The first documents, of so many bytes together or somewhat more."""
    kept, total = [], 0
    for document in documents:
        if total >= size:
            break
        kept.append(document[: 4 * size].decode(errors="ignore").encode())
        total += len(kept[-1])
    return kept


def rate(size: int, work: Callable[[], object]) -> float:
    """Megabytes a second of this process, so that others on the core do not count."""
    start = time.process_time()
    work()
    return size / MB / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; else a BPE is trained")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of the trained BPE")
    parser.add_argument("--documents", choices=("file", "paragraph", "line"), default="file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--library-mb", type=float, default=4, help="text for the library alone")
    parser.add_argument("--out", type=Path, default=FILE, help="file of the rows")
    asked = parser.parse_args()

    documents = documents_of(asked.texts, kind=asked.documents)
    size = sum(map(len, documents))
    if asked.tokenizer:
        text = asked.tokenizer.read_text("utf-8")
    else:
        start = time.perf_counter()
        part = cap_documents(documents, max_bytes=min(size, MOST_TRAINING_BYTES))
        text = train_bpe(part, vocabulary=asked.vocabulary).to_json()
        print(
            f"trained on {sum(map(len, part)) / MB:.1f} MB in {time.perf_counter() - start:.1f} s"
        )

    library = Tokenizer.from_str(text)
    library.encode_special_tokens = True
    few = head(documents, size=int(asked.library_mb * MB))
    few_texts = [document.decode() for document in few]
    few_size = sum(map(len, few))

    def by_library() -> list[list[int]]:
        return [e.ids for e in library.encode_batch_fast(few_texts, add_special_tokens=False)]

    figures: dict[str, list[float]] = {"cold": [], "warm": [], "library": []}
    tokens = 0
    for _ in range(asked.repeats):
        ours = tokenizer_of_json(text, end_of_document=None, vocabulary=None)
        # What is made once is no part of encoding: both have read the file before.
        ours.encode(b"")
        for name in ("cold", "warm"):
            found: list[int] = []
            work = lambda: found.extend(map(len, ours.encode_documents(documents)))  # noqa: E731, B023
            figures[name].append(rate(size, work))
        tokens = sum(found)
        expected: list[list[int]] = []
        figures["library"].append(rate(few_size, lambda: expected.extend(by_library())))  # noqa: B023
        if [ids.tolist() for ids in ours.encode_documents(few)] != expected:
            sys.exit("the ids are not the library's")

    what = asked.tokenizer.name if asked.tokenizer else f"bpe {asked.vocabulary}"
    where = " ".join(Path(name).name for name in asked.texts) or "stdlib"
    print(
        f"{where}: {len(documents):,} documents, {size / MB:,.1f} MB, {tokens:,} tokens; "
        f"{'by pieces' if ours.is_fast else 'by the library alone'}"
    )
    case = f"{where}, {what}, by {asked.documents}, one core, MB/s"
    append(
        [Measurement("encode", name, tuple(values), case) for name, values in figures.items()],
        files=(asked.out,),
    )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


if __name__ == "__main__":
    main()
