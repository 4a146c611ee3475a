"""Studies and the runs that answer their questions, the benchmark, explanations, and the report."""

import train  # noqa: F401  (until a command begins, Ctrl-C ends its imports without a traceback)
