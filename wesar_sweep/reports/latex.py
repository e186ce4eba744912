"""Tables as LaTeX that pdflatex compiles, with booktabs; every text of the user's is escaped.

What is no ASCII is written by commands of the LaTeX kernel (2020 or later); a letter that Computer
Modern lacks is written as its code point, such as ``U+4E2D``, and never stops the compiler.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from wesar_sweep.reports.tables import Table

PACKAGES = ("booktabs", "longtable")
"""What a document must load to take these tables in."""

LONG = 40
"""A table of more rows than this runs over several pages."""


def _math(text: str) -> str:
    return rf"\ensuremath{{{text}}}"


_CHARACTERS: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{sign: rf"\{sign}" for sign in "%_&#${}"},
    # After the end of a row they would be an argument of it.
    "[": "{[}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "−": _math("-"),
    "…": r"\ldots{}",
    "’": "'",
    "\u2018": r"\textquoteleft{}",
    "“": "``",
    "”": "''",
    "±": _math(r"\pm"),
    "≥": _math(r"\ge"),
    "≤": _math(r"\le"),
    "≈": _math(r"\approx"),
    "×": _math(r"\times"),
    "·": _math(r"\cdot"),
    "√": _math(r"\surd"),
    "‖": _math(r"\|"),
    "→": _math(r"\to"),
    "∞": _math(r"\infty"),
    "Δ": _math(r"\Delta"),
    "α": _math(r"\alpha"),
    "β": _math(r"\beta"),
    "γ": _math(r"\gamma"),
    "σ": _math(r"\sigma"),
    "ℓ": _math(r"\ell"),
    **{sign: _math(f"^{{{n}}}") for n, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{sign: _math(f"_{{{n}}}") for n, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
_LETTERS = frozenset("ßæÆøØåÅœŒ")
_MACRON = "\u0304"
# Of the letters with a bar, such as W̄, most have no code point of their own.
_SIGNS = re.compile(f"[A-Za-z]{_MACRON}|.", re.DOTALL)
# A number that is a whole word: with its exponent, or with a sign.
_NUMBER = re.compile(
    r"(?<![\w.\-])(?P<sign>-?)(?P<mantissa>\d+(?:\.\d+)?)(?:e(?P<exponent>[+-]?\d+))?(?![\w.]*\w)"
)


def escape(text: str) -> str:
    """Text that LaTeX shows as it is, on one line; ``4e-5`` and ``-1`` are set as mathematics."""
    words = unicodedata.normalize("NFC", " ".join(text.split()))
    parts, end = [], 0
    for found in _NUMBER.finditer(words):
        if found["exponent"] is None and not found["sign"]:
            continue
        parts += [_plain(words[end : found.start()]), _number(found)]
        end = found.end()
    return "".join([*parts, _plain(words[end:])])


def _number(found: re.Match[str]) -> str:
    mantissa, exponent = found["mantissa"], found["exponent"]
    if exponent is None:
        return _math(f"-{mantissa}")
    power = f"10^{{{int(exponent)}}}"
    return _math(found["sign"] + (power if mantissa == "1" else rf"{mantissa} \times {power}"))


def _plain(text: str) -> str:
    # Of two hyphens LaTeX would make a dash.
    parts = re.split(r"(?<=-)(?=-)", text)
    return "{}".join("".join(map(_character, _SIGNS.findall(part))) for part in parts)


def _character(sign: str) -> str:
    if sign in _CHARACTERS:
        return _CHARACTERS[sign]
    if sign.endswith(_MACRON) and len(sign) == 2:
        return _math(rf"\bar{{{sign[0]}}}")
    if " " <= sign <= "~" or sign in _LETTERS:
        return sign
    if sign == "\u00a0" or sign == "\u202f":
        return "~"
    letter, *accents = list(unicodedata.normalize("NFD", sign))
    if letter.isascii() and letter.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        return sign
    return rf"\texttt{{U+{ord(sign):04X}}}"


def table(found: Table, *, name: str, caption: str) -> str:
    """A table environment with caption and label; one of many rows is a longtable.

    Args:
        found: The words.
        name: The label is ``tab:name``.
        caption: Plain text.
    """
    columns = "".join("r" if numeric else "l" for numeric in found.numeric)
    rows = [
        _row([_cell(word, (y, x) in found.strong) for x, word in enumerate(row)])
        for y, row in enumerate(found.rows)
    ]
    head = [r"\toprule", *_over(found), _row(map(escape, found.columns)), r"\midrule"]
    title = rf"\caption{{{escape(caption)}}}\label{{tab:{name}}}"
    if len(rows) > LONG:
        lines = [
            rf"\begin{{longtable}}{{{columns}}}",
            rf"{title}\\",
            *head,
            r"\endhead",
            *rows,
            r"\bottomrule",
            r"\end{longtable}",
        ]
    else:
        lines = [
            r"\begin{table}",
            r"\centering",
            title,
            rf"\begin{{tabular}}{{{columns}}}",
            *head,
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    needs = rf"% Needs \usepackage{{{','.join(PACKAGES)}}}."
    return "\n".join([needs, *lines, ""])


def document(names: Sequence[str]) -> str:
    """A whole document that takes in the files ``name.tex`` beside it."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage[landscape,margin=1cm]{geometry}",
        rf"\usepackage{{{','.join(PACKAGES)}}}",
        r"\begin{document}",
        r"\small",
        *(rf"\input{{{name}}}" for name in names),
        r"\end{document}",
    ]
    return "\n".join([*lines, ""])


def _row(words: Sequence[str] | map[str]) -> str:
    return " & ".join(words) + r" \\"


def _cell(word: str, strong: bool) -> str:
    return rf"\textbf{{{escape(word)}}}" if strong else escape(word)


def _over(found: Table) -> list[str]:
    if found.over is None:
        return []
    words, first = found.over
    count = len(found.columns) - first
    head = "& " * first + rf"\multicolumn{{{count}}}{{c}}{{{escape(words)}}} \\"
    return [head, rf"\cmidrule(lr){{{first + 1}-{len(found.columns)}}}"]
