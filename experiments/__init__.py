"""Questions, and the runs that answer them."""

import train  # noqa: F401  (until a command begins, ctrl-C ends its imports without a traceback)
