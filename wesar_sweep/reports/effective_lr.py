"""What readers must know of the effective lr: what it is, its values here, where it misleads."""

from __future__ import annotations

from wesar_sweep.analysis import Analysis
from wesar_sweep.analysis.axes import format_value

NAME = "effective lr"

DEFINITION = (
    "Effective lr is lr · α₀: α₀ is the factor by which the median weight matrix (the embedding "
    "left out) scales its parameter at the start, W̄ = α₀W, so that a step of lr on W is one of "
    "α₀ · lr on the weights W̄ that the model computes with."
)
READING = (
    "A method that only changes the meaning of lr moves along this axis onto the others; what "
    "is still wider here is wider."
)
LIMITS = (
    "Where it misleads: Adam's step is on W, so that ‖ΔW̄‖/‖W̄‖ is ‖ΔW‖/‖W‖ whatever α₀; gates "
    "learn and leave α₀; weight decay acts on W; other roles, as o and w, have another α₀."
)


def gates_words(analysis: Analysis, shown: list[str]) -> str:
    """α₀ of each drawn series: ``α₀ is 1 for he and small, 28 for wesar σ²=4e-5.``."""
    found = analysis.cells.filter(analysis.cells["series"].is_in(shown))
    by_words: dict[str, list[str]] = {}
    for (name,), part in found.group_by(["series"], maintain_order=True):
        gates = sorted(part["initial_gate"].to_list())
        low, high = (format_value(gate, digits=3) for gate in (gates[0], gates[-1]))
        words = low if low == high else f"{low} to {high}"
        by_words.setdefault(words, []).append(str(name))
    parts = [f"{words} for {_listed(names)}" for words, names in by_words.items()]
    return f"α₀ is {', '.join(parts)}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
