"""Charts, tables and pages of a study: how figures are shown, not how they are computed.

`write` makes the report of a study's directory, `write_figures` and `write_tables` parts of it;
`figures`, `named_tables` and `terminal` serve the rest.
"""

from wesar_sweep.reports.files import ALL, suffix, write_figures, write_tables
from wesar_sweep.reports.report import FORMATS, Format, write

__all__ = ["ALL", "FORMATS", "Format", "suffix", "write", "write_figures", "write_tables"]
