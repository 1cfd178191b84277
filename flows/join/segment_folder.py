"""The files of a shard's segments, and the thread that writes them beside the join."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

import pyarrow as pa
import xxhash

from flows.join.recovery import WAY_OUT, StateFull
from flows.join.segment import File, Segment

KEPT_SNAPSHOTS = 2
"""Earlier snapshots whose files stay: the newest may not be committed yet."""


class SegmentError(RuntimeError):
    """A file of the state is missing or damaged; the message names it."""


@cache
def beside() -> ThreadPoolExecutor:
    """The thread of this process that writes segments while others are joined."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="segments")


def wait_for_writes() -> None:
    """Wait until that thread has written all that it was given."""
    beside().submit(lambda: None).result()


class SegmentFolder:
    """The files of one shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spills: list[Callable[[], None]] = []
        self._naming = Lock()
        self._files: set[str] = set()
        self._earlier: deque[set[str]] = deque(maxlen=KEPT_SNAPSHOTS)
        self._number = 0

    def write(self, kind: str, table: pa.Table) -> Segment:
        """Write `table`, in one chunk, as a new file and map it; in any thread.

        It survives the death of the process; a machine that loses power may lose it, which the
        checksum then tells.

        Raises:
            StateFull: it cannot be written.
        """
        with self._naming:
            name = f"{kind}-{self._number:08d}.arrow"
            self._number += 1
        path, draft = self._path / name, self._path / f".{name}"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            draft.replace(path)
            data = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            raise StateFull(path, os.strerror(error.errno) if error.errno else error) from error
        self._files.add(name)
        file = File(name=name, size=data.size, xxh64=xxhash.xxh64(data).hexdigest())
        return Segment.of(pa.ipc.open_file(data).read_all(), file)

    def open(self, file: File) -> Segment:
        """Map a file that an earlier process wrote.

        Raises:
            SegmentError: it is missing or damaged.
        """
        data = self.check(file)
        self._files.add(file["name"])
        return Segment.of(pa.ipc.open_file(data).read_all(), file)

    def check(self, file: File) -> pa.Buffer:
        """Content of a file, if it is what was written; in any thread.

        Raises:
            SegmentError: it is missing or damaged.
        """
        path = self._path / file["name"]
        try:
            data = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            why = "it is gone" if not path.exists() else str(error)
            raise SegmentError(f"segment {path} cannot be read: {why}; {WAY_OUT}") from error
        found = xxhash.xxh64(data).hexdigest()
        if data.size != file["size"] or found != file["xxh64"]:
            raise SegmentError(
                f"segment {path} is damaged: {data.size} bytes, xxh64 {found}; "
                f"its snapshot says {file['size']} bytes, xxh64 {file['xxh64']}; {WAY_OUT}"
            )
        return data

    def resume(self, number: int, named: Iterable[str]) -> None:
        """Go on from a snapshot; files that it does not name are of a time that never was.

        What an earlier run of the flow in this process has begun to write is waited for.
        """
        wait_for_writes()
        self._number, keep = number, set(named)
        self._earlier.append(keep)
        for path in self._path.glob("*.arrow") if self._path.exists() else ():
            if path.name not in keep:
                path.unlink()

    def retire(self, named: set[str]) -> None:
        """Delete what neither this snapshot nor the ones before it name.

        Raises:
            SegmentError: a file that it names is gone, so nothing could go on from it.
        """
        for name in sorted(named):
            if not (self._path / name).exists():
                raise SegmentError(f"segment {self._path / name} is gone; {WAY_OUT}")
        for name in self._files.difference(named, *self._earlier):
            (self._path / name).unlink(missing_ok=True)
            self._files.discard(name)
        self._earlier.append(named)

    def add(self, spill: Callable[[], None]) -> None:
        """A store writes here, and begins to when it is called."""
        self._spills.append(spill)

    def spill(self) -> None:
        """Let all stores write what they hold in memory, beside what comes next."""
        for spill in self._spills:
            spill()

    @property
    def number(self) -> int:
        """Number of the next file."""
        return self._number
