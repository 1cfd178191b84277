"""Files that a join would go on from, and that are not as they were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flows.join.recovery import WAY_OUT, SavedShard
from flows.join.segment import File
from flows.join.segment_folder import SegmentError, SegmentFolder


def damage(saved: SavedShard, folder: Path, *, checksums: bool) -> Iterator[str]:
    """What is wrong with each segment that a snapshot names and that it could not be read from.

    Args:
        saved: the newest snapshot of a shard.
        folder: of the shard's segments.
        checksums: read the files, and compare more than their sizes.
    """
    for store in saved.state["stores"].values():
        for file in store["files"]:
            wrong = fault(folder, file, checksums=checksums)
            if wrong is not None:
                yield wrong


def fault(folder: Path, file: File, *, checksums: bool) -> str | None:
    """What is wrong with a segment; None: nothing."""
    path = folder / file["name"]
    try:
        size = path.stat().st_size
        if checksums and size:
            SegmentFolder(folder).check(file)
    except FileNotFoundError:
        return f"{path} is gone"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except SegmentError as error:
        return str(error).removeprefix("segment ").removesuffix(f"; {WAY_OUT}")
    if size != file["size"]:
        return f"{path} has {size} bytes; its snapshot says {file['size']}"
    return None
