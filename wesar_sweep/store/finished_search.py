"""What a search had come to whose pruned cells another study finishes: so that one stands alone.

Written once into the directory of the study that finishes, before anything is trained there; the
search's own directory is not needed afterwards.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from wesar_sweep.config.space import Scalar
from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.layout import StudyDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCell:
    """A cell that no pruner cut short. Losses are nats a token, each min(final, initial)."""

    trial: int
    """Its trial in the search."""
    params: dict[str, Scalar]
    """The cell, as `config.listed` has them."""
    loss: float
    """Mean over its seeds."""
    loss_low: float | None
    """Student's 95 % interval over seeds; None for one seed."""
    loss_high: float | None
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    """One a seed, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCell:
    """A cell that the pruner ended."""

    trial: int
    """Its trial in the search."""
    params: dict[str, Scalar]
    step: int
    """Steps done when the first of its runs was ended."""
    loss: float | None
    """Nats a token at that step: mean over its runs that came there of min(loss, initial loss);
    None where no evaluation is known."""
    n: int
    """How many runs that mean is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSearch:
    """A search, and the sample of its pruned cells that is finished."""

    study: str
    """Its name."""
    study_hash: str
    pruned: int
    """Settings that its pruner ended, each counted once; none that ran to the end elsewhere."""
    seed: int
    """Of the draw."""
    corpus_sha256: str | None
    """Hash of the text that it was trained and judged on."""
    best: WholeCell
    """The least mean loss among cells that were not cut short."""
    cells: tuple[CutCell, ...]
    """Those drawn, in the order of the trials that finish them."""
    best_of: tuple[WholeCell, ...] = ()
    """The same of each method that has such a cell, best first; empty in older records."""


def write_finished_search(directory: StudyDirectory, search: FinishedSearch) -> None:
    """Write the record, atomically.

    Raises:
        StoreError: The disk is full or refuses.
    """
    write_json(directory.finished_search_file, asdict(search))


def read_finished_search(directory: StudyDirectory) -> FinishedSearch | None:
    """The record; None where the study finishes no other.

    Raises:
        StoreError: The file is damaged or cannot be read.
    """
    path = directory.finished_search_file
    try:
        facts = json.loads(path.read_text())
        best = _whole_cell(facts.pop("best"))
        best_of = tuple(_whole_cell(cell) for cell in facts.pop("best_of", ()))
        cells = tuple(CutCell(**cell) for cell in facts.pop("cells"))
        return FinishedSearch(**facts, best=best, cells=cells, best_of=best_of)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, path=path, action="read") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{path} does not say what was finished: {error}; mend it from a copy, or remove it: "
            "then the report says nothing of the search"
        ) from error


def _whole_cell(facts: dict[str, Any]) -> WholeCell:
    return WholeCell(**(facts | {name: tuple(facts[name]) for name in ("seeds", "losses")}))


def require_text_of_search(directory: StudyDirectory, *, sha256: str) -> None:
    """Refuse to finish cells on other text than their search was trained on.

    Args:
        directory: The study's directory; one that finishes no search takes any text.
        sha256: Hash of the corpus at hand.

    Raises:
        StoreError: The two differ.
    """
    search = read_finished_search(directory)
    if search is not None and search.corpus_sha256 not in (None, sha256):
        raise StoreError(
            f"the corpus has changed since {search.study} was trained (sha256 {sha256[:12]}, then "
            f"{str(search.corpus_sha256)[:12]}), so its cells cannot be finished: restore the text "
            "and the tokenizer"
        )
