"""What `exfm run` does around a flow, for a process that `python -m bytewax.run` has started.

That runner calls `flow()` and then runs what it returns, so all this lasts from there until the
process ends.
"""

from __future__ import annotations

import atexit
import sys
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from flows.run.errors import end, told
from flows.run.process import configure_logging


def until_the_end() -> ExitStack:
    """Contexts that end with this process, and see the error that ends it.

    An error that speaks for itself is then one line, with the exit code that `exfm run` has for it.
    """
    configure_logging()
    inside = ExitStack()
    atexit.register(inside.close)
    sys.excepthook = partial(_end, inside)
    return inside


def _end(
    inside: ExitStack,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    try:
        inside.__exit__(kind, error, trace)
    except BaseException as other:  # that a context has made of it
        error = other
    found = told(error)
    if found is not None:
        end(*found)
    sys.__excepthook__(type(error), error, error.__traceback__)
