"""When and on what a run is judged: the held-out text, and evaluation sets of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from wesar_sweep.config.base import Frozen
from wesar_sweep.config.data import FIELD, Texts
from wesar_sweep.config.knobs import Count

VALIDATION = "validation"
"""What the held-out text is called beside further sets; none of them has this name."""

Unit = Literal["token", "word"]
UNITS: Mapping[Literal["wikitext", "lambada", "text"], Unit] = {
    "wikitext": "token",
    "lambada": "word",
    "text": "token",
}
"""Kind of set -> what its loss is a mean over."""

PATHS = "Files, folders or globs, relative to the working directory."


class _Set(Frozen):
    """What all evaluation sets share."""

    paths: Texts = Field(description=PATHS)
    field: str = Field(default="text", description=FIELD)
    limit: Count | None = Field(
        default=None, description="Judge on so many documents only, the first; null means all."
    )
    every: Count | None = Field(
        default=None, description="Evaluate each so many steps, beside the end; null means off."
    )
    at: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        default=(), description="Evaluate after these steps too."
    )


class _Windows(_Set):
    stride: Count | None = Field(
        default=None,
        description="New tokens a window of `model.context` is judged on, the rest being context; "
        "default model.context, which is fastest and gives the highest perplexity.",
    )


class WikitextSet(_Windows):
    """WikiText: articles, detokenised as `lm-evaluation-harness` does, with perplexity a word."""

    kind: Literal["wikitext"]


class TextSet(_Windows):
    """Any text."""

    kind: Literal["text"]
    documents: Literal["file", "paragraph", "line"] = Field(
        default="file", description="What a document of a text file is."
    )


class LambadaSet(_Set):
    """LAMBADA: the last word of each passage, given the rest of it."""

    kind: Literal["lambada"]


EvaluationSet = Annotated[WikitextSet | TextSet | LambadaSet, Field(discriminator="kind")]


class Evaluation(Frozen):
    """When and on how much held-out text a run is judged; always at step 0 and at the end too."""

    sequences: Count = Field(
        default=64, description="Held-out sequences of `model.context` tokens."
    )
    every: Count | None = Field(
        default=None, description="Evaluate each so many steps; null means off."
    )
    at: Annotated[tuple[Count, ...], Field(strict=False)] = Field(
        default=(), description="Evaluate after these steps too."
    )
    sets: dict[str, EvaluationSet] = Field(
        default_factory=dict, description="Further texts by names of yours, judged at the end."
    )
