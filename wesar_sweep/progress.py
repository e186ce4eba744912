"""Live progress of a study on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from wesar_sweep.config.study import Study
from wesar_sweep.store.beat import Beat, living_beats
from wesar_sweep.store.layout import StudyDirectory
from wesar_sweep.studies.progress import Progress, Summary

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 10.0
_TRUST_AFTER_S = 8.0
"""Before so many seconds the time left is a guess at the workers' start, not at training."""


class Display:
    """Shows a study's progress while a `with` block lasts; reads only what is on disk.

    Args:
        study: The study.
        directory: Where it lives.
        quiet: Show nothing.
    """

    def __init__(self, study: Study, directory: StudyDirectory, *, quiet: bool = False) -> None:
        self._progress = Progress(directory, study)
        self._directory, self._title, self._quiet = directory, study.name, quiet
        self._terminal = sys.stderr.isatty()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._started = time.monotonic()
        self._done_at_start: float | None = None

    def __enter__(self) -> Display:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if not self._quiet:
            self._thread.join()

    def _read(self) -> tuple[Summary, list[Beat]]:
        return self._progress.read(), living_beats(self._directory)

    def _line(self, summary: Summary, beats: list[Beat], *, with_elapsed: bool = False) -> str:
        """The line of this moment; how long is left by what was done since the display began."""
        elapsed = time.monotonic() - self._started
        done = (summary.runs_done + fraction_running(beats)) / max(1, summary.runs)
        if self._done_at_start is None:
            self._done_at_start = done
        gained = done - self._done_at_start
        left = elapsed / gained * (1 - done) if gained > 0 and elapsed > _TRUST_AFTER_S else None
        return describe(
            summary,
            beats,
            elapsed_s=elapsed if with_elapsed else None,
            left_s=left if beats else None,
        )

    def _loop(self) -> None:
        if self._terminal:
            self._terminal_loop()
        else:
            self._plain_loop()

    def _plain_loop(self) -> None:
        last = ""
        while True:
            ended = self._done.wait(0 if not last else _PLAIN_EVERY_S)
            line = self._line(*self._read(), with_elapsed=True)
            if line != last:
                print(f"{self._title}: {line}", file=sys.stderr, flush=True)
                last = line
            if ended:
                return

    def _terminal_loop(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn("[bold]{task.fields[title]}"),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=False,
        ) as bars:
            task = bars.add_task("", total=None, title=self._title, line="starting")
            while True:
                ended = self._done.wait(_TERMINAL_EVERY_S)
                summary, beats = self._read()
                bars.update(
                    task,
                    total=summary.runs,
                    completed=summary.runs_done + fraction_running(beats),
                    line=self._line(summary, beats),
                )
                if ended:
                    return


def fraction_running(beats: list[Beat]) -> float:
    """How much of the runs in slots is done, in runs."""
    return sum(slot.step / slot.steps for beat in beats for slot in beat.slots)


def describe(
    summary: Summary,
    beats: list[Beat],
    *,
    elapsed_s: float | None = None,
    left_s: float | None = None,
) -> str:
    """One line: counts by status, speed, time left."""
    counts = [f"{summary.runs_done}/{summary.runs} runs"]
    if summary.runs_at_most > summary.runs and not summary.complete:
        counts[0] += f" asked for so far ({summary.runs_at_most} at most)"
    for name in ("diverged", "pruned", "failed", "retrying", "running"):
        count = getattr(summary, name)
        if count:
            counts.append(f"{count} {name}")
    rate = sum(beat.tokens_per_second or 0.0 for beat in beats)
    if rate:
        counts.append(f"{rate / 1e3:,.0f}k tokens/s")
    if elapsed_s is not None:
        counts.append(f"{elapsed_s:.0f} s")
    if left_s is not None and left_s >= 1:
        counts.append(
            f"about {left_s:.0f} s left" if left_s < 120 else f"{left_s / 60:.0f} min left"
        )
    return " · ".join(counts)
