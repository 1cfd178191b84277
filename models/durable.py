"""Files that hold the old content or the new, never a part, whatever dies in between. No torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Buffer = bytes | bytearray | memoryview


def write_atomically(path: Path, *pieces: Buffer, durable: bool = True) -> None:
    """Replace a file in one step.

    Args:
        path: the file; its folder is created.
        pieces: the content, one after the other.
        durable: the content is on the disk when this returns; else it survives a crash of the
            process, not of the machine.

    Raises:
        OSError: it cannot be written; `filename` is the file, which is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with naming(path):
        try:
            write_file(draft, *pieces, durable=durable)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    if durable:
        sync_folder(path.parent)


def write_file(path: Path, *pieces: Buffer, durable: bool) -> None:
    """Write a whole file; durable: it is on the disk when this returns."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring renames within a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an error of the system has `path` for its `filename`; a write has none by itself."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
