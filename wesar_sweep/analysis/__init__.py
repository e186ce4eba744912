"""What a study found: polars in, polars out, statistics by numpy and scipy; nothing is drawn here.

`Analysis` holds every figure of one study. Each module is one figure with its definition; what a
figure cannot say stands beside it.
"""

from wesar_sweep.analysis.results import Analysis

__all__ = ["Analysis"]
