"""What the recovery store of DAS says of each shard, read without running the flow.

Bytewax keeps SQLite files with a pickle for each shard and epoch, which holds plain data only.
"""

from __future__ import annotations

import pickle
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.join.routing import shard_of_key
from flows.join.seal import SealBroken, is_sealed, opened, plain, unbroken
from flows.panics import Disbanded
from flows.run_folder import unwritable

JOIN_STEP = "das.join"
SAVED = "SELECT state_key, snap_epoch, created_at, ser_change FROM snaps WHERE step_id = ?"
STARTS = "SELECT ex_num, worker_count, resume_epoch FROM exs"
FRONTIERS = "SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?"
ALL = "SELECT step_id, state_key, ser_change FROM snaps WHERE ser_change IS NOT NULL"
SAID = re.compile(r'Some\("(.*?)"\)')
"""What SQLite says, in what Bytewax prints of it."""
BROKEN = (SealBroken, pickle.UnpicklingError, EOFError)
"""What a damaged snapshot is to whoever reads it."""
FEW_MIB = 16
"""Free space with which a disk counts as full: it may have been none a moment ago."""
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
        left_mib = free_mib(recovery)
        if left_mib >= FEW_MIB:
            raise
        raise Disbanded(f"; make room first: {recovery} has {left_mib} MiB left") from error
    except BaseException as error:  # a panic of Bytewax is no Exception
        said = str(error)
        broken = next((e for e in causes(error) if isinstance(e, BROKEN)), None)
        if broken is not None:
            why = f"a snapshot: {str(broken) or 'it ends too early'}"
            raise RecoveryUnreadable(f"{recovery} is damaged: {why}; {WAY_OUT}") from error
        if "SqliteFailure" not in said:
            raise
        words = SAID.findall(said)
        why = f"SQLite: {words[0]}" if words else said
        if "DiskFull" in said or "SystemIoFailure" in said:
            raise StateFull(recovery, why) from error
        raise RecoveryUnreadable(f"{recovery} is damaged: {why}; {WAY_OUT}") from error


def free_mib(folder: Path) -> int:
    """Free space."""
    return shutil.disk_usage(folder).free >> 20


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it comes from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def saved_shards(recovery: Path) -> dict[int, SavedShard]:
    """Shards by number, as the next start takes them up; none if nothing was saved yet.

    Raises:
        RecoveryUnreadable: a file is damaged or of another kind.
    """
    saved = [(*row, path) for path in files(recovery) for row in rows(path, SAVED, JOIN_STEP)]
    before = resume_epoch(recovery)  # asked last: a join may go on meanwhile
    newest: dict[str, tuple[int, str, bytes | None, Path]] = {}
    for key, epoch, *rest in saved:
        if epoch < before and (key not in newest or epoch > newest[key][0]):
            newest[key] = (epoch, *rest)
    found = {}
    for key, (_, saved_at, data, path) in newest.items():
        if data is not None:
            state = state_of(path, key, data)
            found[shard_of_key(key)] = SavedShard(saved_at=saved_at, state=state)
    return dict(sorted(found.items()))


def resume_epoch(recovery: Path) -> int:
    """First epoch that the next start repeats: snapshots of it and later ones do not count.

    Raises:
        RecoveryUnreadable: a file is damaged or of another kind.
    """
    paths = files(recovery)
    starts = [start for path in paths for start in rows(path, STARTS)]
    if not starts:
        return 0
    number, workers, epoch = max(starts)
    reached: dict[int, int] = dict(row for path in paths for row in rows(path, FRONTIERS, number))
    return min(reached.values()) if len(reached) == workers else int(epoch)


def insist_on_snapshots(recovery: Path) -> None:
    """Check that all that is kept can be read, and is what was saved.

    Raises:
        RecoveryUnreadable: something is not; the message names the file, and the shard or input.
    """
    for path in files(recovery):
        for step, key, data in rows(path, ALL):
            what = f"shard {shard_of_key(key)}" if step == JOIN_STEP else f"{step}, {key},"
            with telling_damage(path, what):
                kept = pickle.loads(data)  # as Bytewax will
                if step == JOIN_STEP or is_sealed(kept):
                    opened(kept)


@contextmanager
def telling_damage(path: Path, what: str) -> Iterator[None]:
    """Inside, any error means that a snapshot is damaged; of which kind it is depends on its bytes.

    Raises:
        RecoveryUnreadable: there was one.
    """
    try:
        yield
    except Exception as error:
        why = f"{path}: the snapshot of {what} is damaged: {error}"
        raise RecoveryUnreadable(f"{why}; {WAY_OUT}") from error


def files(recovery: Path) -> list[Path]:
    """The parts of the store."""
    return sorted(recovery.glob("*.sqlite3"))


def rows(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What a query finds in a part of the store.

    Raises:
        RecoveryUnreadable: it is damaged or of another kind.
        StateFull: there is no room for what SQLite keeps beside it.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as store:
            return store.execute(query, values).fetchall()
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.OperationalError) and free_mib(path.parent) < FEW_MIB:
            raise StateFull(path, f"SQLite: {error}") from error  # it writes where it only reads
        raise RecoveryUnreadable(f"{path} cannot be read: {error}; {WAY_OUT}") from error


def state_of(path: Path, key: str, data: bytes) -> dict[str, Any]:
    """What a shard saved.

    Args:
        path: of the part of the store.
        key: of the shard.
        data: as Bytewax keeps it.

    Raises:
        RecoveryUnreadable: it is not that any more.
    """
    with telling_damage(path, f"shard {shard_of_key(key)}"):
        state: dict[str, Any] = plain(unbroken(plain(data)))
    return state
