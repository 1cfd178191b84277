"""One at a time: a lock on a file, which the end of its holder releases, however it comes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.durable import naming


class InUse(RuntimeError):
    """Another process holds the lock; the message names what is locked, and the holder."""


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock within the block.

    Args:
        path: file of the lock; it stays when the lock is released.
        what: names the thing in the message.

    Raises:
        InUse: another process holds it.
        OSError: the file cannot be written; `filename` is the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with open(handle, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().decode().strip() or "unknown"
            raise InUse(f"{what} is in use by process {holder}; stop that one first") from error
        with naming(path):
            file.write(b"%d" % os.getpid())
            file.truncate()
        yield
