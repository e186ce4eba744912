"""What each worker has spent, on disk: device time, tokens, cells and slot-steps, a file a worker.

A worker writes its own file every second (`wesar_sweep.budget`), so that a kill loses no more than
that, and a name that is used again goes on from its file. The files stay when the workers are gone:
a resumed study counts from where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

from wesar_sweep.errors import StoreError
from wesar_sweep.store.atomic import store_error, write_json
from wesar_sweep.store.layout import StudyDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent, by one worker or by all together."""

    device_seconds: float = 0.0
    """Seconds for which a device was held, loading and compiling included."""
    tokens: int = 0
    """Tokens trained on, also by runs that did not end and had to begin again."""
    cells: int = 0
    """Cells started; one that was only gone on with does not count."""
    training_seconds: float | None = 0.0
    """Those of `device_seconds` in training steps; None where a part was not recorded."""
    evaluation_seconds: float | None = 0.0
    """Those of `device_seconds` in evaluations; None where a part was not recorded."""
    slot_steps: int | None = 0
    """Steps of all slots while their stacks trained, empty slots included; None as above."""

    @property
    def device_hours(self) -> float:
        """The same as `device_seconds`, in hours."""
        return self.device_seconds / 3600

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(
            device_seconds=self.device_seconds + other.device_seconds,
            tokens=self.tokens + other.tokens,
            cells=self.cells + other.cells,
            training_seconds=_known_sum(self.training_seconds, other.training_seconds),
            evaluation_seconds=_known_sum(self.evaluation_seconds, other.evaluation_seconds),
            slot_steps=_known_sum(self.slot_steps, other.slot_steps),
        )


_LATER = ("training_seconds", "evaluation_seconds", "slot_steps")
"""Fields that files of older versions lack: not recorded there, which is not nothing."""

_Number = TypeVar("_Number", int, float)


def _known_sum(a: _Number | None, b: _Number | None) -> _Number | None:
    return None if a is None or b is None else a + b


def write_spent(directory: StudyDirectory, *, worker: str, spent: Spent) -> None:
    """Replace the worker's file, atomically.

    Raises:
        StoreError: The disk is full or refuses.
    """
    write_json(directory.spent_file(worker), asdict(spent))


def read_spent(directory: StudyDirectory) -> dict[str, Spent]:
    """What each worker of the study has spent, those of earlier calls included.

    Raises:
        StoreError: A file cannot be read; leaving it out would spend the budget twice.
    """
    known = {entry.name for entry in fields(Spent)}
    found = {}
    for path in sorted(directory.workers_folder.glob(directory.spent_file("*").name)):
        try:
            values = {name: None for name in _LATER} | json.loads(path.read_text())
            found[path.stem] = Spent(**{k: v for k, v in values.items() if k in known})
        except FileNotFoundError:
            continue
        except OSError as error:
            raise store_error(error, path=path, action="read") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} was damaged from outside ({error}); mend it by hand, or remove it: then "
                "what that worker spent is no longer counted"
            ) from error
    return found


def total(spent: Iterable[Spent]) -> Spent:
    """The sum of several."""
    result = Spent()
    for one in spent:
        result = result.plus(one)
    return result
