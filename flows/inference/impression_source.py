"""Impressions that the teacher may score: one source partition a partition of `impressions`.

A partition whose rows wait for a snapshot is parked: it reads no further, and is asked again a few
milliseconds later. Its checkpoint is the place of the first batch not wholly handed out, so a
restart scores some rows again; a prediction is identified by its impression's address, and the
first one counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from flows.events.reader import EventReader
from flows.inference.shuffle import PreviousRows
from flows.inference.teacher import AsOf, Integers, Mask, require_scored
from flows.panics import remembering
from flows.records import BEGIN_MS, END_MS, impression_schema
from flows.runner import stop_requested
from flows.settings import Settings
from monitoring.metrics import FM_WAITING
from onnx_export.store import SnapshotStore

PAUSE = timedelta(milliseconds=5)

State = tuple[tuple[int, int], "bytes | None"]
"""Offset and running maximum; rows of the control experiment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """Impressions of one partition to be scored now, and what is vouched for behind them."""

    partition: int
    table: pa.Table
    features: pa.Table
    """What is scored for each row: the row itself, but for the control experiment."""
    versions: Integers | None
    """Snapshot of each row, BEGIN_MS for none, shape [N]; None: the newest at scoring time."""
    progress_ms: int
    """Event time below which every on-time row read of this partition has been handed out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Impressions, and what is scored for each of them."""

    table: pa.Table
    features: pa.Table

    @property
    def ts_ms(self) -> Integers:
        """Event times, shape [N]."""
        ts_ms: Integers = self.table["ts_ms"].to_numpy()
        return ts_ms

    def where(self, mask: Mask) -> Rows:
        """The rows that `mask` names."""
        if mask.all():
            return self
        chosen = pa.array(mask)
        return Rows(table=self.table.filter(chosen), features=self.features.filter(chosen))


class ImpressionPartition(StatefulSourcePartition[Due, State]):
    """One partition of `impressions`.

    Args:
        partition: its number.
        reader: stands where the last checkpoint says.
        nothing: a table of impressions without rows.
        choice: of snapshots; None takes the newest, and never waits.
        previous: rows of the control experiment, or None.
    """

    def __init__(
        self,
        partition: int,
        reader: EventReader,
        nothing: pa.Table,
        choice: AsOf | None,
        previous: PreviousRows | None,
    ) -> None:
        self._partition = partition
        self._reader = reader
        self._nothing = nothing
        self._choice = choice
        self._previous = previous
        self._held: Rows | None = None
        self._watermark_ms = BEGIN_MS
        self._reported_ms = BEGIN_MS
        self._resume = self._place()
        self._parked = False
        self._awake: datetime | None = None

    @remembering
    def next_batch(self) -> list[Due]:
        """Rows whose snapshot is decided, and progress if it moved."""
        if stop_requested() or self._reported_ms == END_MS:
            raise StopIteration
        if self._held is None and self._watermark_ms < END_MS:
            self._read()
        due = self._due()
        self._park(self._held is not None)
        self._awake = None if due else datetime.now(timezone.utc) + PAUSE
        return due

    def next_awake(self) -> datetime | None:
        """Shortly, if there was nothing to hand out."""
        return self._awake

    def snapshot(self) -> State:
        """Where another process goes on."""
        return self._resume

    def close(self) -> None:
        """Leave the topic."""
        self._park(False)
        self._reader.close()

    def _read(self) -> None:
        batch = self._reader.read()
        if batch is None:
            return
        self._watermark_ms = batch.watermark_ms
        if batch.table.num_rows:
            features = self._previous.of(batch.table) if self._previous else batch.table
            self._held = Rows(table=batch.table, features=features)
        else:
            self._resume = self._place()

    def _due(self) -> list[Due]:
        rows, versions = self._release()
        progress_ms = self._watermark_ms
        if self._held is not None:
            progress_ms = min(progress_ms, int(self._held.ts_ms.min()))
        if rows is None and progress_ms <= self._reported_ms:
            return []
        self._reported_ms = max(self._reported_ms, progress_ms)
        table = rows.table if rows else self._nothing
        return [
            Due(
                partition=self._partition,
                table=table,
                features=rows.features if rows else table,
                versions=versions,
                progress_ms=self._reported_ms,
            )
        ]

    def _release(self) -> tuple[Rows | None, Integers | None]:
        """Rows that are due, and their snapshots; the others stay held."""
        rows = self._held
        if rows is None or self._choice is None:
            self._keep(None)
            return rows, None
        boundaries = self._choice.boundaries(rows.ts_ms)
        decided = self._choice.decided(boundaries)
        if not decided.any():
            return None, None
        self._keep(None if decided.all() else rows.where(~decided))
        return self._choose(rows.where(decided), boundaries[decided])

    def _choose(self, rows: Rows, boundaries: Integers) -> tuple[Rows | None, Integers | None]:
        assert self._choice is not None
        versions = np.full(len(boundaries), BEGIN_MS, dtype=np.int64)
        scored_before = np.zeros(len(boundaries), dtype=bool)
        for boundary in np.unique(boundaries).tolist():
            try:
                version = self._choice.version(boundary)
            except LookupError:  # retired: these rows were scored before a restart
                scored_before |= boundaries == boundary
                require_scored(self._choice.store, rows.ts_ms[boundaries == boundary])
                continue
            if version is not None:
                versions[boundaries == boundary] = version
        return rows.where(~scored_before), versions[~scored_before]

    def _keep(self, rows: Rows | None) -> None:
        if self._held is not None and rows is None:
            self._resume = self._place()
        self._held = rows

    def _place(self) -> State:
        rows = self._previous.state() if self._previous else None
        return self._reader.state(), rows

    def _park(self, parked: bool) -> None:
        if parked != self._parked:
            FM_WAITING.inc(1 if parked else -1)
            self._parked = parked


class ImpressionSource(FixedPartitionedSource[Due, State]):
    """All partitions of `impressions`."""

    def __init__(self, settings: Settings, store: SnapshotStore) -> None:
        self._settings = settings
        self._store = store

    def list_parts(self) -> list[str]:
        """Partition numbers."""
        return [str(p) for p in range(self._settings.topics.impressions.partitions)]

    @remembering
    def build_part(
        self, step_id: str, for_part: str, resume_state: State | None
    ) -> ImpressionPartition:
        """One partition, from the beginning or where its last checkpoint says."""
        place, rows = resume_state or (None, None)
        teacher = self._settings.teacher
        partition = int(for_part)
        return ImpressionPartition(
            partition,
            EventReader(self._settings, "impressions", partition, place, None),
            impression_schema(self._settings).empty_table(),
            AsOf(self._store, teacher) if self._settings.as_of else None,
            PreviousRows(rows) if teacher.shuffle_within_domain else None,
        )
