"""The README's chart of speed, from the newest rows of results/benchmarks.csv.

python benchmarks/chart.py [--csv FILE] [--out docs/speed.svg]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import FILE, ROOT

OUT = ROOT / "docs" / "speed.svg"
SERIES = {
    "plain_tokens_per_second": "one run, torch.compile + CUDA graph",
    "engine_tokens_per_second": "wesar-sweep, K runs at once",
}
"""Figure -> what it is called."""

COLOURS = ("#7a8493", "#2f7dd1")
SHAPES = ("circle", "square")
WIDTH = 520


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one way to train one shape."""

    case: str
    series: str
    low: float
    median: float
    high: float
    device: str
    date: str


def newest(file: Path) -> list[Speed]:
    """The last row of each shape and way, on the device that was measured last, in their order."""
    with file.open(newline="") as text:
        rows = [
            row
            for row in csv.DictReader(text)
            if row["benchmark"] == "gpu_engine" and row["figure"] in SERIES
        ]
    if not rows:
        return []
    device = rows[-1]["device"]
    found: dict[tuple[str, str], Speed] = {}
    for row in rows:
        if row["device"] == device:
            found[row["case"], row["figure"]] = Speed(
                case=row["case"],
                series=SERIES[row["figure"]],
                low=float(row["p20"]),
                median=float(row["p50"]),
                high=float(row["p80"]),
                device=device,
                date=row["date"][:10],
            )
    return list(found.values())


def draw(speeds: Sequence[Speed]) -> Any:
    """Two marks a shape on a logarithmic axis, joined, and beside them how far they are apart."""
    import altair as alt

    from wesar_sweep.reports import theme

    order = list(dict.fromkeys(speed.case for speed in speeds))
    dots = [{"case": s.case, "series": s.series, "rate": s.median} for s in speeds]
    spans = []
    for case in order:
        rate = {s.series: s.median for s in speeds if s.case == case}
        text = " → ".join(short(rate[name]) for name in SERIES.values() if name in rate)
        if len(rate) == 2:
            plain, engine = (rate[name] for name in SERIES.values())
            text += f", ×{engine / plain:.3g}"
        low, high = min(rate.values()), max(rate.values())
        spans.append({"case": case, "low": low, "high": high, "text": text})
    title = "tokens a second, all runs together"
    axis = alt.Axis(format="~s", values=[m * 10**e for e in range(4, 9) for m in (1, 2, 5)])
    scale = alt.Scale(type="log", nice=False, padding=24)
    y = alt.Y("case:N", sort=order, title=None, axis=alt.Axis(labelLimit=300, ticks=False))
    ways = list(SERIES.values())
    # One below the other, and room to the right: a reader's font may be wider than Vega's.
    legend = alt.Legend(title=None, orient="top", columns=1)
    joined = alt.Chart(alt.Data(values=spans)).encode(y=y)
    line = joined.mark_rule(color="#c3cad4", strokeWidth=3).encode(
        x=alt.X("low:Q", title=title, scale=scale, axis=axis), x2="high:Q"
    )
    words = joined.mark_text(align="left", fontSize=12, color="#1d2430").encode(
        x=alt.value(WIDTH + 14), text="text:N"
    )
    points = (
        alt.Chart(alt.Data(values=dots))
        .mark_point(filled=True, size=140, opacity=1)
        .encode(
            y=y,
            x=alt.X("rate:Q", title=title, scale=scale, axis=axis),
            color=alt.Color(
                "series:N", scale=alt.Scale(domain=ways, range=list(COLOURS)), legend=legend
            ),
            shape=alt.Shape(
                "series:N", scale=alt.Scale(domain=ways, range=list(SHAPES)), legend=legend
            ),
        )
    )
    devices = ", ".join(dict.fromkeys(s.device for s in speeds))
    dates = ", ".join(dict.fromkeys(s.date for s in speeds))
    config = {**theme.config(), "background": "white"}
    return (
        alt.layer(line, words, points)
        .properties(
            width=WIDTH,
            height=alt.Step(40),
            padding={"left": 14, "top": 14, "right": 44, "bottom": 14},
            title=alt.Title(
                "Tokens a second by architecture",
                subtitle=f"{devices}, bf16, {dates}; medians of make bench-gpu",
                anchor="start",
                fontSize=15,
                subtitleFontSize=12,
            ),
        )
        .configure(**config)
    )


def short(rate: float) -> str:
    """``31.2 M``, ``0.64 M``: three figures."""
    return f"{rate / 1e6:.3g} M"


def main(words: Sequence[str] | None = None) -> int:
    """Read, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, default=FILE)
    parser.add_argument("--out", type=Path, default=OUT, help="an .svg or .png")
    arguments = parser.parse_args(words)
    speeds = newest(arguments.csv)
    if not speeds:
        print(f"no rows of gpu_engine in {arguments.csv}: run make bench-gpu", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(speeds).save(arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
