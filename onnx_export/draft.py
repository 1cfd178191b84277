"""The files of a snapshot: written with their digests, and checked against them. No torch."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import TracebackType

from models.durable import Buffer, write_file
from onnx_export.manifest import FileEntry, Manifest, SnapshotCorrupt


class Draft:
    """A folder that is not a version yet; leaving the context removes what was not published."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self.durable = durable
        self.entries: dict[str, FileEntry] = {}
        """Digests of the files written so far."""

    def __enter__(self) -> Draft:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name: str, data: Buffer) -> None:
        """Write one file and keep its digest."""
        write_file(self.folder / name, data, durable=self.durable)
        self.entries[name] = entry(data)


def entry(data: Buffer) -> FileEntry:
    """Size and digest of a file's content."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def file_entry(path: Path) -> FileEntry:
    """Size and digest of a file on the disk, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare sizes and digests of a snapshot's files with its manifest.

    Raises:
        SnapshotCorrupt: a file is missing, or differs.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            found = file_entry(path)
        except FileNotFoundError as error:
            raise SnapshotCorrupt(f"{path}: is missing") from error
        if found != expected:
            raise SnapshotCorrupt(
                f"{path}: {found.size} bytes, sha256 {found.sha256}; "
                f"published: {expected.size} bytes, sha256 {expected.sha256}"
            )
