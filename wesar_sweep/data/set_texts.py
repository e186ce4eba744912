"""The texts of evaluation sets: files to documents, articles of WikiText, passages of LAMBADA.

Texts are split, detokenised and counted as EleutherAI's lm-evaluation-harness 0.4.13 does, so that
figures compare with those that are published. What windows are made of them is decided in
`wesar_sweep.data.evaluation_sets`.
"""

from __future__ import annotations

import re

from wesar_sweep.config.evaluation import LambadaSet, TextSet, WikitextSet
from wesar_sweep.data.documents import split_documents
from wesar_sweep.data.records import record_reader
from wesar_sweep.data.text_files import find_files, read_text
from wesar_sweep.errors import ConfigError, Problem


def documents_of_set(found: WikitextSet | TextSet | LambadaSet, *, key: str) -> list[bytes]:
    """The documents in the files of a set, in their order, at most `limit` of them.

    A document is an article of WikiText, a passage of LAMBADA (one a line), or what `documents`
    says; in files of records it is a record.

    Args:
        found: The set as the study has it.
        key: Dotted path of the set in the study file, for the errors.

    Raises:
        ConfigError: A file is missing, unreadable or not text, or there is no document in them.
    """
    documents: list[bytes] = []
    problems: list[Problem] = []
    for file in find_files(found.paths, key=f"{key}.paths"):
        try:
            reader = record_reader(file)
            if reader is not None:
                documents += reader(file, field=found.field, key=f"{key}.paths")
                continue
            text = read_text(file, key=f"{key}.paths")
        except ConfigError as error:
            problems += error.problems
            continue
        match found:
            case WikitextSet():
                pages = articles(text.decode())
                if not any(page.lstrip().startswith("= ") for page in pages):
                    message = f"{file} has no headings of WikiText's form, as in ` = Title = `"
                    hint = "name the tokenised form of WikiText, or use kind: text"
                    raise ConfigError(Problem(message, path=f"{key}.paths", hint=hint))
                documents += [page.encode() for page in pages]
            case LambadaSet():
                documents += split_documents(text, kind="line")
            case TextSet():
                documents += split_documents(text, kind=found.documents)
    if problems:
        raise ConfigError(problems)
    if not documents:
        raise ConfigError(Problem("the files hold nothing but blanks", path=f"{key}.paths"))
    return documents[: found.limit]


def articles(text: str) -> list[str]:
    """The articles of a WikiText file: each begins with a heading of the first level.

    As the data set that the harness takes its documents from, EleutherAI/wikitext_document_level:
    a heading is a line that begins and ends with one equals sign once those of lower levels are
    joined, lines keep their blanks, and what stands before the first heading is an article unless
    it is blank.
    """
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        joined = line.replace("= = =", "===").replace("= =", "==").strip()
        if joined.startswith("= ") and joined.endswith(" ="):
            found.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [page for page in (*found, "\n".join(lines)) if page.strip()]


_REPLACED = (
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
_UNSPACED = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenised(page: str) -> str:
    """An article as people write it; the rules, and their order, of the harness.

    Source: `wikitext_detokenizer` of lm_eval/tasks/wikitext/preprocess_wikitext.py. Its odd rules
    are kept, such as that of ``/' 0/``, or published figures would not compare.
    """
    text = page.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for pattern, new in _UNSPACED:
        text = re.sub(pattern, new, text)
    for old, new in _AFTER:
        text = text.replace(old, new)
    return text


def words_of(page: str) -> int:
    """Words of an article as the harness counts them: parts between blanks, empty ones too."""
    return len(re.split(r"\s+", page))


def cut_last_word(passage: str) -> tuple[str, str]:
    """(the passage without its last word, that word with the blanks before it).

    The blanks go with the word, since tokenizers join them to it (the harness's `_encode_pair`).
    The first is empty where there is but one word.
    """
    parts = passage.rstrip().split(" ")
    before, last = " ".join(parts[:-1]), " " + parts[-1]
    kept = before.rstrip()
    return kept, before[len(kept) :] + last
