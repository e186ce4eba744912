"""Charts, tables and pages of a study: how figures are shown, not how they are computed.

`write` makes a file of a study's directory; `figures`, `tables` and `terminal` serve the rest.
"""

from wesar_sweep.reports.report import FORMATS, Format, write

__all__ = ["FORMATS", "Format", "write"]
