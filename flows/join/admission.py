"""Which impressions count: of the records of one id, those that are no repeat of another.

Records are admitted in the order (event time, id, content); one whose id was admitted less than the
repeat horizon before is a repeat. All forgetting goes by event time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from flows.join.places import PLACE, Places
from flows.join.recent_ids import Hashes, RecentIds, hashes
from flows.join.segment import Times, times
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState
from flows.records import ADDRESS

Mask = np.ndarray[Any, np.dtype[np.bool_]]

REPEATS = pa.schema([pa.field("ts_ms", pa.int64()), *ADDRESS])


class Admission:
    """Remembers what was admitted, and which records were not."""

    def __init__(self, folder: SegmentFolder, horizon_ms: int, *, found_by_id: bool) -> None:
        """Begin with nothing.

        Args:
            folder: of the shard.
            horizon_ms: a record is a repeat of one that is closer than this.
            found_by_id: `times_of` will be asked.
        """
        self._horizon_ms, self._found_by_id = horizon_ms, found_by_id
        self._recent = RecentIds(folder, "recent")
        self._repeats = SegmentStore(folder, "repeats", REPEATS)

    def admit(self, rows: pa.Table) -> Mask:
        """Judge `rows`: all that precede them were judged before, or come too late to matter.

        Returns:
            Which of them are repeats, shape [N].
        """
        num = rows.num_rows
        if not num:
            return np.zeros(0, dtype=np.bool_)
        high_N, low_N = hashes(rows.column("impression_id"))
        order_N = np.argsort(high_N)
        high_N, low_N, ts_N = high_N[order_N], low_N[order_N], times(rows)[order_N]
        repeats_N = self._recent.distance(high_N, low_N, ts_N) < self._horizon_ms
        contested = in_two_rows(high_N, ~repeats_N)
        if len(contested):
            repeats_N[contested] = self._judge(rows.take(order_N[contested]))
        self._recent.add(high_N[~repeats_N], low_N[~repeats_N], ts_N[~repeats_N])
        if repeats_N.any():
            self._repeats.append(rows.take(order_N[repeats_N]))
        answer_N = np.empty(num, dtype=np.bool_)
        answer_N[order_N] = repeats_N
        return answer_N

    def known(self, rows: pa.Table) -> Mask:
        """Which of `rows` would be repeats, were they to be admitted, shape [N]."""
        high_N, low_N = hashes(rows.column("impression_id"))
        return self._recent.distance(high_N, low_N, times(rows)) < self._horizon_ms

    def times_of(self, ids: pa.Array) -> Times:
        """Event times of all records of some ids that were admitted, ascending, each once."""
        return self._recent.times_of(ids)

    def without_repeats(self, rows: pa.Table, low_ms: int, high_ms: int) -> pa.Table:
        """`rows` (low_ms <= ts_ms < high_ms, all judged) that were admitted."""
        return without(rows, self._repeats.between(low_ms, high_ms))

    def without_repeats_at(self, rows: pa.Table, ts_N: Times) -> pa.Table:
        """`rows` (of the event times ts_N, all judged) that were admitted."""
        return without(rows, self._repeats.at(ts_N))

    def forget(self, limit_ms: int, oldest_ms: int) -> None:
        """Forget ids, and repeats before `oldest_ms`.

        Args:
            limit_ms: ids go that no row from here on can repeat.
            oldest_ms: nobody asks for records before this.
        """
        needed_ms = limit_ms - self._horizon_ms + 1
        self._recent.forget(min(needed_ms, oldest_ms) if self._found_by_id else needed_ms)
        self._repeats.forget(oldest_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {"recent": self._recent.save(), "repeats": self._repeats.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._recent.restore(state["recent"])
        self._repeats.restore(state["repeats"])

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._recent.num_bytes + self._repeats.num_bytes

    def _judge(self, rows: pa.Table) -> list[bool]:
        """Whether each of few records, none of which repeats an earlier one, repeats another."""
        newest: dict[str, int] = {}
        repeats = [False] * rows.num_rows
        for row, record in sorted(enumerate(rows.to_pylist()), key=canonical):
            ident, ts_ms = record["impression_id"], record["ts_ms"]
            repeats[row] = ident in newest and ts_ms - newest[ident] < self._horizon_ms
            if not repeats[row]:
                newest[ident] = ts_ms
        return repeats


def without(rows: pa.Table, repeats: pa.Table) -> pa.Table:
    """`rows` but for those that stand at the place of a repeat."""
    if not repeats.num_rows or not rows.num_rows:
        return rows
    return rows.filter(pa.array(Places(repeats).find(rows) < 0))


def in_two_rows(hash_N: Hashes, among_N: Mask) -> Times:
    """Rows of a mask whose hash stands in another row of it, too; the hashes are sorted."""
    rows = np.flatnonzero(among_N)
    same = hash_N[rows[1:]] == hash_N[rows[:-1]]
    twice = np.zeros(len(rows), dtype=np.bool_)
    twice[1:] |= same
    twice[:-1] |= same
    return rows[twice]


def canonical(item: tuple[int, dict[str, Any]]) -> tuple[int, str, str, tuple[int, ...]]:
    """Sort key of a record: event time, id, content, and last its place in the topic."""
    record = item[1]
    content = repr([value for name, value in record.items() if name not in PLACE])
    return record["ts_ms"], record["impression_id"], content, tuple(record[n] for n in PLACE)
