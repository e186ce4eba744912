"""What the outcomes on disk leave to be trained: `store.wanted`, kept up to date for a queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wesar_sweep.config.study import Study
from wesar_sweep.store.outcomes import OutcomeReader
from wesar_sweep.store.rows import Outcome
from wesar_sweep.store.wanted import Ended, Wanted, expected_cells, seeds_wanted
from wesar_sweep.studies.cells import capped_loss, chance_loss


def wanted_by_rows(rows: Iterable[Outcome], *, study: Study, cells: int) -> dict[int, Wanted]:
    """`seeds_wanted` by outcomes that are final: no failed ones with tries left."""
    chance = chance_loss(study)
    ended = (
        Ended(
            row.trial,
            row.seed,
            str(row.hyperparameters.get("method")),
            row.status,
            capped_loss(row, chance=chance),
        )
        for row in rows
    )
    return seeds_wanted(ended, study=study, cells=cells)


class Wanting:
    """The seeds that cells are to have, worked out anew when there are new outcomes."""

    def __init__(self, study: Study, reader: OutcomeReader) -> None:
        """Nothing is read yet."""
        self._study, self._reader = study, reader
        self._new = True
        self._wanted: dict[int, Wanted] = {}

    def refresh(self) -> None:
        """Read what is new on disk."""
        self._new |= self._reader.refresh() > 0

    def seeds(self, trial: int) -> Sequence[int]:
        """The seeds that a cell is to have, as far as is known; ascending."""
        if self._study.adaptive is None:
            return self._study.seeds
        wanted = self._by_trial().get(trial)
        count = self._study.least_replicates if wanted is None else wanted.seeds
        return range(self._study.first_seed, self._study.first_seed + count)

    def trials(self) -> list[int]:
        """The cells that lack seeds, those of the least sure divergence rate first."""
        self.refresh()
        lacking = [(-one.halfwidth, t) for t, one in self._by_trial().items() if one.missing]
        return [trial for _, trial in sorted(lacking)]

    def final(self) -> list[Outcome]:
        """The outcomes read so far that stand for good."""
        rows = self._reader.rows.values()
        return [row for row in rows if row.status != "failed" or row.attempt > self._study.retries]

    def _by_trial(self) -> dict[int, Wanted]:
        if self._new:
            final = self.final()
            lost = {r.trial for r in final} - {r.trial for r in final if r.status != "failed"}
            # Only telling methods apart asks how many there are, which a search never does.
            is_search = self._study.sampler.name == "boundary"
            cells = 0 if is_search else expected_cells(self._study, failed=len(lost))
            self._wanted = wanted_by_rows(final, study=self._study, cells=cells)
            self._new = False
        return self._wanted
