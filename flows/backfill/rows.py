"""The examples of a backfill: those of the time range, numbered anew, and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.backfill.plan import Plan
from flows.join.recovery import WAY_OUT, RecoveryUnreadable
from flows.records import ExampleHeader, decode
from flows.settings import Settings

DAY_MS = 86_400_000


class ShardRows:
    """The examples of one shard, in their order; those outside the range are left out."""

    def __init__(self, settings: Settings, plan: Plan, saved: dict[str, Any] | None) -> None:
        """Go on from what `save` returned, or begin."""
        self._tasks = [task.name for task in settings.tasks]
        self._from_ms = plan.from_ms
        saved = saved or {}
        self.total: int = saved.get("total", 0)
        """Examples so far = number of the next."""
        self._taken: int = saved.get("taken", 0)  # of the join's own numbers
        self.counts: dict[str, int] = dict(saved.get("counts", {}))
        """By name: covered, examples.TASK, positives.TASK, bytes, day.DAY, domain.DOMAIN."""

    def save(self) -> dict[str, Any]:
        """State in plain data."""
        return {"total": self.total, "taken": self._taken, "counts": dict(self.counts)}

    def take(self, message: bytes) -> tuple[pa.Table, ExampleHeader]:
        """Rows of a message that are wanted, and the header that fits them.

        The shard may go on from an earlier snapshot than this, since Bytewax keeps none of an epoch
        in which nothing leaves: what it sends again is left out, by its numbers.

        Raises:
            RecoveryUnreadable: it goes on from a later one, so examples are missing.
        """
        rows, found = decode(message)
        header = ExampleHeader(**found)  # type: ignore[typeddict-item]
        known = self._taken - header["first"]
        if known < 0:
            raise RecoveryUnreadable(
                f"shard {header['shard']}: example {header['first']} follows {self._taken - 1}, so "
                f"the state is of two times; {WAY_OUT}"
            )
        self._taken = max(self._taken, header["first"] + rows.num_rows)
        rows = rows.slice(min(known, rows.num_rows))
        kept = np.asarray(rows["ts_ms"].to_numpy()) >= self._from_ms
        rows = rows if kept.all() else rows.filter(pa.array(kept))
        first = self.total
        numbers = pa.array(np.arange(first, first + rows.num_rows))
        rows = rows.set_column(
            rows.schema.get_field_index("number"), rows.schema.field("number"), numbers
        )
        self.total += rows.num_rows
        self._count(rows)
        header["first"] = first
        if header["total"] is not None:
            header["total"] = self.total
        return rows, header

    def add(self, name: str, number: int) -> None:
        """Count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def _count(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        self.add("covered", rows.num_rows - rows["fm_version"].null_count)
        for task in self._tasks:
            mask = rows[f"mask_{task}"]
            self.add(f"examples.{task}", pc.sum(mask).as_py())
            self.add(f"positives.{task}", pc.sum(rows[f"label_{task}"].filter(mask)).as_py() or 0)
        for name, values in (("day", days(rows)), ("domain", rows["domain"])):
            for pair in values.value_counts().to_pylist():
                self.add(f"{name}.{pair['values']}", pair["counts"])


def days(rows: pa.Table) -> pa.ChunkedArray:
    """Day of each impression in UTC, as `2022-04-08`."""
    day = pc.cast(pc.floor(pc.divide(rows["ts_ms"].cast(pa.float64()), DAY_MS)), pa.int32())
    return pc.cast(day.cast(pa.date32()), pa.string())
