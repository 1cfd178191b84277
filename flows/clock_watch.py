"""Ends a process whose wall clock goes back.

Bytewax wakes sources and shards at times of the wall clock. If that is set back by an hour, they
would sleep for an hour; a process that starts again goes on at once from its last snapshot.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
MOST_BACK_S = 5.0
"""Less is waited for."""


@contextmanager
def ending_if_set_back() -> Iterator[None]:
    """Inside, the process ends with exit code 1 soon after its clock was set back."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(over,), name="clock watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    before_s = _ahead_s()
    while not over.wait(LOOK_EVERY_S):
        now_s = _ahead_s()
        if before_s - now_s > MOST_BACK_S:
            logger.error(
                "the wall clock was set back by %.0f s: ending, so that nothing waits for it to "
                "come again; start again, nothing is lost",
                before_s - now_s,
            )
            os._exit(1)
        before_s = now_s


def _ahead_s() -> float:
    """How far the wall clock is ahead of one that is never set."""
    return time.time() - time.monotonic()
