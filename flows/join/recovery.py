"""What the recovery store of DAS says of each shard, read without running the flow.

Bytewax keeps SQLite files with a pickle for each shard and epoch. The project's are plain data; no
other pickle is opened.
"""

from __future__ import annotations

import io
import pickle
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flows.join.routing import shard_of_key
from flows.panics import Disbanded
from flows.run_folder import unwritable

JOIN_STEP = "das.join"
NEWEST = (
    "SELECT state_key, max(snap_epoch), created_at, ser_change FROM snaps "
    "WHERE step_id = ? GROUP BY state_key"
)
SAID = re.compile(r'Some\("(.*?)"\)')
"""What SQLite says, in what Bytewax prints of it."""
FEW_MIB = 16
"""Free space that may have been none a moment ago."""
WAY_OUT = (
    "put the whole state folder of the join back from a copy, or start a new run that writes to "
    "another topics.examples; where teacher.version = 'as_of' and the topics still hold every "
    "event, the folder may be removed instead: the same examples come again, and consumers drop "
    "what they know"
)
"""What to do when a part of the state is lost."""


class RecoveryUnreadable(RuntimeError):
    """A file of the store cannot be read; the message names it."""


class StateFull(RuntimeError):
    """The state cannot be written; the message names the file and why."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(unwritable(path, why))


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedShard:
    """A shard in its newest snapshot."""

    saved_at: str
    """Wall clock, UTC."""
    state: dict[str, Any]
    """Of `Shard.save` (flows/join/shard.py)."""


@contextmanager
def speaking(recovery: Path) -> Iterator[None]:
    """Inside, what Bytewax says of its store names the folder and what to do.

    Raises:
        RecoveryUnreadable: the store is damaged, or a part of it is gone.
        StateFull: there is no room for it.
    """
    from bytewax.recovery import (
        InconsistentPartitionsError,
        MissingPartitionsError,
        NoPartitionsError,
    )

    try:
        yield
    except (InconsistentPartitionsError, MissingPartitionsError, NoPartitionsError) as error:
        raise RecoveryUnreadable(f"{recovery} is incomplete: {error}; {WAY_OUT}") from error
    except Disbanded as error:  # or its store was full: Bytewax loses that error, too
        free_mib = shutil.disk_usage(recovery).free >> 20
        if free_mib >= FEW_MIB:
            raise
        raise Disbanded(f"; make room first: {recovery} has {free_mib} MiB left") from error
    except BaseException as error:  # a panic of Bytewax is no Exception
        said = str(error)
        if "SqliteFailure" not in said:
            raise
        words = SAID.findall(said)
        why = f"SQLite: {words[0]}" if words else said
        if "DiskFull" in said or "SystemIoFailure" in said:
            raise StateFull(recovery, why) from error
        raise RecoveryUnreadable(f"{recovery} is damaged: {why}; {WAY_OUT}") from error


class PlainData(pickle.Unpickler):
    """Reads numbers, texts and containers of them."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse everything that has a class of its own."""
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")


def saved_shards(recovery: Path) -> dict[int, SavedShard]:
    """Shards by number; none if nothing was saved yet.

    Raises:
        RecoveryUnreadable: a file is damaged or of another kind.
    """
    newest: dict[str, tuple[int, str, bytes | None]] = {}
    for path in sorted(recovery.glob("*.sqlite3")):
        for key, epoch, saved_at, data in rows(path):
            if key not in newest or epoch > newest[key][0]:
                newest[key] = (epoch, saved_at, data)
    found = {}
    for key, (_, saved_at, data) in newest.items():
        if data is not None:
            found[shard_of_key(key)] = SavedShard(
                saved_at=saved_at, state=state_of(recovery, key, data)
            )
    return dict(sorted(found.items()))


def rows(path: Path) -> list[tuple[str, int, str, bytes | None]]:
    """Key, epoch, time and content of the newest snapshot of each shard in a file."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
            return store.execute(NEWEST, (JOIN_STEP,)).fetchall()
    except sqlite3.Error as error:
        raise RecoveryUnreadable(f"{path} cannot be read: {error}") from error


def state_of(recovery: Path, key: str, data: bytes) -> dict[str, Any]:
    """What a shard saved."""
    try:
        state = PlainData(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError) as error:
        raise RecoveryUnreadable(f"{recovery}: shard {key} cannot be read: {error}") from error
    if not isinstance(state, dict) or "done_ms" not in state:
        raise RecoveryUnreadable(f"{recovery}: shard {key} is of another version of exfm")
    return state
