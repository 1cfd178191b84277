"""Tells when files of a folder are made or written, at the instant: Linux's inotify."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

MODIFY, CREATE, MOVED = 0x2, 0x100, 0x80
HEAD = struct.Struct("iIII")
"""Watch, what happened, cookie, length of the name behind it."""


class Watch:
    """Folders that are watched; a context manager."""

    def __init__(self, *folders: Path) -> None:
        """Watch folders, which are made if missing."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            path = os.fsencode(folder)
            if self._libc.inotify_add_watch(self._file, path, MODIFY | CREATE | MOVED) < 0:
                raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def names(self, timeout_s: float) -> list[str]:
        """Names of the files touched since the last call, after a wait for the first of them."""
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        data, at, names = os.read(self._file, 1 << 16), 0, []
        while at < len(data):
            length = HEAD.unpack_from(data, at)[3]
            at += HEAD.size
            names.append(data[at : at + length].rstrip(b"\0").decode())
            at += length
        return names
